"""The state of a run, to and from torch's own objects and `.pt` files.

model, optimizer, scheduler = ...                      # as always
state = training_state.load("RUN", model, optimizer, scheduler)
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_spec import InputError, UNetConfig, own_names, training_state, weight_file
from unet_spec.fields import from_json
from unet_spec.origin import Group
from unet_spec.parameters import Tensors
from unet_spec.plain_json import read_json
from unet_spec.recipe import Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import checkpoint, weights
from unet_torch.model import UNet
from unet_torch.param_groups import make_group
from unet_torch.recipe import KINDS, SCHEDULERS, Scheduler, build
from unet_torch.states import (
    assemble,
    describe_changes,
    from_states,
    groups_of_recipe,
    make_states,
    refuse_malformed,
    refuse_rising_plateau,
    to_states,
)

__all__ = [
    "describe_changes", "from_content", "from_states", "holds_optimizer", "knows_config", "load",
    "read", "refuse_rising_plateau", "restore", "save", "state_of", "to_states", "write",
]  # fmt: skip

OPTIMIZERS = ("optimizer", "optimizer_state_dict")
_SCHEDULERS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict")
_SCALERS = ("scaler", "grad_scaler", "scaler_state_dict", "amp")
_STEPS = ("step", "global_step", "iteration")
_SUFFIXES = (".pt", ".pth")
# settings of a param group that say how torch computes, or which parameters it holds
_OF_OBJECTS = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}


def load(
    path: Path | str,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None = None,
) -> TrainingState:
    """Load a run into these objects; what they held is replaced.

    Args:
        path: a checkpoint (.safetensors), the RUN of `unet train`, of which the newest checkpoint
            counts, or a .pt with the `state_dict`s of model, optimizer and scheduler.

    `recipe.optimizer.clip_norm` and `recipe.schedule.every` of what is returned are the loop's
    to keep (`unet_torch.recipe.advance`).

    Raises:
        InputError: damaged, or of another net, optimizer, scheduler or precision; then nothing
            is loaded.
    """
    state = read(path, config=model.config)
    try:
        restore(state, model, optimizer, scheduler)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return state


def save(
    path: Path | str,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None = None,
    *,
    recipe: Recipe | None = None,
    step: int | None = None,
) -> None:
    """Write a run as a checkpoint (.safetensors), or as a .pt where the name ends so.

    Args:
        recipe: recognised from the objects where it is not given; clipping leaves no trace.
        step: number of steps done, which SGD does not count.
    """
    write(path, state_of(model, optimizer, scheduler, recipe=recipe, step=step))


def state_of(
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None = None,
    *,
    recipe: Recipe | None = None,
    step: int | None = None,
) -> TrainingState:
    """The run that these objects are in the middle of; the arguments are those of `save`."""
    now = weights.to_weights(model)
    return assemble(
        # a copy: the model goes on
        dataclasses.replace(now, tensors={n: t.copy() for n, t in now.tensors.items()}),
        _groups_of(model, optimizer),
        optimizer.state_dict(),
        None if scheduler is None else scheduler.state_dict(),
        step=step,
        recipe=recipe,
    )


def read(path: Path | str, *, config: UNetConfig = UNetConfig()) -> TrainingState:
    """Return the run in a checkpoint, in the newest one of a RUN, or in a .pt.

    Args:
        path: as in `load`.
        config: the axes that no tensor of a foreign checkpoint shows.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        return training_state.read(path)
    with _naming(path):
        return _of_checkpoint(checkpoint.read_content(path), config, source=str(path))


def from_content(
    content: Any, config: UNetConfig, *, source: Path, without_scheduler: bool = False
) -> TrainingState:
    """Return the run in what `torch.load` gave, for JAX to continue.

    Args:
        config: as in `read`.
        without_scheduler: the learning rate stays where it is, and the schedule is constant.

    Raises:
        InputError: no optimizer in it, one that no recipe describes, or a scheduler that waits for
            something else than a loss.
    """
    with _naming(source):
        state = _of_checkpoint(
            content, config, source=str(source), without_scheduler=without_scheduler
        )
        refuse_rising_plateau(state)
        return state


