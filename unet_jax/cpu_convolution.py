"""The forms of the 3x3 convolution and of its gradients that are quickest on a CPU.

XLA's own convolution is one of them. The others are made of matrix products, which XLA runs at
the full speed of the cores, in bands of rows, so that what a product reads is still in the cache:

- Winograd's F(2x2, 3x3) takes 16 products for tiles of 2x2 values in place of 36. Its constants
  are halves, so in integers it rounds nothing (Lavin and Gray, 2015, arXiv 1509.09308).
- The kernel gradient as three products, one for each row of the kernel, of one map and of three
  copies of the other, side by side, each moved by a column.
- In float64, for which XLA has plain loops alone, one product of the kernel and of nine copies of
  the map, side by side.
- The input gradient at a net's lowest level, of few pixels and many channels, as one product of
  all values of the kernel and all of the map, before what belongs together is added.

Which one is taken depends on pixels n and channels in and out, c and k. The bounds are those of
`benchmarks/cpu_forms.py`, where the time of each form in float32 stands beside that of the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

# a band's 16 products are added to 16 sums, which for many channels are more than the band itself
SMALLEST_BAND_PX = 2**10
# a map of so many pixels is one band
LARGEST_BAND_PX = 2**12


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, pad: int, precision: Any
) -> Float[Array, "b h2 w2 k"]:
    """Return the convolution of x, with `pad` zeros on all sides."""
    (b, h, w, c), k = x.shape, kernel.shape[3]
    pixels = b * (h + 2 * pad - 2) * (w + 2 * pad - 2)
    if _prefers_winograd(x, pixels, c, k):
        return _winograd(x, _transform_kernel(kernel), pad, precision, contract=0)
    if _prefers_products(x, pixels, c, k) and x.dtype == jnp.float64:
        return _one_product_of_copies(x, kernel, pad, precision)
    return _directly(x, kernel, pad, precision)


def input_gradient(
    g: Float[Array, "b h2 w2 k"], kernel: Float[Array, "3 3 c k"], *, pad: int, precision: Any
) -> Float[Array, "b h w c"]:
    """Return the gradient by x: the convolution of g with the kernel turned by 180 degrees."""
    (b, h, w, k), c, around = g.shape, kernel.shape[2], 2 - pad
    pixels = b * (h + 2 * around - 2) * (w + 2 * around - 2)
    turned = kernel[::-1, ::-1]
    if _prefers_winograd(g, pixels, k, c):
        return _winograd(g, _transform_kernel(turned), around, precision, contract=1)
    if _prefers_products(g, pixels, k, c) and pixels <= 512:
        return _one_product_of_kernel(g, turned, around, precision)
    turned = turned.swapaxes(2, 3)
    if _prefers_products(g, pixels, k, c) and g.dtype == jnp.float64:
        return _one_product_of_copies(g, turned, around, precision)
    return _directly(g, turned, around, precision)


def kernel_gradient(
    x: Float[Array, "b h w c"], g: Float[Array, "b h2 w2 k"], *, pad: int, precision: Any
) -> Float[Array, "3 3 c k"]:
    """Return the gradient by the kernel: sum over b, h, w of x[b, h+i-pad, w+j-pad] g[b, h, w]."""
    (b, height, width, k), c = g.shape, x.shape[3]
    pixels = b * height * width
    is_large = _prefers_products(x, pixels, c, k) and pixels * c * k >= 2**26
    if is_large and min(c, k) >= 128:
        return _kernel_gradient_by_winograd(x, g, pad, precision)
    if _prefers_products(x, pixels, c, k):
        return _kernel_gradient_by_columns(x, g, pad, precision)
    return _kernel_gradient_directly(x, g, pad, precision)


def _prefers_products(x: Array, pixels: int, c: int, k: int) -> bool:
    """Tell whether there is enough to compute for copies to pay.

    In bfloat16 sums of values would lose half of their digits. XLA's loops for float64 are so slow
    that less work pays; below the bound a product takes longer to compile than it saves.
    """
    least = {"float32": 2**23, "float64": 2**20}
    return x.dtype.name in least and pixels * c * k >= least[x.dtype.name]


def _prefers_winograd(x: Array, pixels: int, c: int, k: int) -> bool:
    """Tell whether 16 products are quicker: of many channels, with enough work in each, and with
    a kernel that is small beside the map, because it is transformed too."""
    is_large = _prefers_products(x, pixels, c, k) and pixels * c * k >= 2**26
    return is_large and min(c, k) >= 64 and c * k <= 2**18


def _directly(x: Array, kernel: Array, pad: int, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _kernel_gradient_directly(x: Array, g: Array, pad: int, precision: Any) -> Array:
    """Return the convolution of x with g, channels of x as its images, images as its channels."""
    return lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
    )


def _one_product_of_copies(x: Array, kernel: Array, pad: int, precision: Any) -> Array:
    """Convolve by a product of the kernel and of nine copies of x, each moved to its place."""
    _, h, w, c = x.shape
    height, width = h + 2 * pad - 2, w + 2 * pad - 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    copies = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = kernel.reshape(9 * c, kernel.shape[3])
    along = (((3,), (0,)), ((), ()))
    return lax.dot_general(jnp.concatenate(copies, -1), columns, along, precision=precision)


def _one_product_of_kernel(g: Array, kernel: Array, pad: int, precision: Any) -> Array:
    """Convolve with a kernel (3, 3, c, k) whose channels are swapped: k in, c out."""
    (_, h, w, k), c = g.shape, kernel.shape[2]
    height, width = h + 2 * pad - 2, w + 2 * pad - 2
    padded = jnp.pad(g, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    products = lax.dot_general(
        kernel.reshape(9 * c, k),
        padded.reshape(-1, k),
        (((1,), (1,)), ((), ())),
        precision=precision,
    ).reshape(3, 3, c, *padded.shape[:3])
    y = sum(products[i, j, :, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
    return jnp.transpose(y, (1, 2, 3, 0))


# Winograd's algorithm: windows of 4x4 values give tiles of 2x2


def _winograd(
    x: Array, kernels: Sequence[Array], pad: int, precision: Any, *, contract: int
) -> Array:
    """Convolve by 16 products.

    Args:
        kernels: of `_transform_kernel`.
        contract: which of their two axes is that of x's channels.
    """
    b, h, w, c = x.shape
    height, width, k = h + 2 * pad - 2, w + 2 * pad - 2, kernels[0].shape[1 - contract]
    columns = -(-width // 2)

    def convolve_band(y: Array, first: Any, count: int) -> Array:
        rows = -(-count // 2)
        windows = _read_window(x, first - pad, 2 * rows + 2, pad, 2 * columns + 2)
        products = [
            lax.dot_general(
                window.reshape(-1, c), kernel, (((1,), (contract,)), ((), ())), precision=precision
            ).reshape(b, rows, columns, k)
            for window, kernel in zip(_transform_windows(windows), kernels, strict=True)
        ]
        band = _join_tiles(products)[:, :count, :width]
        return lax.dynamic_update_slice_in_dim(y, band, first, axis=1)

    return _fold_bands(
        convolve_band,
        jnp.zeros((b, height, width, k), x.dtype),
        heights=(h, height),
        pad=pad,
        rows=_count_rows((b, height, width), 2**19 // max(c, k)),
    )


def _kernel_gradient_by_winograd(x: Array, g: Array, pad: int, precision: Any) -> Array:
    """Return the kernel gradient by 16 products, which are the transposes of those above."""
    (b, h, _, c), (_, height, width, k) = x.shape, g.shape
    columns = -(-width // 2)

    def add_band(sums: tuple[Array, ...], first: Any, count: int) -> tuple[Array, ...]:
        rows = -(-count // 2)
        windows = _read_window(x, first - pad, 2 * rows + 2, pad, 2 * columns + 2)
        band = lax.dynamic_slice_in_dim(g, first, count, axis=1)
        to_even = ((0, 0), (0, 2 * rows - count), (0, 2 * columns - width), (0, 0))
        tiles = jnp.pad(band, to_even)
        return tuple(
            total + _product_over_pixels(window, tile, precision)
            for total, window, tile in zip(
                sums, _transform_windows(windows), _transform_tiles(tiles), strict=True
            )
        )

    sums = _fold_bands(
        add_band,
        (jnp.zeros((c, k), x.dtype),) * 16,
        heights=(h, height),
        pad=pad,
        rows=_count_rows((b, height, width), 2**19 // max(c, k)),
    )
    return _join_kernel(sums)


def _transform_windows(x: Array) -> list[Array]:
    """Return (b, rows, columns, c) for each of the 16 values of the transformed windows.

    Args:
        x: (b, 2 rows + 2, 2 columns + 2, c), whose windows of 4x4 values lie 2 apart.
    """
    b, height, width, c = x.shape
    pairs = x.reshape(b, height // 2, 2, width, c)
    values: list[Array] = []
    for line in _transform_four(
        pairs[:, :-1, 0], pairs[:, :-1, 1], pairs[:, 1:, 0], pairs[:, 1:, 1]
    ):
        both = line.reshape(b, height // 2 - 1, width // 2, 2, c)
        values += _transform_four(
            both[:, :, :-1, 0], both[:, :, :-1, 1], both[:, :, 1:, 0], both[:, :, 1:, 1]
        )
    return values


def _transform_four(x0: Array, x1: Array, x2: Array, x3: Array) -> tuple[Array, ...]:
    return x0 - x2, x1 + x2, x2 - x1, x1 - x3


def _transform_kernel(kernel: Array) -> list[Array]:
    """Return (c, k) for each of the 16 values of the transformed kernel (3, 3, c, k)."""

    def transform_three(a: Array, b: Array, c: Array) -> tuple[Array, ...]:
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    return [value for line in transform_three(*kernel) for value in transform_three(*line)]


def _join_kernel(values: Sequence[Array]) -> Array:
    """Return the kernel gradient (3, 3, c, k) of those by the 16 transformed values."""

    def join_four(a: Array, b: Array, c: Array, d: Array) -> Array:
        return jnp.stack([a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d])

    lines = [join_four(*values[4 * i : 4 * i + 4]) for i in range(4)]
    return join_four(*lines)


def _join_tiles(products: Sequence[Array]) -> Array:
    """Return (b, 2 rows, 2 columns, k) of 16 products (b, rows, columns, k)."""

    def join_four(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
        return a + b + c, b - c - d

    b, rows, columns, k = products[0].shape
    lines = [join_four(*products[i::4]) for i in range(4)]  # of each of the four columns
    tiles = [jnp.stack(join_four(*line), axis=3) for line in zip(*lines, strict=True)]
    return jnp.stack(tiles, axis=2).reshape(b, 2 * rows, 2 * columns, k)


def _transform_tiles(g: Array) -> list[Array]:
    """Return (b, rows, columns, k) for each of the 16 values of the transformed tiles of g."""

    def transform_two(a: Array, b: Array) -> tuple[Array, ...]:
        return a, a + b, a - b, -b

    b, height, width, k = g.shape
    tiles = g.reshape(b, height // 2, 2, width // 2, 2, k)
    lines = transform_two(tiles[:, :, 0], tiles[:, :, 1])
    return [value for line in lines for value in transform_two(line[..., 0, :], line[..., 1, :])]


# three columns side by side


def _kernel_gradient_by_columns(x: Array, g: Array, pad: int, precision: Any) -> Array:
    """Return the kernel gradient by a product for each row of the kernel.

    The map with fewer channels is laid side by side with itself, moved by one column and by two.
    """
    (b, h, _, c), (_, height, width, k) = x.shape, g.shape
    is_g_repeated = k <= c

    def add_band(sums: tuple[Array, ...], first: Any, count: int) -> tuple[Array, ...]:
        windows = _read_window(x, first - pad, count + 2, pad, width + 2)
        tiles = lax.dynamic_slice_in_dim(g, first, count, axis=1)
        if is_g_repeated:  # moved the other way, and as wide as x with its zeros
            moved = jnp.pad(tiles, ((0, 0), (0, 0), (2, 2), (0, 0)))
            tiles = jnp.concatenate([moved[:, :, 2 - j : width + 4 - j] for j in range(3)], -1)
        else:
            windows = jnp.concatenate([windows[:, :, j : j + width] for j in range(3)], -1)
        return tuple(
            total + _product_over_pixels(windows[:, i : i + count], tiles, precision)
            for i, total in enumerate(sums)
        )

    shape = (c, 3 * k) if is_g_repeated else (3 * c, k)
    sums = _fold_bands(
        add_band,
        (jnp.zeros(shape, x.dtype),) * 3,
        heights=(h, height),
        pad=pad,
        rows=_count_rows((b, height, width), 2**13 if min(c, k) < 48 else 2**11),
    )
    if is_g_repeated:
        return jnp.stack(sums).reshape(3, c, 3, k).swapaxes(1, 2)
    return jnp.stack(sums).reshape(3, 3, c, k)


def _product_over_pixels(x: Array, g: Array, precision: Any) -> Array:
    """Return the sum over b, h, w of x[b, h, w, c] g[b, h, w, k], for all c and k."""
    c, k = x.shape[3], g.shape[3]
    x, g = x.reshape(-1, c), g.reshape(-1, k)
    # XLA is up to twice as fast where the second map has more channels
    over_pixels = (((0,), (0,)), ((), ()))
    if c > k:
        return lax.dot_general(g, x, over_pixels, precision=precision).T
    return lax.dot_general(x, g, over_pixels, precision=precision)


# bands of rows


def _count_rows(size: tuple[int, int, int], band_px: int) -> int:
    """Return how many rows of a map of this size (b, h, w) are a band: an even number.

    Args:
        band_px: how many pixels it should have, where the map is large.
    """
    b, height, width = size
    if b * height * width <= LARGEST_BAND_PX:
        return height + height % 2
    return max(1, max(band_px, SMALLEST_BAND_PX) // (2 * b * width)) * 2


def _fold_bands(
    add_band: Callable[[Any, Any, int], Any],
    start: Any,
    *,
    heights: tuple[int, int],
    pad: int,
    rows: int,
) -> Any:
    """Return what `add_band(so_far, first, count)` makes of `start`, one band after the other.

    Bands that lie inside the map are one loop, in which `first` is traced. Those at its borders,
    which see zeros, and a last one with fewer rows have code of their own: asking in the loop
    what lies outside took a quarter more time.

    Args:
        heights: of the map that is read with a row more on either side, and of the other.
        rows: of a band; the last one may have fewer.
    """
    read, height = heights
    firsts = range(0, height, rows)
    inside = [
        first
        for first in firsts
        if first >= pad and first - pad + rows + 2 <= read and first + rows <= height
    ]
    result = start
    if len(inside) < 2:
        inside = []
    else:
        result = lax.fori_loop(
            inside[0] // rows,
            inside[-1] // rows + 1,
            lambda i, so_far: add_band(so_far, i * rows, rows),
            result,
        )
    for first in firsts:
        if first not in inside:
            result = add_band(result, first, min(rows, height - first))
    return result


def _read_window(x: Array, first: Any, height: int, left: int, width: int) -> Array:
    """Return `height` rows from row `first` on, and `width` columns from `-left` on.

    What lies outside of x is 0; a traced `first` lies inside, with all rows.
    """
    above = below = 0
    if isinstance(first, int):
        above, below = max(0, -first), max(0, first + height - x.shape[1])
        rows = x[:, first + above : first + height - below]
    else:
        rows = lax.dynamic_slice_in_dim(x, first, height, axis=1)
    right = width - left - x.shape[2]
    return jnp.pad(rows, ((0, 0), (above, below), (left, right), (0, 0)))
