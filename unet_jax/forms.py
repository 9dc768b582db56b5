"""Operations that platforms want in different forms, and the choice between these forms.

A form is one way of computing an operation. All forms of one operation give the same values; they
differ in what a platform's compiler makes of them. The choice falls when a program is lowered, so
one traced program, and one exported file, serves every platform.

The forms for TPU fold columns into channels. A TPU computes on 128 lanes, and channels lie in
lanes: a map of 64 channels fills half of them. `fold` lays two neighbouring columns of 64
channels side by side as 128. Every operation that meets such a map folds what it takes and
unfolds what it gives; between two operations the compiler removes both, and nothing is moved.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

LANES = 128  # of a TPU's registers and of its matrix unit
MOST_COLUMNS = 8  # of one fold: a folded kernel is mostly zeros where channels are few
OPERATIONS = (
    "convolve",
    "max_pool",
    "up_convolve",
    "concatenate",
    "moments",
    "relu",
    "place_logits",
)
PLATFORMS = ("cpu", "tpu")
"""Platforms with forms of their own; all others take those of the CPU."""

_forced: ContextVar[dict[str, str] | None] = ContextVar("forced_forms", default=None)


@contextmanager
def force_forms(platform: str, **others: str) -> Iterator[None]:
    """Take the forms of `platform` wherever what is traced in the block will run.

    A function that JAX has compiled before keeps the forms that it was traced with.

    Args:
        others: another platform for operations by their names, such as `max_pool="tpu"`.
    """
    for name in (platform, *others.values()):
        if name not in PLATFORMS:
            raise ValueError(f"{name} has no forms of its own; known are {', '.join(PLATFORMS)}")
    if unknown := set(others) - set(OPERATIONS):
        raise ValueError(f"no operation is called {', '.join(sorted(unknown))}")
    token = _forced.set({**dict.fromkeys(OPERATIONS, platform), **others})
    try:
        yield
    finally:
        _forced.reset(token)


def find_forced(operation: str) -> str | None:
    """Return the platform whose form of an operation is taken in any case, or None."""
    forced = _forced.get()
    return None if forced is None else forced[operation]


def choose(operation: str, *arrays: Array, cpu: Callable[..., Any], tpu: Callable[..., Any]) -> Any:
    """Return what a form gives for the arrays: that of the platform the program will run on.

    Args:
        operation: its name, one of `OPERATIONS`.
    """
    forced = find_forced(operation)
    if forced is None:
        return lax.platform_dependent(*arrays, tpu=tpu, default=cpu)
    return {"cpu": cpu, "tpu": tpu}[forced](*arrays)


# ---- columns in channels


def count_columns(width: int, channels: int) -> int:
    """Return how many columns of so many channels are folded into one; 1 where nothing is."""
    count = LANES // channels
    if not 2 <= count <= MOST_COLUMNS or channels * count != LANES or width % count:
        return 1
    return count


def fold(x: Float[Array, "b h w c"], count: int, parts: int = 1) -> Float[Array, "b h v d"]:
    """Lay `count` neighbouring columns side by side in the channels: v = w / count, d = c * count.

    Args:
        parts: groups of channels that are folded each by itself, for a map that is a
            concatenation.
    """
    b, h, w, c = x.shape
    if parts > 1:
        x = x.reshape(b, h, w // count, count, parts, c // parts).swapaxes(3, 4)
    return x.reshape(b, h, w // count, count * c)


def unfold(x: Float[Array, "b h v d"], count: int, parts: int = 1) -> Float[Array, "b h w c"]:
    """Undo `fold` with the same count and parts."""
    b, h, v, d = x.shape
    if parts > 1:
        x = x.reshape(b, h, v, parts, count, d // (parts * count)).swapaxes(3, 4)
    return x.reshape(b, h, v * count, d // count)


def fold_kernel(
    kernel: Float[Array, "y x c k"], count: int, parts: int, before: int
) -> tuple[Float[Array, "y x2 d n"], int]:
    """Return the kernel between folded maps, and how many folded columns of padding it needs.

    Column s of an output reads the columns s - before to s - before + x - 1 of an input, so for
    each s the kernel stands at another place among the columns that are folded; the rest is 0.

    Args:
        count: columns that are folded into one, of input and output.
        parts: of the input, as in `fold`.
        before: columns of padding at the left.
    """
    height, width, in_, out = kernel.shape
    padding = -(-before // count)
    taps = padding + (count - 1 + width - 1 - before) // count + 1
    places = []
    for column in range(count):
        left = padding * count + column - before
        right = taps * count - left - width
        nothing = (0, 0, 0)
        borders = (nothing, (left, right, 0), nothing, nothing)
        places.append(lax.pad(kernel, jnp.zeros((), kernel.dtype), borders))
    folded = jnp.stack(places, axis=3)
    folded = folded.reshape(height, taps, count, parts, in_ // parts, count * out)
    return folded.swapaxes(2, 3).reshape(height, taps, count * in_, count * out), padding


# ---- convolution


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, in the form of the platform.

    nnx.Conv takes it as `conv_general_dilated`. A 3x3 convolution has more forms:
    `unet_jax.convolution`.
    """
    settings: dict[str, Any] = {"strides": strides, "padding": padding, **options}
    return choose(
        "convolve",
        x,
        kernel,
        cpu=partial(_convolve_plainly, **settings),
        tpu=partial(convolve_folded, **settings),
    )


