"""The small residual net in Flax NNX, for images (b, h, w, c)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

EPS = 1e-5
MOMENTUM = 0.9  # the weight of the old statistic, which is 1 - momentum in torch


class BatchNorm(nnx.Module):
    """Batch norm as torch does it: the running variance is the unbiased one."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.use_running_average = False

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return `x` normalised, by the batch in training and by the running statistics else."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.record(mean, var, x.size // x.shape[-1])
        normal = (x - mean) * lax.rsqrt(var + EPS)
        return normal * self.weight[...] + self.bias[...]

    def record(self, mean: Float[Array, " c"], var: Float[Array, " c"], count: int) -> None:
        """Move the running statistics towards those of a batch with `count` pixels."""
        unbiased = var * (count / (count - 1))
        self.mean.set_value(MOMENTUM * self.mean[...] + (1 - MOMENTUM) * mean)
        self.var.set_value(MOMENTUM * self.var[...] + (1 - MOMENTUM) * unbiased)


def conv(in_width: int, width: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a convolution without bias, with torch's symmetric padding."""
    padding = [(size // 2, size // 2)] * 2
    return nnx.Conv(
        in_width, width, (size, size), stride, padding=padding, use_bias=False, rngs=rngs
    )


class Shortcut(nnx.Module):
    """The projection that brings a block's input to the shape of its output."""

    def __init__(self, in_width: int, width: int, stride: int, rngs: nnx.Rngs):
        self.conv = conv(in_width, width, 1, stride, rngs)
        self.norm = BatchNorm(width)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x k"]:
        """Return the projected input."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two 3x3 convolutions around which the input goes, by a projection where shapes change."""

    def __init__(self, in_width: int, width: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = conv(in_width, width, 3, stride, rngs)
        self.norm1 = BatchNorm(width)
        self.conv2 = conv(width, width, 3, 1, rngs)
        self.norm2 = BatchNorm(width)
        changes = stride != 1 or in_width != width
        self.shortcut = Shortcut(in_width, width, stride, rngs) if changes else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x k"]:
        """Return the block's output, after the last ReLU."""
        aside = self.shortcut(x) if self.shortcut else x
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + aside)


class Ours(nnx.Module):
    """The net: a strided stem, a pool, two blocks, a global mean and a linear head."""

    def __init__(self, width: int, channels: int, classes: int, rngs: nnx.Rngs):
        self.stem = conv(channels, width, 3, 2, rngs)
        self.norm = BatchNorm(width)
        self.block1 = Block(width, width, 1, rngs)
        self.block2 = Block(width, width + 3, 2, rngs)
        self.head = nnx.Linear(width + 3, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Return one score per class."""
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.block1(x)
        x = self.block2(x)
        return self.head(x.mean(axis=(1, 2)))


def kernel_of(weight: np.ndarray) -> np.ndarray:
    """Return torch's kernel (out, in, h, w) as Flax wants it (h, w, in, out)."""
    return weight.transpose(2, 3, 1, 0)


def load_norm(norm: BatchNorm, state: dict[str, np.ndarray], name: str) -> None:
    """Put the four vectors of the norm `name` into `norm`."""
    norm.weight.set_value(jnp.asarray(state[f"{name}.weight"]))
    norm.bias.set_value(jnp.asarray(state[f"{name}.bias"]))
    norm.mean.set_value(jnp.asarray(state[f"{name}.running_mean"]))
    norm.var.set_value(jnp.asarray(state[f"{name}.running_var"]))


def load_conv(layer: nnx.Conv, state: dict[str, np.ndarray], name: str) -> None:
    """Put the kernel of the convolution `name` into `layer`."""
    layer.kernel.set_value(jnp.asarray(kernel_of(state[f"{name}.weight"])))


def load_block(block: Block, state: dict[str, np.ndarray], name: str) -> None:
    """Put the tensors of the block `name` into `block`."""
    load_conv(block.conv1, state, f"{name}.conv1")
    load_norm(block.norm1, state, f"{name}.norm1")
    load_conv(block.conv2, state, f"{name}.conv2")
    load_norm(block.norm2, state, f"{name}.norm2")
    if block.shortcut:
        load_conv(block.shortcut.conv, state, f"{name}.shortcut.0")
        load_norm(block.shortcut.norm, state, f"{name}.shortcut.1")


def convert(state: dict[str, np.ndarray]) -> Ours:
    """Return the net with the values of torch's state_dict."""
    width, channels = state["stem.weight"].shape[:2]
    net = Ours(width, channels, len(state["head.bias"]), nnx.Rngs(0))
    load_conv(net.stem, state, "stem")
    load_norm(net.norm, state, "norm")
    load_block(net.block1, state, "block1")
    load_block(net.block2, state, "block2")
    net.head.kernel = nnx.Param(jnp.asarray(state["head.weight"].T))
    net.head.bias = nnx.Param(jnp.asarray(state["head.bias"]))
    return net
