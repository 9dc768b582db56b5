"""Weight files for the port."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from unet_jax.functional import to_arrays, with_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import layout, weight_file
from unet_spec.weight_file import WeightFile


def load(path: Path | str, *, numerics: Numerics = Numerics()) -> UNet:
    """The net of a weight file, in inference mode; `model.train()` switches to training.

    Raises:
        InputError: the file is damaged or does not fit its config; nothing is loaded partly.
    """
    return from_weights(weight_file.read(path), numerics=numerics)


def save(model: UNet, path: Path | str) -> None:
    """Write a net's weights, config, preprocessing and class names, as `unet_torch.save` does."""
    weight_file.write(path, to_weights(model))


def from_weights(weights: WeightFile, *, numerics: Numerics = Numerics()) -> UNet:
    """The net of a weight file's content, in inference mode."""
    shapes = nnx.eval_shape(lambda: UNet(weights.config, numerics=numerics, rngs=nnx.Rngs(0)))
    arrays = {
        name: jnp.asarray(
            array, numerics.param_dtype if np.issubdtype(array.dtype, np.floating) else None
        )
        for name, array in layout.to_jax(weights.config, weights.tensors).items()
    }
    model = with_arrays(shapes, arrays)
    model.preprocessing, model.class_names = weights.preprocessing, weights.class_names
    model.eval()
    return model


def to_weights(model: UNet) -> WeightFile:
    """A net as the content of a weight file."""
    arrays = {name: np.asarray(array) for name, array in to_arrays(model).items()}
    tensors = layout.to_torch(model.config, arrays)
    return WeightFile(model.config, tensors, model.preprocessing, model.class_names)
