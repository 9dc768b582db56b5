"""A run from the `state_dict`s of torch's optimizer and scheduler, and back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from unet_spec import InputError, training_state
from unet_spec.origin import Group
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import recognition
from unet_torch.checked_states import check_optimizer, check_scheduler, check_step
from unet_torch.checkpoint import to_numpy
from unet_torch.param_groups import make_group, read_groups, refuse_other_number
from unet_torch.recipe import Scheduler, build
from unet_torch.recognition import Steps

States = Mapping[str, Any]


def from_states(
    loaded: WeightFile,
    names: Sequence[str],
    optimizer: States,
    scheduler: States | None,
    *,
    step: int | None = None,
    recipe: Recipe | None = None,
    scaler: States | None = None,
    ours_by_theirs: Mapping[str, str] = MappingProxyType({}),
    without_scheduler: bool = False,
) -> tuple[TrainingState, tuple[Group, ...]]:
    """Return the run that these `state_dict`s are in the middle of, and its param groups.

    Args:
        loaded: the weights, by our names.
        names: our names of the trained parameters, in the order of `model.parameters()`.
        step: number of steps that the training loop counted.
        recipe: recognised where it is not given; clipping leaves no trace.
        scaler: the state of AMP's GradScaler, if there is one.
        ours_by_theirs: our name by the name that `param_names` in the param groups may have.
        without_scheduler: the learning rate stays where it is, and the schedule is constant.

    Raises:
        InputError: an optimizer or scheduler that no recipe describes, or which param group holds
            which parameter is not certain.
    """
    if without_scheduler and recipe is None:
        scheduler = None  # of whatever kind it is
    with refuse_malformed():
        check_step(step)
        optimizer = check_optimizer(optimizer)
        scheduler = check_scheduler(scheduler) if scheduler else None
        # what no recipe has is said before what is only uncertain
        recognition.join_settings([make_group((), g) for g in optimizer["param_groups"]])
        shapes = {name: tuple(loaded.tensors[name].shape) for name in names}
        groups = read_groups(optimizer, shapes, ours_by_theirs=ours_by_theirs)
        state = assemble(
            loaded,
            groups,
            optimizer,
            scheduler,
            step=step,
            recipe=recipe,
            is_scaled=bool(scaler),
            without_scheduler=without_scheduler,
        )
    return state, groups


def to_states(
    state: TrainingState, groups: tuple[Group, ...] = (), scheduler: States | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the `state_dict`s of torch's optimizer and scheduler; the second is None for none.

    Args:
        groups: the param groups of the objects that take them, as `from_states` returned them.
            Their settings come back as they were, but for the learning rate and the momentum.
            Where the run has another optimizer by now, or without them, they are those of
            `unet_torch.recipe.build`.
        scheduler: the state that the scheduler had, whose other entries come back likewise. A run
            that left the scheduler out has none to give back: that state is of an earlier step.
    """
    if not groups or not _has_optimizer(state, groups):
        groups = groups_of_recipe(state)
    if scheduler is not None and _has_schedule(state, groups, scheduler):
        return make_states(state, groups, scheduler)
    return make_states(state, groups)


