"""What a run measured, step by step: RUN/metrics.jsonl, and the same in RUN/tensorboard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from unet_spec import InputError
from unet_spec.files import atomic_write, name_errors

from .run_folder import METRICS
from .tensorboard import EventFile

TENSORBOARD = "tensorboard"


class Record:
    """Writes down what a run measures; a kill loses at most the line that was being written.

    Args:
        resume_at: the step at which the run goes on; what came after it happens again, and is
            forgotten.
        scored_at: the step of the last validation that counts; by default `resume_at`.

    Raises:
        InputError: a line of metrics.jsonl that is none.
    """

    def __init__(self, folder: Path, *, resume_at: int = 0, scored_at: int | None = None):
        self._path = path = folder / METRICS
        _forget(path, after=resume_at, scored_at=resume_at if scored_at is None else scored_at)
        self._events = EventFile(folder / TENSORBOARD, first_step=resume_at + 1)
        self._lines = path.open("a", encoding="utf-8", buffering=1)  # by the line

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with name_errors(self._path):
                self._lines.close()
        finally:
            self._events.close()

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Add a line for each kind: `{"train/loss": 0.5}` is `{"step": 20, "kind": "train",
        "loss": 0.5}`. JSON has no NaN and no infinity: they are null."""
        lines: dict[str, dict[str, Any]] = {}
        numbers = {tag: float(value) for tag, value in values.items()}
        for tag, value in numbers.items():
            kind, _, name = tag.partition("/")
            line = lines.setdefault(kind, {"step": step, "kind": kind})
            line[name] = value if math.isfinite(value) else None
        for line in lines.values():
            with name_errors(self._path):
                self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._events.scalars(step, numbers)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show pictures of (h, w, 3) bytes in TensorBoard."""
        self._events.images(step, pictures)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl in their order; none where there is no such file.

    Raises:
        InputError: a line that is none.
    """
    return [line for _, line in _parsed(folder / METRICS)]


def _forget(path: Path, *, after: int, scored_at: int) -> None:
    """Keep the lines up to a step, and of validations those up to another."""
    kept = b"".join(
        text
        for text, line in _parsed(path)
        if line["step"] <= (scored_at if line["kind"] == "validation" else after)
    )
    if path.exists() and kept != path.read_bytes():
        with atomic_write(path) as stream:
            stream.write(kept)


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line and what it says; the last one is whole if it ends."""
    if not path.exists():
        return []
    texts = [text for text in path.read_bytes().splitlines(True) if text.endswith(b"\n")]
    return [(text, _line(path, number, text)) for number, text in enumerate(texts, start=1)]


def _line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if isinstance(line["step"], int) and isinstance(line["kind"], str):
            return line
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f'{path}: line {number} is not JSON with a "step" and a "kind"; take that line out'
    )
