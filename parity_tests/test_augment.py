# mypy: disable-error-code="arg-type, call-overload"
"""Augmentation against numpy and scipy; what is drawn against its distribution; image against
mask; and every way of computing one batch against the others, bit for bit."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage, stats

import unet_image
from unet_train.config import AugmentConfig
from unet_train.input.augment import _Turn, affine, augment, augment_batch, bicubic
from unet_train.input.resample import resample
from unet_train.report.pictures import GAP_PX, draw_preview

OFF = AugmentConfig(flips=False, quarter_turns=False)
MOVES = AugmentConfig()
GEOMETRY = replace(MOVES, rotation_deg=25, shift_px=6, scale=0.3, elastic_px=3)
TINTS = {
    "gamma": 0.3, "contrast": 0.4, "brightness": 0.3, "illumination": 0.5, "invert": 0.5,
    "noise": 0.2,
}  # fmt: skip
GRAY = replace(OFF, **TINTS)
ALL = replace(GEOMETRY, **TINTS)

# rounding of float32 coordinates and weights: 4 ULP of a coordinate of 30, times a step of 1
INTERPOLATED = 5e-5  # coordinates in float32; 1.8e-5 was the largest seen
# a batch of another size is vectorised otherwise, with other roundings; 9e-6 was the largest seen
VECTORISED = 3e-5


def crop(height=24, width=24, *, channels=2, seed=0):
    """A random (x, truth, weight); a part of the truth is 255."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(height, width, channels)).astype(np.float32)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    return x, truth, rng.random((height, width), np.float32)


def batch(count=6, *, height=24, width=24):
    return tuple(
        np.stack(part)
        for part in zip(*(crop(height, width, seed=i) for i in range(count)), strict=True)
    )


def places(height, width):
    """An image that holds the row and the column of each pixel: bilinear between them, it says
    where a pixel comes from."""
    return np.stack(np.mgrid[:height, :width], -1).astype(np.float32)


@partial(jax.jit, static_argnames=("config", "seed"))
def drawn(x, truth, weight=None, *, config, seed=0, keys):
    """What as many keys make of one crop."""
    one = partial(augment, config=config)
    return jax.vmap(lambda key: one(x, truth, weight, key=key))(keys)


def many(config, x, truth=None, weight=None, *, count=2000):
    truth = np.zeros(x.shape[:2], np.uint8) if truth is None else truth
    keys = jax.random.split(jax.random.key(0), count)
    return jax.tree.map(np.asarray, drawn(x, truth, weight, config=config, keys=keys))


def equal(one, other, *, within=0.0):
    """Values, to the bit where nothing else is said, and types."""
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    for a, b in zip(ones, others, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=within)


def test_with_all_parts_off_no_bit_changes():
    x, truth, weight = crop(24, 31)
    key = jax.random.key(0)
    equal(augment(*map(jnp.asarray, (x, truth, weight)), key=key, config=OFF), (x, truth, weight))
    without_weight = jax.eval_shape(partial(augment, config=ALL), x, truth, None, key=key)
    assert without_weight[2] is None


def _flipped(array):
    return [array, array[::-1], array[:, ::-1], array[::-1, ::-1]]


def _turned(array):
    return [np.rot90(array, turns) for turns in range(4)]


def _half_turned(array):
    return [array, np.rot90(array, 2)]


def _all_eight(array):
    return _turned(array) + _turned(array[::-1])


@pytest.mark.parametrize(
    ("config", "shape", "possible"),
    [
        (replace(OFF, flips=True), (12, 12), _flipped),
        (replace(OFF, flips=True), (12, 17), _flipped),
        (replace(OFF, quarter_turns=True), (12, 12), _turned),
        (replace(OFF, quarter_turns=True), (12, 17), _half_turned),
        (MOVES, (12, 12), _all_eight),
        (MOVES, (12, 17), _flipped),
        (replace(MOVES, shift_px=1e-6), (12, 12), _all_eight),
        (replace(MOVES, shift_px=1e-6), (12, 17), _flipped),
    ],
    ids=["flips", "flips oblong", "turns", "turns oblong", "both", "both oblong",
         "resampled", "resampled oblong"],
)  # fmt: skip
def test_flips_and_turns_equal_numpys_and_each_is_as_frequent(config, shape, possible):
    arrays = crop(*shape)
    expected = list(zip(*map(possible, arrays), strict=True))
    seen = []
    for made in zip(*many(config, *arrays, count=800), strict=True):
        (found,) = [i for i, one in enumerate(expected) if np.array_equal(one[1], made[1])]
        equal(made, expected[found], within=INTERPOLATED if config.shift_px else 0.0)
        seen.append(found)
    _, counts = np.unique(seen, return_counts=True)
    assert len(counts) == len(expected)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("shape", [(12, 12), (12, 17)])
