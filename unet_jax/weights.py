"""Weight files for the port."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from unet_jax.functional import Arrays, fill_arrays, split, to_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import Preprocessing, UNetConfig, layout, weight_file
from unet_spec.narrowing import SMALLEST_NORMAL, narrow
from unet_spec.parameters import parameters
from unet_spec.weight_file import WeightFile


def load(path: Path | str, *, numerics: Numerics = Numerics()) -> UNet:
    """Read a weight file and return its net, in inference mode.

    `model.train()` switches to training. Its `config`, `preprocessing` and `class_names` are
    those of the file.

    Args:
        path: a file that `save` of either package, `unet train` or `unet convert` wrote.
        numerics: in what it computes and keeps its parameters.

    Raises:
        InputError: the file is damaged or does not fit its config; nothing is loaded partly.
    """
    return from_weights(weight_file.read(path), numerics=numerics)


def save(model: UNet, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a net's weights, config, preprocessing and class names to a weight file.

    `unet_torch.load` reads it as well, and `unet_torch.save` would write the same bytes. Weights
    are kept as float32. The file is written whole or not at all.

    Args:
        model: the net, in either mode.
        path: of the file, NAME.safetensors.
        overwrite: replace a file that is there already.

    Raises:
        InputError: the file is there already, or its folder is not.
    """
    weight_file.write(path, to_weights(model), overwrite=overwrite)


def read_arrays(
    path: Path | str, *, numerics: Numerics = Numerics()
) -> tuple[UNetConfig, dict[str, Array], dict[str, Array]]:
    """Read a weight file and return `(config, params, stats)`, as `functional` takes them.

    Names are the slides', arrays are in JAX's layout: kernels (h, w, in, out). What else the
    file says is in `unet_spec.weight_file.read(path)`.

    Args:
        path: a file that `save` of either package, `unet train` or `unet convert` wrote.
        numerics: its `param_dtype` is that of the arrays.

    Raises:
        InputError: the file is damaged or does not fit its config; nothing is loaded partly.
    """
    weights = weight_file.read(path)
    return weights.config, *split(weights.config, _arrays(weights, numerics))


def write_arrays(
    path: Path | str,
    config: UNetConfig,
    params: Arrays,
    stats: Arrays = {},
    *,
    preprocessing: Preprocessing = Preprocessing(),
    class_names: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write `(params, stats)` of `functional` to a weight file.

    `load` of both packages reads it. Arrays are kept as float32, so those of float32 come back
    bit for bit.

    Args:
        path: of the file, NAME.safetensors.
        config: of the net.
        params: its trained arrays by name, in JAX's layout; they may lie on several devices.
        stats: batch norm's statistics; {} for a net without it.
        preprocessing: how `predict` turns an image into the input: as the training did.
        class_names: a name for each class, or ().
        overwrite: replace a file that is there already.

    Raises:
        InputError: arrays are missing, unexpected or mis-shaped, class_names has another number
            of names than the net has classes, the file is there already, or its folder is not.
    """
    arrays = {name: np.asarray(array) for name, array in {**params, **stats}.items()}
    ranks = {p.name: len(p.shape) for p in parameters(config)}
    fitting = {name: array for name, array in arrays.items() if ranks.get(name) == array.ndim}
    # what does not fit goes on as it is, so that one refusal names all of it
    tensors = {**arrays, **layout.to_torch(config, fitting)}
    content = WeightFile(config, tensors, preprocessing, tuple(class_names))
    weight_file.write(path, content, overwrite=overwrite)


def from_weights(weights: WeightFile, *, numerics: Numerics = Numerics()) -> UNet:
    """Build the net of a weight file's content, in inference mode."""
    shapes = nnx.eval_shape(lambda: UNet(weights.config, numerics=numerics, rngs=nnx.Rngs(0)))
    model = fill_arrays(shapes, _arrays(weights, numerics))
    model.preprocessing, model.class_names = weights.preprocessing, weights.class_names
    model.origin = weights.origin
    model.eval()
    return model


def to_weights(model: UNet) -> WeightFile:
    """Return a net as the content of a weight file."""
    arrays = {name: np.asarray(array) for name, array in to_arrays(model).items()}
    tensors = layout.to_torch(model.config, arrays)
    return WeightFile(model.config, tensors, model.preprocessing, model.class_names, model.origin)


def _arrays(weights: WeightFile, numerics: Numerics) -> dict[str, Array]:
    """Return all arrays of a weight file in JAX's layout; counts stay integers."""
    return {
        name: place_array(name, array, numerics.param_dtype)
        for name, array in layout.to_jax(weights.config, weights.tensors).items()
    }


def place_array(name: str, array: np.ndarray, dtype: Any) -> Array:
    """Return an array of a type on the device; integers stay integers.

    Raises:
        InputError: a finite value would become infinite.
    """
    if array.dtype.kind != "f":
        return jnp.asarray(array)
    kind = jnp.dtype(dtype).name
    if kind in SMALLEST_NORMAL:
        array = narrow(name, array, kind)
    return jnp.asarray(array, dtype)
