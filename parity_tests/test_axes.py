"""Every architecture axis, forward and backward, in float64."""

from dataclasses import replace
from itertools import product

import pytest

from parity_tests.float64 import problems
from unet_parity import oracle
from unet_spec import UNetConfig

# b=2, 3 channels in, 4 classes: no two axes of any array are of one length by accident
SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10), groups=2, dropout=0.3)
SIZES = {"same": (12, 20), "valid": (44, 52)}

PADDINGS = ("same", "valid")
UPS = ("transposed", "bilinear", "bilinear_aligned", "nearest")
NORMS = {
    "unnormalised": ("none", "before"),
    **{
        f"{norm}-{place}": (norm, place)
        for norm in ("batch", "group", "instance")
        for place in ("before", "after")
    },
}


@pytest.mark.parametrize("concat", ["up_first", "skip_first"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias_free"])
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_torch_equals_jax_in_training(padding, norm, up, bias, activation, concat):
    config = replace(
        SMALL, padding=padding, norm=NORMS[norm][0], norm_place=NORMS[norm][1], up=up, bias=bias,
        activation=activation, concat=concat,
    )  # fmt: skip
    assert not problems(config, *SIZES[padding], train=True)


@pytest.mark.parametrize("concat", ["up_first", "skip_first"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_torch_equals_jax_with_running_statistics(padding, place, up, activation, concat):
    config = replace(
        SMALL, padding=padding, norm="batch", norm_place=place, up=up, activation=activation,
        concat=concat,
    )  # fmt: skip
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


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "widths",
    [(7, 5), (6, 9, 7), (6, 7, 8, 9), (3, 7, 5, 8, 6)],
    ids=["one_pool", "two_pools", "three_pools", "four_pools"],
)
def test_torch_equals_jax_at_every_depth(widths, padding):
    config = replace(SMALL, widths=widths, padding=padding)
    depth = config.depth
    smallest = 2**depth * 3 if padding == "same" else {1: 24, 2: 44, 3: 92, 4: 188}[depth]
    assert not problems(config, smallest, smallest + 2**depth, train=True)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("norm", "up"),
    [
        *product(("batch", "group", "instance"), ("transposed", "bilinear")),
        ("none", "bilinear"),
        ("none", "bilinear_aligned"),
    ],
)
def test_jax_is_as_far_from_float64_as_torch(norm, up, train):
    config = replace(SMALL, norm=norm, up=up)
    tensors = oracle.random_tensors(config, seed=1)
    assert not oracle.compare(config, tensors, train=train).problems
