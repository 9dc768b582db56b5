"""torch's own optimizer and scheduler of a recipe."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop, lr_scheduler

from unet_spec import InputError
from unet_spec.recipe import Optimizer, Recipe, Schedule

Scheduler = lr_scheduler.LRScheduler
KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop,
}  # fmt: skip
SCHEDULERS: dict[str, type[Scheduler]] = {
    "step": lr_scheduler.StepLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "one_cycle": lr_scheduler.OneCycleLR,
    "plateau": lr_scheduler.ReduceLROnPlateau,
}
OPTIMIZER_ARGUMENTS = {
    "sgd": ("lr", "momentum", "dampening", "nesterov"),
    "adam": ("lr", "betas", "eps"),
    "adamw": ("lr", "betas", "eps"),
    "rmsprop": ("lr", "alpha", "eps", "momentum", "centered"),
}
SCHEDULER_ARGUMENTS = {
    "step": ("step_size", "gamma"),
    "cosine": ("T_max", "eta_min"),
    "one_cycle": ("max_lr", "total_steps", "pct_start", "anneal_strategy", "cycle_momentum",
                  "base_momentum", "max_momentum", "div_factor", "final_div_factor",
                  "three_phase"),
    "plateau": ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown",
                "min_lr", "eps"),
}  # fmt: skip


Parameters = Iterable[tuple[str, nn.Parameter]] | Iterable[nn.Parameter]


def build(recipe: Recipe, parameters: Parameters) -> tuple[torch.optim.Optimizer, Scheduler | None]:
    """Return (optimizer, scheduler); the scheduler is None where the learning rate is constant.

    Where `undecayed` says that some tensors are not pulled towards 0, the optimizer has two param
    groups, with the names of their parameters.

    Args:
        parameters: of the model, as `model.parameters()` or `model.named_parameters()` gives them;
            with names where `undecayed` says which are not pulled.

    Raises:
        InputError: the recipe waits for the length of the run (`recipe.for_steps`), or its
            `undecayed` names a tensor that there is not, or no parameter has a name.
    """
    recipe.check_complete()
    optimizer = _optimizer(recipe.optimizer, _add_names(recipe.optimizer, parameters))
    return optimizer, _scheduler(recipe.schedule, optimizer)


def advance(
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler | None,
    *,
    step: int,
    value: float | None = None,
) -> None:
    """Move the parameters by their gradients: clip, step, and step the scheduler when due.

    Args:
        step: number of steps done before this one.
        value: what `plateau` watches; without it the scheduler does not step.
    """
    if recipe.optimizer.clip_norm is not None:
        parameters: list[Tensor] = [p for g in optimizer.param_groups for p in g["params"]]
        nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip_norm)
    optimizer.step()
    if scheduler is None or (step + 1) % recipe.schedule.every:
        return
    if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step()
    elif value is not None:
        scheduler.step(value)


def _add_names(optimizer: Optimizer, parameters: Parameters) -> list[tuple[str, nn.Parameter]]:
    """Return parameters with their names, which are empty where none were given and none count."""
    named: list[tuple[str, nn.Parameter]] = []
    for parameter in parameters:
        if isinstance(parameter, Tensor):
            if optimizer.undecayed:
                raise InputError(
                    "undecayed goes by the names of the parameters; give model.named_parameters()"
                )
            parameter = "", parameter
        named.append(parameter)
    return named


def _optimizer(
    optimizer: Optimizer, named: list[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    optimizer.check_names(name for name, _ in named)
    kind: Any = KINDS[optimizer.name]
    arguments = {name: getattr(optimizer, name) for name in OPTIMIZER_ARGUMENTS[optimizer.name]}
    if "betas" in arguments:
        arguments["betas"] = tuple(map(float, optimizer.betas))
    if not optimizer.undecayed:
        parameters = [parameter for _, parameter in named]
        return kind(parameters, weight_decay=optimizer.decay, **arguments)
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        decay = optimizer.decay_of(name, ndim=parameter.ndim)
        groups.setdefault(decay, []).append((name, parameter))
    by_decay = [
        {"params": groups[decay], "weight_decay": decay} for decay in sorted(groups, reverse=True)
    ]
    return kind(by_decay, **arguments)


def _scheduler(schedule: Schedule, optimizer: torch.optim.Optimizer) -> Scheduler | None:
    if schedule.name == "constant":
        return None
    kind: Any = SCHEDULERS[schedule.name]
    arguments = {name: getattr(schedule, name) for name in SCHEDULER_ARGUMENTS[schedule.name]}
    if "pct_start" in arguments:
        arguments["pct_start"] = float(schedule.pct_start)
    try:
        return kind(optimizer, **arguments)
    except ValueError as error:
        raise InputError(f"schedule: {error}") from error
