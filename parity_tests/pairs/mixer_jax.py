"""The mixing net in Flax Linen, for images (b, h, w, c)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Tensors = dict[str, np.ndarray]


class Mix(nn.Module):
    """A depthwise convolution that mixes pixels, then a pointwise one that mixes channels."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the mixed pixels; the input goes around the depthwise part."""
        depthwise = nn.Conv(
            self.width, (5, 5), padding=2, feature_group_count=self.width, name="depthwise"
        )
        pointwise = nn.Conv(self.width, (1, 1), name="pointwise")
        x = x + nn.relu(depthwise(x))
        return nn.relu(pointwise(x))


def enlarge(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Return an image of twice the size, each pixel four times."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "nearest")


class Ours(nn.Module):
    """The net: patches, two blocks, a dilated convolution, a way back up and a head."""

    width: int
    classes: int = 5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        """Return one score per pixel and class, for an even height and width."""
        x = nn.Conv(self.width, (2, 2), strides=2, padding="VALID", name="patches")(x)
        patches = nn.relu(x)
        x = Mix(self.width, name="block1")(patches)
        x = Mix(self.width, name="block2")(x)
        dilated = nn.Conv(self.width + 1, (3, 3), padding=2, kernel_dilation=2, name="dilated")
        x = nn.relu(dilated(x))
        # torch's padding 1 takes 1 from the 2 on each side, and output_padding 1 adds 1 at the end
        sides = [(1, 2), (1, 2)]
        x = nn.ConvTranspose(self.width, (3, 3), strides=(2, 2), padding=sides, name="up")(x)
        x = jnp.concatenate([x, enlarge(patches)], axis=-1)
        return nn.Conv(self.classes, (1, 1), name="head")(x)


def make_port(width: int) -> Ours:
    """Return the module, which holds no values."""
    return Ours(width)


def convert_conv(state: Tensors, name: str) -> Tensors:
    """Return a convolution: (out, in, h, w) becomes (h, w, in, out)."""
    return {
        "kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0),
        "bias": state[f"{name}.bias"],
    }


def convert_up(state: Tensors, name: str) -> Tensors:
    """Return a transposed convolution: (in, out, h, w) becomes (h, w, in, out), mirrored."""
    kernel = state[f"{name}.weight"].transpose(2, 3, 0, 1)
    return {"kernel": kernel[::-1, ::-1], "bias": state[f"{name}.bias"]}


def convert_block(state: Tensors, name: str) -> dict[str, Tensors]:
    """Return both convolutions of a block."""
    return {
        "depthwise": convert_conv(state, f"{name}.depthwise"),
        "pointwise": convert_conv(state, f"{name}.pointwise"),
    }


def convert(state: Tensors) -> dict[str, Any]:
    """Return Flax's variables with the values of torch's state_dict."""
    params = {
        "patches": convert_conv(state, "patches.0"),
        "block1": convert_block(state, "block1"),
        "block2": convert_block(state, "block2"),
        "dilated": convert_conv(state, "dilated"),
        "up": convert_up(state, "up"),
        "head": convert_conv(state, "head"),
    }
    return {"params": params}
