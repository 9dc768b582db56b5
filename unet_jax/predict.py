from functools import lru_cache

import jax
import numpy as np

from unet_jax.functional import functional, to_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import UNetConfig, prediction


def predict(model: UNet, image: np.ndarray) -> np.ndarray:
    """Predict the class of every pixel of one image of any size: (h, w) integers.

    The image is mirrored at its borders to a size that the net takes, and the mask has its own.
    `unet_spec.prediction` says how large images are cut.

    Args:
        model: its `preprocessing` turns the image into the input.
        image: (h, w) or (h, w, c), any integer or float type; sizes in pixels.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values.
    """
    arrays = to_arrays(model)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(_compile(model.config)(arrays, x), np.float32)

    return prediction.predict(
        forward, image, config=model.config, preprocessing=model.preprocessing
    )


@lru_cache(maxsize=8)
def _compile(config: UNetConfig):
    apply = functional(config, numerics=Numerics(precision="highest")).apply  # without TF32
    return jax.jit(lambda arrays, x: apply(arrays, x))
