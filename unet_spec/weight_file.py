"""NAME.safetensors: the one file that both frameworks read.

The tensors are torch's: its layout, the slides' names. The card (`unet_spec.safetensors_file`) has
`version`, `config`, `preprocessing`, `class_names`, `sha256`, and `origin` where another program's
names are known (`unet_spec.origin`). A checkpoint
(`unet_spec.training_state`) is such a file with more in it; it can be read as a weight file too.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_spec import safetensors_file
from unet_spec.config import UNetConfig, check_class_names
from unet_spec.errors import InputError
from unet_spec.fields import from_json
from unet_spec.files import open_named
from unet_spec.narrowing import refuse_not_finite
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, check_tensors, parameters
from unet_spec.preprocessing import Preprocessing
from unet_spec.wording import list_names


@dataclass(frozen=True)
class WeightFile:
    """What a weight file says; `tensors` are numpy arrays in torch's layout and order."""

    config: UNetConfig
    tensors: Tensors
    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[str, ...] = ()
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_tensors(self.config, self.tensors, source="weights")
        refuse_not_finite(self.tensors)
        in_order = {p.name: self.tensors[p.name] for p in parameters(self.config)}
        object.__setattr__(self, "tensors", in_order)
        if self.origin is not None and {ours for _, ours in self.origin.names} - in_order.keys():
            raise InputError("its origin names tensors that the net does not have")
        check_class_names(self.class_names)
        if self.class_names and len(self.class_names) != self.config.mask_classes:
            raise InputError(
                f"class_names needs one name for each of {self.config.mask_classes} classes, "
                f"got {len(self.class_names)}: {list_names(self.class_names, 4)}"
            )


def write(
    path: Path | str, weights: WeightFile, *, dtype: str = "float32", overwrite: bool = True
) -> None:
    """Write the file whole or not at all.

    Args:
        dtype: of the floating-point tensors: float16, bfloat16, float32 or float64.
        overwrite: replace a file that is there already, as a run does with its own.

    Raises:
        InputError: another dtype, or one that values do not fit; the folder does not exist, or the
            file does and `overwrite` is False.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, and a file is needed; name a file in it")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path}: the file exists already; name another, or replace it with overwrite=True"
        )
    safetensors_file.write(path, weights.tensors, make_card(weights), dtype=dtype)


def make_card(weights: WeightFile) -> dict[str, Any]:
    """What a file says of its net besides the tensors, as plain values."""
    card = {
        "config": dataclasses.asdict(weights.config),
        "preprocessing": dataclasses.asdict(weights.preprocessing),
        "class_names": weights.class_names,
    }
    if weights.origin is not None:
        card["origin"] = weights.origin.to_plain()
    return card


def read(path: Path | str) -> WeightFile:
    """The file's content, checked: exactly the tensors of its config, each of its shape.

    Raises:
        InputError: not a weight file, damaged, of a newer version, or not what its config says.
    """
    path = Path(path)
    refuse_torch_file(path)
    card, tensors = safetensors_file.read(path)
    if card is None:
        raise InputError(
            f"{path}: a safetensors file without this project's metadata; name its axes: "
            f"unet convert {path} NEW.safetensors --config.padding ... (see unet convert --help)"
        )
    if "training" in card:
        tensors = weights_that_predict(tensors)
    return from_card(card, tensors, source=path)


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins as those of `torch.save` do, old or new, whatever its name."""
    if not path.is_file():
        return False
    with open_named(path) as stream:
        head = stream.read(9)
    return head.startswith((b"PK\x03\x04", b"\x80")) and head[8:] != b"{"


def refuse_torch_file(path: Path) -> None:
    """Refuse a file that `torch.save` wrote, whatever its name."""
    if is_torch_file(path):
        raise InputError(
            f"{path}: a PyTorch checkpoint, not a weight file; make one: unet convert {path} "
            f"{path.with_suffix('.safetensors').name}"
        )


def from_card(card: Mapping[str, Any], tensors: Tensors, *, source: Path) -> WeightFile:
    """The weights that a card and tensors describe, checked.

    Raises:
        InputError: damaged metadata, or not exactly the tensors of its config.
    """
    if "recording" in card:
        raise InputError(
            f"{source}: a recording of a net, not a weight file; compare it with the other side's: "
            f"unet verify --recorded {source} OTHER.safetensors"
        )
    try:
        names = card["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("class_names is no list of texts")
        return WeightFile(
            UNetConfig.from_json(json.dumps(card["config"])),
            tensors,
            from_json(Preprocessing, json.dumps(card["preprocessing"])),
            tuple(names),
            Origin.from_plain(card["origin"]) if "origin" in card else None,
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{source}: its metadata is damaged ({error!r}); fetch or write it again"
        ) from error


def weights_that_predict(tensors: Tensors) -> dict[str, np.ndarray]:
    """The weights in a checkpoint, or in their place their running average, where there is one.

    All other tensors have a prefix and a slash: `exp_avg/out.bias`, `average/out.bias`.
    """
    plain = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    average = {name: tensors[f"average/{name}"] for name in plain if f"average/{name}" in tensors}
    return {**plain, **average}
