"""A file of somebody else with the slides' names, and the weights in it."""

from collections.abc import Mapping
from dataclasses import fields

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.families import OWN
from unet_spec.parameters import Tensors
from unet_spec.structure import interpolation_error, norm_error, recognise, rename
from unet_spec.weight_file import WeightFile


def read_own(
    tensors: Tensors, *, given: UNetConfig, ties: Mapping[str, str], source: str
) -> tuple[WeightFile, list[str]]:
    """Return the weights in tensors with the slides' names, behind any prefix, and our names in
    the order of the file.

    What leaves no trace (padding, concat, activation, fit, dropout, groups) is that of `given`.

    Raises:
        InputError: other names, shapes that are no U-Net's, or a `given` that says otherwise.
    """
    default = UNetConfig()
    names = (field.name for field in fields(UNetConfig))
    settled = frozenset(n for n in names if getattr(given, n) != getattr(default, n))
    structure = recognise(tensors, given=given, settled=settled, ties=ties, source=source)[0]
    if structure.family is not OWN:
        raise InputError(
            f"{source}: these are not the slides' names (down_1.conv.conv.0.weight ... out.bias) "
            f"but {', '.join(list(tensors)[:3])} ...; convert it first: unet convert {source} "
            "RUN.safetensors"
        )
    if "norm" in structure.hidden:
        raise norm_error(given, source=source)
    if "up" in structure.hidden:
        raise interpolation_error(given, source=source)
    order = list(dict.fromkeys(ours for _, ours in structure.names))
    return WeightFile(structure.config, rename(structure, tensors)), order
