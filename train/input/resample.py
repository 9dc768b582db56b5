"""Read a crop at source coordinates, bilinearly or from the nearest pixel.

There are two forms with the same result, and the platform that a program is lowered for chooses.
A CPU and a GPU gather pixel by pixel. That is what a TPU does worst, so there a crop is read by
matrix products: a product with rows of zeros and a single one picks values without rounding them.
Such a product with the whole crop would be long. The output is therefore cut into tiles, and the
pixels of one tile all come from one small window of the crop. For 16 crops of 256x256 a v5e chip
moves a tenth of the bytes that way, by the estimate of TPU's compiler. A CPU takes about 40 times
as long as with gathers (benchmarks/results/augmentation.json).
"""

import math
from functools import partial, reduce
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, BFloat16, Float, Integer

# 256 pixels fill the lanes of a TPU, and larger tiles need larger windows
TILE_PX = 16
# of wider windows the products take longer than gathers, and memory that the step needs
WIDEST_WINDOW_PX = 128
_NO_BOUND = 1e6


def resample(values: Any, source: Float[Array, "2 h w"], *, stretch: float = _NO_BOUND) -> Any:
    """Return arrays (H, W) or (H, W, c), read at the source coordinates, as (h, w) or (h, w, c).

    Floats are interpolated bilinearly, integers are those of the nearest pixel. Beyond the border
    the values are mirrored, and the border pixel is repeated.

    Args:
        values: an array, or a tree of arrays that lie on one another.
        stretch: in a column and a row of neighbours together, neither source coordinate changes
            by more than this from one pixel to the next. A TPU reads only as far as that.
    """
    side_px = choose_window(stretch)
    if side_px > WIDEST_WINDOW_PX or not all(map(_is_split_exactly, jax.tree.leaves(values))):
        return read_by_gathers(values, source)
    products = partial(read_by_products, side_px=side_px)
    return jax.lax.platform_dependent(values, source, tpu=products, default=read_by_gathers)


def read_by_gathers(values: Any, source: Float[Array, "2 h w"]) -> Any:
    """Return what `resample` returns, each pixel looked up by itself."""

    def read(array: Array) -> Array:
        order = 1 if jnp.issubdtype(array.dtype, jnp.floating) else 0
        of_plane = partial(map_coordinates, coordinates=list(source), order=order, mode="reflect")
        return of_plane(array) if array.ndim == 2 else jax.vmap(of_plane, 2, 2)(array)

    return jax.tree.map(read, values)


def choose_window(stretch: float) -> int:
    """Return the side in pixels of a window that holds all that a tile is read from."""
    # two more: the pixels before the first coordinate and after the last; and whole sublanes
    pixels = math.ceil(min(stretch, _NO_BOUND) * (TILE_PX - 1)) + 2
    return math.ceil(pixels / 8) * 8


def read_by_products(values: Any, source: Float[Array, "2 h w"], *, side_px: int) -> Any:
    """Return what `resample` returns, by products with windows of the crop.

    Values have to be finite. One from beyond the window of its tile would be 0.
    """
    leaves, tree = jax.tree.flatten(values)
    planes = [jnp.moveaxis(leaf, -1, 0) if leaf.ndim == 3 else leaf[None] for leaf in leaves]
    terms = [_split(plane) for stack in planes for plane in stack]
    rows, columns = (
        _Axis.make(coordinates, size, side_px)
        for coordinates, size in zip(_cut_tiles(source), leaves[0].shape, strict=False)
    )
    windows = _cut_windows(jnp.concatenate(terms), rows, columns)
    # of each plane: which terms it has
    ends = list(accumulate(map(len, terms)))
    spans = iter(zip([0, *ends], ends, strict=False))
    made = []
    for leaf, stack in zip(leaves, planes, strict=True):
        read = partial(_read_plane, windows, rows, columns, dtype=leaf.dtype)
        tiles = jnp.stack([read(*next(spans)) for _ in stack])
        whole = _join_tiles(tiles, source.shape[1:])
        made.append(jnp.moveaxis(whole, 0, -1) if leaf.ndim == 3 else whole[0])
    return jax.tree.unflatten(tree, made)


