"""What a run measured, step by step: RUN/metrics.jsonl, and the same in RUN/tensorboard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from unet_spec import InputError
from unet_spec.files import atomic_write, name_errors
from unet_spec.plain_json import read_json

from .tensorboard import EventFile

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


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
    return [line for _, line in _parse_lines(folder / METRICS)]


def read_validations(folder: Path, *, until: int) -> list[tuple[int, float | None]]:
    """Return (step, mean IoU of images) of the validations up to a step, the oldest first.

    The IoU is None where no image had a score.

    Raises:
        InputError: a line that is none.
    """
    lines = [line for line in read_metrics(folder) if line["kind"] == "validation"]
    return [(line["step"], line.get("mean_image_iou")) for line in lines if line["step"] <= until]


def _drop_after(path: Path, *, step: int) -> None:
    """Take out the lines of what came after a step; it happens again."""
    content = b"".join(text for text, line in _parse_lines(path) if line["step"] <= step)
    if path.exists() and content != path.read_bytes():
        with atomic_write(path) as stream:
            stream.write(content)


def _parse_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each whole line and what it says; the last one is whole if it ends."""
    if not path.exists():
        return []
    texts = [text for text in path.read_bytes().splitlines(True) if text.endswith(b"\n")]
    return [(text, _parse_line(path, number, text)) for number, text in enumerate(texts, start=1)]


def _parse_line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    """Return what a line says.

    Raises:
        InputError: it is not JSON with a step and a kind.
    """
    try:
        line = read_json(text)
        values = [value for name, value in line.items() if name != "kind"]
        is_right = type(line["step"]) is int and isinstance(line["kind"], str)
        if is_right and all(type(value) in (int, float, type(None)) for value in values):
            return line
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        f'{path}: line {number} is not JSON with a "step", a "kind" and numbers; take that line out'
    )