def test_turned_source_coordinates_equal_turned_pixels(shape):
    """A crop that is interpolated takes its flips and turns along."""
    x, *_ = map(jnp.asarray, crop(*shape))
    source = affine(shape, rotation_deg=10.0, factor=1.1, shift_px=(0.3, 2.2))
    for turn in map(_Turn._make, product([False, True], repeat=3)):
        if not turn.transpose or shape[0] == shape[1]:
            expected = resample(turn.apply(x), source)
            equal(resample(x, turn.map_source(source, shape)), expected, within=INTERPOLATED)


@pytest.mark.parametrize("size", [16, 17], ids=["even", "odd"])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_by_right_angles_equals_rot90(size, turns):
    x, truth, _ = crop(size, size)
    source = affine((size, size), rotation_deg=90.0 * turns, factor=1.0, shift_px=(0, 0))
    np.testing.assert_array_equal(
        resample(jnp.asarray(truth), jnp.asarray(source)), np.rot90(truth, turns)
    )
    assert (
        np.abs(resample(jnp.asarray(x), jnp.asarray(source)) - np.rot90(x, turns)).max()
        < INTERPOLATED
    )


@pytest.mark.parametrize("shift", [(3, 0), (0, 4), (-2, 5), (-30, 70)])
def test_shift_by_whole_pixels_equals_a_mirrored_roll(shift):
    """Positive is down and right; (-30, 70) reaches beyond the first mirror image."""
    height, width = 18, 25
    source = affine((height, width), rotation_deg=0.0, factor=1.0, shift_px=shift)
    for values in crop(height, width):
        mirrored = np.pad(values, [(80, 80)] * 2 + [(0, 0)] * (values.ndim - 2), mode="symmetric")
        rolled = np.roll(mirrored, shift, (0, 1))[80 : 80 + height, 80 : 80 + width]
        np.testing.assert_array_equal(resample(jnp.asarray(values), jnp.asarray(source)), rolled)


def test_enlarging_by_two_equals_every_pixel_twice_as_far_from_the_centre():
    _, truth, _ = crop(17, 21)
    source = affine((17, 21), rotation_deg=0.0, factor=2.0, shift_px=(0, 0))
    made = np.asarray(resample(jnp.asarray(truth), jnp.asarray(source)))
    np.testing.assert_array_equal(made[::2, ::2], truth[4:13, 5:16])


def test_enlarging_by_two_is_about_the_centre_of_even_sizes_as_well():
    source = affine((16, 22), rotation_deg=0.0, factor=2.0, shift_px=(0, 0))
    expected = np.meshgrid(3.75 + np.arange(16) / 2, 5.25 + np.arange(22) / 2, indexing="ij")
    np.testing.assert_array_equal(source, expected)


def test_a_turn_and_an_enlargement_come_before_the_shift():
    """What was in the centre lies `shift_px` from it, whatever the angle and the factor."""
    source = affine((21, 31), rotation_deg=33.0, factor=1.7, shift_px=(4, -6))
    np.testing.assert_allclose(source[:, 10 + 4, 15 - 6], (10, 15), atol=INTERPOLATED)


def test_resampling_equals_scipy_on_the_mirrored_crop():
    height, width, pad = 13, 19, 60
    rng = np.random.default_rng(0)
    source = rng.uniform(-40, 50, (2, 30, 40)).astype(np.float32)
    for values in crop(height, width):
        linear = values.dtype == np.float32
        layers = values[..., None] if values.ndim == 2 else values
        expected = np.stack(
            [
                ndimage.map_coordinates(
                    np.pad(layer, pad, mode="symmetric"), source + pad, order=int(linear)
                )
                for layer in np.moveaxis(layers, -1, 0)
            ],
            -1,
        ).reshape(30, 40, *values.shape[2:])
        made = np.asarray(resample(jnp.asarray(values), jnp.asarray(source)))
        assert made.dtype == values.dtype
        assert np.abs(made - expected).max() < (INTERPOLATED if linear else 1)


def _keys_kernel(distance):
    """Keys (1981), a = -0.5."""
    d = abs(distance)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


