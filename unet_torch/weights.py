"""Weight files for the reference."""

from pathlib import Path

import torch

from unet_spec import weight_file
from unet_spec.weight_file import WeightFile
from unet_torch.model import UNet


def load(path: Path | str) -> UNet:
    """Read a weight file and return its net, in inference mode.

    `model.train()` switches to training. Its `config`, `preprocessing` and `class_names` are
    those of the file.

    Args:
        path: a file that `save` of either package, `unet train` or `unet convert` wrote.

    Raises:
        InputError: the file is damaged or does not fit its config; nothing is loaded partly.
    """
    return from_weights(weight_file.read(path))


def save(model: UNet, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a net's weights, config, preprocessing and class names to a weight file.

    `unet_jax.load` reads it as well, and `unet_jax.save` would write the same bytes. Weights are
    kept as float32. The file is written whole or not at all.

    Args:
        model: the net, in either mode.
        path: of the file, NAME.safetensors.
        overwrite: replace a file that is there already.

    Raises:
        InputError: the file is there already, or its folder is not.
    """
    weight_file.write(path, to_weights(model), overwrite=overwrite)


def from_weights(weights: WeightFile) -> UNet:
    """Build the net of a weight file's content, in inference mode.

    It is float32 unless all of the content is of another floating-point type.
    """
    with torch.device("meta"):
        model = UNet(weights.config)
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.preprocessing, model.class_names = weights.preprocessing, weights.class_names
    model.origin = weights.origin
    return model.eval()


def to_weights(model: UNet) -> WeightFile:
    """Return a net as the content of a weight file."""
    state = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    # numpy has no bfloat16; every one of its values is a float32
    tensors = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in state.items()}
    return WeightFile(model.config, tensors, model.preprocessing, model.class_names, model.origin)
