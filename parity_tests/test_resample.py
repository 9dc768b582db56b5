# mypy: disable-error-code="arg-type, call-overload"
"""Both forms of reading a crop at source coordinates give the same bits, and each platform has its
own; the windows of the products hold all that augmentation can draw."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_train.config import PRESETS, AugmentConfig, DataConfig, MeshConfig
from unet_train.devices.placement import make_placement
from unet_train.input import augment as augmentation
from unet_train.input import resample as resampling
from unet_train.input.augment import affine, augment_batch, bicubic, bound_stretch
from unet_train.input.crops import Batch
from unet_train.input.resample import (
    TILE_PX,
    WIDEST_WINDOW_PX,
    choose_window,
    read_by_gathers,
    read_by_products,
    resample,
)
from unet_train.step import prepare_batch

LARGEST_NORMAL = 5.419983  # the last float32 below 1 through the inverse of its distribution
WILD = AugmentConfig(rotation_deg=180, shift_px=30, scale=0.4, elastic_px=1, noise=0.1)


def crop(height, width, *, channels=2, seed=0):
    """A random (x, truth, weight) of whole numbers that float32 interpolates without rounding."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1024, 1025, (height, width, channels)).astype(np.float32)
    truth = rng.integers(0, 256, (height, width), np.uint8)
    weight = rng.integers(0, 1025, (height, width)).astype(np.float32)
    return jax.tree.map(jnp.asarray, (x, truth, weight))


def full_crop(height, width):
    """A random image that has every bit of a float32, and sizes of many orders."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(height, width, 2)) * np.exp(rng.normal(0, 9, (height, width, 1)))
    return jnp.asarray(x.astype(np.float32))


def dyadic(source):
    """Coordinates with 5 bits behind the point: their products with whole numbers are exact."""
    return jnp.round(32 * source) / 32


def equal(ones, others):
    for one, other in zip(jax.tree.leaves(ones), jax.tree.leaves(others), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


def _far(shape):
    """Beyond the fourth mirror image, on either side."""
    return affine(shape, rotation_deg=77.0, factor=0.9, shift_px=(4.3 * shape[0], -5.2 * shape[1]))


def _halves(shape):
    """Between two pixels: which is the nearest is decided by a rule."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return jnp.stack([rows - 8.5, columns + 3.5])


