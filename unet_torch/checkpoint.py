"""Files that `torch.save` wrote, read by what is in them and without running their pickle."""

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from unet_spec import InputError
from unet_spec.files import atomic_write
from unet_spec.parameters import Tensors
from unet_spec.safetensors_file import refuse_pointer, refuse_text
from unet_spec.wording import LONGEST_NAME, is_name
from unet_torch import container
from unet_torch.outline import MoreThanTensorsError

OPTIMIZERS = (
    "optimizer", "optimizer_state_dict", "optimizer_state", "optimizer_states", "optim",
)  # fmt: skip
SCHEDULERS = (
    "scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict",
    "lr_schedulers",
)  # fmt: skip
SCALERS = ("scaler", "grad_scaler", "scaler_state_dict", "amp")
STEPS = ("step", "global_step", "iteration")
WEIGHTS = ("state_dict", "model_state_dict", "ema_model_state_dict", "model", "net", "unet")

# data without code, which training scripts keep beside their tensors
_PLAIN: list[Any] = [
    np.dtype, np.ndarray, multiarray.scalar, multiarray._reconstruct,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"), argparse.Namespace,
]  # fmt: skip

_OF_NUMPY = (torch.float16, torch.float32, torch.float64)  # of torch's floating-point types
# numpy has these, or torch converts them; those with several values in a byte are not among them
_READ = {
    *_OF_NUMPY, torch.bool, torch.complex64, torch.complex128,
    *(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(getattr(torch, name) for name in dir(torch) if name.startswith(("bfloat16", "float8_"))),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a PyTorch file holds of a net.

    Attributes:
        content: all of it, as `torch.load` gives it.
        place: keys of the dicts around the tensors, from the outside in.
        tensors: by their names, prefixes included, in the order of the file; bfloat16 as float32,
            which holds each of its values.
        dtypes: torch's name of each one's type (`bfloat16`).
        ties: name -> name of an earlier tensor that lies in the same memory.
        elsewhere: places of other nets' tensors, such as an average, which are left out.
    """

    content: Any
    place: tuple[Any, ...]
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    ties: dict[str, str]
    elsewhere: tuple[str, ...]

    @property
    def around(self) -> dict[Any, Any]:
        """The outermost dict: where the states of optimizer and scheduler lie; {} for none."""
        return self.content if self.place else {}

    @property
    def optimizer(self) -> tuple[str, dict[str, Any]] | None:
        """The key and the state of the optimizer beside the tensors; None for none."""
        return self.find(OPTIMIZERS) or self._find_only(is_optimizer)

    @property
    def scheduler(self) -> tuple[str, dict[str, Any]] | None:
        """The key and the state of the scheduler beside the tensors; None for none."""
        return self.find(SCHEDULERS) or self._find_only(is_scheduler)

    def _find_only(self, is_one: Callable[[Any], bool]) -> tuple[str, dict[str, Any]] | None:
        """Return the only state of a kind, whatever its key; None where there are several."""
        states = [(str(key), value) for key, value in self.around.items() if is_one(value)]
        return states[0] if len(states) == 1 else None

    def find(self, keys: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
        """Return the first of these keys beside the tensors that holds a state, and the state."""
        for key in keys:
            value = self.around.get(key)
            # Lightning keeps lists, of which a run with one optimizer fills one place
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if isinstance(value, dict) and value:
                return key, value
        return None


def is_optimizer(value: Any) -> bool:
    """Say whether a value is what torch's optimizers give as their state."""
    return isinstance(value, dict) and {"state", "param_groups"} <= value.keys()


def is_scheduler(value: Any) -> bool:
    """Say whether a value is what torch's schedulers give as their state."""
    return isinstance(value, dict) and "last_epoch" in value


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; its suffix does not matter.

    Raises:
        InputError: as `read_content`, and where it holds no tensors, or those of several nets.
    """
    return open_content(read_content(path), source=str(path))


def read_content(path: Path) -> Any:
    """Read what `torch.save` wrote, if it is tensors and plain values only.

    Raises:
        InputError: not a PyTorch file, damaged, a Git-LFS pointer, or anything whose reading would
            run code.
    """
    refuse_pointer(path)
    refuse_text(path)
    if _is_program(path):
        raise InputError(
            f"{path}: a TorchScript program, which is not run here; save model.state_dict() of the "
            "module that it was made from"
        )
    damaged = f"{path}: not a whole PyTorch file"
    try:
        with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the readers, about damaged files
            container.check(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"{damaged}: {error}; fetch or write it again") from error
    except Exception as error:  # in damaged bytes the readers come upon whatever they come upon
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise InputError(
                f"{path}: its tensors do not fit into memory; use a computer with more"
            ) from error
        is_more = isinstance(error, pickle.UnpicklingError) and "Weights only" in str(error)
        if is_more or isinstance(error, MoreThanTensorsError):
            raise InputError(
                f"{path}: it holds more than tensors (a whole pickled module?), and unpickling "
                "runs code; save model.state_dict() where the class is at hand"
            ) from error
        raise InputError(f"{damaged}; fetch or write it again") from error


def open_content(content: Any, *, source: str) -> Checkpoint:
    """Return the checkpoint in what `torch.load` gave.

    Raises:
        InputError: no tensors in it, or those of several nets.
    """
    places = dict(_list_nets(content))
    if not places:
        raise InputError(
            f"{source}: no state_dict in it: a dict of tensors by name is needed, as "
            "model.state_dict() gives it"
        )
    place = _choose(places, source=source)
    held = _list_tensors(places[place], source=source)
    elsewhere = tuple(".".join(map(str, other)) for other in places if other != place)
    return Checkpoint(
        content,
        place,
        {name: to_numpy(tensor, copy=False) for name, tensor in held.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in held.items()},
        _find_ties(held),
        elsewhere,
    )


def to_numpy(tensor: Tensor, *, copy: bool = True) -> np.ndarray:
    """Return a tensor as a contiguous array; bfloat16 and float8 as float32.

    Args:
        copy: into memory of its own; otherwise it may share that of the tensor.

    Raises:
        InputError: it is of a type that is not read here.
    """
    _refuse_type("a tensor", tensor.dtype)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype.is_floating_point and tensor.dtype not in _OF_NUMPY:
        tensor = tensor.float()
    return np.array(tensor.numpy(), order="C", copy=copy or None)


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


def _list_nets(
    content: Any, place: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], dict[Any, Any]]]:
    """List the dicts of named tensors, and where they lie; those of optimizers are none."""
    if not isinstance(content, dict) or len(place) > 3:
        return
    if any(isinstance(n, str) and isinstance(t, Tensor) and t.ndim > 1 for n, t in content.items()):
        yield place, content
        return
    for key, value in content.items():
        if key not in OPTIMIZERS and not is_optimizer(value):
            yield from _list_nets(value, (*place, key))


def _list_tensors(content: dict[Any, Any], *, source: str) -> dict[str, Tensor]:
    """Return the tensors of a net by their names.

    Raises:
        InputError: a name stands twice or cannot be shown, or a value is of a type that is not read
            here.
    """
    held: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            raise InputError(
                f"{source}: {key} is an array of numpy among tensors; save "
                "torch.from_numpy(x) in its place"
            )
        if not isinstance(value, Tensor):
            continue
        name = str(key)
        if not is_name(name):
            raise InputError(
                f"{source}: a tensor has the name {name[:100]!r}; give it one of at most "
                f"{LONGEST_NAME} characters that can be printed"
            )
        if name in held:
            raise InputError(
                f"{source}: two tensors have the name {name}, as a text and as a number; save them "
                "under other names"
            )
        _refuse_type(f"{source}: {name}", value.dtype)
        held[name] = value
    return held


def _refuse_type(name: str, dtype: torch.dtype) -> None:
    if dtype not in _READ:
        raise InputError(f"{name} is of type {dtype}, which is not read here; save it as float32")


def _choose(places: dict[tuple[Any, ...], Any], *, source: str) -> tuple[Any, ...]:
    """Choose the net that was trained: the only one, or that under the best known key."""
    if len(places) == 1:
        return next(iter(places))
    known = [(WEIGHTS.index(place[0]), place) for place in places if place[0] in WEIGHTS]
    if not known:
        keys = ", ".join(".".join(map(str, place)) for place in places)
        raise InputError(
            f"{source}: it holds the tensors of several nets ({keys}), and which one is meant is "
            "not known; save that one alone: torch.save(checkpoint[KEY], FILE)"
        )
    return min(known)[1]


def _find_ties(tensors: dict[str, Tensor]) -> dict[str, str]:
    first: dict[Any, str] = {}
    ties = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.numel() and place in first:
            ties[name] = first[place]
        first.setdefault(place, name)
    return ties


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # no zip, or a damaged one, of which `container` says what is wrong
        return False
