"""Which numbers a field or a flag takes: finite ones of a stated range, that float32 can hold."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from unet_spec.errors import InputError
from unet_spec.wording import show_value

SMALLEST = float(np.finfo(np.float32).tiny)
"""A smaller number is 0 where a run computes: XLA on CPU takes subnormal numbers for 0."""


@dataclass(frozen=True)
class Range:
    """A `Range` says which numbers a field takes.

    Attributes:
        least, most: its ends, which belong to it.
        above, below: an end that does not belong to it, nor any number that float32 rounds to it.
        rule: what the number has to be, where that says more than the ends.
        why: the reason for `most`, as the end of a sentence.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    rule: str = ""
    why: str = ""

    def find_fault(self, value: float) -> str | None:
        """Return the rule that a number breaks, in words; None where it is in the range."""
        if isinstance(value, float) and not math.isfinite(value):
            return self.rule or "is a finite number"
        if not (value >= self.least and value > self.above):
            return self.rule or f"needs at least {_show(self.least)}"
        if not (value <= self.most and value < self.below):
            reason = f", {self.why}" if self.why else ""
            return self.rule or f"needs at most {_show(self.most)}{reason}"
        if isinstance(value, int):
            return None
        rounded = float(np.float32(value))
        if 0 < abs(value) < SMALLEST:
            return f"is 0 or at least {SMALLEST:.2g}, because a run computes in float32"
        if not self.above < rounded < self.below:
            return f"{self.rule} also in float32, in which a run computes"
        return None


def check_number(name: str, number: float, allowed: Range) -> None:
    """Refuse a number out of its range.

    Args:
        name: as the sentence calls it, such as a flag.

    Raises:
        InputError: naming it.
    """
    rule = allowed.find_fault(number)
    if rule is not None:
        raise InputError(f"{name} {rule}, got {show_value(number)}")


def find_ranges(kind: Any) -> list[Range]:
    """Return the ranges that stand in a type: in `Annotated`, or in that of its items."""
    inside = [one for item in getattr(kind, "__args__", ()) for one in find_ranges(item)]
    return [one for one in getattr(kind, "__metadata__", ()) if isinstance(one, Range)] + inside


def _show(number: float) -> str:
    """Return a number as it is typed."""
    return f"{number:.0f}" if number == int(number) else f"{number:g}"


MOST_STEPS = 10**9
"""Steps are counted in 32 bits, and the schedule `cosine` counts twice as many."""
Steps = Annotated[int, Range(1, MOST_STEPS, why="because steps are counted in 32 bits")]
Waits = Annotated[int, Range(0, MOST_STEPS, why="because steps are counted in 32 bits")]
MOST_CHANNELS = 2**16
"""As many classes as a mask of 16 bits tells apart."""
Channels = Annotated[int, Range(1, MOST_CHANNELS)]
MOST_PIXELS = 2**15
"""Along a side, for what a net sees at once; the pixels of its square are counted in 32 bits."""
IMAGE_GB = Range(above=0, most=1e6, rule="is a number of GB above 0")
SIDE = Range(1, MOST_PIXELS, why="because the pixels are counted in 32 bits")
Side = Annotated[int, SIDE]
STEPS_OF_A_PROOF = Range(0, 10_000, why="because each keeps what it measured for the report")
Pixels = Annotated[float, Range(0, MOST_PIXELS, why="which is the largest crop")]
MOST_WEIGHT = 1e6
"""Beside a weight of a million, one of 1 is near the rounding of float32."""
Weight = Annotated[float, Range(0, MOST_WEIGHT)]
Rate = Annotated[float, Range(0, MOST_WEIGHT)]
Share = Annotated[float, Range(0, 1, rule="is a share from 0 to 1")]
