"""What one pass through either twin gives; everything numpy, in torch's layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Masks = Sequence[np.ndarray | None]
QUICK_PIXELS = 64 * 64


@dataclass(frozen=True)
class Pass:
    """What one pass gave, forward and backward.

    Attributes:
        output: (b, classes, h', w').
        input_gradient: (b, in_channels, h, w).
        gradients: of every trained tensor, by name.
        statistics: of batch norm after the pass, by name.
    """

    output: np.ndarray
    input_gradient: np.ndarray
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def is_small(x: np.ndarray) -> bool:
    """Say whether a pass over images (b, c, h, w) takes less than its optimised compilation: then
    `compile_jax` had better be quick."""
    return x.size <= QUICK_PIXELS * x.shape[1]


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
