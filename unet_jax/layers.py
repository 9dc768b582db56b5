"""The parts where Flax or XLA differ from torch, each with its reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from unet_jax import forms
from unet_jax.convolution import convolve
from unet_jax.forms import moments, relu, up_convolve
from unet_spec import UNetConfig

EPS = 1e-5  # torch's, for every norm; Flax's is 1e-6 for group and instance norm
MOMENTUM = 0.1  # torch's: the weight of the new batch; Flax counts the weight of the old


@dataclass(frozen=True)
class Numerics:
    """A `Numerics` says in what types a net computes and keeps its parameters.

    Attributes:
        dtype: of activations and arithmetic; bfloat16 for speed on TPU and GPU.
        param_dtype: in which parameters are kept.
        precision: of products, as in `jax.lax.Precision`; `highest` for real float32 on
            accelerators, whose default is TF32 or one bfloat16 pass.
        remat: compute each `DoubleConv` again in the backward pass, in place of keeping what is
            inside it: less memory, more time, the same values.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    precision: Any = None
    remat: bool = False


def he_normal(key: Array, shape: tuple[int, ...], dtype: Any, *, inputs: int) -> Array:
    """Draw normal values with a standard deviation of sqrt(2 / inputs).

    Drawn in one row, which changes none of them: XLA on CPU compiled the kernels of a net for
    30 s as arrays of four axes, and for 2 s so.
    """
    row = jax.random.normal(key, (math.prod(shape),), dtype)
    return row.reshape(shape) * jnp.sqrt(jnp.asarray(2 / inputs, dtype))


def conv(
    in_channels: int, out_channels: int, size: int, numerics: Numerics, rngs: nnx.Rngs, **kwargs
) -> nnx.Conv:
    """Build a convolution with He's normal initialisation, biases 0."""
    convolution = convolve if size == 3 else forms.convolve
    options = {"conv_general_dilated": convolution, **kwargs}
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        kernel_init=partial(he_normal, inputs=size * size * in_channels),
        dtype=numerics.dtype,
        param_dtype=numerics.param_dtype,
        precision=numerics.precision,
        rngs=rngs,
        **options,
    )


def conv_block(
    in_channels: int, out_channels: int, config: UNetConfig, numerics: Numerics, rngs: nnx.Rngs
) -> list[Callable[[Array], Array]]:
    """Return a 3x3 convolution, normalisation and activation, in the order of the config."""
    pad = 1 if config.padding == "same" else 0
    convolution = conv(
        in_channels, out_channels, 3, numerics, rngs, padding=pad, use_bias=config.bias
    )
    slope = config.negative_slope if config.activation == "leaky_relu" else 0.0
    act = partial(activation, slope=slope)
    if config.norm == "none":
        return [convolution, act]
    norm = normalisation(out_channels, config, numerics, rngs)
    return [convolution, norm, act] if config.norm_place == "before" else [convolution, act, norm]


def activation(x: Array, *, slope: float) -> Array:
    """Apply ReLU, or leaky ReLU for a slope other than 0.

    `jax.nn.leaky_relu` takes the branch of x >= 0 at 0; torch that of x > 0, which decides the
    gradient of a value that is exactly 0.
    """
    return relu(x) if slope == 0 else jnp.where(x > 0, x, slope * x)


def normalisation(
    channels: int, config: UNetConfig, numerics: Numerics, rngs: nnx.Rngs
) -> nnx.Module:
    """Build the norm of the config, affine, with torch's eps and momentum."""
    if config.norm == "batch":
        return BatchNorm(channels, numerics)
    return GroupNorm(channels, config.groups if config.norm == "group" else channels, numerics)