def make_states(
    state: TrainingState, groups: Sequence[Group], scheduler: States | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the `state_dict`s of an optimizer with these param groups, and of its scheduler.

    Args:
        scheduler: as in `to_states`.
    """
    template = _build(state)[1]
    optimizer = _make_optimizer_state(state, groups)
    if template is None:
        return optimizer, None
    plain = template.state_dict() if scheduler is None else dict(scheduler)
    return optimizer, _advance(state, template, plain, len(groups))


def groups_of_recipe(state: TrainingState) -> tuple[Group, ...]:
    """Return the param groups that `unet_torch.recipe.build` makes."""
    optimizer, _ = _build(state)
    names = [p.name for p in training_state.trained(state.weights)]
    groups = optimizer.state_dict()["param_groups"]
    return tuple(make_group(group.get("param_names", names), group) for group in groups)


def refuse_rising_plateau(state: TrainingState) -> None:
    """Refuse a plateau that waits for a rising value, which no loss is.

    Raises:
        InputError: the run has one.
    """
    schedule = state.recipe.schedule
    if schedule.name == "plateau" and schedule.mode == "max":
        raise InputError(
            "its ReduceLROnPlateau waits for a value that rises (mode max), such as a validation "
            "score, and plateau in `unet train` watches the loss of the training batch, which "
            "falls; leave the scheduler out with --without-scheduler"
        )


def describe_changes(
    state: TrainingState, *, scaler: States | None = None, without_scheduler: bool = False
) -> list[str]:
    """Say what a run from torch does otherwise in JAX, in whole sentences.

    Args:
        scaler: the state of AMP's GradScaler, if there is one.
        without_scheduler: the scheduler was left out.
    """
    sentences = []
    if without_scheduler:
        rate = state.scheduler["lr"]
        sentences.append(f"the scheduler is left out: the learning rate stays at {rate:.3g}")
    if state.recipe.schedule.name == "plateau":
        best = state.scheduler["best"]
        sentences.append(
            f"the best value that its plateau saw is {best:.4g}; plateau in `unet train` watches "
            "the loss of the training batch, so if it was another value, leave the scheduler out "
            "with --without-scheduler"
        )
    if scaler:
        sentences.append(
            "AMP's GradScaler is not used: `unet train` computes in float32 or bfloat16, whose "
            "losses need no scaling; its state goes back as it came"
        )
    return sentences


@contextmanager
def refuse_malformed() -> Iterator[None]:
    """Refuse a state that has not the form of a `state_dict`.

    Raises:
        InputError: in place of whatever the block meets in it.
    """
    try:
        yield
    except InputError:
        raise
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise InputError(
            f"its optimizer or scheduler is not what torch's state_dict() gives ({error!r})"
        ) from error


def assemble(
    loaded: WeightFile,
    groups: tuple[Group, ...],
    optimizer: States,
    scheduler: States | None,
    *,
    step: int | None,
    recipe: Recipe | None,
    is_scaled: bool = False,
    without_scheduler: bool = False,
) -> TrainingState:
    """Return the run that `state_dict`s describe; the arguments are those of `from_states`."""
    names = [name for group in groups for name in group.names]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    trained = {p.name: len(p.shape) for p in training_state.trained(loaded)}
    refuse_other_number(len(set(names) & trained.keys()), of_net=len(trained))
    moments = {
        name: optimizer["state"].get(number, {})
        for name, number in zip(names, numbers, strict=True)
    }
    done = _count_steps(moments, scheduler, step)
    if recipe is None:
        vectors = [name for name, ndim in trained.items() if ndim == 1]
        steps = Steps(done, step, is_scaled)
        recipe = recognition.recognise_recipe(groups, scheduler, steps=steps, vectors=vectors)
    _check_decay(recipe.optimizer, groups, trained)
    slots = training_state.zeros(loaded, recipe)
    if any(moments.values()):
        for slot in recipe.slots:
            slots[slot] = {name: _to_numpy(moments[name].get(slot), slot, name) for name in names}
    values = _scheduler_values(recipe, groups[0].settings, scheduler, done)
    state = TrainingState(loaded, recipe, done, slots, values)
    return training_state.leave_out_schedule(state) if without_scheduler else state


def _make_optimizer_state(state: TrainingState, groups: Sequence[Group]) -> dict[str, Any]:
    """Return the `state_dict` of an optimizer with these param groups."""
    names = [name for group in groups for name in group.names]
    plain, first = [], 0
    for group in groups:
        numbers = list(range(first, first + len(group.names)))
        plain.append({**group.settings, **_settings_now(state, group), "params": numbers})
        first += len(numbers)
    slots = {} if state.step == 0 else {n: _slots(state, name) for n, name in enumerate(names)}
    return {"state": slots, "param_groups": plain}


def _build(state: TrainingState) -> tuple[torch.optim.Optimizer, Scheduler | None]:
    """Return the objects of the recipe; their parameters are small ones."""
    # the number of dimensions tells a bias or a norm, and nothing else of a tensor matters
    small = [
        (p.name, nn.Parameter(torch.zeros((1,) * len(p.shape))))
        for p in training_state.trained(state.weights)
    ]
    return build(state.recipe, small)


def _has_optimizer(state: TrainingState, groups: tuple[Group, ...]) -> bool:
    """Return whether param groups are those of the run's optimizer."""

    def leave_open(optimizer: Optimizer) -> Optimizer:
        """What the schedule moves, and what torch does not save, is no difference."""
        same = replace(optimizer, lr=0.0, clip_norm=None)
        if not state.recipe.schedule.cycles_momentum:
            return same
        if optimizer.name in ("adam", "adamw"):
            return replace(same, betas=(0.0, optimizer.betas[1]))
        return replace(same, momentum=0.0, nesterov=False)

    trained = training_state.trained(state.weights)
    vectors = [p.name for p in trained if len(p.shape) == 1]
    try:
        optimizer = recognition.recognise_optimizer(groups, state.recipe.schedule, vectors=vectors)
    except InputError:  # another kind of optimizer than any recipe's
        return False
    has_names = sorted(n for g in groups for n in g.names) == sorted(p.name for p in trained)
    return has_names and leave_open(optimizer) == leave_open(state.recipe.optimizer)


def _has_schedule(state: TrainingState, groups: tuple[Group, ...], scheduler: States) -> bool:
    """Return whether a scheduler's state is of the run's schedule."""
    steps = Steps(scheduler["last_epoch"])  # how many of the optimizer it waits for is not in it
    try:
        schedule = recognition.recognise_schedule(scheduler, groups[0].settings, steps=steps)
    except InputError:  # another kind of scheduler than any recipe's
        return False
    return schedule == replace(state.recipe.schedule, every=1)


def _settings_now(state: TrainingState, group: Group) -> dict[str, Any]:
    """Return the settings of a param group that a run changes: the rate and the momentum."""
    now = {"lr": state.scheduler["lr"]}
    if "betas" in group.settings:  # a tuple, as torch has it, also where JSON made a list of it
        first, second = group.settings["betas"]
        return {**now, "betas": (state.scheduler.get("momentum", first), second)}
    if "momentum" in state.scheduler:
        now["momentum"] = state.scheduler["momentum"]
    return now


def _slots(state: TrainingState, name: str) -> dict[str, torch.Tensor]:
    """Return what torch's optimizer keeps of one parameter."""
    slots = {slot: torch.from_numpy(np.array(t[name])) for slot, t in state.slots.items()}
    if state.recipe.optimizer.name == "sgd":
        return slots
    return {"step": torch.tensor(float(state.step)), **slots}


def _advance(
    state: TrainingState, template: Scheduler, plain: dict[str, Any], groups: int
) -> dict[str, Any]:
    """Return the `state_dict` of a scheduler, at the step of the run.

    Args:
        plain: of the same scheduler at another step.
        groups: number of param groups, for each of which it has a learning rate.
    """
    values, last_epoch = state.scheduler, int(state.scheduler["last_epoch"])
    result = {**plain, "last_epoch": last_epoch, "_last_lr": [values["lr"]] * groups}
    for name in ("base_lrs", "min_lrs"):
        if name in plain:
            result[name] = [plain[name][0]] * groups
    if not isinstance(template, ReduceLROnPlateau):
        return {**result, "_step_count": last_epoch + 1}
    counts = {name: int(values[name]) for name in ("num_bad_epochs", "cooldown_counter")}
    return {**result, **counts, "best": values["best"]}


def _check_decay(
    optimizer: Optimizer, groups: tuple[Group, ...], trained: Mapping[str, int]
) -> None:
    """Refuse a recipe with another weight decay than the param groups have.

    Args:
        trained: number of dimensions by name.
    """
    for group in groups:
        theirs = group.settings["weight_decay"]
        for name in group.names:
            ours = optimizer.decay_of(name, ndim=trained[name])
            if ours != theirs:
                raise InputError(
                    f"the optimizer has a weight decay of {theirs:g} for {name}, and the recipe "
                    f"{ours:g}; give both the same"
                )


def _count_steps(moments: Mapping[str, States], scheduler: States | None, step: int | None) -> int:
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
            "SGD does not count its steps, so how many the scheduler takes for one of its own is "
            "not known; save the number of steps beside it as `step`, or leave the scheduler out "
            "with --without-scheduler"
        )
    # without a scheduler it only matters whether a momentum has begun
    return 1 if has_momentum else 0


def _scheduler_values(
    recipe: Recipe, settings: States, scheduler: States | None, step: int
) -> dict[str, float]:
    """Return the plain values that the scheduler is at."""
    values = {"lr": float(settings["lr"]), "last_epoch": step // recipe.schedule.every}
    if recipe.schedule.name == "constant":
        return values
    if scheduler is None:
        raise InputError(f"its recipe has the schedule {recipe.schedule.name}, but no state of it")
    values["last_epoch"] = scheduler["last_epoch"]
    if recipe.schedule.cycles_momentum:
        has_betas = "betas" in settings
        values["momentum"] = float(settings["betas"][0] if has_betas else settings["momentum"])
    if recipe.schedule.name == "plateau":
        names = ("best", "num_bad_epochs", "cooldown_counter")
        values |= {name: scheduler[name] for name in names}
    return values


def _to_numpy(tensor: Any, slot: str, name: str) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"its optimizer has no {slot} of {name}; was it frozen, or never moved?")
    values = to_numpy(tensor)
    if slot == "exp_avg_sq" and values.size and values.min() < 0:
        raise InputError(
            f"its optimizer's {slot} of {name} is below 0, and it is a mean of squares"
        )
    return values
