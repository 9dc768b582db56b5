"""A run in the middle, to and from torch's own objects and `.pt` checkpoints.

model, optimizer, scheduler = ...                      # as always
state = training_state.load("RUN/", model, optimizer, scheduler)
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from unet_spec import InputError, Preprocessing, UNetConfig, dialects, training_state
from unet_spec.fields import from_json
from unet_spec.recipe import Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import checkpoint, recognition, weights
from unet_torch.model import UNet
from unet_torch.recipe import KINDS, SCHEDULERS, Scheduler, build

OPTIMIZERS = ("optimizer", "optimizer_state_dict")
_SCHEDULERS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict")
_STEPS = ("step", "global_step", "iteration")
_SUFFIXES = (".pt", ".pth")


def load(
    path: Path | str,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None = None,
) -> TrainingState:
    """The run of a RUN/ folder or a .pt, put into these objects; what they held is replaced.

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
    """Write a run as a RUN/ folder, or as a checkpoint where the name ends in .pt or .pth.

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
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    now = weights.to_weights(model)
    return _assembled(
        # a copy: the model goes on
        dataclasses.replace(now, tensors={n: t.copy() for n, t in now.tensors.items()}),
        [names.get(id(parameter), "?") for parameter in moved],
        optimizer.state_dict(),
        None if scheduler is None else scheduler.state_dict(),
        step=step,
        recipe=recipe,
    )


def read(path: Path | str, *, config: UNetConfig = UNetConfig()) -> TrainingState:
    """The run of a RUN/ folder, or of a checkpoint with model, optimizer and scheduler.

    Args:
        config: the axes that no tensor of a foreign checkpoint shows.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        return training_state.read(path)
    content = checkpoint.read_content(path)
    try:
        return _of_checkpoint(content, config, source=str(path))
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith(f"{path}: ") else f"{path}: {said}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: its optimizer or scheduler is not what torch's state_dict() gives ({error!r})"
        ) from error


def write(path: Path | str, state: TrainingState) -> None:
    """Write a RUN/ folder, or a checkpoint where the name ends in .pt or .pth."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        training_state.write(path, state)
        return
    model = weights.from_weights(state.weights).requires_grad_()
    optimizer, scheduler = build(state.recipe, model.parameters())
    restore(state, model, optimizer, scheduler)
    card = {
        "config": dataclasses.asdict(model.config),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "class_names": model.class_names,
        "recipe": dataclasses.asdict(state.recipe),
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
    checkpoint.write_content(path, content)


def holds_optimizer(content: Any) -> bool:
    """Whether a checkpoint's content is a run, not only weights."""
    return isinstance(content, dict) and _first(content, OPTIMIZERS) is not None


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
    template, template_scheduler = build(
        state.recipe, [nn.Parameter(torch.zeros(())) for _ in model.parameters()]
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(p)] for p in optimizer.param_groups[0]["params"]]
    tensors = {n: torch.from_numpy(np.array(t)) for n, t in state.weights.tensors.items()}
    model.load_state_dict(tensors, strict=True)
    settings = _settings(state, template.state_dict()["param_groups"][0])
    group = {**optimizer.state_dict()["param_groups"][0], **settings}
    slots = {} if state.step == 0 else {i: _slots(state, name) for i, name in enumerate(order)}
    optimizer.load_state_dict(
        {"state": slots, "param_groups": [{**group, "params": list(range(len(order)))}]}
    )
    if scheduler is not None and template_scheduler is not None:
        scheduler.load_state_dict(_scheduler_state(state, template_scheduler))


def _check_fit(
    state: TrainingState,
    model: UNet,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None,
) -> None:
    if (found := state.weights.config) != model.config:
        unlike = [
            f"{f.name}={getattr(found, f.name)}"
            for f in dataclasses.fields(found)
            if getattr(found, f.name) != getattr(model.config, f.name)
        ]
        raise InputError(f"its net has {', '.join(unlike)}, unlike the given one")
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
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if len(optimizer.param_groups) > 1 or sorted(given) != sorted(map(id, model.parameters())):
        raise InputError(
            "the given optimizer needs one param group with all parameters of the given model"
        )
    for flag in ("amsgrad", "maximize"):
        if optimizer.param_groups[0].get(flag):
            raise InputError(f"the given optimizer has {flag}=True, which the run has not")


def _settings(state: TrainingState, group: dict[str, Any]) -> dict[str, Any]:
    """A fresh group with the learning rate and the momentum of the moment."""
    flags = ("params", "foreach", "fused", "capturable", "differentiable")
    settings = {name: value for name, value in group.items() if name not in flags}
    settings["lr"] = state.scheduler["lr"]
    if "momentum" in state.scheduler and "betas" in group:
        settings["betas"] = (state.scheduler["momentum"], group["betas"][1])
    elif "momentum" in state.scheduler:
        settings["momentum"] = state.scheduler["momentum"]
    return settings


def _slots(state: TrainingState, name: str) -> dict[str, torch.Tensor]:
    slots = {slot: torch.from_numpy(np.array(t[name])) for slot, t in state.slots.items()}
    if state.recipe.optimizer.name == "sgd":
        return slots
    return {"step": torch.tensor(float(state.step)), **slots}


