"""`.pt` and `.pth` files of PyTorch users: a `state_dict`, read without running its pickle."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_spec import InputError
from unet_spec.dialects import unwrap
from unet_spec.files import atomic_write
from unet_spec.parameters import Tensors
from unet_spec.safetensors_file import refuse_pointer


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a checkpoint by name; wrappers and prefixes are taken off.

    Raises:
        InputError: damaged, a Git-LFS pointer, a whole pickled module, or without tensors.
    """
    return select_tensors(read_content(path), source=str(path))


def read_content(path: Path) -> Any:
    """Read what `torch.save` wrote, if it is tensors and plain values only.

    Raises:
        InputError: damaged, a Git-LFS pointer, or anything whose reading would run code.
    """
    refuse_pointer(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error):
            raise InputError(
                f"{path}: it holds more than tensors (a whole pickled module?), and unpickling "
                "runs code; save model.state_dict() where the class is at hand"
            ) from error
        raise InputError(f"{path}: not a PyTorch file; fetch or write it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a whole PyTorch file; fetch or write it again") from error


def select_tensors(content: Any, *, source: str) -> dict[str, np.ndarray]:
    """Select the tensors in a checkpoint's content; wrappers and prefixes are taken off."""
    try:
        tensors = unwrap(content)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return {
        str(name): t.detach().contiguous().numpy()
        for name, t in tensors.items()
        if isinstance(t, torch.Tensor)
    }


def write(path: Path, tensors: Tensors) -> None:
    """Write a plain `state_dict`, whole or not at all."""
    write_content(path, {name: torch.from_numpy(np.array(t)) for name, t in tensors.items()})


def write_content(path: Path, content: Any) -> None:
    """Write a file as `torch.save` does, whole or not at all."""
    # in memory first: on a full disk torch's own writer dies of a second error
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as stream:
        stream.write(buffer.getbuffer())