@pytest.mark.parametrize("points", [2, 3, 5])
def test_displacements_equal_keys_kernel_written_out(points):
    height, width = 11, 14
    grid = np.random.default_rng(0).normal(size=(2, points, points)).astype(np.float32)
    expected = np.zeros((2, height, width))
    for row in range(height):
        down = [_keys_kernel(row / (height - 1) * (points - 1) - p) for p in range(points)]
        for column in range(width):
            right = [_keys_kernel(column / (width - 1) * (points - 1) - p) for p in range(points)]
            weights = np.outer(down, right)
            expected[:, row, column] = (grid * weights).sum((1, 2)) / weights.sum()
    # float32 against float64, 1e-6 seen
    np.testing.assert_allclose(bicubic(jnp.asarray(grid), (height, width)), expected, atol=5e-6)


def _moved(config, height=17, width=25):
    """(n, h, w, 2): how far from each pixel the one lies that it comes from."""
    x = places(height, width)
    return many(config, x)[0] - x


def _shifts(config):
    inside = _moved(config)[:, 8, 12] / -config.shift_px
    return inside.ravel()


def _angles(config):
    """From where the pixels 4 to the right of the centre come."""
    right = _moved(config)[:, 8, 16] + (0, 4)
    return np.rad2deg(np.arctan2(-right[:, 0], right[:, 1])) / -config.rotation_deg


def _factors(config):
    right = _moved(config)[:, 8, 16] + (0, 4)
    return np.log(4 / right[:, 1]) / np.log(1 + config.scale)


def _offsets(config):
    x = crop()[0]
    return (many(config, x)[0] - x).mean((1, 2, 3)) / config.brightness


def _contrasts(config):
    x = crop()[0]
    return np.log(many(config, x)[0].std((1, 2))[:, 0] / x.std((0, 1))[0]) / np.log(
        1 + config.contrast
    )


def _gammas(config):
    """Where the crop reaches from 0 to 1, logarithms grow by the exponent."""
    x = crop()[0]
    x = (x - x.min((0, 1))) / np.ptp(x, (0, 1))
    exponents = np.log(many(config, x)[0][:, 3, 5]) / np.log(x[3, 5])
    np.testing.assert_allclose(exponents[:, 0], exponents[:, 1], rtol=1e-4)
    return np.log(exponents[:, 0]) / np.log(1 + config.gamma)


def _noises(config):
    """The deviation of many pixels is that of the noise; from [0, 1] to [-1, 1]."""
    x = crop(48, 48)[0]
    return 2 * (many(config, x)[0] - x).std((1, 2, 3)) / config.noise - 1


