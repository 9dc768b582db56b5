from dataclasses import replace

import numpy as np
import pytest

from unet_parity import exact, integer_cases
from unet_parity.integer_cases import RUNGS, Case
from unet_spec import SLIDES, UNetConfig, geometry

FP32, TF32, BF16 = RUNGS
SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10))
NETS = {
    "slides": SMALL,
    "valid": replace(SMALL, padding="valid"),
    "skip_first": replace(SMALL, concat="skip_first"),
    "nearest": replace(SMALL, up="nearest"),
    "bias_free": replace(SMALL, bias=False),
}
# the rung tf32 computes in the type of fp32
EXPANDING = {
    "one_convolution": replace(SMALL, convolutions=1),
    "three_convolutions_valid": replace(SMALL, convolutions=3, padding="valid"),
    "narrower": replace(SMALL, up_widths=(6, 4), up_middle="half"),
    "nearest_alone": replace(
        SMALL, up="nearest", up_convolution=False, up_widths=(6, 4), up_middle="half",
        concat="skip_first",
    ),
    "one_channel": replace(SMALL, classes=1, output="sigmoid"),
}  # fmt: skip
# nearest up-sampling sums four gradients at a time: no small net of it with a convolution after it
# fits bfloat16
PROVEN = [(net, rung) for net in NETS for rung in RUNGS if (net, rung) != ("nearest", BF16)]
PROVEN += [(net, rung) for net in EXPANDING for rung in (FP32, BF16)]
NETS |= EXPANDING


@pytest.mark.parametrize(
    ("net", "rung"), PROVEN, ids=[f"{net}-{rung.name}" for net, rung in PROVEN]
)
def test_twins_and_float64_are_equal_in_every_bit(request, net, rung):
    if net == "slides":
        request.getfixturevalue("optimised")
    row = exact.prove(NETS[net], rung)
    assert not row.refused
    assert (row.mismatches, row.gradients["mismatches"], row.input_gradient["mismatches"]) == (
        0, 0, 0,
    )  # fmt: skip
    assert row.holds
    assert row.largest <= 2**rung.bits
    assert row.distinct >= exact.LEAST_DISTINCT


@pytest.mark.parametrize(
    ("padding", "fit", "height", "width"),
    [("same", "zeros", 13, 23), ("same", "edge", 13, 23), ("same", "crop", 13, 23),
     ("valid", "crop", 47, 57)],
    ids=["zeros", "edge", "crop", "valid_crop"],
)  # fmt: skip
def test_twins_are_equal_in_every_bit_at_odd_sizes(padding, fit, height, width):
    config = replace(SMALL, padding=padding, fit=fit)
    case = sized(config, height, width)
    truth = exact.find_truth(config, case, FP32)
    assert not truth.refusals
    assert exact.compare_exactly(config, case, FP32, truth).holds


def test_twins_are_equal_in_every_bit_at_full_width(optimised):
    row = exact.prove(SLIDES, FP32)
    assert row.holds
    assert row.gradients["tensors"] == 46
    assert row.distinct > 100


def sized(config: UNetConfig, height: int, width: int) -> Case:
    """The first certifiable case of the module, moved to another size."""
    rng = np.random.default_rng(0)
    shape = (1, config.classes, *(geometry.output_size(config, s) for s in (height, width)))
    return replace(
        integer_cases.make_case(config, taps=FP32.taps, seed=0),
        x=rng.integers(-2, 3, (1, config.in_channels, height, width)).astype(np.float32),
        cotangent=rng.integers(-1, 2, shape).astype(np.float32),
    )


def test_overflow_of_the_rung_is_refused():
    config = replace(SMALL, widths=(6, 8, 10, 12))
    case = integer_cases.make_case(config, taps=4.0, seed=0)
    truth = exact.find_truth(config, case, BF16)
    assert truth.largest > 2**BF16.bits
    assert f"a value of {truth.largest:.0f} overflows the rung, 2^8" in truth.refusals
    assert not exact.find_truth(config, case, FP32).refusals


def test_overflow_of_the_accumulator_is_refused():
    case = integer_cases.make_case(SMALL, taps=4.0, seed=0)
    scaled = {name: tensor * 16 for name, tensor in case.tensors.items()}
    refusals = exact.find_truth(SMALL, replace(case, tensors=scaled), FP32).refusals
    assert any("overflows the accumulator" in refusal for refusal in refusals)


def test_what_is_certified_to_overflow_is_really_inexact():
    """The rung's bound is needed: past it, bfloat16 differs from float64."""
    config = replace(SMALL, widths=(6, 8, 10, 12))
    case = integer_cases.make_case(config, taps=4.0, seed=0)
    truth = exact.find_truth(config, case, BF16)
    assert truth.refusals
    row = exact.compare_exactly(config, case, BF16, replace(truth, refusals=()))
    assert row.mismatches > 0


@pytest.mark.parametrize(
    ("dead", "words"),
    [("tensors", "distinct outputs"), ("cotangent", "gradients are all zero"),
     ("x", "gradients are all zero")],
)  # fmt: skip
def test_vacuous_case_is_refused(dead, words):
    case = integer_cases.make_case(SMALL, taps=FP32.taps, seed=0)
    assert not exact.find_truth(SMALL, case, FP32).refusals
    cases = {
        "tensors": replace(case, tensors={n: 0 * t for n, t in case.tensors.items()}),
        "cotangent": replace(case, cotangent=0 * case.cotangent),
        "x": replace(case, x=0 * case.x),
    }
    refusals = exact.find_truth(SMALL, cases[dead], FP32).refusals
    assert any(words in refusal for refusal in refusals)


def test_what_cannot_be_certified_is_refused_not_passed():
    row = exact.prove(SMALL, replace(BF16, bits=2, taps=1.0))
    assert "overflows the rung" in row.refused
    assert not row.holds


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "batch"}, "norm=batch divides"),
        ({"norm": "group", "groups": 2}, "norm=group divides"),
        ({"norm": "instance"}, "norm=instance divides"),
        ({"activation": "leaky_relu"}, "activation=leaky_relu multiplies by 0.01"),
        ({"up": "bilinear"}, "up=bilinear multiplies by fractions"),
        ({"up": "bilinear_aligned"}, "up=bilinear_aligned multiplies by fractions"),
    ],
    ids=["batch", "group", "instance", "leaky_relu", "bilinear", "bilinear_aligned"],
)
def test_nets_without_an_exact_proof_say_why(change, words):
    assert words in integer_cases.explain_no_proof(replace(SMALL, **change))
    assert not integer_cases.explain_no_proof(SMALL)


def test_shapes_are_compared_before_values():
    """A (3,) and a (1, 3) of one value would pass a comparison that broadcasts."""
    three, wide = np.ones(3), np.ones((1, 3))
    assert exact.count_mismatches(three, three, three) == 0
    assert exact.count_mismatches(three, three, wide) == 3
    assert exact.count_mismatches(three, np.array([1, 1, 2.0]), three) == 1
    assert exact.count_mismatches(three, three, np.array([1, 1, np.nan])) == 1
