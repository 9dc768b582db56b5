"""The function in which a net's original ends, and probabilities, both of the net's logits."""

import numpy as np

from unet_spec.config import UNetConfig


def apply_output(config: UNetConfig, logits: np.ndarray, *, axis: int) -> np.ndarray:
    """Return what the original net gives, of the type and shape of the logits.

    These are the logits themselves, or probabilities: of each channel by itself
    (`output=sigmoid`), or of all channels together, which then add up to 1 (`output=softmax`).

    Args:
        logits: floats, such as float32 or float64.
        axis: the axis of the channels.
    """
    if config.output == "sigmoid":
        return _sigmoid(logits)
    if config.output == "softmax":
        return _softmax(logits, axis)
    return logits


def compute_probabilities(config: UNetConfig, logits: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the probability of each channel's class: float32, of the shape of the logits.

    With `output=sigmoid` each class has its own, whatever the others have, and so has a single
    channel, whose class is 1. Otherwise the classes exclude one another, and the probabilities of
    a pixel add up to 1: they are computed in float64 and rounded once, so that the error of their
    sum is at most 2^-24.

    Args:
        axis: the axis of the channels.
    """
    exact = logits.astype(np.float64)
    if config.output == "sigmoid" or logits.shape[axis] == 1:
        return _sigmoid(exact).astype(np.float32)
    return _softmax(exact, axis).astype(np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # a power of e with an exponent above 0 overflows for large logits
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    # the largest becomes e^0 = 1, so nothing overflows and the sum is never 0
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)
