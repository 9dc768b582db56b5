"""Augmentation on the device: image, truth and weight of a crop move together.

What happens to a crop is a function of (seed, step, its place in the batch) alone. All geometry is
one field of source coordinates, so a crop is interpolated once, whatever is on; what lies beyond
its border is mirrored. Flips and quarter turns by themselves move whole pixels.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import AugmentConfig
from .resample import resample

# each has a key of its own: switching one on leaves what the others draw
PARTS = ("flips", "quarter_turns", "rotation", "shift", "scale", "elastic",
         "contrast", "brightness", "invert", "noise", "gamma", "illumination")  # fmt: skip
Keys = dict[str, PRNGKeyArray]

# no normal number in float32 is larger than 5.42
_LARGEST_NORMAL = 5.43
# by the points of a grid along an axis, of the weights of `bicubic` for any pixel: the sum of their
# absolute values, and of those of their derivatives per distance of the points; from 4 on the same
_LARGEST_WEIGHTS = {2: (1.001, 2.445), 3: (1.144, 2.715), 4: (1.251, 3.001)}


def augment_batch(
    x: Float[Array, "b h w c"],
    truth: Integer[Array, "b h w"],
    weight: Float[Array, "b h w"] | None = None,
    *,
    seed: int,
    step: Any,
    config: AugmentConfig,
    first: int = 0,
) -> tuple[Array, Array, Array | None]:
    """Return the augmented (x, truth, weight) of a batch, or of a part of one.

    Args:
        step: an integer; it may be traced.
        first: place in the whole batch of the first image of this part.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    places = first + jnp.arange(len(x))
    keys = jax.vmap(partial(jax.random.fold_in, key))(places)

    def augment_one(x: Array, truth: Array, weight: Array | None, key: PRNGKeyArray) -> Any:
        """Augment the crop at one place, with the key of that place."""
        return augment(x, truth, weight, key=key, config=config)

    return jax.vmap(augment_one)(x, truth, weight, keys)


def augment(
    x: Float[Array, "h w c"],
    truth: Integer[Array, "h w"],
    weight: Float[Array, "h w"] | None = None,
    *,
    key: PRNGKeyArray,
    config: AugmentConfig,
) -> tuple[Array, Array, Array | None]:
    """Return the augmented (x, truth, weight) of one crop.

    The truth gets no value that it did not have, and parts that are off change no bit. Only
    square crops take quarter turns; others take half turns in their place.
    """
    keys = dict(zip(PARTS, jax.random.split(key, len(PARTS)), strict=True))
    turn = _draw_turn(truth.shape, keys, config)
    if config.rotation_deg or config.shift_px or config.scale or config.elastic_px:
        source = turn.map_source(_draw_source(truth.shape, keys, config), truth.shape)
        stretch = bound_stretch(truth.shape, config)
        x, truth, weight = resample((x, truth, weight), source, stretch=stretch)
    else:  # whole pixels move: nothing is interpolated
        x, truth, weight = jax.tree.map(turn.apply, (x, truth, weight))
    return _change_gray_values(x, keys, config), truth, weight


def affine(
    shape: tuple[int, ...], *, rotation_deg: Any, factor: Any, shift_px: Any
) -> Float[Array, "2 h w"]:
    """Return the row and the column that each pixel comes from under an affine map.

    The map turns a crop counter-clockwise and enlarges it, both about its centre, and then moves
    it by `shift_px` (down, right).
    """
    middle = [(size - 1) / 2 for size in shape]
    places = [
        jnp.arange(size, dtype=jnp.float32) - centre - shift
        for size, centre, shift in zip(shape, middle, shift_px, strict=True)
    ]
    down, right = jnp.meshgrid(*places, indexing="ij")
    angle = jnp.deg2rad(rotation_deg)
    # written out: a matrix product would be rounded to TF32 or bfloat16 on a GPU or TPU
    along, across = jnp.cos(angle) / factor, jnp.sin(angle) / factor
    rows, columns = along * down + across * right, along * right - across * down
    return jnp.stack([rows + middle[0], columns + middle[1]])


def bicubic(grid: Float[Array, "k n m"], shape: tuple[int, ...]) -> Float[Array, "k h w"]:
    """Return the displacements of a coarse grid, interpolated for each pixel of a crop.

    The grid's corners lie on the crop's. The kernel is that of Keys with a = -0.5, as in
    `jax.image`, and not a B-spline: at the points the displacements are the grid's own. Next to
    the border the kernel lacks a point, and the weights of the others are scaled to the sum 1.
    """
    scale = (jnp.array(shape, jnp.float32) - 1) / (jnp.array(grid.shape[1:], jnp.float32) - 1)
    return jax.image.scale_and_translate(
        grid, (len(grid), *shape), (1, 2), scale, (1 - scale) / 2, method="cubic", antialias=False
    )


