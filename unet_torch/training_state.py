"""The state of a run, to and from torch's own objects and `.pt` files.

model, optimizer, scheduler = ...                      # as always
state = training_state.load("RUN", model, optimizer, scheduler)
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
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    now = weights.to_weights(model)
    return _assemble(
        # a copy: the model goes on
        dataclasses.replace(now, tensors={n: t.copy() for n, t in now.tensors.items()}),
        [names.get(id(parameter), "?") for parameter in moved],
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
    return from_content(checkpoint.read_content(path), config, source=path)


def from_content(content: Any, config: UNetConfig, *, source: Path) -> TrainingState:
    """Return the run in what `torch.load` gave.

    Raises:
        InputError: no optimizer in it, or one that no recipe describes.
    """
    try:
        return _of_checkpoint(content, config, source=str(source))
    except InputError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise InputError(f"{source}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{source}: its optimizer or scheduler is not what torch's state_dict() gives "
            f"({error!r})"
        ) from error


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
        state.recipe,
        [(name, nn.Parameter(torch.zeros(()))) for name, _ in model.named_parameters()],
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
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if len(optimizer.param_groups) > 1 or sorted(given) != sorted(map(id, model.parameters())):
        raise InputError(
            "the given optimizer needs one param group with all parameters of the given model"
        )
    for flag in ("amsgrad", "maximize"):
        if optimizer.param_groups[0].get(flag):
            raise InputError(f"the given optimizer has {flag}=True, which the run has not")


def _settings(state: TrainingState, group: dict[str, Any]) -> dict[str, Any]:
    """Return a param group with the learning rate and the momentum of the next step."""
    flags = ("params", "foreach", "fused", "capturable", "differentiable")
    settings = {name: value for name, value in group.items() if name not in flags}
    settings["lr"] = state.scheduler["lr"]
    if "momentum" in state.scheduler and "betas" in group:
        settings["betas"] = (state.scheduler["momentum"], group["betas"][1])
    elif "momentum" in state.scheduler:
        settings["momentum"] = state.scheduler["momentum"]
    return settings


def _slots(state: TrainingState, name: str) -> dict[str, torch.Tensor]:
    """Return what torch's optimizer keeps of one parameter."""
    slots = {slot: torch.from_numpy(np.array(t[name])) for slot, t in state.slots.items()}
    if state.recipe.optimizer.name == "sgd":
        return slots
    return {"step": torch.tensor(float(state.step)), **slots}


def _scheduler_state(state: TrainingState, template: Scheduler) -> dict[str, Any]:
    """Return the `state_dict` of the scheduler; a new one of its kind is the template."""
    values, last_epoch = state.scheduler, int(state.scheduler["last_epoch"])
    result = {**template.state_dict(), "last_epoch": last_epoch, "_last_lr": [values["lr"]]}
    if not isinstance(template, ReduceLROnPlateau):
        return {**result, "_step_count": last_epoch + 1}
    counts = {name: int(values[name]) for name in ("num_bad_epochs", "cooldown_counter")}
    return {**result, **counts, "best": values["best"]}


def _of_checkpoint(content: Any, config: UNetConfig, *, source: str) -> TrainingState:
    if not holds_optimizer(content):
        raise InputError(f"no optimizer in it under {' or '.join(OPTIMIZERS)}")
    card = json.loads(content["unet"]) if "unet" in content else {}
    tensors = checkpoint.select_tensors(content, source=source)
    if card:
        net = from_json(UNetConfig, json.dumps(card["config"]))
        preprocessing = from_json(Preprocessing, json.dumps(card["preprocessing"]))
        loaded = WeightFile(net, tensors, preprocessing, tuple(card["class_names"]))
    else:
        net = dialects.infer_config(tensors, given=config, source=source)
        loaded = WeightFile(net, tensors)
    optimizer = _first(content, OPTIMIZERS)
    average = content.get("average", {}) if card else {}
    names = recognition.join_groups(optimizer).get("param_names")
    if names:
        names = list(dialects.unwrap(dict.fromkeys(names)))
    else:  # parameters lie in the order of the state_dict, without its buffers
        trained = set(_trained_names(loaded))
        names = [name for name in tensors if name in trained]
    steps = [content[key] for key in _STEPS if type(content.get(key)) is int]
    state = _assemble(
        loaded,
        names,
        optimizer,
        _first(content, _SCHEDULERS),
        step=steps[0] if steps else None,
        recipe=from_json(Recipe, json.dumps(card["recipe"])) if card else None,
    )
    return dataclasses.replace(
        state,
        average={name: tensor.numpy().copy() for name, tensor in average.items()},
        devices=card.get("devices", ""),
    )


def _assemble(
    loaded: WeightFile,
    names: list[str],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    *,
    step: int | None,
    recipe: Recipe | None,
) -> TrainingState:
    """Return the run that `state_dict`s describe.

    Args:
        names: of the optimizer's parameters, in its order.
        step: number of steps done, where the optimizer does not count them.
        recipe: by default it is recognised.
    """
    group = recognition.join_groups(optimizer)
    pairs = zip(names, group["params"], strict=False)
    moments = {name: optimizer["state"].get(index, {}) for name, index in pairs}
    if sorted(names) != sorted(_trained_names(loaded)) or len(names) != len(group["params"]):
        raise InputError(
            f"its optimizer moves {len(group['params'])} parameters, and the net has "
            f"{len(_trained_names(loaded))}; a recipe moves them all"
        )
    step = _count_steps(moments, scheduler, step)
    recipe = recipe or recognition.recognise_recipe(optimizer, scheduler, step=step)
    slots = training_state.zeros(loaded, recipe)
    if any(moments.values()):
        for slot in recipe.slots:
            slots[slot] = {name: _to_numpy(moments[name].get(slot), slot, name) for name in names}
    values = _scheduler_values(recipe, group, scheduler, step)
    return TrainingState(loaded, recipe, step, slots, values)


def _count_steps(
    moments: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any] | None, step: int | None
) -> int:
    """Return how many steps were done: as the optimizer counted them, else `step`."""
    counts = {int(state["step"]) for state in moments.values() if "step" in state}
    if len(counts) > 1:
        raise InputError(
            f"its optimizer moved some parameters {min(counts)} times and others {max(counts)}; "
            "a recipe moves them all"
        )
    if counts:
        return counts.pop()
    if step is not None:
        return step
    has_momentum = any(state.get("momentum_buffer") is not None for state in moments.values())
    if scheduler and scheduler["last_epoch"] > 0:
        raise InputError(
            "SGD keeps no count of its steps, so those for each step of the scheduler are not "
            "known; save the number beside it as `step`"
        )
    # without a scheduler it only matters whether a momentum has begun
    return 1 if has_momentum else 0


def _scheduler_values(
    recipe: Recipe, group: dict[str, Any], scheduler: Mapping[str, Any] | None, step: int
) -> dict[str, float]:
    """Return the plain values that the scheduler is at."""
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


def _to_numpy(tensor: Any, slot: str, name: str) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"its optimizer has no {slot} of {name}; was it frozen, or never moved?")
    return tensor.detach().cpu().numpy().copy()


def _trained_names(loaded: WeightFile) -> list[str]:
    return [p.name for p in training_state.trained(loaded)]


def _first(content: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((content[name] for name in names if isinstance(content.get(name), dict)), None)