def _scheduler_state(state: TrainingState, template: Scheduler) -> dict[str, Any]:
    kept, fresh = dict(state.scheduler), template.state_dict()
    last_epoch = int(kept["last_epoch"])
    fresh |= {"last_epoch": last_epoch, "_last_lr": [kept["lr"]]}
    if not isinstance(template, ReduceLROnPlateau):
        return {**fresh, "_step_count": last_epoch + 1}
    counts = {name: int(kept[name]) for name in ("num_bad_epochs", "cooldown_counter")}
    return {**fresh, **counts, "best": kept["best"]}


def _of_checkpoint(content: Any, config: UNetConfig, *, source: str) -> TrainingState:
    if not holds_optimizer(content):
        raise InputError(f"no optimizer in it under {' or '.join(OPTIMIZERS)}")
    card = json.loads(content["unet"]) if "unet" in content else {}
    tensors = checkpoint.select_tensors(content, source=source)
    if card:
        found = from_json(UNetConfig, json.dumps(card["config"]))
        preprocessing = from_json(Preprocessing, json.dumps(card["preprocessing"]))
        loaded = WeightFile(found, tensors, preprocessing, tuple(card["class_names"]))
    else:
        found = dialects.infer_config(tensors, given=config, source=source)
        loaded = WeightFile(found, tensors)
    optimizer = _first(content, OPTIMIZERS)
    trained = set(_trained_names(loaded))
    names = recognition.the_group(optimizer).get("param_names")
    steps = [content[key] for key in _STEPS if type(content.get(key)) is int]
    return _assembled(
        loaded,
        # parameters lie in the order of the state_dict, without its buffers
        list(dialects.unwrap(dict.fromkeys(names)))
        if names
        else [name for name in tensors if name in trained],
        optimizer,
        _first(content, _SCHEDULERS),
        step=steps[0] if steps else None,
        recipe=from_json(Recipe, json.dumps(card["recipe"])) if card else None,
    )


def _assembled(
    loaded: WeightFile,
    names: list[str],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    *,
    step: int | None,
    recipe: Recipe | None,
) -> TrainingState:
    """A run from `state_dict`s; `names` are those of the optimizer's parameters, in its order."""
    group = recognition.the_group(optimizer)
    kept = {name: optimizer["state"].get(i, {}) for name, i in zip(names, group["params"],
                                                                  strict=False)}  # fmt: skip
    if sorted(names) != sorted(_trained_names(loaded)) or len(names) != len(group["params"]):
        raise InputError(
            f"its optimizer moves {len(group['params'])} parameters, and the net has "
            f"{len(_trained_names(loaded))}; a recipe moves them all"
        )
    done = _step(kept, scheduler, step)
    recipe = recipe or recognition.recipe_of(optimizer, scheduler, step=done)
    slots = (
        {
            slot: {name: _numpy(kept[name].get(slot), slot, name) for name in names}
            for slot in recipe.slots
        }
        if any(state for state in kept.values())
        else training_state.zeros(loaded, recipe)
    )
    return TrainingState(loaded, recipe, done, slots, _moment(recipe, group, scheduler, done))


def _step(
    kept: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any] | None, told: int | None
) -> int:
    """How many steps were done: as the optimizer counted them, else as it is told."""
    counts = {int(state["step"]) for state in kept.values() if "step" in state}
    if len(counts) > 1:
        raise InputError(
            f"its optimizer moved some parameters {min(counts)} times and others {max(counts)}; "
            "a recipe moves them all"
        )
    if counts:
        return counts.pop()
    if told is not None:
        return told
    started = any(state.get("momentum_buffer") is not None for state in kept.values())
    if scheduler and scheduler["last_epoch"] > 0:
        raise InputError(
            "SGD keeps no count of its steps, so those for each step of the scheduler are not "
            "known; save the number beside it as `step`"
        )
    # without a scheduler it only matters whether a momentum has begun
    return int(started)


def _moment(
    recipe: Recipe, group: dict[str, Any], scheduler: Mapping[str, Any] | None, step: int
) -> dict[str, float]:
    """The scheduler's plain values."""
    values = {"lr": float(group["lr"]), "last_epoch": step // recipe.schedule.every}
    if recipe.schedule.name == "constant":
        return values
    if scheduler is None:
        raise InputError(f"its recipe has the schedule {recipe.schedule.name}, but no state of it")
    values["last_epoch"] = scheduler["last_epoch"]
    if recipe.schedule.cycles_momentum:
        values["momentum"] = float(group["betas"][0] if "betas" in group else group["momentum"])
    if recipe.schedule.name == "plateau":
        names = ("best", "num_bad_epochs", "cooldown_counter")
        values |= {name: scheduler[name] for name in names}
    return values


def _numpy(tensor: Any, slot: str, name: str) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"its optimizer has no {slot} of {name}; was it frozen, or never moved?")
    return tensor.detach().cpu().numpy().copy()


def _trained_names(loaded: WeightFile) -> list[str]:
    return [p.name for p in training_state.trained(loaded)]


def _first(content: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((content[name] for name in names if isinstance(content.get(name), dict)), None)