class _Turn(NamedTuple):
    """A `_Turn` transposes a crop, reverses its rows and then its columns, or leaves some out.

    Attributes:
        transpose, flip_rows, flip_columns: bool scalars, traced or not.
    """

    transpose: Any
    flip_rows: Any
    flip_columns: Any

    def apply(self, array: Array) -> Array:
        """Return an array (h, w, ...) after the turn."""
        if array.shape[0] == array.shape[1]:
            array = jnp.where(self.transpose, array.swapaxes(0, 1), array)
        array = jnp.where(self.flip_rows, array[::-1], array)
        return jnp.where(self.flip_columns, array[:, ::-1], array)

    def map_source(self, source: Float[Array, "2 h w"], shape: tuple[int, ...]) -> Array:
        """Return the coordinates before the turn of what lies at `source` after it."""
        rows, columns = source
        rows = jnp.where(self.flip_rows, shape[0] - 1 - rows, rows)
        columns = jnp.where(self.flip_columns, shape[1] - 1 - columns, columns)
        as_they_are, swapped = jnp.stack([rows, columns]), jnp.stack([columns, rows])
        return jnp.where(self.transpose, swapped, as_they_are)


def _draw_turn(shape: tuple[int, ...], keys: Keys, config: AugmentConfig) -> _Turn:
    """Draw the flips and the quarter turns of a crop."""
    turns = jax.random.randint(keys["quarter_turns"], (), 0, 4) * config.quarter_turns
    if shape[0] != shape[1]:  # a quarter turn would change the shape
        turns = turns // 2 * 2
    flips = jax.random.bernoulli(keys["flips"], shape=(2,)) & config.flips
    # a turn by 90 degrees is a transposition and then a flip of the rows
    rows, columns = flips ^ jnp.stack([(turns == 1) | (turns == 2), turns >= 2])
    return _Turn(turns % 2 == 1, rows, columns)


def _draw_source(
    shape: tuple[int, ...], keys: Keys, config: AugmentConfig
) -> Float[Array, "2 h w"]:
    """Draw the row and the column that each pixel comes from."""
    source = affine(
        shape,
        rotation_deg=_draw_uniform(config.rotation_deg, keys["rotation"]),
        factor=jnp.exp(_draw_uniform(math.log1p(config.scale), keys["scale"])),
        shift_px=_draw_uniform(config.shift_px, keys["shift"], (2,)),
    )
    if not config.elastic_px:
        return source
    points = (2, config.elastic_grid, config.elastic_grid)
    return source + bicubic(config.elastic_px * _draw_normal(keys["elastic"], points), shape)


def bound_stretch(shape: tuple[int, ...], config: AugmentConfig) -> float:
    """Return how far the sources of neighbours lie apart at most, in a row and a column together.

    It is the sum of both derivatives of a source coordinate, in pixels per pixel.
    """
    angle = math.radians(min(config.rotation_deg, 45))
    stretch = (1 + config.scale) * (math.cos(angle) + math.sin(angle))
    if config.elastic_px:
        most, slope = _LARGEST_WEIGHTS.get(config.elastic_grid, _LARGEST_WEIGHTS[4])
        per_pixel = sum((config.elastic_grid - 1) / max(size - 1, 1) for size in shape)
        stretch += config.elastic_px * _LARGEST_NORMAL * most * slope * per_pixel
    return stretch


def _change_gray_values(x: Array, keys: Keys, config: AugmentConfig) -> Array:
    """Return a crop with other gray values.

    Gamma acts between the extremes of each channel of the crop, contrast about its mean. All
    channels share one exponent, factor, offset, field of illumination and sign; each has noise of
    its own.
    """
    if config.gamma:
        low = x.min((0, 1), keepdims=True)
        span = jnp.maximum(x.max((0, 1), keepdims=True) - low, jnp.finfo(x.dtype).tiny)
        exponent = jnp.exp(_draw_uniform(math.log1p(config.gamma), keys["gamma"]))
        # compiled, the darkest pixel may be computed twice, with other rounding: not below 0
        x = low + span * jnp.maximum((x - low) / span, 0) ** exponent
    if config.contrast:
        mean = x.mean((0, 1), keepdims=True)
        factor = jnp.exp(_draw_uniform(math.log1p(config.contrast), keys["contrast"]))
        x = mean + factor * (x - mean)
    if config.brightness:
        x = x + _draw_uniform(config.brightness, keys["brightness"])
    if config.illumination:
        amplitude, points = jax.random.split(keys["illumination"])
        most = config.illumination * jax.random.uniform(amplitude, dtype=jnp.float32)
        field = bicubic(_draw_normal(points, (1, 3, 3)), x.shape[:2])
        x = x + most * field[0, :, :, None]
    if config.invert:
        x = jnp.where(jax.random.bernoulli(keys["invert"], config.invert), -x, x)
    if config.noise:
        deviation, pixels = jax.random.split(keys["noise"])
        most = config.noise * jax.random.uniform(deviation, dtype=jnp.float32)
        x = x + most * _draw_normal(pixels, x.shape)
    return x


def _draw_uniform(most: float, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Array:
    """Draw float32 values that are uniform in [-most, most)."""
    return most * jax.random.uniform(key, shape, jnp.float32, -1, 1)


def _draw_normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Draw float32 values of the standard normal distribution."""
    return jax.random.normal(key, shape, jnp.float32)
