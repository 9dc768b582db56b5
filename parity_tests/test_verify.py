"""What `unet verify` says: the verdict, the page, the file, and of what it can say nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity_tests import planted
from unet_parity import exact, inputs, oracle, page, precision, verify
from unet_parity.comparison import Comparer, compare_twins, draw_numbers
from unet_parity.differences import hash_tensors
from unet_parity.jax_twin import JaxRun
from unet_parity.recorded_output import judge_recorded
from unet_parity.torch_twin import torch_pass
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.outputs import apply_output
from unet_spec.recorded import read_recorded
from unet_spec.weight_file import WeightFile

SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10))
TENSORS = oracle.random_tensors(SMALL, seed=0)
X = oracle.random_input(SMALL, seed=5)[0]


def silent(text):
    pass


def run(config=SMALL, **options):
    return verify.verify(config, **{"steps": 0, "other_sizes": False, "say": silent, **options})


@pytest.fixture(scope="module")
def report():
    return run(weights=WeightFile(SMALL, TENSORS), x=X, steps=3)


def test_verdict_and_every_part_are_in_the_json(report):
    result = json.loads(json.dumps(report.to_json()))
    assert result["verdict"] == "equivalent"
    names = [row["name"] for row in result["layers"]]
    assert names[0] == "down_1"
    assert {"down_1.conv.conv.0", "neck.conv.2", "up_2.up", "out"} <= set(names)
    keys = {"name", "scale", "torch_error", "jax_error", "local_torch_error", "local_jax_error"}
    assert keys <= result["layers"][0].keys()
    assert {row["name"] for row in result["gradients"]} == {"input", *TENSORS}
    assert [len(t["parameters"]) for t in result["steps"]] == [3, 3]
    assert len(result["hashes"]["weights"]) == 64


def test_the_hash_is_of_these_weights(report):
    other = {**TENSORS, "out.bias": np.nextafter(TENSORS["out.bias"], 1, dtype=np.float32)}
    assert hash_tensors(TENSORS) == report.hashes["weights"] != hash_tensors(other)


def test_the_input_in_the_report_is_the_one_that_was_compared(monkeypatch):
    """Drawn once: a second draw would show the right input only as long as nobody changes one."""
    drawn, compared = [], []

    def draw(*arguments, right=oracle.random_input, **options):
        drawn.append(right(*arguments, **options))
        return drawn[-1]

    def record(self, numbers, right=Comparer.__call__, **options):
        compared.append(numbers.x)
        return right(self, numbers, **options)

    monkeypatch.setattr(oracle, "random_input", draw)
    monkeypatch.setattr(Comparer, "__call__", record)
    result = run(UNetConfig(widths=(4, 6), norm="batch"))
    assert len(drawn) == 1
    assert len(compared) == 2
    assert all(x is result.x is drawn[0][0] for x in compared)


def test_the_page_stands_alone_and_shows_every_module(report):
    text = page.make_page(report, command="unet verify x")
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    for layer in report.comparisons[0].layers:
        assert f'title="{layer.name}"' in text
    assert "sha256" in text
    assert report.hashes["weights"] in text


@pytest.mark.parametrize("name", ["concat swapped", "height and width swapped"])
def test_a_planted_bug_is_different_and_the_page_names_it(name):
    with planted.planted(name):
        result = run(weights=WeightFile(SMALL, TENSORS), x=X)
    module = planted.BUGS[name].module
    assert result.verdict == "different"
    assert result.reasons[0].startswith(f"inference: {module}: ")
    assert module in page.make_page(result)


def recorded(config=SMALL, noise=0.0):
    output = torch_pass(config, TENSORS, X, np.zeros((2, 4, *X.shape[2:]), np.float32)).output
    return output * np.float32(1 + noise)


def judge(report, output, config=SMALL):
    numbers = draw_numbers(config, TENSORS, x=X)
    result = judge_recorded(config, numbers, report.comparisons[0], output)
    verdict, reasons = verify.judge(
        config, report.structure, report.exact, report.comparisons, (), result, own_weights=True
    )
    return result, verdict, reasons


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        (recorded(), "equivalent"),
        (recorded(noise=1e-5), "different"),
        (recorded(replace(SMALL, concat="skip_first")), "different"),
    ],
    ids=["its_own", "a_little_scaled", "of_the_other_concat"],
)
def test_a_recorded_output_is_rounding_or_another_net(report, output, verdict):
    result, judged, reasons = judge(report, output)
    assert judged == verdict
    assert ("it is not of this net" in reasons[0]) == (verdict == "different")
    shown = replace(report, recorded=result, verdict=judged)
    plain = json.loads(json.dumps(shown.to_json()))["recorded"]
    assert (plain["holds"], plain["precision"]) == (verdict == "equivalent", "float32")
    assert str(result) in page.make_page(shown)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y.numpy(),
        lambda y: y.float().numpy(),
        lambda y: y.bfloat16().float().numpy(),
        lambda y: y.half().numpy(),
    ],
    ids=["float64", "float64_rounded", "bfloat16", "float16"],
)
def test_an_output_that_is_nearer_or_of_a_smaller_type_is_the_nets_own(report, make):
    truth = torch.tensor(report.comparisons[0].outputs.torch64)
    result, verdict, reasons = judge(report, make(truth))
    assert verdict == "equivalent"
    assert result.explained_by == ("torch", "jax")
    half = result.judgement.precision in ("bfloat16", "float16")
    assert half == any("whose rounding hides differences" in reason for reason in reasons)


# one is small, one changes a map's shape, one stops the net
@pytest.mark.parametrize(
    "name", ["concat swapped", "height and width swapped", "one tensor of zeros"]
)
def test_a_bug_in_jax_is_not_blamed_on_what_torch_recorded(report, name):
    cotangent = np.ones((2, 4, *X.shape[2:]), np.float32)
    other = replace(SMALL, activation="leaky_relu", negative_slope=0.3)
    with planted.planted(name):
        broken = replace(report, comparisons=(compare_twins(SMALL, TENSORS, train=False, x=X),))
        for dtype in ("float32", "float64", "bfloat16"):
            output = torch_pass(SMALL, TENSORS, X, cotangent, dtype=dtype).output
            result, verdict, reasons = judge(broken, output)
            assert verdict == "different"
            assert reasons[0].startswith(f"inference: {planted.BUGS[name].module}")
            assert result.explained_by == ("torch",)
            assert reasons[-1].endswith("so the fault is in JAX's net")
            assert not any("it is not of this net" in reason for reason in reasons)
            wrong = torch_pass(other, TENSORS, X, cotangent, dtype=dtype)
            assert "it is not of this net" in judge(broken, wrong.output)[2][-1]


def test_a_bug_in_torch_is_not_blamed_on_what_jax_recorded(report, monkeypatch):
    output = report.comparisons[0].outputs.jax32
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: F.leaky_relu(x, 0.1))
    broken = replace(report, comparisons=(compare_twins(SMALL, TENSORS, train=False, x=X),))
    result, verdict, reasons = judge(broken, output)
    assert (verdict, result.explained_by) == ("different", ("jax",))
    assert reasons[-1].endswith("so the fault is in PyTorch's net")


@pytest.mark.parametrize("function", ["sigmoid", "softmax"])
def test_a_recorded_output_has_the_originals_function_in_it(report, function):
    config, logits = replace(SMALL, output=function), recorded()
    whole = apply_output(config, logits, axis=1)
    assert judge(report, whole, config)[1] == "equivalent"
    assert judge(report, whole)[1] == judge(report, logits, config)[1] == "different"


def test_a_record_of_another_shape_is_refused(report):
    with pytest.raises(InputError, match="recorded output has the shape"):
        judge(report, np.zeros((2, 4, 3, 3), np.float32))


def test_a_device_of_fewer_bits_is_asked_the_rungs_that_it_can(monkeypatch):
    monkeypatch.setattr(precision, "significand_bits", lambda *args: 11)
    result = run()
    assert {row.rung for row in result.exact} == {"tf32", "bf16"}
    assert result.verdict == "identical"
    assert any("fp32 is not asked" in reason for reason in result.reasons)


def test_the_cpu_keeps_all_bits_of_a_float32():
    assert precision.significand_bits() == 24


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": {**TENSORS, "out.bias": TENSORS["out.bias"] * np.nan}}, "NaN or infinite"),
        ({"weights": {n: 0 * t for n, t in TENSORS.items()}}, "same output whatever"),
        ({"x": X * np.inf}, "NaN or infinite"),
    ],
    ids=["nan_weights", "dead_weights", "infinite_input"],
)
def test_what_says_nothing_is_refused(change, sentence):
    tensors = change.get("weights", TENSORS)
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=sentence):
        run(**{"x": X, **change, "weights": WeightFile(SMALL, tensors)})


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda p: np.savez(p, x=X), "the output y"),
        (lambda p: np.savez(p, x=X[:, :1], y=X), "the net takes"),
        (lambda p: np.savez(p, x=X[:, :, 1:], y=X), r"golden\.npz: x: .* nearest"),
        (lambda p: np.savez(p, x=X, y=X[:, :, 1:]), r"golden\.npz: y has the shape"),
        (lambda p: p.write_bytes(b"no zip"), "not a whole .npz"),
    ],
    ids=["no_output", "channels", "size", "output", "damaged"],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, write, sentence):
    path = tmp_path / "golden.npz"
    write(path)
    with pytest.raises(InputError, match=sentence):
        inputs.check_recorded(*read_recorded(path), SMALL, source=path)


def test_an_image_becomes_the_nets_input_at_a_legal_size():
    pixels = np.random.default_rng(0).integers(0, 255, (37, 300, 3), np.uint8)
    path = Path("image.png")
    assert inputs.crop_middle(pixels, SMALL, Preprocessing(), source=path).shape == (1, 3, 36, 256)
    with pytest.raises(InputError, match=r"image\.png: 2 pixels are too few for this net"):
        inputs.crop_middle(pixels[:2, :2], SMALL, Preprocessing(), source=path)
    with pytest.raises(InputError, match=f"{path.name}: the image has 2 channels"):
        inputs.crop_middle(pixels[..., :2], SMALL, Preprocessing(), source=path)


def test_the_exact_proof_is_in_the_precision_that_is_asked_for(monkeypatch):
    precisions = []

    class Recorder(JaxRun):
        def __init__(self, *arguments, precision="highest", **options):
            precisions.append(precision)
            super().__init__(*arguments, precision=precision, **options)

    monkeypatch.setattr(exact, "JaxRun", Recorder)
    run(UNetConfig(widths=(4, 6)), jax_precision="default")
    assert set(precisions) == {"default"}
