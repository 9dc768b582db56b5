"""What a run measured, step by step: RUN/metrics.jsonl, and the same in RUN/tensorboard."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from unet_spec import InputError
from unet_spec.files import atomic_write, name_errors, open_plain
from unet_spec.plain_json import read_json

from ..run.folder import METRICS, TENSORBOARD
from .tensorboard import EventFile

MOST_BYTES = 256 * 2**20
MOST_LINES = 10**6  # in which a run logs 20 million steps
MOST_BYTES_OF_LINE = 2**16
LARGEST = 1e39  # beyond all float32, of which a run makes its means
LAST_STEP = 2**53  # up to which a step is exact as a float


class MetricsLog:
    """A `MetricsLog` writes down what a run measures.

    A kill loses at most the line that was being written.

    Args:
        resume_at: the step at which the run goes on; what came after it happens again, and is
            forgotten.

    Raises:
        InputError: a line of metrics.jsonl that is none.
    """

    def __init__(self, folder: Path, *, resume_at: int = 0):
        self._path = path = folder / METRICS
        _drop_after(path, step=resume_at)
        self._events = EventFile(folder / TENSORBOARD, first_step=resume_at + 1)
        self._lines = path.open("a", encoding="utf-8", buffering=1)  # by the line

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with name_errors(self._path):
                self._lines.close()
        finally:
            self._events.close()

    def add_scalars(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Add a line for each kind of value.

        `{"train/loss": 0.5}` is the line `{"step": 20, "kind": "train", "loss": 0.5}`. JSON has
        no NaN and no infinity: they are null. So is None, a score that does not exist, which
        TensorBoard does not get.
        """
        lines: dict[str, dict[str, Any]] = {}
        numbers = {tag: float(value) for tag, value in values.items() if value is not None}
        for tag in values:
            kind, _, name = tag.partition("/")
            line = lines.setdefault(kind, {"step": step, "kind": kind})
            value = numbers.get(tag)
            line[name] = value if value is not None and math.isfinite(value) else None
        for line in lines.values():
            with name_errors(self._path):
                self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._events.add_scalars(step, numbers)

    def add_images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show pictures of (h, w, 3) bytes in TensorBoard."""
        self._events.add_images(step, pictures)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of RUN/metrics.jsonl in their order; none where there is no such file.

    Raises:
        InputError: a line that is none.
    """
    return [line for _, line in _iterate_lines(folder / METRICS)]


def read_validations(folder: Path, *, until: int) -> list[tuple[int, float | None]]:
    """Return (step, mean IoU of images) of the validations up to a step, the oldest first.

    The IoU is None where no image had a score.

    Raises:
        InputError: a line that is none.
    """
    lines = (line for _, line in _iterate_lines(folder / METRICS))
    validations = [line for line in lines if line["kind"] == "validation"]
    return [(v["step"], v.get("mean_image_iou")) for v in validations if v["step"] <= until]


def has_lines(folder: Path) -> bool:
    """Return whether RUN/metrics.jsonl holds a whole line."""
    return next(_iterate_lines(folder / METRICS), None) is not None


def _drop_after(path: Path, *, step: int) -> None:
    """Take out the lines of what came after a step, which happens again, and half a line."""
    if not path.exists():
        return
    whole_bytes, is_as_it_stays = 0, True
    for text, line in _iterate_lines(path):
        whole_bytes += len(text)
        is_as_it_stays &= line["step"] <= step
    if is_as_it_stays and whole_bytes == path.stat().st_size:
        return
    with atomic_write(path) as stream:
        for text, line in _iterate_lines(path):
            if line["step"] <= step:
                stream.write(text)


def _iterate_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each whole line and what it says; a kill leaves half of one at the end.

    Raises:
        InputError: a line that is none, or more than a run writes.
    """
    if not os.path.lexists(path):
        return
    number = 0
    try:
        with open_plain(path, most_bytes=MOST_BYTES) as stream:
            while text := stream.readline(MOST_BYTES_OF_LINE):
                number += 1
                if number > MOST_LINES:
                    raise ValueError(f"it has more than {MOST_LINES} lines")
                if text.endswith(b"\n"):
                    yield text, _parse_line(path, number, text)
                elif len(text) == MOST_BYTES_OF_LINE:
                    raise ValueError(f"line {number} is longer than {MOST_BYTES_OF_LINE} bytes")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path}: {error}, which no run writes; bring it back from a copy, or name another "
            "--out"
        ) from error


def _parse_line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    """Return what a line says.

    Raises:
        InputError: it is not JSON with a step, a kind and finite numbers, or a score is none.
    """
    try:
        line = {sys.intern(name): value for name, value in read_json(text.decode()).items()}
        step, kind = line["step"], line["kind"]
        is_right = type(step) is int and 0 <= step <= LAST_STEP and isinstance(kind, str)
        values = [value for name, value in line.items() if name not in ("step", "kind")]
        least, most = (0, 1) if kind == "validation" else (-LARGEST, LARGEST)
        for value in values:
            is_number = type(value) in (int, float) and least <= value <= most
            is_right &= value is None or is_number
        if is_right:
            return line
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        f'{path}: line {number} is not JSON with a "step", a "kind" and numbers, which are from 0 '
        "to 1 in a validation; take that line out"
    )