@pytest.mark.parametrize(
    ("config", "measured"),
    [
        (replace(OFF, shift_px=3), _shifts),
        (replace(OFF, rotation_deg=40), _angles),
        (replace(OFF, scale=0.5), _factors),
        (replace(OFF, brightness=0.7), _offsets),
        (replace(OFF, contrast=0.6), _contrasts),
        (replace(OFF, gamma=0.5), _gammas),
        (replace(OFF, noise=0.3), _noises),
    ],
    ids=["shift", "rotation", "scale", "brightness", "contrast", "gamma", "noise"],
)
def test_what_is_drawn_is_uniform_up_to_its_bound(config, measured):
    values = measured(config)
    assert stats.kstest(values, stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("points", [3, 5])
def test_elastic_displacements_are_normal_with_the_given_deviation_at_the_points(points):
    config = replace(OFF, elastic_px=0.8, elastic_grid=points)
    moved = _moved(config, 33, 49)
    # away from the border, where a displacement across it is mirrored back
    down, right = 32 // (points - 1), 48 // (points - 1)
    inner = moved[:, down:-1:down, right:-1:right]
    assert inner.shape[1:] == (points - 2, points - 2, 2)
    for axis in (0, 1):
        values = inner[..., axis].ravel() / config.elastic_px
        assert stats.kstest(values, stats.norm.cdf).pvalue > 0.01
    both = np.corrcoef(inner.reshape(len(inner), -1), rowvar=False)
    assert np.abs(both - np.eye(len(both))).max() < 5 / np.sqrt(len(inner))


def test_contrast_keeps_the_mean_of_each_channel():
    x = crop()[0] + np.array([3, -5], np.float32)
    made = many(replace(OFF, contrast=1.0), x, count=50)[0]
    np.testing.assert_allclose(made.mean((1, 2)), np.tile(x.mean((0, 1)), (50, 1)), atol=1e-5)


def test_gamma_keeps_extremes_and_order_and_flat_channels():
    x = crop()[0]
    x[..., 1] = 3
    made = many(replace(OFF, gamma=2.0), x, count=20)[0]
    np.testing.assert_allclose(made.min((1, 2)), np.tile(x.min((0, 1)), (20, 1)), atol=1e-6)
    np.testing.assert_allclose(made.max((1, 2)), np.tile(x.max((0, 1)), (20, 1)), atol=1e-6)
    ordered = made[..., 0].reshape(20, -1)[:, x[..., 0].ravel().argsort()]
    assert (np.diff(ordered) >= 0).all()


def test_illumination_adds_one_smooth_field_to_all_channels():
    x = crop(33, 49)[0]
    fields = many(replace(OFF, illumination=0.6), x)[0] - x
    np.testing.assert_allclose(fields[..., 0], fields[..., 1], atol=1e-6)
    points = fields[:, ::16, ::24, 0]
    assert points.shape[1:] == (3, 3)
    for made, nine in zip(fields[:5, ..., 0], points, strict=False):
        np.testing.assert_allclose(made, bicubic(jnp.asarray(nine[None]), made.shape)[0], atol=1e-5)
    # normal numbers, times one that is uniform up to the bound in each crop
    sizes = np.sqrt(np.square(points).mean((1, 2))) / 0.6
    expected = np.sqrt(stats.chi2.rvs(9, size=100_000, random_state=0) / 9)
    expected *= np.random.default_rng(0).random(100_000)
    assert stats.ks_2samp(sizes, expected).pvalue > 0.01


def test_inversion_turns_the_sign_in_its_part_of_the_crops():
    x = crop()[0]
    made = many(replace(OFF, invert=0.3), x, count=1000)[0]
    inverted = (made == -x).all((1, 2, 3))
    np.testing.assert_array_equal(made[~inverted], np.broadcast_to(x, made[~inverted].shape))
    assert abs(inverted.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 1000)


def test_gray_values_leave_truth_and_weight_alone():
    x, truth, weight = crop()
    made = augment(*map(jnp.asarray, (x, truth, weight)), key=jax.random.key(0), config=GRAY)
    equal(made[1:], (truth, weight))
    assert (made[0] != x).all()


@pytest.mark.parametrize("shape", [(48, 48), (40, 56)], ids=["square", "oblong"])
@pytest.mark.parametrize("config", [MOVES, GEOMETRY], ids=["moves", "geometry"])
def test_image_truth_and_weight_stay_on_one_another(shape, config):
    """The image is its own mask: where it is nearer to 0 or 1 than bilinear weights of the
    nearest pixel allow, that pixel is known."""
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2) > 0
    x = mask[..., None].astype(np.float32)
    made, truth, weight = many(config, x, mask.astype(np.uint8), x[..., 0], count=40)
    made = made[..., 0]
    assert truth.std((1, 2)).min() > 0.3
    assert ((made < 0.25) | (made > 0.75)).mean() > 0.8
    assert not truth[made < 0.25].any()
    assert truth[made > 0.75].all()
    np.testing.assert_array_equal(weight, made)


def test_no_value_of_the_truth_is_new():
    x, truth, _ = crop(40, 40)
    truth = np.where(truth == 2, 255, truth).astype(np.uint8)
    made = many(ALL, x, truth, count=50)[1]
    assert made.dtype == truth.dtype
    assert set(np.unique(made)) == {0, 1, 255}


def test_a_marked_pixel_moves_with_its_label():
    x, truth = np.zeros((41, 41, 1), np.float32), np.zeros((41, 41), np.uint8)
    x[14, 24], truth[13:16, 23:26] = 1, 7
    made, moved, _ = many(replace(GEOMETRY, shift_px=3), x, truth, count=200)
    brightest = made[..., 0].reshape(200, -1).argmax(1)
    seen = made[..., 0].max((1, 2)) > 0
    assert seen.all()
    np.testing.assert_array_equal(moved.reshape(200, -1)[np.arange(200), brightest], 7)
    assert len(np.unique(brightest)) > 100


jitted = jax.jit(augment_batch, static_argnames=("seed", "config", "first"))


@pytest.mark.parametrize("config", [MOVES, ALL], ids=["moves", "all"])
@pytest.mark.parametrize("shape", [(24, 24), (20, 27)], ids=["square", "oblong"])
def test_an_image_of_a_batch_equals_itself_alone(config, shape):
    images = batch(height=shape[0], width=shape[1])
    whole = jitted(*images, seed=3, step=7, config=config)
    alone = jax.jit(augment, static_argnames="config")
    step_key = jax.random.fold_in(jax.random.key(3), 7)
    for place in range(6):
        one = alone(
            *(part[place] for part in images),
            key=jax.random.fold_in(step_key, place),
            config=config,
        )
        equal(one, tuple(part[place] for part in whole), within=VECTORISED)


