"""A recording of one side of a pair: one safetensors file with what the side was asked and what it
answered.

An answer is made of arrays and plain values. The arrays stand one behind the other, those of a type
as one tensor, and equal ones once. The rest is JSON in the card of the file, which says where each
array begins.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_parity.pair.integer_check import IntegerCheck
from unet_parity.pair.logs import BackwardLog, ForwardLog, LoggedCall, LoggedOperation
from unet_parity.pair.passes import PairPass, TakenStep
from unet_parity.pair.sides import Matching
from unet_spec import InputError, safetensors_file
from unet_spec.recipe import Recipe

FORMAT = 1


_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        BackwardLog, IntegerCheck, ForwardLog, LoggedCall, LoggedOperation, Matching, PairPass,
        TakenStep,
    )
}  # fmt: skip
"""What answers are made of, besides arrays and plain values."""


@dataclass(frozen=True)
class Terms:
    """What both recordings of a pair have to have in common.

    Attributes:
        seeds: of the values that were drawn.
        steps: of training.
        recipe: of these.
        hashes: sha256 of the reference's tensors and of its inputs.
    """

    seeds: int
    steps: int
    recipe: Recipe
    hashes: dict[str, str]


@dataclass(frozen=True, eq=False)
class Recording:
    """A `Recording` is what one side of a pair answered.

    Attributes:
        path: of its file.
        side: `reference` or `port`.
        terms: what was asked.
        environment: versions, devices and precision of the machine.
        like: the sha256 of the reference's recording, for a port; empty for a reference.
        answers: by their questions.
        sha256: of the file; empty before it is written.
    """

    path: Path
    side: str
    terms: Terms
    environment: dict[str, str]
    like: str
    answers: dict[str, Any]
    sha256: str = ""


def write_recording(recording: Recording) -> None:
    """Write the file of a recording whole or not at all; an existing one is replaced.

    Raises:
        InputError: an array is of a type that files do not have.
    """
    pool = _Pool()
    terms = recording.terms
    card = {
        "recording": FORMAT,
        "side": recording.side,
        "seeds": terms.seeds,
        "steps": terms.steps,
        "recipe": terms.recipe.to_json(),
        "hashes": terms.hashes,
        "environment": recording.environment,
        "like": recording.like,
        "answers": _encode(recording.answers, pool),
    }
    tensors = {dtype: np.concatenate(rows) for dtype, rows in pool.rows.items()}
    safetensors_file.write_as_they_are(recording.path, tensors, card)


def read_recording(path: Path) -> Recording:
    """Read the file of a recording.

    Raises:
        InputError: it is no recording, not whole, or of another format.
    """
    card, tensors = safetensors_file.read(path)
    if card is None or "recording" not in card:
        raise InputError(f"{path}: no recording of a pair; make one with unet_parity.record")
    if card["recording"] != FORMAT:
        raise InputError(
            f"{path}: a recording of format {card['recording']}, and {FORMAT} is read here; record "
            "it again with the same version"
        )
    try:
        return Recording(
            path,
            card["side"],
            Terms(card["seeds"], card["steps"], Recipe.from_json(card["recipe"]), card["hashes"]),
            card["environment"],
            card["like"],
            _decode(card["answers"], tensors),
            card["sha256"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: its metadata is damaged ({error!r}); fetch or record it again"
        ) from error


class _Pool:
    """Arrays that are written, each content once.

    Attributes:
        rows: the arrays of each type as rows of values.
    """

    def __init__(self) -> None:
        self.rows: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._lengths: defaultdict[str, int] = defaultdict(int)
        self._starts: dict[tuple[str, bytes], int] = {}

    def add(self, array: np.ndarray) -> tuple[str, int]:
        """Keep an array; return its type, and where its values begin among those of that type."""
        dtype, row = array.dtype.name, np.ravel(array)
        if array.dtype.kind not in "fiub":
            raise InputError(f"a recording holds numbers, and not values of type {dtype}")
        key = dtype, hashlib.sha256(row.tobytes()).digest()
        if key not in self._starts:
            self._starts[key] = self._lengths[dtype]
            self._lengths[dtype] += row.size
            self.rows[dtype].append(row)
        return dtype, self._starts[key]


def _encode(value: Any, pool: _Pool) -> Any:
    """Return an answer as JSON has it.

    What is no text, whole number, truth value, None or list becomes an object with one name, which
    says what it is. Mappings are lists of pairs, because their order counts and JSON's does not.
    """
    if isinstance(value, np.ndarray):
        return {"array": [*pool.add(value), list(value.shape)]}
    if isinstance(value, float):  # JSON has no infinity
        return {"float": value.hex()}
    if isinstance(value, Mapping):
        return {"mapping": [[_encode(k, pool), _encode(v, pool)] for k, v in value.items()]}
    if is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
        return {type(value).__name__: [_encode(part, pool) for part in parts]}
    if isinstance(value, tuple | list):
        parts = [_encode(part, pool) for part in value]
        return {type(value).__name__: parts} if type(value).__name__ in _KINDS else parts
    return value


def _decode(value: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Return the answer that `_encode` has encoded; lists come back as tuples."""
    if isinstance(value, list):
        return tuple(_decode(part, tensors) for part in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        dtype, start, shape = content
        row = tensors[dtype][start : start + int(np.prod(shape, dtype=np.int64))]
        return row.reshape(shape)
    if kind == "float":
        return float.fromhex(content)
    if kind == "mapping":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    return _KINDS[kind](*_decode(content, tensors))
