from functools import lru_cache

import jax
import numpy as np

from unet_jax.functional import functional, to_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import UNetConfig, prediction


def predict(model: UNet, image: np.ndarray) -> np.ndarray:
    """The class of every pixel of one image of any size: (h, w) integers.

    Args:
        model: its `preprocessing` turns the image into the input.
        image: (h, w) or (h, w, c), any integer or float type.

    Raises:
        InputError: an image that does not fit the net.
    """
    arrays = to_arrays(model)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(_compiled(model.config)(arrays, x), np.float32)

    return prediction.predict(
        forward, image, config=model.config, preprocessing=model.preprocessing
    )


@lru_cache(maxsize=8)
def _compiled(config: UNetConfig):
    apply = functional(config, numerics=Numerics(precision="highest")).apply  # without TF32
    return jax.jit(lambda arrays, x: apply(arrays, x))
