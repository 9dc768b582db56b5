"""How far a replay is from a run at each step, and how far it may be.

Two right replays are never equal: sums are taken in another order, and training carries every
difference on. How far that leads is measured, not chosen: the first run is trained again with its
sums in another order. The replay may be a few times as far from the first run as that one.

In float32 a value near the kink of a ReLU, or near another one in a pool, falls now and then to the
other side. Then the gradients jump while the loss agrees. No run again shows when that happens or
how large it is, so gradients get `NEAR_TIE` in float32, and what exceeds the measure but not this
is told as a note. In float64 it does not happen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unet_parity.runs.recording import Recording

# 36 right replays (6 tiny nets, 3 recipes, 2 seeds, 25 steps) had ratios of at most 1.5 for the
# loss, 2.3 for gradients and 3.2 for updates; `python -m parity_tests.recorded_runs` measures them
FACTOR = 10.0
ULPS = 8.0
"""Rounding of one pass leads so many units in the last place away, which the run again does not
always show: where images do not meet in a batch norm, another order of them changes no bit of their
outputs."""
NEAR_TIE = 0.1
"""Relative, by how much values that fall to the other side of a kink may move a gradient in
float32. Of 3 right replays on images of 48 x 64 pixels, 3 levels deep, 2 had such jumps, of up to
0.045; that was 144 times what the run again showed."""
NOTHING_BUT_ROUNDING = 0.1
"""A gradient of which this part is rounding says nothing of where Adam moves the tensor."""
CONSTANT = 2.0**-22
"""Up to here a factor that all updates have in common is a constant of the optimizer that one side
computes in float32: a few roundings of 2^-24. optax does so with linear, exponential and warm-up
schedules, whatever the type of the parameters."""
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
        measured: the part of it that the run again shows.
        scale: the largest norm in the tensor's module, or loss, in the last steps.
    """

    kind: str
    names: tuple[str, ...]
    replay: np.ndarray
    again: np.ndarray
    allowed: np.ndarray
    measured: np.ndarray
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
) -> tuple[tuple[Distances, ...], np.ndarray]:
    """Return the distances of the loss, the gradients and the updates, and the result of
    `find_rounded_constants`.

    Args:
        again: with the tensors in the order of the first run.
        replay: likewise.
        steps: of each, from the first one.
    """
    distances = _measure(first, again, replay, constants=np.zeros(steps))
    constants = find_rounded_constants(distances[2], first, replay)
    if constants.any():
        distances = _measure(first, again, replay, constants=constants)
    return distances, constants


def find_rounded_constants(update: Distances, first: Recording, replay: Recording) -> np.ndarray:
    """Return for each step how far from 1 the common factor of all updates has been so far, as long
    as a constant of the optimizer in float32 explains it; 0 where there is no such factor.

    Args:
        update: the distances of the updates.
        replay: with the tensors in the order of the first run.
    """
    constants = np.zeros(len(update.share))
    largest = 0.0
    for step in range(len(constants)):
        # the weights are off by that factor already, and so the gradients are
        least = FACTOR * largest
        ratio = find_common_ratio(update, first, replay, step, least=least)
        if ratio is not None and (update.share[step] > 1).any() and abs(ratio - 1) <= CONSTANT:
            largest = max(largest, abs(ratio - 1))
        constants[step] = largest
    return constants


def find_common_ratio(
    kind: Distances, first: Recording, replay: Recording, step: int, *, least: float = 0.0
) -> float | None:
    """Return the ratio of all norms of the replay to those of the first run; None if they have
    none in common.

    Args:
        kind: the distances of gradients or updates.
        step: its place, from 0.
        least: a relative difference that any two norms may have.
    """
    ours, theirs = replay.norms[kind.kind][step], first.norms[kind.kind][step]
    # what is nothing but rounding has no ratio
    is_known = np.isfinite(kind.allowed[step]) & np.isfinite(ours) & (theirs > 0)
    if not is_known.any():
        return None
    ratios = np.where(is_known, ours / np.where(theirs > 0, theirs, 1), np.nan)
    ratio = float(np.nanmedian(ratios))
    if ratio == 0 or not np.isfinite(ratio):
        return None
    # divided by the ratio, a norm may differ as much as one of a right replay
    apart = np.abs(np.where(is_known, ours, 0) / ratio - np.where(is_known, theirs, 0))
    bounds = kind.measured if kind.kind == GRADIENT else kind.allowed
    bounds = np.maximum(bounds[step], least) * kind.scale[step] * max(1, 1 / ratio)
    return ratio if (apart[is_known] <= bounds[is_known]).all() else None


