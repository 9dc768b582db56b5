from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import unet_jax
import unet_torch
from unet_spec import PAPER, SLIDES, InputError, UNetConfig, geometry

THIN = UNetConfig(widths=(1, 1, 1))
FITS = [
    *(("same", fit) for fit in ("error", "zeros", "edge", "crop")),
    *(("valid", fit) for fit in ("error", "crop")),
]
all_fits = pytest.mark.parametrize(("padding", "fit"), FITS, ids=["-".join(pair) for pair in FITS])


def test_paper_maps_572_to_388_with_a_margin_of_92():
    assert geometry.output_size(PAPER, 572) == 388
    assert geometry.margin(PAPER) == 92
    assert geometry.margin(SLIDES) == 0


def test_legal_sizes_of_the_paper_are_the_literals():
    legal = [size for size in range(1, 701) if geometry.is_legal(PAPER, size)]
    assert legal == [16 * k + 60 for k in range(8, 41)]
    assert legal[0] == 188
    assert [geometry.output_size(PAPER, size) for size in legal] == [
        16 * k - 124 for k in range(8, 41)
    ]


def test_legal_sizes_of_the_slides_are_multiples_of_16():
    assert [s for s in range(1, 100) if geometry.is_legal(SLIDES, s)] == [16, 32, 48, 64, 80, 96]


@pytest.mark.parametrize("widths", [(1, 1), (1, 1, 1), (1, 1, 1, 1)], ids=["one", "two", "three"])
@all_fits
def test_levels_equal_the_shapes_of_the_reference(padding, fit, widths):
    _assert_levels(replace(THIN, padding=padding, fit=fit, widths=widths))


