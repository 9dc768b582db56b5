"""The recipe of torch's own `state_dict`s of an optimizer and a scheduler."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from unet_spec import InputError
from unet_spec.origin import Group
from unet_spec.recipe import VECTORS, Optimizer, Recipe, Schedule
from unet_torch.recipe import OPTIMIZER_ARGUMENTS

_HOW_TO_RUN = {"foreach", "fused", "capturable", "differentiable", "maximize", "amsgrad",
               "decoupled_weight_decay"}  # fmt: skip
_OF_ONE_GROUP = {"weight_decay", "param_names", "name"}  # `name` is a label that Lightning shows
_SET_BY_SCHEDULER = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}
_OF_ANY_SCHEDULER = {"base_lrs", "last_epoch", "verbose", "_step_count", "_last_lr",
                     "_get_lr_called_within_step", "_is_initial"}  # fmt: skip
_OF_SCHEDULER = {
    "step": {"step_size", "gamma"},
    "cosine": {"T_max", "eta_min"},
    "one_cycle": {"total_steps", "_schedule_phases", "_anneal_func_type", "cycle_momentum"},
    "plateau": {"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown",
                "min_lrs", "eps", "best", "num_bad_epochs", "cooldown_counter"},
}  # fmt: skip
_BESIDE = {"one_cycle": {"use_beta1"}, "plateau": {"mode_worse", "default_min_lr"}}

States = Mapping[str, Any]


class Steps(NamedTuple):
    """A `Steps` is how many steps were done, by those who counted.

    Attributes:
        of_optimizer: its own count, without steps that AMP's GradScaler skipped.
        of_loop: the number that the file names beside it; None where it names none.
        scaled: the file holds the state of a GradScaler.
    """

    of_optimizer: int
    of_loop: int | None = None
    scaled: bool = False


def recognise_recipe(
    groups: Sequence[Group], scheduler: States | None, *, steps: Steps, vectors: Collection[str]
) -> Recipe:
    """Return the recipe of these states; clipping leaves no trace in them.

    Args:
        groups: of the optimizer.
        steps: those that were done.
        vectors: names of the net's biases and norms.

    Raises:
        InputError: another optimizer or scheduler, or a setting that a recipe does not have.
    """
    schedule = recognise_schedule(scheduler, join_settings(groups), steps=steps)
    return Recipe(recognise_optimizer(groups, schedule, vectors=vectors), schedule)


def join_settings(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the settings that all param groups have; `weight_decay` is the one besides 0.

    Raises:
        InputError: they differ in more.
    """
    joined = {name: v for name, v in groups[0].settings.items() if name not in _OF_ONE_GROUP}
    for group in groups[1:]:
        for name in sorted((joined.keys() | group.settings.keys()) - _OF_ONE_GROUP):
            pair = joined.get(name), group.settings.get(name)
            if pair[0] != pair[1]:
                raise InputError(
                    f"its optimizer has param groups that differ in {name} ({pair[0]} and "
                    f"{pair[1]}), and a recipe has one value for all parameters"
                )
    decays = sorted({float(group.settings.get("weight_decay", 0.0)) for group in groups} - {0.0})
    if len(decays) > 1:
        raise InputError(
            f"its optimizer has param groups with the weight decays {decays[0]:g} and "
            f"{decays[1]:g}, and a recipe has one besides 0"
        )
    return {**joined, "weight_decay": decays[0] if decays else 0.0}


def recognise_optimizer(
    groups: Sequence[Group], schedule: Schedule, *, vectors: Collection[str]
) -> Optimizer:
    """Return the optimizer of these param groups.

    Args:
        schedule: that moves its learning rate, and with `one_cycle` its momentum.
        vectors: names of the net's biases and norms.

    Raises:
        InputError: another optimizer, or a setting that a recipe does not have.
    """
    group = join_settings(groups)
    name = _recognise_name(group)
    arguments = OPTIMIZER_ARGUMENTS[name]
    settings = {*arguments, "weight_decay"} | _HOW_TO_RUN | _SET_BY_SCHEDULER
    if unknown := sorted(group.keys() - settings):
        raise InputError(f"its {name} has the setting {unknown[0]}, which a recipe does not have")
    for flag in ("amsgrad", "maximize"):
        if group.get(flag):
            raise InputError(f"its {name} has {flag}=True, which a recipe does not have")
    fields = {field: group[field] for field in arguments}
    # without a scheduler the rate stays where it is, wherever it began
    is_moved = schedule.name != "constant"
    fields["lr"] = float(group.get("initial_lr", group["lr"]) if is_moved else group["lr"])
    if schedule.cycles_momentum and "betas" in fields:
        fields["betas"] = (schedule.max_momentum, fields["betas"][1])
    elif schedule.cycles_momentum:
        fields["momentum"] = schedule.max_momentum
    decay = group["weight_decay"]
    undecayed = _list_undecayed(groups, vectors) if decay > 0 else ()
    return Optimizer(name, weight_decay=decay, undecayed=undecayed, **fields)


