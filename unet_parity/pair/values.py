"""The values of a pass, in which others can be looked for, whatever their layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol, runtime_checkable

import numpy as np

MOST_AXES = 5
"""Arrays of more axes are not tried in all orders."""
TOLERANCE = 1e-9
"""Values in float64 are the same where they are this near, relative to the largest."""


class Values:
    """The values of a pass, in which others can be looked for.

    Args:
        tolerance: two values that are nearer than this part of the largest are the same value.
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self.tolerance = tolerance
        self._by_size: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, array: np.ndarray) -> None:
        """Keep an array."""
        flat = np.ravel(array).astype(np.float64)
        self._by_size.setdefault(flat.size, []).append((_fingerprint(flat), flat))

    def contains(self, array: np.ndarray) -> bool:
        """Say whether an array is among the values, its axes in any order and cut in any way.

        An array of equal values says nothing, and counts as found.
        """
        array = np.asarray(array, np.float64)
        if array.size == 0 or (array == array.flat[0]).all() or np.isnan(array).any():
            return True
        sums = _fingerprint(array.ravel())
        near = [
            flat
            for other, flat in self._by_size.get(array.size, [])
            if np.allclose(sums, other, rtol=self.tolerance, atol=self.tolerance * sums[1])
        ]
        return any(
            _are_same(order, flat, self.tolerance)
            for order in (_list_orders(array) if near else ())
            for flat in near
        )


@runtime_checkable
class PortValues(Protocol):
    """What can be asked of the values that a port computes."""

    def contains(self, place: str, array: np.ndarray) -> bool:
        """Say whether the port computes a value of the reference.

        Args:
            place: where the reference computes it, which names the question in a recording.
            array: the value.
        """


@dataclass(frozen=True, eq=False)
class ComputedValues:
    """The values that a port has computed in a pass, and those of them that it gave at its end."""

    all: Values
    given: Values

    def contains(self, place: str, array: np.ndarray) -> bool:
        """Say whether a value is among all of them, wherever it stands in the reference."""
        return self.all.contains(array)


def _are_same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite]):
        return False
    if not finite.any():
        return True
    allowed = tolerance * np.abs(b[finite]).max()
    return bool(np.abs(a[finite] - b[finite]).max() <= allowed)


def _fingerprint(flat: np.ndarray) -> np.ndarray:
    """Return sums that no order of the values changes, of those that are finite."""
    flat = flat[np.isfinite(flat)]
    return np.array([flat.sum(), np.abs(flat).sum(), np.sqrt(np.square(flat).sum())])


def _list_orders(array: np.ndarray) -> Iterator[np.ndarray]:
    array = array.squeeze()
    yield array.ravel()
    if array.ndim <= MOST_AXES:
        for order in permutations(range(array.ndim)):
            if order != tuple(range(array.ndim)):
                yield array.transpose(order).ravel()
