"""What `verify_pair` found, in words and as plain values, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unet_parity.bounds import GRADIENT_FACTOR, OUTPUT_BOUND
from unet_parity.pair.blame import Blame
from unet_parity.pair.comparison import PairComparison
from unet_parity.pair.integers import IntegerProof
from unet_parity.pair.numbers import Shapes
from unet_parity.pair.steps import PairSteps
from unet_spec.judgement import FACTOR

MOST_REASONS = 5
"""A report in words has so many of them, and says how many others there are."""


@dataclass(frozen=True)
class SizeComparison:
    """A `SizeComparison` is the outputs of a pair in float64 for inputs of another size.

    Attributes:
        shapes: of the inputs.
        output: the largest relative difference; infinite if the port gives another shape, and None
            if it does not run, which nobody can overlook.
        allowed: up to which it is rounding.
        blame: where the port leaves the reference.
    """

    shapes: Shapes
    output: float | None
    allowed: float = OUTPUT_BOUND
    blame: Blame | None = None

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        if self.output is None or self.output <= self.allowed:
            return ""
        what = f"the output differs by {self.output:.1e} in float64"
        if not self.output < np.inf:
            what = "the output has another shape, or is not finite"
        if self.blame is not None:
            what = f"{self.blame} ({what})"
        return f"for inputs of {self.size}: {what}"

    @property
    def size(self) -> str:
        """Return the shapes in words."""
        return " and ".join(map(str, self.shapes))


@dataclass(frozen=True)
class PairReport:
    """What `verify_pair` found.

    Attributes:
        verdict: `identical` (bit for bit, in arithmetic that rounds nothing), `equivalent` (equal
            to rounding in float64, with float32 errors of the same size) or `different`.
        reasons: why, in sentences; of `different`, the first names what is at fault.
        comparisons: ordinary values, for each mode and seed.
        sizes: outputs for inputs of other sizes.
        integers: the exact proof, or why there is none.
        steps: of training, side by side; None where there are none.
        compared: what was compared, in a sentence.
        not_compared: and what was not.
        hashes: sha256 of the reference's tensors and of the inputs.
        environment: versions, devices and precision in force.
    """

    verdict: str
    reasons: tuple[str, ...]
    comparisons: tuple[PairComparison, ...]
    sizes: tuple[SizeComparison, ...]
    integers: IntegerProof
    steps: PairSteps | None
    compared: str
    not_compared: str
    hashes: dict[str, str]
    environment: dict[str, str]

    @property
    def module(self) -> str:
        """Return the path of the reference's module at fault; empty where none is."""
        blames = [*(c.blame for c in self.comparisons), *(s.blame for s in self.sizes)]
        return next((blame.module for blame in blames if blame is not None), "")

    def __str__(self) -> str:
        """Say the verdict, why, and what it was found on."""
        return "\n".join([f"{self.verdict}.", *self.list_sentences()])

    def list_sentences(self) -> list[str]:
        """Return why, and what it was found on; of many reasons the first ones."""
        sentences = list(self.reasons[:MOST_REASONS])
        more = len(self.reasons) - MOST_REASONS
        if more > 0:
            sentences.append(f"and {more} more, most of which follow from the first")
        return [*sentences, self.compared, self.not_compared]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "module": self.module,
            "compared": self.compared,
            "not_compared": self.not_compared,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "sizes": [asdict(size) for size in self.sizes],
            "integers": asdict(self.integers),
            "steps": None if self.steps is None else asdict(self.steps),
            "hashes": self.hashes,
            "environment": self.environment,
        }


def judge(
    comparisons: tuple[PairComparison, ...],
    integers: IntegerProof,
    steps: PairSteps | None,
    sizes: Sequence[SizeComparison],
    *,
    other: Mapping[str, float],
    notes: Sequence[str],
) -> tuple[str, tuple[str, ...]]:
    """Return the verdict and its reasons.

    Args:
        other: arrays of the port that were given with other values than the reference has, and how
            far these are.
        notes: what a person has to know who is told that both are the same.
    """
    problems = [
        f"{name} of the port has not the values of the reference: they are {size:.1e} apart"
        for name, size in other.items()
    ]
    problems += [problem for c in comparisons for problem in c.problems]
    problems += [one.problem for one in sizes if one.problem]
    if integers.unequal:
        problems.append(str(integers))
    if steps is not None and steps.problem:
        problems.append(steps.problem)
    if problems:
        return "different", tuple(dict.fromkeys(problems))
    agreement = (
        "float64 agrees to rounding; the float32 error of each side against float64 is of the same "
        f"size, within a factor of {FACTOR:g} (gradients {GRADIENT_FACTOR:g})"
    )
    ties = sum(c.near_ties for c in comparisons)
    if ties:
        notes = [
            *notes,
            f"{ties} near-ties of ReLUs or pools: where they fall in float32 is chance, so the "
            "float32 gradients of these inputs say nothing",
        ]
    return ("identical" if integers.holds else "equivalent"), (str(integers), agreement, *notes)