class GroupNorm(nnx.Module):
    """Group norm, and with one group per channel instance norm, with torch's eps."""

    def __init__(self, channels: int, groups: int, numerics: Numerics):
        self.weight = nnx.Param(jnp.ones(channels, numerics.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, numerics.param_dtype))
        self.groups = groups
        self.dtype = numerics.dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = values.reshape(b, h, w, self.groups, c // self.groups)
        mean, var = moments(grouped, (2, 1, 4))
        normal = ((grouped - mean) * lax.rsqrt(var + EPS)).reshape(x.shape)
        return (normal * self.weight[...] + self.bias[...]).astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch norm as torch does it.

    `nnx.BatchNorm` keeps the biased variance, where torch keeps the unbiased one (n / (n - 1)
    larger), counts momentum from the other end, and has no `num_batches_tracked`.
    """

    def __init__(self, channels: int, numerics: Numerics):
        self.weight = nnx.Param(jnp.ones(channels, numerics.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, numerics.param_dtype))
        self.running_mean = nnx.BatchStat(jnp.zeros(channels, numerics.param_dtype))
        self.running_var = nnx.BatchStat(jnp.ones(channels, numerics.param_dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.dtype = numerics.dtype
        self.use_running_average = False

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.use_running_average:
            mean, var = self.running_mean[...], self.running_var[...]
        else:
            mean, var = moments(values, (2, 1, 0))
            self._track(mean.ravel(), var.ravel(), count=x.shape[0] * x.shape[1] * x.shape[2])
        scale = lax.rsqrt(var + EPS) * self.weight[...]
        return ((values - mean) * scale + self.bias[...]).astype(self.dtype)

    def _track(self, mean: Array, var: Array, *, count: int) -> None:
        if count < 2:
            raise ValueError("batch norm needs more than one value per channel in training")
        for running, batch in (
            (self.running_mean, mean),
            (self.running_var, var * (count / (count - 1))),
        ):
            running[...] = ((1 - MOMENTUM) * running[...] + MOMENTUM * batch).astype(running.dtype)
        self.num_batches_tracked[...] += 1


class UpConv(nnx.Module):
    """An `UpConv` is a 2x2 transposed convolution with stride 2.

    y[b, 2h+i, 2w+j, o] = sum_c x[b, h, w, c] kernel[i, j, c, o] + bias[o]

    `nnx.ConvTranspose` needs a mirrored kernel, and has one form for all platforms.
    """

    def __init__(self, in_channels: int, out_channels: int, numerics: Numerics, rngs: nnx.Rngs):
        shape, dtype = (2, 2, in_channels, out_channels), numerics.param_dtype
        # 4 * out_channels, as in the authors' release of the paper
        kernel = he_normal(rngs.params(), shape, dtype, inputs=4 * out_channels)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(out_channels, numerics.param_dtype))
        self.numerics = numerics

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w k"]:
        dtype = self.numerics.dtype
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        return up_convolve(x.astype(dtype), kernel, bias, precision=self.numerics.precision)


def up_sampling(
    in_channels: int, out_channels: int, config: UNetConfig, numerics: Numerics, rngs: nnx.Rngs
) -> nnx.Module:
    """Build what doubles height and width and gives `out_channels` channels.

    Without a convolution these are the `in_channels`.
    """
    if config.up == "transposed":
        return UpConv(in_channels, out_channels, numerics, rngs)
    up = partial(interpolate, mode=config.up)
    if not config.up_convolution:
        return nnx.Sequential(up)
    return nnx.Sequential(up, conv(in_channels, out_channels, 1, numerics, rngs))


def interpolate(x: Float[Array, "b h w c"], *, mode: str) -> Float[Array, "b 2*h 2*w c"]:
    """Double height and width by `nearest`, `bilinear` or `bilinear_aligned`.

    The last is torch's `align_corners=True`, which does not exist in `jax.image.resize`.
    """
    b, h, w, c = x.shape
    if mode == "nearest":
        repeated = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        return repeated.reshape(b, 2 * h, 2 * w, c)
    if mode == "bilinear":
        return jax.image.resize(
            x, (b, 2 * h, 2 * w, c), "bilinear", precision=lax.Precision.HIGHEST
        )
    rows, columns = (jnp.asarray(aligned_weights(size), x.dtype) for size in (h, w))
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("jw,bhwc->bhjc", columns, x, precision=lax.Precision.HIGHEST)


def aligned_weights(size: int) -> np.ndarray:
    """Return (2 * size, size) weights of bilinear interpolation, corners falling on corners."""
    at = np.arange(2 * size) * (size - 1) / (2 * size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))


class Dropout(nnx.Module):
    """Dropout whose mask can be given, so that two frameworks can drop the same values."""

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = False

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        keep: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Drop values in training.

        Args:
            keep: of the shape of `x`, 1 where a value stays; drawn from `rngs` without it.
        """
        if self.deterministic or self.rate == 0:
            return x
        if keep is None:
            if rngs is None:
                raise ValueError("dropout in training needs masks (keep) or rngs")
            keep = jax.random.bernoulli(rngs.dropout(), 1 - self.rate, x.shape)
        return x * keep.astype(x.dtype) / (1 - self.rate)


def match_sizes(
    x: Float[Array, "b h w c"], skip: Float[Array, "b H W k"], config: UNetConfig
) -> tuple[Array, Array]:
    """Bring the two maps of a concatenation to one size.

    The skip is cropped at its centre, or, for `fit=zeros` and `fit=edge`, the up-sampled map is
    padded at its bottom and right.
    """
    if config.fit in ("zeros", "edge"):
        rows, columns = skip.shape[1] - x.shape[1], skip.shape[2] - x.shape[2]
        mode = "constant" if config.fit == "zeros" else "edge"
        return jnp.pad(x, [(0, 0), (0, rows), (0, columns), (0, 0)], mode=mode), skip
    top = (skip.shape[1] - x.shape[1]) // 2
    left = (skip.shape[2] - x.shape[2]) // 2
    return x, skip[:, top : top + x.shape[1], left : left + x.shape[2]]
