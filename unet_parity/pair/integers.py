"""The exact proof for any net: integers, of which no operation rounds any, compared with ==.

Weights, inputs and gradients are small integers. Where all that a net computes are sums of products
and choices, every value is an integer; below 2^24 float32 holds it exactly, in whatever order the
sums are taken. So the order of operations, which differs between frameworks, makes no difference,
and a bug of any size does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unet_parity.pair.comparison import PairComparer
from unet_parity.pair.integer_check import BITS, IntegerCheck
from unet_parity.pair.numbers import Numbers
from unet_parity.pair.passes import Arrays
from unet_parity.pair.sides import ReferenceSide
from unet_spec.wording import list_names

TAPS = (6, 4, 3, 2, 1)
"""So many weights of each row are not 0; fewer where values would become too large."""


@dataclass(frozen=True)
class IntegerProof:
    """An `IntegerProof` says whether both sides are equal in every bit.

    Attributes:
        refused: why there is no proof, in words; empty where there is one.
        values: how many values of outputs and gradients were compared.
        unequal: the outputs and gradients that are not equal, by their names.
        largest: the largest sum of absolute products.
        shapes: of the inputs.
    """

    refused: str = ""
    values: int = 0
    unequal: tuple[str, ...] = ()
    largest: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def holds(self) -> bool:
        """Say whether every value is equal."""
        return not self.refused and not self.unequal

    def __str__(self) -> str:
        if self.refused:
            return f"no exact proof: {self.refused}"
        if self.unequal:
            verb = "differs" if len(self.unequal) == 1 else "differ"
            return f"in exact arithmetic {list_names(self.unequal, 3)} {verb}"
        return (
            f"{self.values:,} values of outputs and gradients are equal, bit for bit, in arithmetic"
            f" that rounds nothing (largest sum 2^{np.log2(max(self.largest, 1)):.1f} of 2^{BITS})"
        )


def prove(
    comparer: PairComparer, inputs: Arrays, cotangents: Arrays, *, seed: int = 0
) -> IntegerProof:
    """Compare both sides on integers.

    Args:
        inputs: whose shapes, and whose integers, are taken.
        cotangents: likewise.
    """
    numbers, check = find_exact(comparer.reference, inputs, cotangents, seed=seed)
    if check.is_exact:
        return _compare(comparer, numbers, check.largest)
    reason = "its sums are too large for float32, whatever weights are drawn"
    return IntegerProof(check.inexact or reason, shapes=tuple(x.shape for x in inputs))


def find_exact(
    reference: ReferenceSide, inputs: Arrays, cotangents: Arrays, *, seed: int = 0
) -> tuple[Numbers, IntegerCheck]:
    """Draw integers with fewer and fewer weights, until float32 holds all that comes of them.

    The last ones are returned where it never does, or where an operation rounds.
    """
    for taps in TAPS:
        rng = np.random.default_rng((seed, taps))
        numbers = Numbers(
            f"integers, {taps} weights in each row",
            draw_integers(reference.state, rng, taps=taps),
            tuple(_draw_like(x, rng, 2) for x in inputs),
            tuple(_draw_like(c, rng, 1) for c in cotangents),
        )
        check = reference.check_integers(numbers)
        if check.inexact or check.is_exact:
            break
    return numbers, check


def draw_integers(
    state: Mapping[str, np.ndarray], rng: np.random.Generator, *, taps: int
) -> dict[str, np.ndarray]:
    """Draw weights of -1, 0 and 1, of which `taps` in each row are not 0."""
    drawn = {}
    for name, array in state.items():
        if array.dtype.kind != "f":
            drawn[name] = array
        elif array.ndim < 2:
            drawn[name] = rng.integers(-1, 2, array.shape).astype(np.float32)
        else:
            rows = np.zeros((len(array), array[0].size), np.float32)
            for row in rows:
                chosen = rng.choice(row.size, min(taps, row.size), replace=False)
                row[chosen] = rng.choice((-1, 1), chosen.size)
            drawn[name] = rows.reshape(array.shape)
    return drawn


def _draw_like(array: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return rng.integers(-most, most + 1, array.shape).astype(np.float32)


def _compare(comparer: PairComparer, numbers: Numbers, largest: float) -> IntegerProof:
    ours = comparer.run_reference(numbers, dtype="float32")
    theirs = comparer.run_port(numbers, dtype="float32")
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for what, first, second in (
        ("output", ours.outputs, theirs.outputs),
        ("gradient of input", ours.input_gradients, theirs.input_gradients),
    ):
        rows |= {f"{what} {i + 1}": pair for i, pair in enumerate(zip(first, second, strict=True))}
    for name, gradient in theirs.gradients.items():
        rows[f"gradient of {name}"] = (ours.gradients[name], gradient)
    unequal = tuple(name for name, (a, b) in rows.items() if not np.array_equal(a, b))
    count = sum(a.size for a, _ in rows.values())
    return IntegerProof("", count, unequal, largest, tuple(x.shape for x in numbers.inputs))
