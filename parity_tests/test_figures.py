"""The figures in README and docs are those of the result files that they name."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def _result(name):
    return json.loads((RESULTS / name).read_text())


def test_the_exact_proof_in_the_readme_is_that_of_its_file():
    report = _result("verify_base64.json")
    assert report["verdict"] == "identical"
    for row in report["exact"]:
        shown = (
            f"| {row['rung']} | {row['padding']} | {row['mismatches']} of {row['outputs']:,} "
            f"| {row['gradients']['mismatches']} in {row['gradients']['tensors']} tensors "
            f"| {row['input_gradient']['mismatches']} of {row['input_gradient']['values']:,} |"
        )
        assert shown in README


def test_the_training_figures_in_the_readme_are_those_of_their_file():
    result = _result("nuclei.json")
    for shown in (
        f"a mean IoU of {result['mean_image_iou']:.3f}",
        f"± {result['standard_deviation']:.3f}",
        f"{len(result['runs'])} seeds",
        f"{result['runs'][0]['validation_images']} held-out images",
        f"{result['longest_s'] / 60:.1f} minutes",
    ):
        assert shown in README, shown


def test_the_timings_in_the_readme_are_those_of_their_file():
    rows = {
        row["case"] + (f", against torch {row['torch_variant']}" if "torch_ms" in row else ""): row
        for row in _result("bench_cpu.json")["rows"]
    }
    shown = re.findall(r"^\| (.*?) \| ([0-9.]+) \|$", README, re.MULTILINE)
    assert len(shown) == len(rows)
    for case, ratio in shown:
        assert f"{rows[case]['ratio']:.2f}" == ratio, case


TRAINING = (ROOT / "docs" / "training.md").read_text()


def test_the_kills_in_the_docs_are_those_of_their_file():
    found = _result("killed.json")
    assert found["equal"]
    assert f"killed {found['kills']} times" in TRAINING


def test_the_run_that_changed_the_framework_in_the_docs_is_that_of_its_file():
    found = _result("continued.json")
    for name, furthest in found["furthest_iou"].items():
        last = found["iou"][name][str(found["steps"])]
        row = f"| {name} | {last:.4f} | {furthest:.4f} |"
        assert row in TRAINING, row


def test_the_share_of_the_pipeline_in_the_docs_is_that_of_its_file():
    found = _result("pipeline.json")
    first, second = found["starts"]
    bare, whole = found["rounds_ms"]["bare"], found["rounds_ms"]["whole"]
    shares = [100 * a / b for a, b in zip(bare, whole, strict=True)]
    assert f"{100 * found['share']:.0f} % of the steps per second" in TRAINING
    spread = (
        f"ratio of the medians of {len(shares)} rounds, which are by themselves between "
        f"{min(shares):.0f} and {max(shares):.0f} %"
    )
    assert spread in TRAINING
    assert f"{first['compile_s']:.0f} s at the first start" in TRAINING
    assert f"{second['compile_s']:.1f} s at the second" in TRAINING


def test_the_meshes_in_the_docs_are_those_of_their_file():
    found = _result("sharding.json")
    shown = (ROOT / "docs" / "sharding.md").read_text()
    low, high = min(found["other_orders"]), max(found["other_orders"])
    assert f"in {len(found['other_orders'])} other orders" in shown
    assert f"between {low:.0e} and {high:.0e} apart" in shown
    for row in found["rows"]:
        halos = row["collectives"].get("collective-permute", 0)
        told = (
            f"| {row['data']} x {row['rows']} | {row['processes']} | {row['apart']:.0e} "
            f"| {row['memory_mb']:.1f} | {halos} | {row['largest_gather_kb']:.1f} |"
        )
        assert told in shown, told


PARITY = (ROOT / "docs" / "parity.md").read_text()


def test_the_optimizers_in_the_docs_are_those_of_their_file():
    for row in _result("optimizers.json")["rows"]:
        shown = (
            f"| {row['optimizer']} | {row['schedule']} | {row['ours']:.0e} | {row['stock']:.0e} |"
        )
        assert shown in PARITY


def test_the_evidence_for_the_bounds_in_the_docs_is_that_of_its_file():
    found = _result("verdicts.json")
    local, gradient = found["local_ratios"], found["gradient_ratios"]
    for shown in (
        f"{found['count']} healthy cases",
        f"{found['false_alarms']} false alarms",
        f"{found['largest_local_float64']:.0e} at most",
        f"{found['largest_gradient_float64']:.0e} at most",
        f"{local['0.0']:.2f} to {local['1.0']:.2f}",
        f"{gradient['0.0']:.2f} to {gradient['1.0']:.2f}",
        f"in {found['cases_with_flips']} of them",
    ):
        assert shown in PARITY, shown


def test_the_recorded_output_in_the_docs_is_that_of_its_file():
    found = _result("recorded_output.json")
    right, other = found["right"], found["other_concat"]
    assert (right["verdict"], other["verdict"]) == ("equivalent", "different")
    recorded = right["recorded"]
    for name in ("error", "torch_error", "jax_error"):
        assert f"{recorded[name] / recorded['scale']:.1e}" in PARITY
    assert f"ratio {recorded['ratio']:.2f}" in PARITY
    assert f"{other['recorded']['ratio']:.1e}" in PARITY
