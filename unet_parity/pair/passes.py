"""What one pass through either side of a pair gives, as numpy arrays."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class PairPass:
    """What one pass gave.

    Attributes:
        outputs: all arrays of the outputs, in order, as the reference lays them out.
        input_gradients: of the inputs that are floating-point numbers, likewise.
        gradients: of the trained parameters, by the reference's names.
        statistics: the other floating-point tensors after the pass, likewise.
    """

    outputs: Arrays
    input_gradients: Arrays
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


class TakenStep(NamedTuple):
    """The loss before a training step, and the parameters after it, by the reference's names."""

    loss: float
    values: dict[str, np.ndarray]