def weights_from_content(content: Any, *, source: Path) -> WeightFile:
    """Return the weights that predict in a run that `write` wrote, whatever its optimizer holds.

    Raises:
        InputError: they cannot be read.
    """
    with _naming(source):
        tensors = checkpoint.open_content(content, source=str(source)).tensors
        average = {n: checkpoint.to_numpy(t) for n, t in content.get("average", {}).items()}
        return _read_weights(_read_card(content), {**tensors, **average}, source=source)


def write(path: Path | str, state: TrainingState) -> None:
    """Write a checkpoint (.safetensors), or a .pt where the name ends in .pt or .pth."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        training_state.write(path, state)
        return
    model = weights.from_weights(state.weights).requires_grad_()
    optimizer, scheduler = build(state.recipe, model.named_parameters())
    restore(state, model, optimizer, scheduler)
    card = {
        "config": dataclasses.asdict(model.config),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "class_names": model.class_names,
        "recipe": dataclasses.asdict(state.recipe),
        "devices": state.devices,
    }
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": state.step,
        # what torch's own state does not say: axes of the net, clipping, steps of an epoch
        "unet": json.dumps(card, sort_keys=True),
    }
    if scheduler is not None:
        content["scheduler"] = scheduler.state_dict()
    if state.average:
        content["average"] = {n: torch.from_numpy(np.array(t)) for n, t in state.average.items()}
    checkpoint.write_content(path, content)


def holds_optimizer(content: Any) -> bool:
    """Whether a checkpoint's content is a run, not only weights."""
    return isinstance(content, dict) and _first(content, OPTIMIZERS) is not None


def list_beside(content: Mapping[Any, Any]) -> list[str]:
    """Return the entries of a file of `write` that it does not write, which nothing reads."""
    known = {"model", "optimizer", "step", "unet", "scheduler", "average"}
    return [str(key) for key in content if key not in known]


def knows_config(content: Any) -> bool:
    """Whether a checkpoint's content says which net it is of, as those of `write` do."""
    return holds_optimizer(content) and "unet" in content


def restore(
    state: TrainingState,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None = None,
) -> None:
    """Put a run into torch's objects; refuses before it changes any."""
    _check_fit(state, model, optimizer, scheduler)
    tensors = {n: torch.from_numpy(np.array(t)) for n, t in state.weights.tensors.items()}
    model.load_state_dict(tensors, strict=True)
    of_optimizer, of_scheduler = make_states(state, _prepare_groups(state, model, optimizer))
    optimizer.load_state_dict(of_optimizer)
    if scheduler is not None and of_scheduler is not None:
        scheduler.load_state_dict(of_scheduler)


def _prepare_groups(
    state: TrainingState, model: UNet, optimizer: torch.optim.Optimizer
) -> list[Group]:
    """Return the param groups of an optimizer, with the settings of a run."""
    settings = groups_of_recipe(state)[0].settings
    own = {name: value for name, value in settings.items() if name not in _OF_OBJECTS}
    return [
        Group(group.names, {**group.settings, **own, "weight_decay": min(decays)})
        for group in _groups_of(model, optimizer)
        if (decays := _list_decays(state, group))
    ]


def _list_decays(state: TrainingState, group: Group) -> set[float]:
    """Return the weight decays that a run has for the parameters of a param group."""
    tensors, optimizer = state.weights.tensors, state.recipe.optimizer
    return {optimizer.decay_of(name, ndim=tensors[name].ndim) for name in group.names}


