"""A run of somebody else's program: its optimizer and scheduler, read and written in its own form.

Names, order, wrapper, types and ties are those of the file that it came from
(`unet_spec.origin`).
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unet_spec import InputError
from unet_spec.origin import Origin
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import checkpoint, template, training_state
from unet_torch.checkpoint import SCALERS, STEPS, Checkpoint


def read(
    opened: Checkpoint,
    weights: WeightFile,
    parameters: Sequence[str],
    *,
    without_scheduler: bool = False,
) -> tuple[TrainingState, list[str]]:
    """Return the run in a checkpoint, and notes about what a person should know.

    Args:
        weights: those in it, with their origin.
        parameters: our names in the order in which its optimizer numbers them.

    Raises:
        InputError: an optimizer or a scheduler that no recipe describes.
    """
    found = opened.optimizer
    assert found is not None
    assert weights.origin is not None
    scheduler = opened.scheduler
    steps = [opened.around[key] for key in STEPS if type(opened.around.get(key)) is int]
    scaler = opened.find(SCALERS)
    state, groups = training_state.from_states(
        weights,
        parameters,
        found[1],
        None if scheduler is None else scheduler[1],
        step=steps[0] if steps else None,
        scaler=None if scaler is None else scaler[1],
        ours_by_theirs=_list_names(weights.origin),
        without_scheduler=without_scheduler,
    )
    training_state.refuse_rising_plateau(state)
    notes = training_state.describe_changes(
        state,
        scaler=None if scaler is None else scaler[1],
        without_scheduler=without_scheduler and scheduler is not None,
    )
    origin = dataclasses.replace(weights.origin, groups=groups)
    weights = dataclasses.replace(state.weights, origin=origin)
    return dataclasses.replace(state, weights=weights), notes


def write(target: Path, content: TrainingState | WeightFile) -> list[str]:
    """Write a file in the form that its net came in, and return notes about it.

    Raises:
        InputError: the folder does not exist.
    """
    weights = content.weights if isinstance(content, TrainingState) else content
    origin = weights.origin
    assert origin is not None
    tensors = _to_theirs(origin, weights)
    if origin.content is None:
        checkpoint.write_content(target, tensors)
        return _note_what_stays(content, origin)
    optimizer = scheduler = step = None
    if isinstance(content, TrainingState):
        step = content.step
        if origin.groups:
            optimizer, scheduler = training_state.to_states(
                content, origin.groups, template.find_scheduler(origin.content)
            )
    rebuilt = template.rebuild(
        origin.content, weights=tensors, optimizer=optimizer, scheduler=scheduler, step=step
    )
    checkpoint.write_content(target, rebuilt)
    notes = _note_what_stays(content, origin)
    if scheduler is None and template.find_scheduler(origin.content) is not None:
        notes.append("the scheduler is left out: the run went on without it")
    return notes


def _list_names(origin: Origin) -> dict[str, str]:
    """Return our names by theirs, also without the prefixes that a wrapper puts before them: an
    optimizer was often built before its net was wrapped."""
    names = dict(origin.names)
    shorter = dict(names)
    while all("." in name for name in shorter):
        heads = {name.partition(".")[0] for name in shorter}
        if len(heads) > 1:
            break
        shorter = {name.partition(".")[2]: ours for name, ours in shorter.items()}
        names |= shorter
    return names


def _to_theirs(origin: Origin, weights: WeightFile) -> dict[str, Tensor]:
    """Return the tensors by their names and in their types; tied ones share their memory."""
    ours: dict[tuple[str, str], Tensor] = {}
    theirs: dict[str, Tensor] = OrderedDict()  # as `state_dict()` gives it
    for name, our_name in origin.names:
        array = weights.tensors[our_name]
        usual = "int64" if array.dtype.kind in "iu" else "float32"
        kind = origin.dtypes.get(name, usual)
        if not isinstance(getattr(torch, kind, None), torch.dtype):
            raise InputError(f"the origin in its metadata is damaged (a type {kind})")
        if (our_name, kind) not in ours:
            tensor = torch.from_numpy(np.array(array))
            ours[our_name, kind] = tensor.to(getattr(torch, kind))
            _refuse_overflow(name, tensor, ours[our_name, kind])
        theirs[name] = ours[our_name, kind]
    return theirs


def _refuse_overflow(name: str, tensor: Tensor, narrowed: Tensor) -> None:
    """Refuse a type that the file had and that the values do not fit any more.

    Raises:
        InputError: a value would become infinite.
    """
    lost = int((~narrowed.double().isfinite()).sum())
    if lost:
        kind = str(narrowed.dtype).removeprefix("torch.")
        raise InputError(
            f"{name} does not fit {kind}, the type that it came in: {lost} of its "
            f"{tensor.numel()} values would become infinite, the largest "
            f"{float(tensor.abs().max()):.6g}; a .safetensors target keeps them as they are"
        )


def _note_what_stays(content: TrainingState | WeightFile, origin: Origin) -> list[str]:
    if not isinstance(content, TrainingState):
        return []
    notes = []
    if not origin.groups:
        notes.append(
            "the optimizer of the run is left out, because the net came without one; a "
            ".safetensors target keeps it"
        )
    if content.average:
        notes.append("the averaged weights are left out; --weights-only takes them alone")
    return notes
