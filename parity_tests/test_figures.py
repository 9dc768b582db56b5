"""The figures in README and docs are those of the result files, and there are no others."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flax import nnx
from torch import nn

from benchmarks import plan, speed_tables
from benchmarks.watched import FAULTS
from parity_tests.shown import DOCUMENTS, ROOT
from unet_convert import names_map
from unet_image import array_file, jpeg_file, tiff_file
from unet_parity import exact, fault, float32_errors, integer_cases, oracle, training, verify
from unet_parity.pair import numbers
from unet_parity.runs import distances
from unet_spec import config, judgement, recorded, safetensors_file
from unet_spec.preprocessing import LARGEST_GB
from unet_torch import outline
from unet_train.config import MODERN
from unet_train.input import split
from unet_train.run import folder

RESULTS = ROOT / "benchmarks" / "results"
Figure = tuple[str, str]
"""A document by its path, and a text with figures that stands in it."""


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def exact_proof() -> Iterator[Figure]:
    report = _result("verify_base64.json")
    for row in report["exact"]:
        yield (
            "README.md",
            (
                f"| {row['rung']} | {row['padding']} | {row['mismatches']} of {row['outputs']:,} "
                f"| {row['gradients']['mismatches']} in {row['gradients']['tensors']} tensors "
                f"| {row['input_gradient']['mismatches']} of {row['input_gradient']['values']:,} |"
            ),
        )
    yield "README.md", f"{report['structure']['parameters']:,} parameters"


def nuclei() -> Iterator[Figure]:
    result = _result("nuclei.json")
    score = f"{result['mean_image_iou']:.3f}"
    deviation, seeds = f"{result['standard_deviation']:.3f}", f"{len(result['runs'])} seeds"
    minutes = f"{result['longest_s'] / 60:.1f} minutes"
    yield "README.md", f"a mean IoU of {score} (± {deviation} over {seeds}"
    first = result["runs"][0]
    parts = f"{first['training_images']} for training and {first['validation_images']} held-out"
    yield "README.md", f"{parts} images"
    yield "README.md", f"at most {minutes}"
    yield "docs/training.md", f"mean IoU {score} ± {deviation} over {seeds}, at most {minutes}"


def timings() -> Iterator[Figure]:
    result = _result("bench_cpu.json")
    for lines in (speed_tables.list_layers, speed_tables.list_nets, speed_tables.list_slopes):
        for line in lines(result):
            yield "README.md", line
    yield "README.md", speed_tables.describe_nets(result)


def kills() -> Iterator[Figure]:
    yield "docs/training.md", f"killed {_result('killed.json')['kills']} times"


def continued() -> Iterator[Figure]:
    result = _result("continued.json")
    for name, furthest in result["furthest_iou"].items():
        last = result["iou"][name][str(result["steps"])]
        yield "docs/training.md", f"| {name} | {last:.4f} | {furthest:.4f} |"


def pipeline() -> Iterator[Figure]:
    result = _result("pipeline.json")
    first, second = result["starts"]
    rounds = zip(result["rounds_ms"]["bare"], result["rounds_ms"]["whole"], strict=True)
    shares = [100 * bare / whole for bare, whole in rounds]
    yield "docs/training.md", f"{100 * result['share']:.0f} % of the steps per second"
    yield (
        "docs/training.md",
        (
            f"ratio of the medians of {len(shares)} rounds, which are by themselves between "
            f"{min(shares):.0f} and {max(shares):.0f} %"
        ),
    )
    yield "docs/training.md", f"{first['compile_s']:.0f} s at the first start"
    yield "docs/training.md", f"{second['compile_s']:.1f} s at the second"


def startup() -> Iterator[Figure]:
    result = _result("startup.json")
    cold, warm = (result["train_s"][name]["up to the first step"] for name in ("cold", "warm"))
    yield "docs/training.md", f"first step after {cold:.1f} s with an empty compilation cache"
    yield "docs/training.md", f"after {warm:.1f} s when the same net was trained before"
    one, many = result["predict_s"]["one"], result["predict_s"]["many"]
    seconds = f"{one['cold']:.1f} s for one image, and {one['warm']:.1f} s the next time"
    yield "docs/training.md", seconds
    seconds = f"it takes {many['cold']:.1f} s and then {many['warm']:.1f} s"
    yield "docs/training.md", f"For {many['images']} images of as many sizes {seconds}"


def augmentation() -> Iterator[Figure]:
    result = _result("augmentation.json")
    rows = {(row["preset"], row["form"]): row for row in result["tpu"] if row["data"] == 1}
    for preset in ("modern", "paper"):
        before, after = rows[preset, "gathers"], rows[preset, "products"]
        moved = f"moves {after['moved_gb']:.1f} GB instead of {before['moved_gb']:.1f}"
        yield "docs/training.md", f"{moved} and takes {after['estimate_ms']:.1f} ms"
        yield "docs/training.md", f"at least {before['moved_ms']:.1f} ms"
    assert not any(row["collectives"] for row in result["tpu"])


def more_than_memory() -> Iterator[Figure]:
    result = _result("more_than_memory.json")
    decoded, cache = f"{result['decoded_bytes'] / 1e9:.0f} GB", result["cache_gb"]
    start, peak = f"{result['start_s']:.0f} s", f"{result['peak_memory_bytes'] / 1e9:.1f} GB"
    yield "docs/training.md", f"{result['images']:,} images in colour, {decoded} decoded"
    yield "docs/training.md", f"With `--data.cache-gb {cache}` the first step is done after {start}"
    yield "docs/training.md", f"takes at most {peak} of memory"
    assert result["equal"]
    warm, cold = (100 * result["share_of_memory"][name] for name in ("warm", "cold"))
    yield "docs/training.md", f"{warm:.0f} % of the steps per second"
    yield "docs/training.md", f"with none of them {cold:.0f} %"


def sharding() -> Iterator[Figure]:
    result = _result("sharding.json")
    low, high = min(result["other_orders"]), max(result["other_orders"])
    yield "docs/sharding.md", f"in {len(result['other_orders'])} other orders"
    yield "docs/sharding.md", f"between {low:.0e} and {high:.0e} apart"
    for row in result["rows"]:
        halos = row["collectives"].get("collective-permute", 0)
        yield (
            "docs/sharding.md",
            (
                f"| {row['data']} x {row['rows']} | {row['processes']} | {row['different']} "
                f"| {row['apart']:.0e} | {row['memory_mb']:.1f} | {halos} "
                f"| {row['largest_gather_kb']:.1f} |"
            ),
        )
    assert [row["different"] for row in result["rows"]] == [0] * len(result["rows"])
    exact = result["exact"]
    yield "docs/sharding.md", f"each new weight, {exact['values']:,} values in all"
    for row in exact["in_parts"]:
        yield "docs/sharding.md", f"`--accumulate {row['parts']}`"
        assert (row["data"], row["rows"]) in ((1, 1), (2, 4))
        assert row["different"] == 0


def sharding_tpu() -> Iterator[Figure]:
    result = _result("sharding_tpu.json")
    size, mesh = f"{result['crop_px']} x {result['crop_px']}", f"TPU {result['topology']}"
    spread = f"with `data` {result['data']} and `rows` {result['rows']}"
    yield "docs/sharding.md", f"images of {size} on {mesh}, {spread}"
    halos, sums = (result["collectives"][kind] for kind in ("collective-permute", "all-reduce"))
    exchanges = f"exchanges {halos['count']} halos with its neighbours (`collective-permute`)"
    yield "docs/sharding.md", f"{exchanges}, {halos['mb']} MB in all"
    added = f"takes part in {sums['count']} sums (`all-reduce`), {sums['mb']} MB in all"
    yield "docs/sharding.md", added
    yield "docs/sharding.md", f"needs {result['memory_gb']:.1f} GB of memory"
    assert tuple(result["widths"]) == MODERN.net.widths
    assert result["largest_halo_rows"] == 1
    assert result["other_than_halos_and_sums"] == []
    assert len(result["collectives"]) == 2


def optimizers() -> Iterator[Figure]:
    for row in _result("optimizers.json")["rows"]:
        apart = f"{row['ours']:.0e} | {row['stock']:.0e}"
        yield "docs/parity.md", f"| {row['optimizer']} | {row['schedule']} | {apart} |"


def verdicts() -> Iterator[Figure]:
    result = _result("verdicts.json")
    local, gradient = result["local_ratios"], result["gradient_ratios"]
    for text in (
        f"{result['count']} healthy cases",
        f"{result['false_alarms']} false alarms",
        f"{result['largest_local_float64']:.0e} at most",
        f"{result['largest_gradient_float64']:.0e} at most",
        f"{local['0.0']:.2f} to {local['1.0']:.2f}",
        f"{gradient['0.0']:.2f} to {gradient['1.0']:.2f}",
        f"In {result['cases_with_flips']} of the {result['count']} healthy cases",
        f"The largest ratios in healthy nets were {local['1.0']:.2f} and {gradient['1.0']:.2f}",
    ):
        yield "docs/parity.md", text


def accelerator() -> Iterator[Figure]:
    sections = _result("accelerator_h100.json")["sections"]
    for row in sections["speed"]["rows"]:
        what = f"{row['arithmetic']}, {row['case'].rpartition(', ')[2]}"
        speed = f"{row['jax_images_per_s']:,.0f} | {row['torch_variant']} | {row['ratio']:.2f}"
        yield "README.md", f"| {what} | {speed} |"
    for preset in ("modern", "paper"):
        run = sections["train"][preset]
        yield (
            "docs/training.md",
            (
                f"{run['images_per_s']:,.0f} images per second over {run['step']} steps on an "
                f"NVIDIA H100, after {run['compile_s']:.0f} s of compiling"
            ),
        )
    assert sections["resume"]["equal"]
    columns = [
        {
            f"{row['rung']} | {row['jax_precision']} | {row['padding']}": (
                f"{row['mismatches']:,} outputs, {row['gradients']['mismatches']:,} gradients"
            )
            for row in sections[section]["exact"]
        }
        for section in ("exact", "exact_without_autotuning")
    ]
    for key in columns[0] | columns[1]:
        counts = " | ".join(column.get(key, "left out") for column in columns)
        yield "docs/parity.md", f"| {key} | {counts} |"


def bounds() -> Iterator[Figure]:
    for bound in (fault.LOCAL_BOUND, oracle.GRADIENT_BOUND, fault.LOCAL_GRADIENT_BOUND):
        yield "docs/parity.md", f"{bound:.0e}"
    steps = f"{training.BOUND:.0e}".replace("e-0", "e-")
    output, gradient = (f"{bound:.0e}" for bound in (oracle.OUTPUT_BOUND, oracle.GRADIENT_BOUND))
    yield (
        "docs/any-net.md",
        f"Outputs agree to {output}, gradients of every parameter and input to {gradient}",
    )
    yield "docs/any-net.md", f"may be {distances.FACTOR:g} times as far from the run"
    yield "docs/any-net.md", f"inputs that are {numbers.LARGE:g} times as large"
    yield "docs/any-net.md", f"less than {100 * distances.NEAR_TIE:.0f} % off"
    yield "docs/any-net.md", f"a factor of up to 1 + {distances.CONSTANT:.1e} that all updates"
    yield "README.md", f"agree to {output} (gradients to {gradient})"
    yield (
        "README.md",
        f"more than {oracle.FACTOR:g} times the other "
        f"({float32_errors.GRADIENT_FACTOR:g} times for gradients)",
    )
    yield "README.md", f"to {steps} in float64"
    yield "README.md", f"at most {training.FACTOR:g} times as far apart"
    full, half = (f"{factor:g}" for factor in (judgement.FACTOR, judgement.HALF_FACTOR))
    yield "docs/parity.md", f"may be {full} times as far from float64 as this net"
    yield "docs/parity.md", f"and {half} times the nearer net's error is allowed"
    yield (
        "docs/parity.md",
        f"| {full} times the float32 error of the nearer net; {half} times its error in bfloat16",
    )
    yield "docs/parity.md", f"| 50 training steps in float64 | {steps} |"
    yield "docs/parity.md", f"to {steps} in float64 (`parity_tests/test_training_state.py`)"
    default = inspect.signature(verify.verify).parameters["steps"].default
    yield "docs/parity.md", f"`unet verify` runs {default} training steps"
    fp32, tf32, bf16 = (f"2^{rung.bits}" for rung in integer_cases.RUNGS)
    yield "docs/parity.md", f"float32 up to {fp32}, TF32 up to {tf32} and bfloat16 up to {bf16}"
    yield "docs/parity.md", f"at most 2^{exact.ACCUMULATOR_BITS}, because"
    yield "docs/parity.md", f"fewer than {exact.LEAST_DISTINCT} different output values"
    result = _result("rounding.json")
    low, high = result["quantiles"]["0.0"], result["quantiles"]["1.0"]
    yield "docs/parity.md", f"{low:.2f} to {high:.2f} in {result['count']} nets"


def recorded_output() -> Iterator[Figure]:
    result = _result("recorded_output.json")
    right, other = result["right"], result["other_concat"]
    assert (right["verdict"], other["verdict"]) == ("equivalent", "different")
    recorded = right["recorded"]
    names = {"error": "the recorded output", "torch_error": "PyTorch here", "jax_error": "JAX here"}
    for name, row in names.items():
        yield "docs/parity.md", f"| {row} | {recorded[name] / recorded['scale']:.1e} |"
    yield "docs/parity.md", f"ratio {recorded['ratio']:.2f}"
    yield "docs/parity.md", f"{other['recorded']['ratio']:.1e}"


def own_net() -> Iterator[Figure]:
    result = _result("own_net.json")
    there, order = (result["distance"][n] for n in ("torch, JAX, torch", "another order of sums"))
    yield "docs/your-own-net.md", f"| PyTorch, JAX, PyTorch | {there:.4f} |"
    yield (
        "docs/your-own-net.md",
        f"| PyTorch, PyTorch with sums in another order, PyTorch | {order:.4f} |",
    )
    yield "docs/your-own-net.md", f"All runs take {result['steps']} steps"
    yield "docs/your-own-net.md", f"| {result['leg']} steps in each |"
    yield "docs/your-own-net.md", f"agree to {training.BOUND:.0e}".replace("e-0", "e-")


def limits() -> Iterator[Figure]:
    for document in ("docs/limits.md", "docs/images.md"):
        yield document, f"{LARGEST_GB} GB"
    yield "docs/images.md", f"{int(LARGEST_GB * 1e9) // 4:,} values"
    for what, most in (
        ("an image, as float32", f"{LARGEST_GB} GB"),
        ("pages of a TIFF", f"{tiff_file.MOST_DIRECTORIES:,}"),
        ("chunks of a zarr image", f"{array_file.MOST_CHUNKS:,}"),
        ("scans of a progressive JPEG", f"{jpeg_file.MOST_SCANS}"),
        ("levels of a net, in a file or in flags", f"{config.MOST_LEVELS}"),
        ("convolutions of a level", f"{config.MOST_CONVOLUTIONS}"),
        ("tensors of a weight file", f"{safetensors_file.MOST_TENSORS:,}"),
        ("tensors of a weight file", f"{outline.MOST_TENSORS:,}"),
        ("a recorded pair (`.npz`), unpacked", f"{recorded.MOST_BYTES >> 20} MiB and four times"),
        ("the names of a net (`--names`)", f"{names_map.MOST_BYTES >> 20} MiB"),
        ("a file of a split (`--data.split`)", f"{split.MOST_BYTES >> 20} MiB"),
        ("a JSON file of a run", f"{folder.MOST_BYTES >> 20} MiB"),
    ):
        yield "docs/limits.md", f"| {what} | {most}"


def wrong_input() -> Iterator[Figure]:
    result = _result("wrong_input.json")
    assert not result["details"]
    for group, what in (
        ("weights", "weight files"),
        ("images", "images"),
        ("pairs", "recorded pairs"),
        ("runs", "files of a run"),
        ("commands", "commands"),
        ("bad days", "bad days of a run"),
    ):
        counts, cases = result["counts"][group], result["cases"][group]
        faults = sum(counts.get(end, 0) for end in FAULTS)
        accepted = cases - counts["refused"] - faults
        row = f"| {what} | {cases:,} | {counts['refused']:,} | {accepted:,} | {faults} |"
        yield "docs/limits.md", row
    unchecked = sum(result["counts"][g].get("unchecked", 0) for g in ("weights", "images", "pairs"))
    yield "docs/limits.md", f"{unchecked} of them no other reader here can read"
    assert result["longest_seconds"] <= 5
    assert result["largest_growth_mb"] <= 1000


def tpu_forms() -> Iterator[Figure]:
    result = _result("tpu_forms.json")
    document = "docs/architecture.md"
    for name, programs in result["rows"].items():
        cells = [_estimate(programs.get(kind)) for kind in ("forward", "step", "step_batch_norm")]
        moved = programs.get("step_batch_norm", {}).get("gb_moved", "")
        yield document, f"| {name} | {' | '.join(cells)} | {moved} |"
    first, best = (result["rows"][name] for name in ("the CPU's forms", "all of TPU's forms"))
    for before, after in ((first["forward"], best["forward"]), (first["step"], best["step"])):
        share = f"{100 * before['of_flop_bound']:.0f} % to {100 * after['of_flop_bound']:.0f} %"
        yield document, f"from {share}"
    yield document, f"libtpu {result['versions']['libtpu']} and JAX {result['versions']['jax']}"


def plans() -> Iterator[Figure]:
    rows = _result("plan.json")["rows"]
    refused, advised = rows["too large"], rows["as advised"]
    assert not refused["fits"]
    assert f"--data.batch {advised['batch']}," in refused["advice"]
    assert advised["fits"]
    # the text between the tables says which row is next
    yield "docs/plan.md", "\n".join(plan.list_lines(rows))


def gpu_program() -> Iterator[Figure]:
    programs = _result("gpu_program.json")["programs"]
    for program in programs.values():
        assert all(name.endswith("channels last") for name in program["cudnn"])
        assert program["no_cudnn"] == program["moved_maps"] == []
    forward, step = (programs[name]["pixel_shuffles"] for name in ("forward", "step"))
    assert programs["step_batch_norm"]["pixel_shuffles"] == step
    yield "docs/architecture.md", f"{forward} in the forward pass and {step} in a step"


def _estimate(program: dict[str, Any] | None) -> str:
    """An estimate in ms, and what the operations without one take at least."""
    if program is None:
        return ""
    missing = program["without_estimate_at_least_ms"]
    return f"{program['estimate_ms']:.1f}" + (f" + {missing:.1f}" if missing >= 0.05 else "")


def eps() -> Iterator[Figure]:
    flax = inspect.signature(nnx.GroupNorm.__init__).parameters["epsilon"].default
    torchs, of_flax = (
        f"{value:.0e}".replace("e-0", "e-") for value in (nn.GroupNorm(1, 1).eps, flax)
    )
    yield "README.md", f"PyTorch's eps of {torchs} and one with Flax's of {of_flax}"


SOURCES: tuple[Callable[[], Iterator[Figure]], ...] = (
    exact_proof, nuclei, timings, kills, continued, pipeline, augmentation, startup,
    more_than_memory, sharding, sharding_tpu, optimizers, verdicts, bounds, recorded_output,
    accelerator, own_net, eps,
    limits, wrong_input, tpu_forms, gpu_program, plans,
)  # fmt: skip
CONSTANTS = {
    "docs/training.md": ("momentum 0.99", "1e-3 is ours"),  # of the preset `paper`
    "README.md": ("3.11", "2.0"),  # of Python, of the licence
    "docs/parity.md": ("1.2e-38", "1e-40"),  # float32's smallest normal number, and one below
    "docs/sharding.md": ("v5e-8",),  # a TPU's name
}
"""Numbers that look like figures and were not measured."""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_the_figures_of_a_result_file_stand_in_the_documents(source):
    figures = list(source())
    assert figures
    for document, text in figures:
        assert text in (ROOT / document).read_text(), text


def test_every_figure_in_a_document_is_one_of_a_result_file():
    figures = [figure for source in SOURCES for figure in source()]
    unknown = {
        str(name): found
        for document in DOCUMENTS
        if (found := figures_beyond(document.read_text(), str(
            name := document.relative_to(ROOT)
        ), figures))
    }  # fmt: skip
    assert unknown == {}


def figures_beyond(text: str, document: str, figures: list[Figure]) -> list[str]:
    """Numbers with decimals, exponents or a percent sign in a document that no file explains."""
    known = [figure for name, figure in figures if name == document]
    for pattern in (r"^```.*?^```$", r"<!-- planted bugs -->.*?<!-- end of planted bugs -->",
                    r"<!-- pairs -->.*?<!-- end of pairs -->",
                    r"`[^`\n]+`", r"\]\([^)\s]*\)"):  # fmt: skip
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    for stated in sorted([*known, *CONSTANTS.get(document, ())], key=len, reverse=True):
        text = text.replace(re.sub(r"`[^`\n]+`", " ", stated), " ")
    return re.findall(r"\d+\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+ ?%", text)


def test_a_figure_that_was_changed_is_noticed():
    figures = [("A.md", "a mean of 0.843")]
    assert figures_beyond("a mean of 0.843 in `0.5`", "A.md", figures) == []
    assert figures_beyond("a mean of 0.844", "A.md", figures) == ["0.844"]
    assert figures_beyond("97 % of 3e-5", "A.md", figures) == ["97 %", "3e-5"]