def _convolve_plainly(
    x: Array, kernel: Array, *, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def convolve_folded(
    x: Array, kernel: Array, *, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Convolve with folded columns where channels leave lanes empty, else as they are."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    before, after = padding[1]
    count, parts = _count_for_convolution(x, kernel, before + after)
    if count == 1:
        return _convolve_plainly(x, kernel, strides=strides, padding=padding, **options)
    wide, first = fold_kernel(kernel, count, parts, before)
    more = (before + after - kernel.shape[1] + 1) // count
    last = more - first + wide.shape[1] - 1
    y = lax.conv_general_dilated(
        fold(x, count, parts), wide, strides, (padding[0], (first, last)), **options
    )
    return unfold(y, count)


def _count_for_convolution(x: Array, kernel: Array, padding: int) -> tuple[int, int]:
    """Return how many columns are folded, and the parts of the input.

    A 1x1 convolution folds as many as its input has room for: its output has a channel for each
    class, and is small. All others fold as many as their output has room for.
    """
    width, (_, size, in_, out) = x.shape[2], kernel.shape
    count = count_columns(width, in_ if size == 1 else out)
    if (width + padding - size + 1) % count:
        return 1, 1
    parts = max(1, in_ * count // LANES)
    return count, parts if in_ % parts == 0 else 1


# ---- pool


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Return the 2x2 max-pool with stride 2; an odd last row or column is dropped, as in torch.

    The gradient of a tie goes to the first maximum of the window in reading order, as in torch;
    `jnp.max` splits it. `nnx.max_pool`'s backward, select-and-scatter, is slow on CPU, and XLA
    refuses it in deterministic mode.
    """
    return choose("max_pool", x, cpu=_pool_by_reshape, tpu=_pool_by_slices)


def _pool_by_reshape(x: Array) -> Array:
    b, h, w, c = x.shape
    windows = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    top = _first_max(windows[:, :, 0, :, 0], windows[:, :, 0, :, 1])
    bottom = _first_max(windows[:, :, 1, :, 0], windows[:, :, 1, :, 1])
    return _first_max(top, bottom)


def _pool_by_slices(x: Array) -> Array:
    """Pool strided slices, whose gradients need no array of five axes, which a TPU copies."""
    h, w, c = x.shape[1:]
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    count = count_columns(x.shape[2], c)
    rows = [fold(x, count)[:, first::2] for first in (0, 1)]
    if count == 1:
        top, bottom = (_first_max(row[:, :, ::2], row[:, :, 1::2]) for row in rows)
        return _first_max(top, bottom)
    pairs = []
    for left in range(0, LANES, 2 * c):
        middle, right = left + c, left + 2 * c
        top, bottom = (_first_max(row[..., left:middle], row[..., middle:right]) for row in rows)
        pairs.append(_first_max(top, bottom))
    return unfold(jnp.concatenate(pairs, axis=-1), count // 2)


def _first_max(first: Array, second: Array) -> Array:
    # NaN wins wherever it stands, as in torch
    return jnp.where((second > first) | (second != second), second, first)


# ---- up-convolution


def up_convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "2 2 c k"],
    bias: Float[Array, " k"],
    *,
    precision: Any,
) -> Float[Array, "b 2*h 2*w k"]:
    """Return the 2x2 transposed convolution with stride 2.

    y[b, 2h+i, 2w+j, o] = sum_c x[b, h, w, c] kernel[i, j, c, o] + bias[o]

    The windows do not overlap, so nothing is to be summed between them.
    """

    def multiplied(x: Array, kernel: Array, bias: Array) -> Array:
        """Multiply once, and shuffle pixels.

        The kernel is one matrix: from an einsum with its four axes JAX derives a gradient for which
        XLA moves all pixels behind the channels first. The map keeps its axes: rows and images
        that are spread over devices would be gathered to be one axis.
        """
        (b, h, w, c), k = x.shape, kernel.shape[3]
        columns = jnp.moveaxis(kernel, 2, 0).reshape(c, 4 * k)
        along = (((3,), (0,)), ((), ()))
        y = lax.dot_general(x, columns, along, precision=precision).reshape(b, h, w, 2, 2, k)
        # swapping axes after the product, not in it, takes a fifth to a third less time on CPU
        return (y + bias).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, k)

    def convolved(x: Array, kernel: Array, bias: Array) -> Array:
        """Convolve a dilated input, which moves no pixel: a shuffle is a copy on a TPU."""
        count = count_columns(2 * x.shape[2], kernel.shape[3])
        if count == 1:
            return _spread(x, kernel, precision) + bias
        # two columns of the output, which one column of the input gives, are folded in any case
        in_count = count // 2
        pairs = kernel.swapaxes(1, 2).reshape(2, 1, kernel.shape[2], -1)
        wide, _ = fold_kernel(pairs, in_count, parts=1, before=0)
        return unfold(_spread(fold(x, in_count), wide, precision), count) + bias

    return choose("up_convolve", x, kernel, bias, cpu=multiplied, tpu=convolved)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _spread(x: Array, kernel: Array, precision: Any) -> Array:
    """Return a transposed convolution whose stride is the size of the kernel, (2, 2) or (2, 1).

    It convolves a dilated input with the mirrored kernel.
    """
    sizes = kernel.shape[:2]
    return lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), [(size - 1, size - 1) for size in sizes],
        lhs_dilation=sizes, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
    )  # fmt: skip


@_spread.defjvp
def _spread_jvp(
    precision: Any, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Differentiate with respect to the kernel as a convolution of the kernel with the image.

    It is the same sum. From it JAX derives a gradient of the kernel that a TPU computes from the
    maps as they lie; from the other it mirrors whole maps first.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    sizes = kernel.shape[:2]
    borders = [size * (length - 1) for size, length in zip(sizes, x.shape[1:3], strict=True)]
    by_kernel = lax.conv_general_dilated(
        dkernel, x[:, ::-1, ::-1], (1, 1), [(border, border) for border in borders],
        rhs_dilation=sizes, dimension_numbers=("HWCN", "OHWI", "CHWN"), precision=precision,
    )  # fmt: skip
    return _spread(x, kernel, precision), _spread(dx, kernel, precision) + by_kernel


# ---- concatenation


def concatenate(first: Array, second: Array) -> Array:
    """Concatenate two maps along their channels."""
    count = count_columns(first.shape[2], first.shape[3])

    def plain(first: Array, second: Array) -> Array:
        return jnp.concatenate([first, second], axis=-1)

    def folded(first: Array, second: Array) -> Array:
        return unfold(plain(fold(first, count), fold(second, count)), count, parts=2)

    if count == 1 or first.shape != second.shape:
        return plain(first, second)
    return choose("concatenate", first, second, cpu=plain, tpu=folded)


# ---- moments


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and biased variance over axes, which stay with size 1; never below float32.

    Not as E[x^2] - E[x]^2, Flax's default, which loses digits where the mean is large.
    """
    return choose(
        "moments",
        x,
        cpu=partial(_moments_in_two, axes=axes),
        tpu=partial(_moments_in_one, axes=axes),
    )


def _moments_in_two(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Take the mean, then the mean square of what is left, axis by axis.

    XLA on CPU adds up one long row of numbers one after the other: over whole maps group norm was
    up to 9 times further from float64 than torch's.
    """
    mean = x
    for axis in axes:
        mean = mean.mean(axis, keepdims=True)
    var = jnp.square(x - mean)
    for axis in axes:
        var = var.mean(axis, keepdims=True)
    return mean, var


def _moments_in_one(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Take both sums of a map in one pass, so that it is read once.

    Each image and channel is shifted by the mean of its middle row: var = E[(x-s)^2] - E[x-s]^2.
    With h rows the square of E[x-s] is at most h times the variance, since that row is a part of
    what the variance is of, so at most log2(h) bits are lost, whatever the mean is; a running
    mean gives no such bound, and is 0 at the first step. Images and channels, which have own
    shifts, are then joined in two passes over few numbers.
    """
    b, h, w, *channels = x.shape
    flat = x.reshape(b, h, w, -1)
    count = count_columns(w, flat.shape[3])
    folded = fold(flat, count)
    shift = lax.stop_gradient(folded[:, h // 2].mean(1)[:, None, None])
    near = folded - shift
    offset = near.mean((1, 2), keepdims=True)
    var = jnp.square(near).mean((1, 2), keepdims=True) - jnp.square(offset)
    shift, offset, var = (a.reshape(b, 1, count, *channels) for a in (shift, offset, var))
    # differences of shifts are small, and so keep the digits that a mean of their sums would lose
    base = shift.mean(axes, keepdims=True)
    mean = (shift - base) + offset
    whole = mean.mean(axes, keepdims=True)
    return base + whole, (var + jnp.square(mean - whole)).mean(axes, keepdims=True)


# ---- activation


def relu(x: Array) -> Array:
    """Return max(x, 0), whose gradient at 0 is 0."""
    return choose("relu", x, cpu=jax.nn.relu, tpu=_relu_of_output)


@jax.custom_jvp
def _relu_of_output(x: Array) -> Array:
    return jnp.maximum(x, 0)


@_relu_of_output.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Differentiate by the output, so that the input need not be kept for the backward pass.

    Compared by `!=`: XLA makes `max(x, 0) > 0` into `x > 0`, and keeps both.
    """
    y = _relu_of_output(*primals)
    return y, jnp.where(y != 0, tangents[0], jnp.zeros_like(tangents[0]))


# ---- logits


def place_logits(logits: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Return logits as they are, on a TPU with their columns in its lanes.

    Their few classes would leave most lanes empty in all that a loss computes.
    """

    def turned(x: Array) -> Array:
        # the compiler moves no computation across the barrier, and lays the last axis in lanes
        return lax.optimization_barrier(x.swapaxes(2, 3)).swapaxes(2, 3)

    return choose("place_logits", logits, cpu=lambda x: x, tpu=turned)