class _Axis(NamedTuple):
    """An `_Axis` says from which rows, or which columns, the pixels of each tile come.

    Attributes:
        coordinates: of each pixel of each tile.
        first: of the tile's window, in the crop.
        size: of the crop.
        side: of a window.
    """

    coordinates: Float[Array, "n p"]
    first: Integer[Array, " n"]
    size: int
    side: int

    @classmethod
    def make(cls, coordinates: Float[Array, "n p"], size: int, side_px: int) -> "_Axis":
        """Place the windows so that they hold all pixels that the coordinates lie between."""
        side = min(side_px, size)
        axis = cls(coordinates, jnp.zeros(len(coordinates), jnp.int32), size, side)
        lower, upper = (index.min(1) for index, _ in axis.find_taps(is_linear=True))
        return axis._replace(first=jnp.clip(jnp.minimum(lower, upper), 0, size - side))

    def find_taps(self, *, is_linear: bool) -> list[tuple[Array, Array]]:
        """Return pixels of the window (n, p) that a value comes from, and their weights (n, p)."""
        below = jnp.floor(self.coordinates)
        weight = self.coordinates - below
        taps = [(below.astype(jnp.int32), 1 - weight), (below.astype(jnp.int32) + 1, weight)]
        if not is_linear:
            nearest = jax.lax.round(self.coordinates).astype(jnp.int32)
            taps = [(nearest, jnp.ones_like(weight))]
        return [(self._mirror(index) - self.first[:, None], weight) for index, weight in taps]

    def list_pixels(self) -> Integer[Array, "n side"]:
        """Return the pixels of the crop that each window holds."""
        return self.first[:, None] + jnp.arange(self.side)

    def _mirror(self, index: Array) -> Array:
        """Return the pixel of the crop that is seen in place of one beyond its border."""
        place = index % (2 * self.size)
        return jnp.minimum(place, 2 * self.size - 1 - place)


def _is_split_exactly(array: Array) -> bool:
    return array.dtype in (jnp.float32, jnp.uint8)


def _split(plane: Array) -> BFloat16[Array, "k h w"]:
    """Return a plane as terms in bfloat16, the arithmetic of a TPU, whose sum is the plane.

    Each term has the next 8 of the 24 bits of a float32. They have one sign, so the sum of any of
    them is exact as well. A number up to 255 is one term.
    """
    if plane.dtype == jnp.uint8:
        return plane.astype(jnp.bfloat16)[None]
    high = _cut_bits(plane)
    middle = _cut_bits(plane - high)
    return jnp.stack([high, middle, plane - high - middle]).astype(jnp.bfloat16)


def _cut_bits(values: Array) -> Array:
    """Return float32 values without the bits that bfloat16 does not have."""
    # written with integers: a cast there and back would be removed as having no effect
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _cut_windows(
    terms: BFloat16[Array, "k h w"], rows: _Axis, columns: _Axis
) -> BFloat16[Array, "n k r c"]:
    """Return the window of each tile."""
    # without whole lanes the bands are copied, which takes half of the time
    beyond = [(0, 0), *((0, -size % 128) for size in terms.shape[1:])]
    terms = jnp.pad(terms, beyond)
    is_row, is_column = (
        (axis.list_pixels()[..., None] == jnp.arange(size)).astype(jnp.bfloat16)
        for axis, size in zip((rows, columns), terms.shape[1:], strict=True)
    )
    product = partial(jnp.einsum, preferred_element_type=jnp.bfloat16)
    bands = product("nrh,khw->nkrw", is_row, terms)
    return product("nkrw,ncw->nkrc", bands, is_column)


def _read_plane(
    windows: BFloat16[Array, "n k r c"],
    rows: _Axis,
    columns: _Axis,
    first: int,
    end: int,
    *,
    dtype: Any,
) -> Array:
    """Return the values (n, p) of the plane whose terms are `first` to `end` of the windows."""
    is_linear = jnp.issubdtype(dtype, jnp.floating)
    n, k, r, c = windows.shape
    # all terms take part in the product, those of others with zeros: to cut them out is a copy
    row_of_line = np.full((k, r), -1, np.int32)
    row_of_line[first:end] = np.arange(r)
    lines = windows.reshape(n, k * r, c)
    parts = []
    for row, weight_of_row in rows.find_taps(is_linear=is_linear):
        # one row of each term of the plane, whose sum is the row of the plane
        is_row = (row[:, None] == row_of_line.reshape(k * r, 1)).astype(jnp.bfloat16)
        line = jnp.einsum("nip,nic->ncp", is_row, lines, preferred_element_type=jnp.float32)
        for column, weight in columns.find_taps(is_linear=is_linear):
            is_column = column[:, None] == np.arange(c)[:, None]
            parts.append(weight_of_row * weight * jnp.where(is_column, line, 0).sum(1))
    return reduce(add, parts).astype(dtype)


def _cut_tiles(planes: Float[Array, "k h w"]) -> Float[Array, "k n p"]:
    """Return planes as tiles; those at the lower and the right border repeat their last pixels."""
    beyond = [(0, -size % TILE_PX) for size in planes.shape[1:]]
    k, height, width = (padded := jnp.pad(planes, [(0, 0), *beyond], mode="edge")).shape
    grid = padded.reshape(k, height // TILE_PX, TILE_PX, width // TILE_PX, TILE_PX)
    return grid.swapaxes(2, 3).reshape(k, -1, TILE_PX**2)


def _join_tiles(tiles: Array, shape: tuple[int, ...]) -> Array:
    """Return the planes (k, h, w) that such tiles (k, n, p) are cut from."""
    down, right = (-(-size // TILE_PX) for size in shape)
    grid = tiles.reshape(-1, down, right, TILE_PX, TILE_PX).swapaxes(2, 3)
    planes = grid.reshape(-1, down * TILE_PX, right * TILE_PX)
    return planes[:, : shape[0], : shape[1]]
