"""NAME.safetensors: the one file that both frameworks read.

The tensors are torch's: its layout, the slides' names. The header's metadata has one entry,
`unet`, a JSON object with `version`, `config`, `preprocessing` and `class_names`. One entry
only, because safetensors writes several in no fixed order, and equal weights are equal bytes.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.fields import from_json
from unet_spec.files import atomic_write
from unet_spec.parameters import Tensors, check_tensors, parameters
from unet_spec.preprocessing import Preprocessing

VERSION = 1
DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class WeightFile:
    """What a weight file says; `tensors` are numpy arrays in torch's layout and order."""

    config: UNetConfig
    tensors: Tensors
    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_tensors(self.config, self.tensors, source="weights")
        in_order = {p.name: self.tensors[p.name] for p in parameters(self.config)}
        object.__setattr__(self, "tensors", in_order)
        if self.class_names and len(self.class_names) != self.config.classes:
            raise InputError(
                f"class_names needs one name for each of {self.config.classes} classes, "
                f"got {self.class_names}"
            )


def write(
    path: Path | str, weights: WeightFile, *, dtype: str = "float32", overwrite: bool = True
) -> None:
    """Write the file whole or not at all.

    Args:
        dtype: of the floating-point tensors: float16, float32 or float64.
        overwrite: replace a file that is there already, as a run does with its own.

    Raises:
        InputError: another dtype, the folder does not exist, or the file does and `overwrite`
            is False.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, and a file is needed; name a file in it")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path}: the file exists already; name another, or replace it with overwrite=True"
        )
    metadata = {
        "version": VERSION,
        "config": dataclasses.asdict(weights.config),
        "preprocessing": dataclasses.asdict(weights.preprocessing),
        "class_names": weights.class_names,
    }
    tensors = {name: _owned(tensor, dtype) for name, tensor in weights.tensors.items()}
    with atomic_write(path) as stream:
        stream.write(
            safetensors.numpy.save(tensors, {"unet": json.dumps(metadata, sort_keys=True)})
        )


def read(path: Path | str) -> WeightFile:
    """The file's content, checked: exactly the tensors of its config, each of its shape.

    Raises:
        InputError: not a weight file, damaged, of a newer version, or not what its config says.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin") and path.is_file():
        raise InputError(
            f"{path}: a PyTorch checkpoint, not a weight file; make one: unet convert {path} "
            f"{path.with_suffix('.safetensors').name}"
        )
    metadata, tensors = read_safetensors(path)
    if "unet" not in metadata:
        raise InputError(
            f"{path}: a safetensors file without this project's metadata; name its axes: "
            f"unet convert {path} NEW.safetensors --config.padding ... (see unet convert --help)"
        )
    try:
        card = json.loads(metadata["unet"])
        if card["version"] > VERSION:
            raise InputError(f"format version {card['version']}, known up to {VERSION}: update")
        return WeightFile(
            from_json(UNetConfig, json.dumps(card["config"])),
            tensors,
            from_json(Preprocessing, json.dumps(card["preprocessing"])),
            tuple(card["class_names"]),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error!r})") from error


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of any safetensors file, as owned arrays."""
    refuse_pointer(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            return file.metadata() or {}, {name: np.array(file.get_tensor(name)) for name in names}
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); fetch or write it again"
        ) from error


def refuse_pointer(path: Path) -> None:
    """Refuse a missing or empty file, a folder, and a Git-LFS pointer."""
    if path.is_dir():
        inside = sorted(found.name for found in path.glob("*.safetensors"))
        named = f"; it holds {', '.join(inside)}" if inside else ""
        raise InputError(f"{path}: a folder, and a file is needed{named}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    with path.open("rb") as stream:
        head = stream.read(40)
    if not head:
        raise InputError(f"{path}: the file is empty; fetch or write it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the weights; run: git lfs pull")


def _owned(tensor: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in DTYPES:
        raise InputError(f"dtype is one of {', '.join(DTYPES)}, got {dtype}")
    target = np.int64 if np.issubdtype(tensor.dtype, np.integer) else dtype
    # safetensors takes the buffer as it lies: a transposed view would be scrambled, silently
    owned = np.ascontiguousarray(tensor, dtype=target).reshape(tensor.shape)
    assert owned.flags.c_contiguous
    return owned
