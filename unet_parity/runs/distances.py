"""How far a replay is from a run at each step, and how far it may be.

Two right replays in float32 are never equal: sums are taken in another order, and training carries
every difference on. How far that leads is measured, not chosen: the first run is trained again with
its sums in another order. The replay may be a few times as far from the first run as that one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unet_parity.runs.recording import Recording

FACTOR = 10.0
FLOOR = 2.0**-20
"""Rounding of one pass leads so far in float32, which the run again does not always show: where
images do not meet in a batch norm, another order of them changes no bit of their outputs. 8 units
in the last place; the largest loss of the 42 replays above was 13 apart, their gradients 7."""
ROUNDING = 2.0**-23
"""An update is the difference of weights that were rounded to float32, in both runs, each by up to
2^-24 of itself. So its norm is uncertain by this part of the norm of the weights."""
NOTHING_BUT_ROUNDING = 0.1
"""A gradient of which this part is rounding says nothing of where Adam moves the tensor."""
WINDOW = 10
"""Differences are related to the largest norm in so many steps: that of one step may be small by
chance, where large parts cancel, and its rounding is not."""
LOSS, GRADIENT, UPDATE = "loss", "gradient", "update"
Norms = Sequence[np.ndarray]
"""Those of the first run, of the run again and of the replay, each (steps, tensors)."""


@dataclass(frozen=True)
class Distances:
    """How far two runs are from the first one, for every step and tensor.

    Attributes:
        kind: loss, gradient or update.
        names: of the tensors; one empty name for the loss.
        replay: the difference of the norms over `scale`, (steps, tensors).
        again: of the run with its sums in another order.
        allowed: for the replay.
        scale: the largest norm in the tensor's module, or loss, in the last steps.
    """

    kind: str
    names: tuple[str, ...]
    replay: np.ndarray
    again: np.ndarray
    allowed: np.ndarray
    scale: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Return which part of what is allowed the replay takes, (steps, tensors)."""
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(self.allowed), 0.0, self.replay / self.allowed)

    def find_worst(self, step: int) -> int:
        """Return the place of the tensor that takes the largest share in a step, from 0."""
        return int(np.argmax(self.share[step]))

    def describe(self, place: int) -> str:
        """Return what is compared at a place, in words."""
        return "the loss" if self.kind == LOSS else f"the {self.kind} of {self.names[place]}"


def find_worst_kind(distances: Sequence[Distances], step: int) -> Distances:
    """Return the kind to tell of a step: the first beyond, as a loss comes before its gradients and
    these before the updates; else the one with the largest share.

    Args:
        step: its place, from 0.
    """
    for kind in distances:
        if (kind.share[step] > 1).any():
            return kind
    return max(distances, key=lambda kind: float(kind.share[step].max()))


def list_values(kind: str, run: Recording) -> np.ndarray:
    """Return the losses of a run, (steps, 1), or the norms of a kind, (steps, tensors)."""
    return run.losses[:, None] if kind == LOSS else run.norms[kind]


def measure(
    first: Recording, again: Recording, replay: Recording, *, steps: int
) -> tuple[Distances, ...]:
    """Return the distances of the loss, the gradients and the updates.

    Args:
        again: with the tensors in the order of the first run.
        replay: likewise.
        steps: of each, from the first one.
    """
    values = {
        kind: [list_values(kind, run)[:steps] for run in (first, again, replay)]
        for kind in (LOSS, GRADIENT, UPDATE)
    }
    modules = [name.rpartition(".")[0] for name in first.names]
    scales = {kind: _scale(norms[0], modules) for kind, norms in values.items() if kind != LOSS}
    scales[LOSS] = _scale(values[LOSS][0], [""])
    loss = _measure_kind(LOSS, ("",), values[LOSS], scales[LOSS])
    gradient = _measure_kind(GRADIENT, first.names, values[GRADIENT], scales[GRADIENT])
    weights = _largest_of_module(_keep_finite(first.norms["weights"][:steps]), modules)
    uncertain = np.maximum(_estimate_noise_of_updates(gradient, values), ROUNDING * weights)
    update = _measure_kind(UPDATE, first.names, values[UPDATE], scales[UPDATE], uncertain)
    return loss, gradient, update


def _estimate_noise_of_updates(gradient: Distances, values: Mapping[str, Norms]) -> np.ndarray:
    """Return by how much rounding of the gradients may move each update, (steps, tensors).

    Adam divides a gradient by its own size, so an update is as uncertain as its gradient is,
    relative to the gradient's own norm, and momentum carries that on. The gradient of a bias before
    a norm is nothing but rounding, and its update has any direction: then the result is infinite.
    """
    own, again, _ = map(_keep_finite, values[GRADIENT])
    noise = gradient.allowed / FACTOR * gradient.scale
    part = _divide(np.where((own == 0) & (again == 0), 0.0, noise), own)
    part = np.maximum.accumulate(part, axis=0)
    is_known = part < NOTHING_BUT_ROUNDING
    size = FACTOR * np.where(is_known, part, 0) * _keep_finite(values[UPDATE][0])
    return np.where(is_known, size, np.inf)


def _measure_kind(
    kind: str,
    names: tuple[str, ...],
    values: Norms,
    scale: np.ndarray,
    uncertain: np.ndarray | None = None,
) -> Distances:
    """Return the distances of one kind.

    Args:
        uncertain: what the values may differ by in any case, in their own unit.
    """
    first, again, replay = values
    distance = _relate(first, again, scale)
    so_far = np.maximum.accumulate(distance, axis=0)
    # one tensor may agree by chance, and half of them do not
    noise = np.maximum(so_far, np.median(so_far, axis=1, keepdims=True))
    # what rounding starts in one run it may start sooner in another
    steps = len(noise)
    later = np.minimum(2 * np.arange(1, steps + 1) + 2, steps) - 1
    allowed = FACTOR * np.maximum(noise[later], FLOOR)
    if uncertain is not None:
        allowed = np.maximum(allowed, _divide(uncertain, scale))
    return Distances(kind, names, _relate(first, replay, scale), distance, allowed, scale)


def _relate(one: np.ndarray, other: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return differences over a scale: 0 where both are NaN or infinite, infinite where one is."""
    finite = np.isfinite(one).astype(int) + np.isfinite(other)
    related = _divide(np.abs(_keep_finite(one) - _keep_finite(other)), scale)
    return np.where(finite == 2, related, np.where(finite == 1, np.inf, 0.0))


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return a quotient in which 0 / 0 is 0, and anything else over 0 is infinite."""
    is_zero = by == 0
    return np.where(is_zero, np.where(values > 0, np.inf, 0.0), values / np.where(is_zero, 1, by))


def _scale(values: np.ndarray, modules: Sequence[str]) -> np.ndarray:
    """Return the largest absolute value in a module and in the last steps, (steps, tensors)."""
    largest = _largest_of_module(np.abs(_keep_finite(values)), modules)
    return np.stack(
        [largest[max(0, step + 1 - WINDOW) : step + 1].max(axis=0) for step in range(len(largest))]
    )


def _largest_of_module(norms: np.ndarray, modules: Sequence[str]) -> np.ndarray:
    """Return for each step and tensor the largest norm in its module, (steps, tensors).

    A bias before a norm has a gradient that is nothing but rounding; its kernel's says how much
    that is.
    """
    largest = np.zeros_like(norms)
    for module in dict.fromkeys(modules):
        inside = [n for n, one in enumerate(modules) if one == module]
        largest[:, inside] = norms[:, inside].max(axis=1, keepdims=True)
    return largest


def _keep_finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)