def _whole(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return jnp.stack([rows - 7, columns + 40])


def _bent(shape):
    """A turn and a smooth bend."""
    grid = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    turned = affine(shape, rotation_deg=-130.0, factor=1.2, shift_px=(2.7, -9.1))
    return turned + bicubic(jnp.asarray(4 * grid), shape)


def _magnified(shape):
    """All comes from around the upper left corner, where border pixels are repeated."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return jnp.stack([rows / 16 - 1.7, columns / 16 - 1.2])


SHAPES = pytest.mark.parametrize(
    "shape", [(48, 48), (80, 112), (75, 61), (9, 200)], ids=["square", "oblong", "odd", "flat"]
)
# windows that are smaller than most of the crops, and windows that are whole crops
SIDES = pytest.mark.parametrize("side_px", [40, 256], ids=["windows", "whole"])


@SIDES
@SHAPES
@pytest.mark.parametrize("source", [_far, _halves, _whole, _bent, _magnified])
def test_products_equal_gathers_to_the_bit(shape, source, side_px):
    images, coordinates = crop(*shape), dyadic(source(shape))
    made = read_by_products(images, coordinates, side_px=side_px)
    equal(made, read_by_gathers(images, coordinates))


@SIDES
@SHAPES
def test_products_pick_all_bits_of_a_pixel(shape, side_px):
    x, coordinates = full_crop(*shape), _whole(shape)
    made = read_by_products(x, coordinates, side_px=side_px)
    equal(made, read_by_gathers(x, coordinates))


def _next_tap(taps):
    return [(index + 1, weight) for index, weight in taps]


def _swapped_weights(taps):
    (lower, first), (upper, second) = taps
    return [(lower, second), (upper, first)]


def _rounded_up(axis, taps):
    """The nearest pixel of a coordinate between two, by another rule than to round from 0."""
    index = jnp.floor(axis.coordinates + 0.5).astype(jnp.int32)
    return [(axis._mirror(index) - axis.first[:, None], taps[0][1])]


def _mirror_at_pixels(axis, index):
    """The border pixel is not repeated."""
    place = index % (2 * axis.size - 2)
    return jnp.minimum(place, 2 * axis.size - 2 - place)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("tap", 0), ("tap", 1), ("weights", 0), ("mirror", 0), ("mirror", 1), ("half", 1),
        ("window", 0), ("window", 1), ("bits", 0),
    ],
)  # fmt: skip
def test_faults_of_products_are_noticed(monkeypatch, fault, part):
    """`part` is 0 for the image, and 1 for the truth."""
    axis, find_taps = resampling._Axis, resampling._Axis.find_taps

    def find(self, *, is_linear):
        taps = find_taps(self, is_linear=is_linear)
        if fault == "tap":
            return _next_tap(taps)
        if fault == "half" and not is_linear:
            return _rounded_up(self, taps)
        return _swapped_weights(taps) if fault == "weights" and is_linear else taps

    images, source = crop(80, 80), _halves((80, 80))
    if fault == "bits":
        images = (full_crop(80, 80), images[1])
        source = _whole((80, 80))
        monkeypatch.setattr(resampling, "_split", lambda plane: plane.astype(jnp.bfloat16)[None])
    elif fault == "mirror":
        monkeypatch.setattr(axis, "_mirror", _mirror_at_pixels)
    elif fault == "weights":
        source = source + 0.25
    monkeypatch.setattr(axis, "find_taps", find)
    side_px = 16 if fault == "window" else 40
    made = read_by_products(images, source, side_px=side_px)
    with pytest.raises(AssertionError):
        equal(made[part], read_by_gathers(images, source)[part])


@SHAPES
@pytest.mark.parametrize("source", [_far, _bent, _magnified])
def test_products_equal_gathers_up_to_the_rounding_of_the_interpolation(shape, source):
    """A compiler may round a product and a sum once or twice: 4 times half a ULP of the sums."""
    x, truth, _ = crop(*shape)
    x = x / 3
    made, nearest = read_by_products((x, truth), source(shape), side_px=40)
    expected, labels = read_by_gathers((x, truth), source(shape))
    equal(nearest, labels)
    most = read_by_gathers(jnp.abs(x), source(shape))
    assert (jnp.abs(made - expected) <= 4 * jnp.finfo(jnp.float32).eps * most).all()


def test_a_crop_may_be_read_at_coordinates_of_another_shape():
    images = crop(50, 70)
    source = dyadic(_bent((50, 70)))[:, 3:40, 5:38]
    equal(read_by_products(images, source, side_px=40), read_by_gathers(images, source))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_array_is_read_as_together_with_others(channels):
    x, truth, weight = crop(48, 64, channels=channels)
    source = _bent((48, 64))
    together = read_by_products((x, truth, weight), source, side_px=40)
    alone = tuple(read_by_products(part, source, side_px=40) for part in (x, truth, weight))
    equal(together, alone)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_source_lies_farther_from_its_neighbours_than_the_bound(preset):
    """At the worst displacements that can be drawn, which are all signs of the largest number."""
    config = replace(PRESETS[preset].augment, shift_px=0)
    shape = (96, 96)
    worst = np.zeros(2)
    signs = np.array(list(product([-1, 1], repeat=9)), np.float32).reshape(-1, 3, 3)
    grid = jnp.asarray(config.elastic_px * LARGEST_NORMAL * signs)
    bends = np.asarray(bicubic(grid, shape)) if config.elastic_px else np.zeros((1, *shape))
    for angle in np.linspace(-config.rotation_deg, config.rotation_deg, 17):
        turned = affine(
            shape, rotation_deg=float(angle), factor=1 / (1 + config.scale), shift_px=(0, 0)
        )
        for axis, coordinates in enumerate(np.asarray(turned)):
            down, right = (np.abs(np.diff(coordinates + bends, axis=a)).max((1, 2)) for a in (1, 2))
            worst[axis] = max(worst[axis], (down + right).max())
    bound = bound_stretch(shape, config)
    assert worst.max() <= bound + 1e-4
    assert worst.max() > 0.75 * bound


@pytest.mark.parametrize("points", range(2, 8))
def test_weights_of_a_bicubic_field_stay_below_their_bounds(points):
    size = 60 * (points - 1) + 1
    single = jnp.broadcast_to(jnp.eye(points)[..., None], (points, points, points))
    weights = np.asarray(bicubic(single, (size, 5)))[..., 2]
    most, slope = augmentation._LARGEST_WEIGHTS[min(points, 4)]
    sums = np.abs(weights).sum(0).max(), 60 * np.abs(np.diff(weights)).sum(0).max()
    assert most - 0.01 < sums[0] < most
    assert slope - 0.1 < sums[1] < slope


def test_the_largest_normal_number_is_below_its_bound():
    last = jnp.nextafter(jnp.float32(1), jnp.float32(0))
    assert np.sqrt(2) * jax.lax.erf_inv(last) < augmentation._LARGEST_NORMAL
    np.testing.assert_allclose(np.sqrt(2) * jax.lax.erf_inv(last), LARGEST_NORMAL, rtol=1e-6)


@pytest.mark.parametrize("stretch", [1.0, 2.6, 3.55, 8.3])
def test_a_window_holds_all_that_a_tile_is_read_from(stretch):
    """A source that is as steep as it may be, at 32 places between two pixels."""
    size = 160
    down = stretch * np.arange(TILE_PX)
    places = np.stack([down - 1 + offset for offset in np.arange(0, 1, 1 / 32)])
    source = np.repeat(places.ravel()[:, None], TILE_PX, 1).astype(np.float32)
    coordinates = jnp.stack([jnp.asarray(source), jnp.full(source.shape, 40.25)])
    images = crop(size, size, channels=1)
    side_px = choose_window(stretch)
    made = read_by_products(images, coordinates, side_px=side_px)
    equal(made[1], read_by_gathers(images, coordinates)[1])
    # and it is not larger than whole sublanes ask for
    missing = read_by_products(images, coordinates, side_px=side_px - 9)
    assert (np.asarray(missing[1]) != np.asarray(made[1])).any()


def _lower(platform, config, shape=(64, 64)):
    """The program of a batch's augmentation for a platform, as text."""
    x, truth, weight = (
        jax.ShapeDtypeStruct((2, *part.shape), part.dtype) for part in crop(*shape, channels=1)
    )
    augment = jax.jit(partial(augment_batch, seed=0, step=0, config=config))
    return augment.trace(x, truth, weight).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "gathers"), [("tpu", False), ("cpu", True), ("cuda", True), ("rocm", True)]
)
def test_only_a_tpu_reads_by_products(platform, gathers):
    text = _lower(platform, WILD)
    assert ("stablehlo.gather" in text) == gathers
    assert ("tensor<2x16x256x" in text) != gathers


