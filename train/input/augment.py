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
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..config import AugmentConfig

# each has a key of its own: switching one on leaves what the others draw
PARTS = ("flips", "quarter_turns", "rotation", "shift", "scale", "elastic",
         "contrast", "brightness", "invert", "noise", "gamma", "illumination")  # fmt: skip
Keys = dict[str, PRNGKeyArray]


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
    """(x, truth, weight) of a batch, or of a part of one.

    Args:
        step: an integer; it may be traced.
        first: place in the whole batch of the first image given.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(len(x)))
    one = jax.vmap(lambda x, truth, weight, key: augment(x, truth, weight, key=key, config=config))
    return one(x, truth, weight, keys)


def augment(
    x: Float[Array, "h w c"],
    truth: Integer[Array, "h w"],
    weight: Float[Array, "h w"] | None = None,
    *,
    key: PRNGKeyArray,
    config: AugmentConfig,
) -> tuple[Array, Array, Array | None]:
    """(x, truth, weight) of one crop.

    No value of the truth is new, and parts that are off change no bit. Only square crops take
    quarter turns; others take half turns in their place.
    """
    keys = dict(zip(PARTS, jax.random.split(key, len(PARTS)), strict=True))
    turn = _turn(truth.shape, keys, config)
    if config.rotation_deg or config.shift_px or config.scale or config.elastic_px:
        source = turn.source(_source(truth.shape, keys, config), truth.shape)
        x, truth, weight = jax.tree.map(partial(resampled, source=source), (x, truth, weight))
    else:
        x, truth, weight = jax.tree.map(turn.pixels, (x, truth, weight))
    return _tinted(x, keys, config), truth, weight


def affine(
    shape: tuple[int, ...], *, rotation_deg: Any, factor: Any, shift_px: Any
) -> Float[Array, "2 h w"]:
    """Row and column that each pixel comes from, where a crop is turned counter-clockwise and
    enlarged about its centre, then moved by `shift_px` (down, right)."""
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
    """Displacements between those of a coarse grid, whose corners lie on the crop's.

    Between the points stands Keys' kernel with a = -0.5, as in `jax.image`, not a B-spline: at
    the points the displacements are the grid's. Next to the border the kernel lacks a point, and
    the weights of the others are scaled to the sum 1.
    """
    scale = (jnp.array(shape, jnp.float32) - 1) / (jnp.array(grid.shape[1:], jnp.float32) - 1)
    return jax.image.scale_and_translate(
        grid, (len(grid), *shape), (1, 2), scale, (1 - scale) / 2, method="cubic", antialias=False
    )


def resampled(values: Array, source: Float[Array, "2 h w"]) -> Array:
    """(h, w) or (h, w, c) values at the source coordinates: floats bilinear, integers of the
    nearest pixel; beyond the border mirrored, the border pixel repeated."""
    order = 1 if jnp.issubdtype(values.dtype, jnp.floating) else 0
    at = partial(map_coordinates, coordinates=list(source), order=order, mode="reflect")
    return at(values) if values.ndim == 2 else jax.vmap(at, in_axes=2, out_axes=2)(values)


class _Turn(NamedTuple):
    """Whether a crop is transposed, and then its rows and its columns reversed."""

    transposed: Any
    rows: Any
    columns: Any

    def pixels(self, array: Array) -> Array:
        """An array (h, w, ...) turned."""
        if array.shape[0] == array.shape[1]:
            array = jnp.where(self.transposed, array.swapaxes(0, 1), array)
        array = jnp.where(self.rows, array[::-1], array)
        return jnp.where(self.columns, array[:, ::-1], array)

    def source(self, source: Float[Array, "2 h w"], shape: tuple[int, ...]) -> Array:
        """Where in the crop lies what is at these coordinates of the turned one."""
        rows, columns = source
        rows = jnp.where(self.rows, shape[0] - 1 - rows, rows)
        columns = jnp.where(self.columns, shape[1] - 1 - columns, columns)
        there, turned = jnp.stack([rows, columns]), jnp.stack([columns, rows])
        return jnp.where(self.transposed, turned, there)


def _turn(shape: tuple[int, ...], keys: Keys, config: AugmentConfig) -> _Turn:
    turns = jax.random.randint(keys["quarter_turns"], (), 0, 4) * config.quarter_turns
    if shape[0] != shape[1]:
        turns = turns // 2 * 2
    flips = jax.random.bernoulli(keys["flips"], shape=(2,)) & config.flips
    # a turn by 90 degrees is a transposition and then a flip of the rows
    rows, columns = flips ^ jnp.stack([(turns == 1) | (turns == 2), turns >= 2])
    return _Turn(turns % 2 == 1, rows, columns)


def _source(shape: tuple[int, ...], keys: Keys, config: AugmentConfig) -> Float[Array, "2 h w"]:
    """Row and column that each pixel comes from, as drawn."""
    source = affine(
        shape,
        rotation_deg=_up_to(config.rotation_deg, keys["rotation"]),
        factor=jnp.exp(_up_to(math.log1p(config.scale), keys["scale"])),
        shift_px=_up_to(config.shift_px, keys["shift"], (2,)),
    )
    if not config.elastic_px:
        return source
    points = (2, config.elastic_grid, config.elastic_grid)
    return source + bicubic(config.elastic_px * _normal(keys["elastic"], points), shape)


def _tinted(x: Array, keys: Keys, config: AugmentConfig) -> Array:
    """With other gray values: gamma between the extremes of each channel and contrast about its
    mean, both the crop's own; one exponent, one factor, one offset, one field and one sign for
    all channels; noise of its own in each."""
    if config.gamma:
        low = x.min((0, 1), keepdims=True)
        span = jnp.maximum(x.max((0, 1), keepdims=True) - low, jnp.finfo(x.dtype).tiny)
        exponent = jnp.exp(_up_to(math.log1p(config.gamma), keys["gamma"]))
        # compiled, the darkest pixel may be computed twice, with other rounding: not below 0
        x = low + span * jnp.maximum((x - low) / span, 0) ** exponent
    if config.contrast:
        mean = x.mean((0, 1), keepdims=True)
        factor = jnp.exp(_up_to(math.log1p(config.contrast), keys["contrast"]))
        x = mean + factor * (x - mean)
    if config.brightness:
        x = x + _up_to(config.brightness, keys["brightness"])
    if config.illumination:
        amplitude, points = jax.random.split(keys["illumination"])
        most = config.illumination * jax.random.uniform(amplitude, dtype=jnp.float32)
        x = x + most * bicubic(_normal(points, (1, 3, 3)), x.shape[:2])[0, :, :, None]
    if config.invert:
        x = jnp.where(jax.random.bernoulli(keys["invert"], config.invert), -x, x)
    if config.noise:
        deviation, pixels = jax.random.split(keys["noise"])
        most = config.noise * jax.random.uniform(deviation, dtype=jnp.float32)
        x = x + most * _normal(pixels, x.shape)
    return x


def _up_to(most: float, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Array:
    """Uniform in [-most, most)."""
    return most * jax.random.uniform(key, shape, jnp.float32, -1, 1)


def _normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)