@pytest.mark.parametrize("convolutions", [1, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_levels_of_other_numbers_of_convolutions_equal_those_shapes(padding, convolutions):
    _assert_levels(replace(THIN, padding=padding, convolutions=convolutions))


def _assert_levels(config):
    legal = [size for size in range(1, 110) if geometry.is_legal(config, size)]
    assert len(legal) >= 3
    if config.fit != "error":
        assert any(size % 2 for size in legal)
    # heights forwards and widths backwards: an exchange of the two can not hide
    for height, width in zip(legal, reversed(legal), strict=True):
        rows, columns = geometry.levels(config, height), geometry.levels(config, width)
        shapes = real_shapes(config, height, width)
        assert shapes["skips"] == list(zip(rows.skips, columns.skips, strict=True))
        assert shapes["neck"] == [(rows.neck, columns.neck)]
        assert shapes["ups"] == list(zip(rows.ups, columns.ups, strict=True))
        assert shapes["output"] == [(rows.output, columns.output)]


def real_shapes(config: UNetConfig, height: int, width: int) -> dict[str, list[tuple[int, ...]]]:
    with torch.device("meta"):
        net, x = unet_torch.UNet(config), torch.empty(1, 1, height, width)
    shapes: dict[str, list[tuple[int, ...]]] = {"skips": [], "neck": [], "ups": [], "output": []}
    watched = {"skips": "down_{}.conv", "ups": "up_{}.up"}
    modules = [("neck", net.neck), ("output", net.out)] + [
        (kind, net.get_submodule(name.format(level)))
        for kind, name in watched.items()
        for level in range(1, config.depth + 1)
    ]
    for kind, module in modules:
        module.register_forward_hook(
            lambda _, inputs, output, kind=kind: shapes[kind].append(tuple(output.shape[2:]))
        )
    net(x)
    return shapes


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("up", ["transposed", "nearest", "bilinear", "bilinear_aligned"])
@pytest.mark.parametrize("widths", [(1, 1), (1, 1, 1)], ids=["one_pool", "two_pools"])
def test_receptive_field_and_reach_equal_the_measured_ones(widths, up, padding):
    _assert_views(UNetConfig(widths=widths, up=up, padding=padding))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("up", ["nearest", "bilinear"])
@pytest.mark.parametrize("convolutions", [1, 3])
def test_other_numbers_of_convolutions_see_as_far_as_measured(convolutions, up, padding):
    _assert_views(
        UNetConfig(
            widths=(1, 1, 1), convolutions=convolutions, up=up, up_convolution=False,
            padding=padding,
        )
    )  # fmt: skip


def _assert_views(config):
    size = geometry.next_legal(config, 120)
    views = measured(config, size)
    field = max(last - first + 1 for _, first, last in views)
    reach = max(max(at - first, last - at) for at, first, last in views)
    if config.up == "bilinear_aligned":  # documented as an upper bound
        assert field <= geometry.receptive_field(config) <= field + 2**config.depth
        assert reach <= geometry.reach(config) <= reach + 2**config.depth
    else:
        assert field == geometry.receptive_field(config)
        assert reach == geometry.reach(config)


def measured(config: UNetConfig, size: int) -> list[tuple[int, int, int]]:
    """For pixels of all phases: where it is in the input, and the first and last row with a
    gradient. Every weight is positive and the pools average, so that no path is closed."""
    net = unet_torch.UNet(config).double().eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    for level in range(1, config.depth + 1):
        net.get_submodule(f"down_{level}").pool = nn.AvgPool2d(2)
    margin, output = geometry.margin(config), geometry.output_size(config, size)
    x = torch.ones(1, 1, size, size, dtype=torch.double, requires_grad=True)
    logits = net(x)
    middle = output // 2
    views = []
    for pixel in range(middle, middle + 2**config.depth):
        (gradient,) = torch.autograd.grad(logits[0, 0, pixel, middle], x, retain_graph=True)
        rows = gradient[0, 0].abs().sum(dim=1).nonzero().ravel().tolist()
        assert rows[0] > 0, "the pixel sees the border: the image is too small to measure"
        assert rows[-1] < size - 1, "the pixel sees the border: the image is too small to measure"
        views.append((pixel + margin, rows[0], rows[-1]))
    return views


@given(
    st.sampled_from(FITS),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 400),
)
def test_nearest_legal_sizes_bracket_the_size(fit, depth, convolutions, size):
    config = UNetConfig(
        widths=(1,) * (depth + 1), convolutions=convolutions, padding=fit[0], fit=fit[1]
    )
    *below, above = geometry.nearest_legal(config, size)
    assert above == geometry.next_legal(config, size) >= size
    assert geometry.is_legal(config, above)
    assert not any(geometry.is_legal(config, s) for s in range(size, above))
    if below:
        assert below[0] < size
        assert geometry.is_legal(config, below[0])
    between = range(below[0] + 1 if below else 1, size)
    assert not any(geometry.is_legal(config, s) for s in between)


@given(st.sampled_from(FITS), st.integers(1, 5), st.integers(1, 5))
def test_legal_sizes_by_arithmetic_are_those_that_a_search_finds(fit, depth, convolutions):
    config = UNetConfig(
        widths=(1,) * (depth + 1), convolutions=convolutions, padding=fit[0], fit=fit[1]
    )
    end = 4 * convolutions * 2 ** (depth + 1) + 4 * 2**depth
    legal = [size for size in range(1, end) if geometry.is_legal(config, size)]
    assert len(legal) > 3
    sizes = range(-3, legal[-2])
    for size in sizes:
        below = [s for s in legal if s < size][-1:]
        above = next(s for s in legal if s >= size)
        assert geometry.next_legal(config, size) == above
        assert geometry.nearest_legal(config, size) == (*below, above)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_sizes_of_a_net_of_many_levels_are_found_at_once(padding):
    config = UNetConfig(widths=(1,) * 1000, padding=padding)
    (smallest,) = geometry.nearest_legal(config, 100)
    assert geometry.is_legal(config, smallest)
    assert geometry.nearest_legal(config, smallest + 1) == (smallest, smallest + 2**999)
    lost = smallest - geometry.output_size(config, smallest)
    assert lost == (0 if padding == "same" else 4 * (3 * 2**999 - 2))
    assert geometry.margin(config) == lost // 2


REFUSALS = {
    "paper": (PAPER, 571, "size 571 px is not legal: with padding=valid each of the 4 pools must "
              "halve an even size; the nearest legal sizes: 556 and 572"),
    "slides": (SLIDES, 100, "size 100 px is not legal: with padding=same each of the 4 pools must "
               "halve an even size; the nearest legal sizes: 96 and 112"),
    "too_small": (SLIDES, 8, "the nearest legal sizes: 16"),
    "too_small_to_crop": (replace(SLIDES, fit="crop"), 15,
                          "each of the 4 pools must leave something of it; the nearest legal "
                          "sizes: 16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_size_rule_and_nearest_legal_sizes(case):
    config, size, words = REFUSALS[case]
    with pytest.raises(InputError) as refusal:
        geometry.levels(config, size)
    assert words in str(refusal.value)
    assert str(refusal.value).endswith(words[-20:])


@pytest.mark.parametrize(("height", "width"), [(100, 96), (96, 100)], ids=["height", "width"])
def test_illegal_size_is_refused_by_both_twins_before_anything_is_computed(height, width):
    with torch.device("meta"):
        net, x = unet_torch.UNet(), torch.empty(1, 1, height, width)
    net.get_submodule("down_1").register_forward_pre_hook(
        lambda *_: pytest.fail("the first level has run")
    )
    with pytest.raises(InputError, match="size 100 px is not legal"):
        net(x)

    init, apply = unet_jax.functional(SLIDES)
    params, _ = jax.eval_shape(init, jax.random.key(0))
    illegal = jax.ShapeDtypeStruct((1, height, width, 1), jnp.float32)
    with pytest.raises(InputError, match="size 100 px is not legal"):
        jax.jit(apply).lower(params, illegal)
