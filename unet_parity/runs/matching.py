"""Which tensor of a replay is which of the first run: by a map, by names, or by size and norm."""

from collections.abc import Mapping, Sequence

import numpy as np

from unet_parity.runs.recording import Recording
from unet_spec.errors import InputError
from unet_spec.wording import list_names

NEAR = 1e-6
"""The norm of the same weights agrees to this, relative: rounding to float32 moves no value, and so
no norm, by more than 6e-8."""
NEAR_GRADIENT = 1e-3
"""The norm of the same gradient agrees to this, relative, in the first step. It only decides
between tensors of one size and one initial norm, such as biases that all begin at 0."""
SHOWN = 4


def match_recordings(
    first: Recording, replay: Recording, names: Mapping[str, str] | None = None
) -> list[int]:
    """Return for each tensor of the first run its place in the replay.

    Args:
        names: the lines of a map: a tensor or a module of the first run, and its name in the
            replay.

    Raises:
        InputError: a tensor has no partner, or more than one; it names them.
    """
    pairs: dict[int, int] = {}
    for theirs, ours in (names or {}).items():
        pairs |= _match_module(first, replay, theirs, ours)
    if not pairs and {*first.names} == {*replay.names}:
        pairs = {n: replay.names.index(name) for n, name in enumerate(first.names)}
        for n, m in pairs.items():
            _refuse_other_size(first, n, replay, m)
    for n, name in enumerate(first.names):
        if n not in pairs and name in replay.names:
            m = replay.names.index(name)
            if m not in pairs.values() and _have_one_norm(first, n, replay, m):
                pairs[n] = m
    left = [n for n in range(len(first.names)) if n not in pairs]
    free = [m for m in range(len(replay.names)) if m not in pairs.values()]
    pairs |= _match_norms(first, replay, left, free)
    spare = [name for m, name in enumerate(replay.names) if m not in pairs.values()]
    if spare:
        raise InputError(
            f"{first.path} has no tensor for {list_names(spare, SHOWN)} of {replay.path}; record "
            "the same tensors in both"
        )
    return [pairs[n] for n in range(len(first.names))]


def _match_module(first: Recording, replay: Recording, theirs: str, ours: str) -> dict[int, int]:
    """Return the pairs that a line of a map names: of a tensor, or of those in a module."""
    left, free = _list_inside(first, theirs), _list_inside(replay, ours)
    if not left or not free:
        recording, name = (replay, ours) if left else (first, theirs)
        raise InputError(
            f'"{theirs}" = "{ours}" of the map of names leads nowhere: {recording.path} has no '
            f"tensor that is named {name} or begins so; it has "
            f"{list_names(recording.names, SHOWN)}"
        )
    if len(left) == len(free) == 1:
        _refuse_other_size(first, left[0], replay, free[0])
        return {left[0]: free[0]}
    return _match_norms(first, replay, left, free)


def _list_inside(recording: Recording, name: str) -> list[int]:
    """Return the places of the tensor of a name, or of those in the module of that name."""
    return [n for n, one in enumerate(recording.names) if one == name or one.startswith(f"{name}.")]


def _refuse_other_size(first: Recording, n: int, replay: Recording, m: int) -> None:
    if first.sizes[n] != replay.sizes[m]:
        raise InputError(
            f"{first.names[n]} has {first.sizes[n]:,} values in {first.path}, and "
            f"{replay.names[m]} has {replay.sizes[m]:,} in {replay.path}; they are not the same "
            "tensor"
        )


def _match_norms(
    first: Recording, replay: Recording, left: Sequence[int], free: Sequence[int]
) -> dict[int, int]:
    """Return pairs of one size and one initial norm; where several are so, the gradients decide.

    Raises:
        InputError: a tensor has no partner, or more than one.
    """
    candidates = {n: [m for m in free if _have_one_norm(first, n, replay, m)] for n in left}
    alone = [first.names[n] for n, ms in candidates.items() if not ms]
    if alone:
        raise InputError(
            f"{replay.path} has no tensor of the size and the initial norm of "
            f"{list_names(alone, SHOWN)} in {first.path}; start both from the same weights, or "
            "name the tensors with --names"
        )
    pairs = _pick_single(candidates)
    unsure = {n: [m for m in ms if m not in pairs.values()] for n, ms in candidates.items()
              if n not in pairs}  # fmt: skip
    pairs |= _pick_single(
        {n: [m for m in ms if _have_one_gradient(first, n, replay, m)] for n, ms in unsure.items()}
    )
    unsure_names = [first.names[n] for n in left if n not in pairs]
    if unsure_names:
        raise InputError(
            f"several tensors of {replay.path} may be {list_names(unsure_names, SHOWN)} of "
            f"{first.path}, because size, initial norm and first gradient do not tell them apart; "
            "name them with --names"
        )
    return pairs


def _pick_single(candidates: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Return the pairs in which neither side has another candidate."""
    wanted = [m for ms in candidates.values() for m in ms]
    return {n: ms[0] for n, ms in candidates.items() if len(ms) == 1 and wanted.count(ms[0]) == 1}


def _have_one_norm(first: Recording, n: int, replay: Recording, m: int) -> bool:
    """Return whether two tensors have the same size and the same initial norm."""
    sizes = first.sizes[n] == replay.sizes[m]
    return bool(sizes and np.isclose(replay.initial[m], first.initial[n], rtol=NEAR, atol=0))


def _have_one_gradient(first: Recording, n: int, replay: Recording, m: int) -> bool:
    """Return whether the gradients of two tensors in the first step have the same norm."""
    ours, theirs = replay.norms["gradient"][0, m], first.norms["gradient"][0, n]
    return bool(np.isclose(ours, theirs, rtol=NEAR_GRADIENT, atol=0))
