"""What the first step beyond looks like: the schedule, the optimizer, the gradients or the net."""

from collections.abc import Sequence

import numpy as np

from unet_parity.runs.distances import (
    GRADIENT,
    LOSS,
    Distances,
    find_common_ratio,
    find_worst_kind,
)
from unet_parity.runs.recording import Recording
from unet_spec.wording import list_names

SHOWN = 3
CAUSE = 1e-3
"""Gradients are no cause where their distance is less than this part of that of the updates: so
small a distance follows from the steps before."""
SMALL = 1e-3
"""A ratio that is nearer to 1 may come of a constant that was rounded to float32."""


def explain_step(
    first: Recording, replay: Recording, distances: Sequence[Distances], step: int
) -> str:
    """Return what differs in the first step beyond, and what it looks like.

    Args:
        replay: with the tensors in the order of the first run.
        distances: of the loss, the gradients and the updates.
        step: its place, from 0.
    """
    kind = find_worst_kind(distances, step)
    if kind.kind == LOSS:
        guess = "the net, the loss or the batch"
        if step:
            guess += ", or the update before went in another direction"
        return f"the loss differs before the update; it looks like {guess}"
    ours, theirs = replay.norms[kind.kind][step], first.norms[kind.kind][step]
    is_zero = (kind.share[step] > 1) & (ours == 0) & (theirs > 0)
    zeros = list_names([first.names[n] for n in np.flatnonzero(is_zero)], SHOWN)
    ratio = find_common_ratio(kind, first, replay, step)
    if kind.kind == GRADIENT:
        return "the loss agrees, and " + _explain_gradient(ratio, zeros)
    gradients = next(one for one in distances if one.kind == GRADIENT)
    apart = gradients.replay[step].max()
    if (gradients.replay[step] > gradients.measured[step]).any():
        text = f"the loss agrees, the gradients are up to {apart:.1e} apart, and "
        text += _explain_update(ratio, zeros)
        if ratio is None or apart > CAUSE * abs(ratio - 1):
            text += ", or like what the gradients differ by"
        return text
    return "the loss and the gradients agree, and " + _explain_update(ratio, zeros)


def _explain_gradient(ratio: float | None, zeros: str) -> str:
    if ratio is not None:
        return (
            f"every gradient is {ratio:.3g} times as large; it looks like a sum in place of a "
            "mean, a scale of the loss, accumulation, or clipping"
        )
    if zeros:
        return f"the gradient of {zeros} is 0; it looks frozen or detached"
    return "the gradients differ; it looks like the backward pass, or clipping"


def _explain_update(ratio: float | None, zeros: str) -> str:
    if ratio is not None:
        if abs(ratio - 1) < SMALL:
            sign = "+" if ratio > 1 else "-"
            return (
                f"every update is 1 {sign} {abs(ratio - 1):.1e} times as large; it looks like the "
                "learning rate or its schedule, or a constant of the optimizer that was rounded to "
                "float32"
            )
        return (
            f"every update is {ratio:.3g} times as large; it looks like the learning rate or its "
            "schedule"
        )
    if zeros:
        return f"{zeros} does not move; the optimizer may not have it"
    return (
        "the updates differ by no common factor; it looks like weight decay, momentum, betas or "
        "eps of the optimizer"
    )
