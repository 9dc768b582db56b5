"""What a bare `state_dict` says of the net that it belongs to, and what it cannot say."""

from dataclasses import fields

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.families import OWN
from unet_spec.parameters import Tensors, check_tensors
from unet_spec.structure import interpolation_error, norm_error, recognise

_HIDDEN = ("padding", "groups", "activation", "concat", "fit", "dropout", "output")
_WRAPPERS = ("state_dict", "model_state_dict", "ema_model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def unwrap(content: object) -> dict:
    """Take the tensors out of a checkpoint.

    The dict around them is taken off, and the prefix that DataParallel, `torch.compile` or
    Lightning put before every name.

    Raises:
        InputError: no tensors in it.
    """
    while isinstance(content, dict) and (inner := [w for w in _WRAPPERS if w in content]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not content:
        raise InputError("no state_dict in it: a dict of tensors by name is needed")
    for prefix in _PREFIXES:
        if all(str(name).startswith(prefix) for name in content):
            content = {str(name)[len(prefix) :]: tensor for name, tensor in content.items()}
    return content


def infer_config(tensors: Tensors, *, given: UNetConfig, source: str) -> UNetConfig:
    """Infer the config of tensors with the slides' names.

    What leaves no trace (padding, concat, activation, fit, dropout, groups) is that of `given`.

    Raises:
        InputError: other names, shapes that are no U-Net's, or a `given` that says otherwise.
    """
    default = UNetConfig()
    names = (field.name for field in fields(UNetConfig))
    settled = frozenset(n for n in names if getattr(given, n) != getattr(default, n))
    structure = recognise(tensors, given=given, settled=settled, ties={}, source=source)[0]
    if structure.family is not OWN:
        raise InputError(
            f"{source}: these are not the slides' names (down_1.conv.conv.0.weight ... out.bias) "
            f"but {', '.join(list(tensors)[:3])} ...; rename them first"
        )
    if "norm" in structure.hidden:
        raise norm_error(given, source=source)
    if "up" in structure.hidden:
        raise interpolation_error(given, source=source)
    check_tensors(structure.config, tensors, source=source)
    return structure.config


def describe_assumptions(config: UNetConfig) -> str:
    """Describe the axes that no tensor shows, so that a person can check them."""
    hidden = [name for name in _HIDDEN if name != "groups" or config.norm == "group"]
    return ", ".join(f"{name}={getattr(config, name)}" for name in hidden)