def _list_undecayed(groups: Sequence[Group], vectors: Collection[str]) -> tuple[str, ...]:
    """Name the parameters without weight decay; where they are all vectors, in one word."""
    names = [name for g in groups if g.settings["weight_decay"] == 0 for name in g.names]
    return (VECTORS,) if names and sorted(names) == sorted(vectors) else tuple(names)


def _recognise_name(group: Mapping[str, Any]) -> Any:
    if {"momentum", "dampening", "nesterov"} <= group.keys():
        return "sgd"
    if {"alpha", "centered", "momentum"} <= group.keys():
        return "rmsprop"
    if not {"betas", "eps", "amsgrad"} <= group.keys():
        settings = ", ".join(sorted(group.keys() - _HOW_TO_RUN))
        raise InputError(f"its optimizer is none of SGD, Adam, AdamW, RMSprop (it has {settings})")
    if "decoupled_weight_decay" not in group and group["weight_decay"] != 0:
        raise InputError(
            "its optimizer is Adam or AdamW, and an old torch did not write which; load it in "
            "torch 2.7 or newer and save it again"
        )
    return "adamw" if group.get("decoupled_weight_decay") else "adam"


def recognise_schedule(
    scheduler: States | None, group: Mapping[str, Any], *, steps: Steps
) -> Schedule:
    """Return the schedule of a scheduler's `state_dict`; None stands for a constant rate.

    Args:
        group: the settings of the optimizer, some of which a scheduler keeps there.
        steps: those that were done.

    Raises:
        InputError: another scheduler, or its steps do not fit the optimizer's.
    """
    if not scheduler:
        return Schedule()
    keys = scheduler.keys() - _OF_ANY_SCHEDULER
    names: list[Any] = [
        name for name, own in _OF_SCHEDULER.items() if own <= keys <= own | _BESIDE.get(name, set())
    ]
    if not names:
        raise InputError(
            "its scheduler is none of StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau "
            f"(it has {', '.join(sorted(keys)) or 'no settings'}); leave it out with "
            "--without-scheduler"
        )
    name = names[0]
    if name == "one_cycle":
        fields = _read_one_cycle(scheduler, group)
    elif name == "plateau":
        fields = _read_plateau(scheduler)
    else:
        fields = {field: scheduler[field] for field in _OF_SCHEDULER[name]}
    return Schedule(name, every=_steps_of_epoch(steps, scheduler["last_epoch"]), **fields)


def _steps_of_epoch(steps: Steps, last_epoch: int) -> int:
    """Return how many steps the optimizer takes for each of the scheduler.

    Raises:
        InputError: that is not certain, because some were skipped, or it is no whole number.
    """
    done = steps.of_optimizer
    if done == last_epoch:
        return 1
    counts = f"its scheduler did {last_epoch} steps and its optimizer {done}"
    if done < last_epoch:
        raise InputError(
            f"{counts}, as where AMP's GradScaler skips steps, and a schedule here counts those of "
            "the optimizer; leave the scheduler out with --without-scheduler"
        )
    if steps.scaled and steps.of_loop != done:
        raise InputError(
            f"{counts}, and AMP's GradScaler, whose state is in the file, skips steps, so how many "
            "an epoch has is not known; save the number of all steps beside it as `step` if none "
            "was skipped, or leave the scheduler out with --without-scheduler"
        )
    if last_epoch == 0 or done % last_epoch:
        raise InputError(
            f"{counts}, which is no whole number for each, as in the middle of an epoch; save it "
            "at the end of one, or leave the scheduler out with --without-scheduler"
        )
    return done // last_epoch


def _read_one_cycle(scheduler: States, group: Mapping[str, Any]) -> dict[str, Any]:
    phases, total = scheduler["_schedule_phases"], scheduler["total_steps"]
    momenta = ("base_momentum", "max_momentum") if scheduler["cycle_momentum"] else ()
    return {
        "max_lr": group["max_lr"],
        "total_steps": total,
        "pct_start": _round_quotient((phases[0]["end_step"] + 1) / total),
        "anneal_strategy": scheduler["_anneal_func_type"],
        "cycle_momentum": scheduler["cycle_momentum"],
        "div_factor": _round_quotient(group["max_lr"] / group["initial_lr"]),
        "final_div_factor": _round_quotient(group["initial_lr"] / group["min_lr"]),
        "three_phase": len(phases) == 3,
        **{name: group[name] for name in momenta},
    }


def _read_plateau(scheduler: States) -> dict[str, Any]:
    if len(set(scheduler["min_lrs"])) > 1:
        raise InputError(
            "its ReduceLROnPlateau has several min_lr, and a recipe has one for all parameters"
        )
    names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    return {**{name: scheduler[name] for name in names}, "min_lr": float(scheduler["min_lrs"][0])}


def _round_quotient(quotient: float) -> float:
    """Return a quotient without the error of the division: 25, not 24.99...96."""
    return float(f"{quotient:.12g}")