def _groups_of(model: UNet, optimizer: torch.optim.Optimizer) -> tuple[Group, ...]:
    """Return the param groups of an optimizer; "?" for what is no parameter of the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return tuple(
        make_group([names.get(id(p), "?") for p in group["params"]], group)
        for group in optimizer.param_groups
    )


def _check_fit(
    state: TrainingState,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None,
) -> None:
    """Refuse objects that are not those of a run; nothing is changed."""
    config = state.weights.config
    if config != model.config:
        names = [field.name for field in dataclasses.fields(config)]
        unlike = [n for n in names if getattr(config, n) != getattr(model.config, n)]
        listed = ", ".join(f"{name}={getattr(config, name)}" for name in unlike)
        raise InputError(f"its net has {listed}, unlike the given one")
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    if kind != state.dtype:
        raise InputError(
            f"the run is in {state.dtype} and the given model in {kind}; "
            f"use model.{'double' if state.dtype == 'float64' else 'float'}() first"
        )
    name, schedule = state.recipe.optimizer.name, state.recipe.schedule.name
    if type(optimizer) is not KINDS[name]:
        raise InputError(f"its optimizer is {name}, the given one {type(optimizer).__name__}")
    needed = SCHEDULERS.get(schedule, type(None))
    if type(scheduler) is not needed:
        raise InputError(f"its schedule is {schedule}, the given one {type(scheduler).__name__}")
    groups = _groups_of(model, optimizer)
    moved = sorted(name for group in groups for name in group.names)
    if moved != sorted(name for name, _ in model.named_parameters()):
        raise InputError(
            "the given optimizer needs to move all parameters of the given model and no others"
        )
    if len(groups) > 1 and not state.recipe.optimizer.undecayed:
        raise InputError("the given optimizer needs one param group, as the run has")
    if any(len(_list_decays(state, group)) != 1 for group in groups):
        raise InputError(
            "the given optimizer needs a param group with weight decay and one without, as "
            "unet_torch.recipe.build makes them"
        )
    for flag in ("amsgrad", "maximize"):
        if optimizer.param_groups[0].get(flag):
            raise InputError(f"the given optimizer has {flag}=True, which the run has not")


def _of_checkpoint(
    content: Any, config: UNetConfig, *, source: str, without_scheduler: bool = False
) -> TrainingState:
    if not holds_optimizer(content):
        raise InputError(f"no optimizer in it under {' or '.join(OPTIMIZERS)}")
    card = _read_card(content)
    opened = checkpoint.open_content(content, source=source)
    if card:
        loaded, order = (
            _read_weights(card, opened.tensors, source=Path(source)),
            list(opened.tensors),
        )
    else:
        loaded, order = own_names.read_own(
            opened.tensors, given=config, ties=opened.ties, source=source
        )
    optimizer, scaler = _first(content, OPTIMIZERS), _first(content, _SCALERS)
    average = content.get("average", {}) if card else {}
    # parameters lie in the order of the state_dict, without its buffers
    trained = {p.name for p in training_state.trained(loaded)}
    steps = [content[key] for key in _STEPS if type(content.get(key)) is int]
    state, _ = from_states(
        loaded,
        [name for name in order if name in trained],
        optimizer,
        _first(content, _SCHEDULERS),
        step=steps[0] if steps else None,
        recipe=from_json(Recipe, json.dumps(card["recipe"])) if card else None,
        scaler=scaler,
        without_scheduler=without_scheduler,
    )
    return dataclasses.replace(
        state,
        average={name: checkpoint.to_numpy(tensor) for name, tensor in average.items()},
        devices=card.get("devices", ""),
    )


def _read_card(content: Any) -> dict[str, Any]:
    """Return what `write` says of a run beside torch's own states; {} in somebody else's file."""
    if "unet" not in content:
        return {}
    try:
        card: dict[str, Any] = read_json(content["unet"])
        if {"config", "preprocessing", "class_names", "recipe"} <= card.keys():
            return card
        reason = "it says nothing of the net"
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error)
    raise InputError(f"its entry `unet` is damaged ({reason}); bring the file back from a copy")


def _read_weights(card: Mapping[str, Any], tensors: Tensors, *, source: Path) -> WeightFile:
    names = ("config", "preprocessing", "class_names")
    return weight_file.from_card({name: card[name] for name in names}, tensors, source=source)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Name the file in what the block refuses.

    Raises:
        InputError: likewise.
    """
    try:
        with refuse_malformed():
            yield
    except InputError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise InputError(f"{source}: {error}") from error


def _first(content: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((content[name] for name in names if isinstance(content.get(name), dict)), None)
