"""Every architecture axis, forward and backward, in float64."""

from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Literal

import numpy as np
import pytest

from parity_tests.float64 import problems
from unet_parity import oracle
from unet_parity.comparison import compare_twins
from unet_parity.jax_twin import jax_pass
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig, geometry

# b=2, 3 channels in, 4 classes: no two axes of any array are of one length by accident
SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10), groups=2, dropout=0.3)
SIZES = {"same": (12, 20), "valid": (44, 52)}
# where all axes meet there is every kind of module once; what only more levels show has its own
# tests below
SHALLOW_SIZES = {"same": (6, 10), "valid": (24, 28)}

PADDINGS: tuple[Literal["same", "valid"], ...] = ("same", "valid")
CONCATS: tuple[Literal["up_first", "skip_first"], ...] = ("up_first", "skip_first")
UPS = ("transposed", "bilinear", "bilinear_aligned", "nearest")
NORMS = {
    "unnormalised": SMALL,
    **{
        f"{norm}-{place}": replace(SMALL, norm=norm, norm_place=place)
        for norm in ("batch", "group", "instance")
        for place in ("before", "after")
    },
}


AXES = (PADDINGS, tuple(NORMS), UPS, (True, False), ("relu", "leaky_relu"), CONCATS)  # fmt: skip