@pytest.mark.parametrize("config", [MOVES, ALL], ids=["moves", "all"])
def test_parts_of_a_batch_equal_the_whole(config):
    images = batch()
    whole = jitted(*images, seed=3, step=7, config=config)
    for part in (slice(0, 3), slice(3, 6)):
        made = jitted(*(a[part] for a in images), seed=3, step=7, config=config, first=part.start)
        equal(made, tuple(a[part] for a in whole), within=VECTORISED)


def test_a_batch_on_eight_devices_equals_it_on_one():
    images = batch(8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    made = jitted(*spread, seed=3, step=7, config=ALL)
    assert {len(shard.data) for shard in made[0].addressable_shards} == {1}
    equal(made, jitted(*images, seed=3, step=7, config=ALL), within=VECTORISED)


def test_a_traced_step_equals_a_number():
    images = batch()
    for step in (0, 7):
        traced = jitted(*images, seed=3, step=jnp.int32(step), config=ALL)
        fixed = jax.jit(lambda *a, step=step: augment_batch(*a, seed=3, step=step, config=ALL))
        equal(traced, fixed(*images))


def test_compiled_equals_not_compiled():
    images = tuple(map(jnp.asarray, batch()))
    equal(
        jitted(*images, seed=3, step=7, config=MOVES),
        augment_batch(*images, seed=3, step=7, config=MOVES),
    )


def test_nothing_becomes_nan(optimised):
    """Compiled for 48 pixels, gamma met bases just below 0."""
    config = AugmentConfig(rotation_deg=45, gamma=0.5)
    for step in range(20):
        x, truth, _ = (np.stack(part) for part in zip(
            *(crop(48, 48, channels=1, seed=4 * step + i) for i in range(4)), strict=True
        ))  # fmt: skip
        made = jitted(x, truth, None, seed=0, step=step, config=config)[0]
        assert np.isfinite(made).all(), step


def test_seeds_steps_and_places_differ_and_the_same_repeat():
    x, truth, weight = (np.repeat(part[None], 4, 0) for part in crop())
    made = [
        np.asarray(jitted(x, truth, weight, seed=seed, step=step, config=ALL)[0])
        for seed, step in ((3, 7), (4, 7), (3, 8), (3, 7))
    ]
    np.testing.assert_array_equal(made[0], made[3])
    assert len(np.unique(np.concatenate(made[:3]), axis=0)) == 12


@pytest.mark.parametrize("part", ["shift_px", "gamma", "noise"])
def test_a_part_that_is_switched_on_leaves_what_the_others_draw(part):
    """All but one and all: the same but for that part, which is made too small to be seen."""
    x, truth, weight = batch(3)
    without = replace(ALL, **{part: 0.0})
    barely = replace(ALL, **{part: 1e-9})
    one, other = (jitted(x, truth, weight, seed=3, step=7, config=c) for c in (without, barely))
    assert np.abs(one[0] - other[0]).max() < 1e-4


def test_a_preview_equals_the_first_steps_side_by_side():
    """Each row in its own scale: a crop is stretched with what its steps make of it."""
    x, truth, _ = batch(2, height=20, width=27)
    truth[:, 5:12, 5:12] = 0
    sheet = draw_preview(x, truth, config=ALL, seed=3, count=4)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 20 + GAP_PX, 5 * 27 + 4 * GAP_PX, 3)
    steps = [jitted(x, truth, seed=3, step=n, config=ALL)[:2] for n in range(4)]
    for row in range(2):
        images = np.stack([x[row], *(step[0][row] for step in steps)])
        pictures = unet_image.make_visible(images.reshape(5 * 20, 27, 2)).reshape(5, 20, 27, 3)
        masks = [truth[row], *(np.asarray(step[1][row]) for step in steps)]
        for column, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            top, left = row * (20 + GAP_PX), column * (27 + GAP_PX)
            picture[unet_image.outline(mask)] = unet_image.TRUE
            np.testing.assert_array_equal(sheet[top : top + 20, left : left + 27], picture)
    assert (sheet[20 : 20 + GAP_PX] == 255).all()
    assert (sheet[:, 27 : 27 + GAP_PX] == 255).all()


def test_a_preview_without_augmentation_shows_the_crop_again():
    x, truth, _ = batch(1)
    sheet = draw_preview(x, truth, config=OFF, seed=0, count=1)
    np.testing.assert_array_equal(sheet[:, :24], sheet[:, 24 + GAP_PX :])
    assert len(np.unique(sheet[:, :24])) > 50