def test_where_windows_would_be_large_a_tpu_gathers_too():
    steep = replace(WILD, scale=20)
    assert choose_window(bound_stretch((64, 64), steep)) > WIDEST_WINDOW_PX
    assert "stablehlo.gather" in _lower("tpu", steep)


def test_values_that_have_no_exact_terms_are_gathered():
    source = _bent((48, 48))
    images = crop(48, 48)[1].astype(jnp.int32) * 1000
    lower = jax.jit(partial(resample, stretch=2.0)).trace(images, source).lower
    assert "stablehlo.gather" in lower(lowering_platforms=("tpu",)).as_text()


@pytest.fixture
def as_on_tpu(monkeypatch):
    """Reads by products on the CPU."""

    def choose(*arguments, tpu, default):
        return tpu(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def _prepare(data, rows):
    """A training batch on a mesh: (its text as compiled, what is made of it)."""
    config = replace(
        PRESETS["modern"],
        data=DataConfig(crop_px=64, batch=8),
        augment=replace(WILD, elastic_px=0.2),
        mesh=MeshConfig(data=data, rows=rows),
    )
    placement = make_placement(config)
    images = [crop(64, 64, channels=1, seed=i)[:2] for i in range(8)]
    x, truth = (jnp.stack(part) for part in zip(*images, strict=True))
    crops = Batch(x, truth, None)
    crops = jax.device_put(crops, placement.images)
    step = jax.device_put(jnp.int32(3), placement.everywhere)
    prepare = jax.jit(partial(prepare_batch, config), out_shardings=placement.images)
    compiled = prepare.lower(crops, step).compile()
    return compiled.as_text(), compiled(crops, step)


@pytest.mark.parametrize(("data", "rows"), [(8, 1), (4, 2), (2, 4)])
def test_products_on_a_mesh_exchange_nothing(as_on_tpu, data, rows):
    text, made = _prepare(data, rows)
    assert "dot(" in text
    exchanges = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert not [name for name in exchanges if name in text]
    _, alone = _prepare(1, 1)
    np.testing.assert_array_equal(made.truth, alone.truth)
    np.testing.assert_allclose(made.x, alone.x, rtol=1e-5, atol=1e-5)


def test_a_batch_by_products_equals_one_by_gathers(monkeypatch):
    """The truth to the bit; of the image, the sums are rounded once or twice."""
    images = [crop(64, 64, seed=i) for i in range(3)]
    batch = [jnp.stack(parts) for parts in zip(*images, strict=True)]
    augment = partial(augment_batch, *batch, seed=3, step=7, config=WILD)
    gathered = augment()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, tpu, default: tpu(*a))
    made = augment()
    np.testing.assert_array_equal(made[1], gathered[1])
    for one, other in zip(made[::2], gathered[::2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1024 * 8 * np.finfo(np.float32).eps)
