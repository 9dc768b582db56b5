"""A recording of a training run as it is read: arrays over steps and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_parity.runs.recorder import FORMAT
from unet_spec.errors import InputError
from unet_spec.files import open_plain, refuse_no_file
from unet_spec.plain_json import read_json
from unet_spec.wording import is_name

MOST_BYTES = 2**28
"""A recording has at most so many; 1,000 steps of 300 tensors take 40 MB."""
PRECISIONS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""One unit in the last place of each type that trained parameters have, relative."""
KINDS = ("gradient", "update", "weights")
"""The norms that a recording has of each tensor, in the order in which a step makes them."""


@dataclass(frozen=True)
class Recording:
    """A `Recording` is what `RunRecorder` wrote of one run.

    Attributes:
        path: the file.
        framework: torch, jax or another.
        versions: of what was installed.
        names: of the tensors.
        sizes: how many values each has, (tensors,).
        precision: one unit in the last place of the coarsest type that the tensors have, relative.
        initial: the norm of each before the first step, (tensors,).
        losses: (steps,); NaN and infinity stand as they were.
        norms: by gradient, update and weights, each (steps, tensors).
        hashes: sha256 of all weights: the initial ones, then those after each step.
        is_cut: whether the last line is incomplete; it is left out.
    """

    path: Path
    framework: str
    versions: dict[str, str]
    names: tuple[str, ...]
    sizes: np.ndarray
    precision: float
    initial: np.ndarray
    losses: np.ndarray
    norms: dict[str, np.ndarray]
    hashes: tuple[str, ...]
    is_cut: bool

    @property
    def steps(self) -> int:
        """Return how many steps were recorded."""
        return len(self.losses)

    @property
    def first_lost(self) -> int | None:
        """Return the number of the first step with a loss that is NaN or infinite, from 1."""
        lost = np.flatnonzero(~np.isfinite(self.losses))
        return int(lost[0]) + 1 if lost.size else None


def is_recording(path: Path) -> bool:
    """Return whether a file begins as a recording of a run does.

    Raises:
        InputError: it is no file.
    """
    refuse_no_file(path)
    with path.open("rb") as stream:
        return stream.read(len(_BEGIN)) == _BEGIN


_BEGIN = f'{{"format": "{FORMAT}"'.encode()


def read_recording(path: Path) -> Recording:
    """Read a recording of a run; a last line that was cut is left out.

    Raises:
        InputError: it is none, a line before the last is damaged, or there is no whole step.
    """
    refuse_no_file(path)
    lines: list[Any] = []
    is_cut = False
    try:
        with open_plain(path, most_bytes=MOST_BYTES) as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):  # only the last one can be so
                    is_cut = True
                    break
                lines.append(_read_line(line, lines[0] if lines else None, number=number))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no whole recording of a run ({error}); record it anew"
        ) from error
    if len(lines) < 2:
        raise InputError(f"{path}: it holds no whole step; record at least one")
    header, steps = lines[0], lines[1:]
    return Recording(
        path=path,
        framework=header["framework"],
        versions=header["versions"],
        names=header["names"],
        sizes=header["sizes"],
        precision=header["precision"],
        initial=header["initial"],
        losses=np.array([loss for loss, _, _ in steps]),
        norms={kind: np.stack([n[row] for _, n, _ in steps]) for row, kind in enumerate(KINDS)},
        hashes=(header["sha256"], *(sha256 for _, _, sha256 in steps)),
        is_cut=is_cut,
    )


def _read_line(line: bytes, header: Mapping[str, Any] | None, *, number: int) -> Any:
    """Return what a line says: the header, or (loss, norms, sha256) of a step.

    Args:
        header: None in the first line.
        number: of the line, from 1.

    Raises:
        ValueError: it says something else; with the number.
    """
    try:
        content = read_json(line)
        if header is None:
            return _read_header(content)
        if content["step"] != number - 1:
            raise ValueError(f"it is of step {content['step']}")
        return _read_step(content, header["names"])
    except KeyError as error:
        raise ValueError(f"line {number} lacks {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"line {number}: {error}") from error


def _read_header(content: Any) -> dict[str, Any]:
    if content["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    tensors = content["tensors"]
    if not tensors or not all(map(is_name, tensors)):
        raise ValueError("it names no tensors")
    return {
        "framework": str(content["framework"]),
        "versions": {str(name): str(value) for name, value in content["versions"].items()},
        "names": tuple(tensors),
        "sizes": np.array([int(tensor["size"]) for tensor in tensors.values()]),
        "precision": max(PRECISIONS[tensor["dtype"]] for tensor in tensors.values()),
        "initial": np.array([_read_number(tensor["weights"]) for tensor in tensors.values()]),
        "sha256": str(content["sha256"]),
    }


def _read_step(content: Any, names: tuple[str, ...]) -> tuple[float, np.ndarray, str]:
    """Return the loss, the norms, (kinds, tensors), and the sha256 of a step."""
    tensors = content["tensors"]
    if tensors.keys() != {*names}:
        raise ValueError("its tensors have other names than those of the first line")
    norms = [[_read_number(tensors[name][kind]) for name in names] for kind in KINDS]
    return _read_number(content["loss"]), np.array(norms), str(content["sha256"])


def _read_number(value: Any) -> float:
    """Return a number; NaN and infinity are written as words."""
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("nan", "inf", "-inf")):
        raise ValueError(f"{value!a} is no number")
    return float(value)
