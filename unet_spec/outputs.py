"""The function in which a net's original ends, applied to the logits that the net here gives."""

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


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # a power of e with an exponent above 0 overflows for large logits
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    # the largest becomes e^0 = 1, so nothing overflows and the sum is never 0
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)