def _eighth():
    """Of all combinations of the axes those in which any three axes still meet in every way."""
    places = product(*(range(len(values)) for values in AXES))
    return [
        tuple(values[place] for values, place in zip(AXES, (p, n, u, b, a, c), strict=True))
        for p, n, u, b, a, c in places
        if (p + b + u + n) % 2 == 0
        and (p + a + u // 2 + n // 2) % 2 == 0
        and (p + c + u + u // 2 + n // 4) % 2 == 0
    ]


EIGHTH = _eighth()


def test_any_three_axes_meet_in_every_way():
    for three in combinations(range(len(AXES)), 3):
        met = {tuple(case[axis] for axis in three) for case in EIGHTH}
        assert met == set(product(*(AXES[axis] for axis in three)))


@pytest.mark.parametrize(("padding", "norm", "up", "bias", "activation", "concat"), EIGHTH)
def test_torch_equals_jax_in_training(padding, norm, up, bias, activation, concat):
    config = replace(
        NORMS[norm], widths=(6, 8), padding=padding, up=up, bias=bias, activation=activation,
        concat=concat,
    )  # fmt: skip
    assert not problems(config, *SHALLOW_SIZES[padding], train=True)


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("norm", ["batch-before", "batch-after"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_torch_equals_jax_with_running_statistics(padding, norm, up):
    config = replace(NORMS[norm], padding=padding, up=up)
    assert not problems(config, *SIZES[padding], train=False)


FITS = [("same", "zeros"), ("same", "edge"), ("same", "crop"), ("valid", "crop")]
fits = pytest.mark.parametrize(("padding", "fit"), FITS, ids=["-".join(pair) for pair in FITS])


@pytest.mark.parametrize("up", UPS)
@fits
def test_torch_equals_jax_at_odd_sizes(padding, fit, up):
    config = replace(SMALL, padding=padding, fit=fit, up=up)
    assert not problems(config, *{"same": (13, 23), "valid": (47, 57)}[padding], train=True)


@fits
def test_torch_equals_jax_at_odd_sizes_of_a_deeper_net(padding, fit):
    config = replace(SMALL, padding=padding, fit=fit, widths=(6, 8, 10, 14))
    assert not problems(config, *{"same": (29, 23), "valid": (95, 105)}[padding], train=True)


VALID = replace(SMALL, padding="valid")
DEPTHS = {
    "one_pool-same": (replace(SMALL, widths=(7, 5)), (6, 8)),
    "one_pool-valid": (replace(VALID, widths=(7, 5)), (24, 26)),
    "three_pools-same": (replace(SMALL, widths=(6, 7, 8, 9)), (24, 32)),
    "four_pools-valid": (replace(VALID, widths=(3, 7, 5, 8, 6)), (188, 204)),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_torch_equals_jax_at_every_depth(depth):
    config, sizes = DEPTHS[depth]
    assert not problems(config, *sizes, train=True)


@pytest.mark.parametrize("convolutions", [1, 3])
@pytest.mark.parametrize("norm", ["unnormalised", "batch-before", "group-after"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_torch_equals_jax_with_other_numbers_of_convolutions(padding, norm, convolutions):
    config = replace(NORMS[norm], widths=(6, 8), padding=padding, convolutions=convolutions)
    height = geometry.next_legal(config, SHALLOW_SIZES[padding][0])
    assert not problems(config, height, geometry.next_legal(config, height + 1), train=True)


# of the expanding path: how it doubles a map, whether a convolution follows, its channels and those
# between its convolutions
DECODERS = [
    (up, convolution, widths, middle)
    for up, convolution, widths, middle in product(
        UPS, (True, False), ((), (4,)), ("output", "half")
    )
    if (up, convolution) != ("transposed", False)
]
NAMES = ["-".join(map(str, decoder)) for decoder in DECODERS]


@pytest.mark.parametrize("place", range(len(DECODERS)), ids=NAMES)
def test_torch_equals_jax_with_every_expanding_path(place):
    up, convolution, widths, middle = DECODERS[place]
    # the other axes change from case to case
    norm = ("unnormalised", "batch-before", "instance-after")[place % 3]
    padding, concat = (axis[place // step % 2] for axis, step in ((PADDINGS, 1), (CONCATS, 2)))
    config = replace(
        NORMS[norm], widths=(6, 8), up=up, up_convolution=convolution, up_widths=widths,
        up_middle=middle, padding=padding, concat=concat,
    )  # fmt: skip
    assert not problems(config, *SHALLOW_SIZES[padding], train=True)


PLAIN = replace(
    SMALL, up="bilinear_aligned", up_convolution=False, up_widths=(12, 4), up_middle="half",
    concat="skip_first",
)  # fmt: skip


@pytest.mark.parametrize("fit", ["zeros", "edge", "crop"])
def test_torch_equals_jax_at_odd_sizes_of_a_narrower_expanding_path(fit):
    assert not problems(replace(PLAIN, fit=fit), 13, 23, train=True)


@pytest.mark.parametrize("output", ["logits", "sigmoid", "softmax"])
def test_both_twins_give_logits_whatever_the_original_gave(output):
    config = replace(SMALL, widths=(6, 8), dropout=0.0)
    tensors = oracle.random_tensors(config, seed=1)
    x, cotangent, _ = oracle.random_input(config, seed=0)
    for run in (torch_pass, partial(jax_pass, jit=False)):
        logits = run(config, tensors, x, cotangent).output
        named = run(replace(config, output=output), tensors, x, cotangent).output
        assert np.abs(logits).max() > 1
        np.testing.assert_array_equal(named, logits)


def test_torch_equals_jax_with_a_single_channel():
    assert not problems(replace(PLAIN, classes=1), 12, 20, train=True)


SHALLOW = replace(SMALL, widths=(6, 8))
ROUNDED = {
    "batch": replace(SHALLOW, norm="batch"),
    "group": replace(SHALLOW, norm="group"),
    "instance": replace(SHALLOW, norm="instance"),
    "bilinear": replace(SHALLOW, up="bilinear"),
    "bilinear_aligned": replace(SHALLOW, up="bilinear_aligned"),
    "narrower": replace(PLAIN, widths=(6, 8), up_widths=(4,)),
    "three_convolutions": replace(SHALLOW, convolutions=3),
}


@pytest.mark.parametrize("net", ROUNDED)
def test_jax_in_float32_is_as_far_from_float64_as_torch(optimised, net):
    tensors = oracle.random_tensors(ROUNDED[net], seed=1)
    assert not compare_twins(ROUNDED[net], tensors, train=True).problems
