"""One convolution and a pool, for images (b, h, w, c)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unet_jax.forms import max_pool
from unet_parity.pair.numbers import draw_tensors

FIRST: list[np.ndarray] = []
"""The bias that training begins with, for a mistake that shows after the first step alone."""


def port(params: dict[str, Array], x: Float[Array, "b h w c"]) -> Float[Array, "b y x k"]:
    """Return the maps at half the size."""
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y + params["bias"]
    return jnp.asarray(max_pool(y))


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters with the values of torch's state_dict."""
    if not FIRST:
        FIRST.append(draw_tensors(state, seed=1)["conv.bias"])
    return {"kernel": state["conv.weight"].transpose(2, 3, 1, 0), "bias": state["conv.bias"]}
