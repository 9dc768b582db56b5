"""The recipe of torch's own `state_dict`s of an optimizer and a scheduler."""

from collections.abc import Mapping
from typing import Any

from unet_spec import InputError
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_torch.recipe import OPTIMIZER_ARGUMENTS

_HOW_TO_RUN = {"foreach", "fused", "capturable", "differentiable", "maximize", "amsgrad",
               "decoupled_weight_decay", "params", "param_names"}  # fmt: skip
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


def recognise_recipe(optimizer: States, scheduler: States | None, *, step: int) -> Recipe:
    """Return the recipe of these states; clipping leaves no trace in them.

    Args:
        step: number of steps that the optimizer has done.

    Raises:
        InputError: another optimizer or scheduler, or a setting that a recipe does not have.
    """
    group = join_groups(optimizer)
    schedule = _recognise_schedule(scheduler, group, step=step)
    return Recipe(_recognise_optimizer(group, schedule), schedule)


def join_groups(optimizer: States) -> dict[str, Any]:
    """Return the one param group of an optimizer; several with the same settings are joined."""
    groups = optimizer["param_groups"]
    settings = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in groups]
    if any(one != settings[0] for one in settings):
        raise InputError(
            f"its optimizer has {len(groups)} param groups with different settings, and a recipe "
            "has one for all parameters"
        )
    if len(groups) > 1 and not all("param_names" in g for g in groups):
        raise InputError(
            f"its optimizer has {len(groups)} param groups without names, so which state belongs "
            "to which parameter is not known; build it from model.named_parameters()"
        )
    joined = {"params": [p for g in groups for p in g["params"]]}
    if all("param_names" in g for g in groups):
        joined["param_names"] = [name for g in groups for name in g["param_names"]]
    return {**settings[0], **joined}


def _recognise_optimizer(group: dict[str, Any], schedule: Schedule) -> Optimizer:
    name = _recognise_name(group)
    arguments = OPTIMIZER_ARGUMENTS[name]
    settings = {*arguments, "weight_decay"} | _HOW_TO_RUN | _SET_BY_SCHEDULER
    if unknown := sorted(group.keys() - settings):
        raise InputError(f"its {name} has the setting {unknown[0]}, which a recipe does not have")
    for flag in ("amsgrad", "maximize"):
        if group.get(flag):
            raise InputError(f"its {name} has {flag}=True, which a recipe does not have")
    fields = {field: group[field] for field in arguments}
    fields["lr"] = float(group.get("initial_lr", group["lr"]))
    if schedule.cycles_momentum and "betas" in fields:
        fields["betas"] = (schedule.max_momentum, fields["betas"][1])
    elif schedule.cycles_momentum:
        fields["momentum"] = schedule.max_momentum
    return Optimizer(name, weight_decay=float(group["weight_decay"]), **fields)


def _recognise_name(group: dict[str, Any]) -> Any:
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


def _recognise_schedule(scheduler: States | None, group: dict[str, Any], *, step: int) -> Schedule:
    if not scheduler:
        return Schedule()
    keys = scheduler.keys() - _OF_ANY_SCHEDULER
    names: list[Any] = [
        name for name, own in _OF_SCHEDULER.items() if own <= keys <= own | _BESIDE.get(name, set())
    ]
    if not names:
        raise InputError(
            "its scheduler is none of StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau "
            f"(it has {', '.join(sorted(keys)) or 'no settings'})"
        )
    name = names[0]
    if name == "one_cycle":
        fields = _read_one_cycle(scheduler, group)
    elif name == "plateau":
        fields = _read_plateau(scheduler)
    else:
        fields = {field: scheduler[field] for field in _OF_SCHEDULER[name]}
    return Schedule(name, every=_steps_of_epoch(step, scheduler["last_epoch"]), **fields)


def _steps_of_epoch(step: int, last_epoch: int) -> int:
    """Return how many steps the optimizer takes for each of the scheduler."""
    if step == last_epoch:
        return 1
    if last_epoch == 0 or step % last_epoch:
        raise InputError(
            f"its scheduler did {last_epoch} steps and its optimizer {step}, which is no whole "
            "number for each; save it at the end of an epoch"
        )
    return step // last_epoch


def _read_one_cycle(scheduler: States, group: dict[str, Any]) -> dict[str, Any]:
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
    names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
    return {**{name: scheduler[name] for name in names}, "min_lr": float(scheduler["min_lrs"][0])}


def _round_quotient(quotient: float) -> float:
    """Return a quotient without the error of the division: 25, not 24.99...96."""
    return float(f"{quotient:.12g}")
