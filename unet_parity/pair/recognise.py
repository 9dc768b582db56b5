"""What a wrong gradient or statistic of a port looks like."""

import numpy as np

from unet_parity.bounds import GRADIENT_BOUND
from unet_parity.differences import difference


def recognise_gradient(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say what a port's gradient is beside the reference's; empty if it is nothing known."""
    if not theirs.any():
        return "a frozen parameter: its gradient is 0"
    ratio = _find_ratio(ours, theirs)
    return "" if ratio is None else f"a gradient {ratio:.6g} times as large"


def recognise_statistic(
    before: np.ndarray, ours: np.ndarray, theirs: np.ndarray, momentum: float
) -> str:
    """Say how a port moves a statistic; empty if it is no known mistake.

    Args:
        before: the statistic before the pass.
        ours: after it, of the reference.
        theirs: and of the port.
        momentum: of the reference.
    """
    if np.array_equal(before, theirs):
        return "statistics that do not move"
    ratio = _find_ratio(ours - before, theirs - before)
    if ratio is not None:
        return f"a momentum of {ratio * momentum:.6g} in place of {momentum:g}"
    kept = (1 - momentum) * before
    ratio = _find_ratio(ours - kept, theirs - kept)
    if ratio is not None and ratio < 1:
        count = 1 / (1 - ratio)
        return f"a variance over n in place of n - 1, for n = {count:.6g}"
    return ""


def _find_ratio(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Return by what one array is a multiple of another; None where it is none."""
    total = float(np.square(ours).sum())
    if ours.shape != theirs.shape or not total:
        return None
    ratio = float((ours * theirs).sum()) / total
    return ratio if difference(theirs, ratio * ours) <= GRADIENT_BOUND else None
