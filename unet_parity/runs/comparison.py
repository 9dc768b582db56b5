"""Where a replay of a training run leaves it: the first step that is further from the run than the
run is from itself."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace as change
from pathlib import Path

import numpy as np

from unet_parity.runs.distances import (
    FACTOR,
    Distances,
    find_near_tie,
    find_worst_kind,
    list_values,
    measure,
)
from unet_parity.runs.explanation import explain_step
from unet_parity.runs.matching import NEAR, match_recordings
from unet_parity.runs.recording import Recording, read_recording
from unet_parity.runs.report import Departure, RunReport
from unet_spec.errors import InputError

MOST_AGAIN = 0.05
"""The first losses of two runs of the same weights and batch are not further apart, relative, even
in bfloat16."""
SHOWN = 3


def compare_runs(
    first: str | os.PathLike[str],
    again: str | os.PathLike[str],
    replay: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
) -> RunReport:
    """Return the first step at which a replay is further from a run than the run is from itself.

    Args:
        first: the recording of a run that `RunRecorder` wrote.
        again: that of the same run with its sums in another order, such as each batch's images.
        replay: that of the replay, in another framework.
        names: tensors or modules of the first run, and their names in the replay. Without them
            tensors are matched by equal names, or by sizes, initial norms and first gradients.

    Raises:
        InputError: a recording cannot be read, tensors cannot be matched, or `again` is no such
            run.
    """
    one, other, third = (read_recording(Path(path)) for path in (first, again, replay))
    other = _check_again(one, other)
    order = match_recordings(one, third, names)
    pairs = {theirs: third.names[n] for theirs, n in zip(one.names, order, strict=True)}
    third = _sort_tensors(third, order)
    steps = min(run.steps for run in (one, other, third))
    distances, constants = measure(one, other, third, steps=steps)
    departure = _find_departure(one, third, distances)
    # in float64 no value falls to the other side of a kink
    is_float64 = all(run.precision <= np.finfo(np.float64).eps for run in (one, other, third))
    near_tie = [] if is_float64 else _describe_near_tie(distances[1], departure)
    if departure is None:
        reasons = _describe_agreement(distances, steps)
    else:
        reasons = (departure.sentence, departure.detail)
    return RunReport(
        departure=departure,
        reasons=(
            *reasons,
            *near_tie,
            *_describe_constants(constants, departure),
            *_list_notes((one, other, third), steps),
        ),
        distances=distances,
        pairs=pairs,
        compared=(
            f"Compared: {steps} steps of {one.path} ({one.framework}) and {third.path} "
            f"({third.framework}), by the loss and the norms of the gradients and updates of "
            f"{len(one.names)} tensors."
        ),
        not_compared=(
            "Not compared: the values in a tensor, whose order no norm shows before the next loss "
            "does; and the statistics of batch norm."
        ),
        environment={
            name: f"{run.framework} {run.versions.get(run.framework, '')}".strip()
            for name, run in (("first run", one), ("run again", other), ("replay", third))
        },
    )


def _check_again(first: Recording, again: Recording) -> Recording:
    """Return the run again with its tensors in the order of the first one.

    Raises:
        InputError: it is another run, or the very same.
    """
    if again.framework != first.framework:
        raise InputError(
            f"{again.path} is a run in {again.framework} and {first.path} one in "
            f"{first.framework}; give the first run, the same run again, and then the replay"
        )
    if {*again.names} != {*first.names}:
        odd = sorted({*again.names} ^ {*first.names})
        raise InputError(
            f"{again.path} and {first.path} do not have the same tensors, such as {odd[0]}; record "
            "the first run again, with its sums in another order"
        )
    again = _sort_tensors(again, [again.names.index(name) for name in first.names])
    others = _list_other_starts(first, again)
    if others:
        raise InputError(f"{others[0]}; start the first run again from the same weights")
    one, other = first.losses[0], again.losses[0]
    if abs(other - one) > MOST_AGAIN * abs(one):
        raise InputError(
            f"the first loss is {one:.6g} in {first.path} and {other:.6g} in {again.path}, and "
            "another order of sums does not do that; give both the same batches"
        )
    steps = min(first.steps, again.steps)
    if _is_equal(first.losses[:steps], again.losses[:steps]) and all(
        _is_equal(norms[:steps], again.norms[kind][:steps]) for kind, norms in first.norms.items()
    ):
        raise InputError(
            f"{again.path} is equal to {first.path} in every bit of {steps} steps, so its sums "
            "were in the same order; record it with the images of each batch in another order"
        )
    return again


def _is_equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _sort_tensors(run: Recording, order: Sequence[int]) -> Recording:
    """Return a recording with its tensors in another order."""
    places = list(order)
    return change(
        run,
        names=tuple(run.names[n] for n in places),
        sizes=run.sizes[places],
        initial=run.initial[places],
        norms={kind: values[:, places] for kind, values in run.norms.items()},
    )


def _list_other_starts(first: Recording, other: Recording) -> list[str]:
    """Say of which tensors two runs do not start from the same values, as far as norms show it."""
    is_near = np.isclose(other.initial, first.initial, rtol=NEAR, atol=0)
    return [
        f"the initial norm of {first.names[n]} is {first.initial[n]:.6g} in {first.path} and "
        f"{other.initial[n]:.6g} in {other.path}"
        for n in np.flatnonzero(~is_near)
    ]


def _find_departure(
    first: Recording, replay: Recording, distances: Sequence[Distances]
) -> Departure | None:
    """Return the first step beyond, or the initial weights if they are others already.

    Args:
        replay: with the tensors in the order of the first run.
    """
    others = _list_other_starts(first, replay)
    if others:
        return Departure(
            step=0,
            what="the initial weights",
            sentence="they do not start from the same weights",
            detail="; ".join(others[:SHOWN]),
        )
    beyond = np.stack([(kind.share > 1).any(axis=1) for kind in distances]).any(axis=0)
    if not beyond.any():
        return None
    step = int(np.argmax(beyond))
    kind = find_worst_kind(distances, step)
    place = kind.find_worst(step)
    what = kind.describe(place)
    ours, theirs = (list_values(kind.kind, run)[step, place] for run in (replay, first))
    detail = (
        f"furthest is {what}: {ours:.6g} in the replay and {theirs:.6g} in the first run, "
        f"{kind.replay[step, place]:.1e} apart, where {kind.allowed[step, place]:.1e} is allowed "
        f"and the run again is {kind.again[step, place]:.1e} apart"
    )
    more = int((kind.share[step] > 1).sum()) - 1
    if more:
        detail += f"; {more} more of {len(kind.names)} tensors are beyond"
    looks = explain_step(first, replay, distances, step)
    sentence = f"step {step + 1} is the first beyond: {looks}"
    return Departure(step + 1, what, sentence, detail)


def _describe_agreement(distances: Sequence[Distances], steps: int) -> tuple[str, ...]:
    """Say how near the replay comes to what is allowed, and what could not be seen."""
    worst = max(float(kind.share.max()) for kind in distances)
    medians = [f"{kind.kind} {np.median(kind.allowed[-1]):.0e}" for kind in distances]
    return (
        f"in none of {steps} steps is the replay further from the first run than is allowed; it "
        f"comes to {100 * worst:.0f} % of that",
        "smaller differences than these are not seen in the last step, relative, in the median "
        f"over the tensors: {', '.join(medians)}",
    )


def _describe_near_tie(gradient: Distances, departure: Departure | None) -> list[str]:
    """Say where gradients first differ more than the run again shows; empty if they do not.

    Args:
        departure: from there on other differences follow from it.
    """
    step = find_near_tie(gradient)
    if step is None or (departure is not None and departure.step <= step + 1):
        return []
    place = int(np.argmax((gradient.replay / gradient.measured)[step]))
    return [
        f"in step {step + 1} {gradient.describe(place)} is {gradient.replay[step, place]:.1e} "
        "apart, more than the run again shows, and the loss agrees: a value near the kink of a "
        "ReLU, or two near one another in a pool, fell to the other side, or the backward pass has "
        "a small mistake; recordings in float64 tell which"
    ]


def _describe_constants(constants: np.ndarray, departure: Departure | None) -> list[str]:
    """Say where all updates first have a small factor in common; empty where they never do.

    Args:
        constants: as of `find_rounded_constants`.
        departure: from there on other differences follow from it.
    """
    steps = np.flatnonzero(constants)
    if not steps.size or (departure is not None and departure.step <= steps[0] + 1):
        return []
    return [
        f"from step {steps[0] + 1} on all updates have a factor in common that is up to "
        f"{constants[-1]:.1e} from 1: a constant of the optimizer is computed in float32, as optax "
        "does with linear, exponential and warm-up schedules; so nothing below "
        f"{FACTOR * constants[-1]:.0e} is told after that. To see smaller differences, give both "
        "a constant rate, or a function of the step in plain Python"
    ]


def _list_notes(runs: Sequence[Recording], steps: int) -> list[str]:
    """Say what somebody has to know who reads the verdict."""
    notes = []
    for run in runs:
        if run.is_cut:
            notes.append(f"the last line of {run.path} is cut, and left out")
        if run.steps > steps:
            notes.append(f"{run.path} has {run.steps} steps, of which {steps} are compared")
        if run.first_lost is not None:
            loss = run.losses[run.first_lost - 1]
            notes.append(f"the loss of {run.path} is {loss} in step {run.first_lost}")
    return notes
