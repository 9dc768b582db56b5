"""What a reference does with integers, as a value."""

from typing import NamedTuple

BITS = 24
"""float32's significand has so many bits: it holds all integers up to 2^24."""


class IntegerCheck(NamedTuple):
    """What the reference does with integers.

    Attributes:
        inexact: which operation rounds them, in words; empty where none does.
        largest: the largest sum of absolute products in any operation.
    """

    inexact: str
    largest: float

    @property
    def is_exact(self) -> bool:
        """Say whether float32 holds every value exactly."""
        return not self.inexact and self.largest <= 2**BITS