def _measure(
    first: Recording, again: Recording, replay: Recording, *, constants: np.ndarray
) -> tuple[Distances, ...]:
    """Return the distances, where constants of the optimizer may have been rounded.

    Args:
        constants: of each step, as of `find_rounded_constants`.
    """
    steps = len(constants)
    values = {
        kind: [list_values(kind, run)[:steps] for run in (first, again, replay)]
        for kind in (LOSS, GRADIENT, UPDATE)
    }
    modules = [name.rpartition(".")[0] for name in first.names]
    scales = {kind: _scale(norms[0], modules) for kind, norms in values.items() if kind != LOSS}
    scales[LOSS] = _scale(values[LOSS][0], [""])
    unit = max(run.precision for run in (first, again, replay))
    near_tie = NEAR_TIE if unit > np.finfo(np.float64).eps else 0.0
    before = np.concatenate([[0.0], constants])[:-1, None]
    gradient = _measure_kind(
        GRADIENT, first.names, values[GRADIENT], scales[GRADIENT], unit=unit,
        uncertain=np.maximum(near_tie, FACTOR * before) * scales[GRADIENT],
    )  # fmt: skip
    noise = _estimate_noise_of_updates(gradient, values)
    # an update that is small by chance inherits what larger ones before it have moved
    noise = np.maximum(noise, FACTOR * constants[:, None] * scales[UPDATE])
    loss = _measure_kind(
        LOSS, ("",), values[LOSS], scales[LOSS], unit=unit,
        uncertain=_follow_noise(noise, values),
    )  # fmt: skip
    weights = _largest_of_module(_keep_finite(first.norms["weights"][:steps]), modules)
    # the difference of weights that were rounded, in both runs, each by half a unit
    rounded = unit * weights
    update = _measure_kind(
        UPDATE, first.names, values[UPDATE], scales[UPDATE], unit=unit,
        uncertain=np.maximum(noise, rounded),
    )  # fmt: skip
    return loss, gradient, update


def find_near_tie(gradient: Distances) -> int | None:
    """Return the place of the first step whose gradients exceed what the run again shows, but not
    what is allowed; None if there is none."""
    is_near = ((gradient.replay > gradient.measured) & (gradient.share <= 1)).any(axis=1)
    return int(np.argmax(is_near)) if is_near.any() else None


def _estimate_noise_of_updates(gradient: Distances, values: Mapping[str, Norms]) -> np.ndarray:
    """Return by how much differences of the gradients may move each update, (steps, tensors).

    Adam divides a gradient by its own size, so an update is as uncertain as its gradient is,
    relative to the gradient's own norm, and momentum carries that on. The gradient of a bias before
    a norm is nothing but rounding, and its update has any direction: then the result is infinite.
    """
    own, again, _ = map(_keep_finite, values[GRADIENT])
    noise = np.where((own == 0) & (again == 0), 0.0, gradient.measured / FACTOR * gradient.scale)
    part = np.maximum.accumulate(_divide(noise, own), axis=0)
    # near-ties move the gradient of the replay alone; what is more is told of the gradient itself
    seen = np.where(gradient.share <= 1, gradient.replay, 0.0) * gradient.scale
    jump = np.minimum(np.maximum.accumulate(_divide(seen, own), axis=0), 1.0)
    jump = np.maximum(jump, np.median(jump, axis=1, keepdims=True))
    is_known = part < NOTHING_BUT_ROUNDING
    size = FACTOR * np.where(is_known, np.maximum(part, jump), 0) * _keep_finite(values[UPDATE][0])
    return np.where(is_known, size, np.inf)


def _follow_noise(noise: np.ndarray, values: Mapping[str, Norms]) -> np.ndarray:
    """Return by how much the noise of the updates before a step may change its loss, (steps, 1).

    A loss changes by no more than the norm of its gradient times the way that the weights are off.
    """
    gradients, updates = (_keep_finite(values[kind][0]) for kind in (GRADIENT, UPDATE))
    off = np.cumsum(np.where(np.isinf(noise), updates, noise), axis=0)
    before = np.concatenate([np.zeros_like(off[:1]), off[:-1]])
    return (gradients * before).sum(axis=1, keepdims=True)


def _measure_kind(
    kind: str,
    names: tuple[str, ...],
    values: Norms,
    scale: np.ndarray,
    *,
    unit: float,
    uncertain: np.ndarray,
) -> Distances:
    """Return the distances of one kind.

    Args:
        unit: in the last place of the recorded numbers, relative.
        uncertain: what the values may differ by in any case, as large as they are themselves.
    """
    first, again, replay = values
    distance = _relate(first, again, scale)
    so_far = np.maximum.accumulate(distance, axis=0)
    # one tensor may agree by chance, and half of them do not
    noise = np.maximum(so_far, np.median(so_far, axis=1, keepdims=True))
    # what rounding starts in one run it may start sooner in another
    steps = len(noise)
    later = np.minimum(2 * np.arange(1, steps + 1) + 2, steps) - 1
    measured = FACTOR * np.maximum(noise[later], ULPS * unit)
    allowed = np.maximum(measured, _divide(uncertain, scale))
    return Distances(kind, names, _relate(first, replay, scale), distance, allowed, measured, scale)


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
