"""How weights move, as plain values; `unet_torch.recipe` and `unet_jax.recipe` build it.

Every field has torch's own name and meaning, so a recipe reads like the call that it stands for.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from unet_spec.errors import InputError
from unet_spec.fields import check_types, from_json

Part = TypeVar("Part", "Optimizer", "Schedule")


@dataclass(frozen=True)
class Optimizer:
    """An `Optimizer` is one of `torch.optim.SGD`, `Adam`, `AdamW` and `RMSprop`."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "adamw"
    """The optimizer that moves the weights."""
    lr: float = 1e-3
    """The learning rate at the start; `schedule.name=one_cycle` sets its own."""
    momentum: float = 0.0
    """The momentum of `sgd` and `rmsprop`."""
    dampening: float = 0.0
    """The dampening of the momentum of `sgd`."""
    nesterov: bool = False
    """Whether `sgd` takes Nesterov's momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The decay of the two running averages of `adam` and `adamw`."""
    eps: float = 1e-8
    """What is added to the denominator of `adam`, `adamw` and `rmsprop`, outside the root."""
    alpha: float = 0.99
    """The decay of the running average of `rmsprop`."""
    centered: bool = False
    """Whether `rmsprop` divides by the variance instead of the mean square."""
    weight_decay: float | None = None
    """The pull of every weight towards 0, which `adamw` keeps apart from the gradient. The default
    is 0.01 for `adamw` and 0 for the others."""
    clip_norm: float | None = None
    """The largest norm of all gradients together, the `max_norm` of
    `torch.nn.utils.clip_grad_norm_`. By default nothing is clipped."""

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        check_types(self)
        _refuse_unused(self, _OPTIMIZER_USES)
        for name in ("lr", "momentum", "eps", "weight_decay"):
            _check(name, getattr(self, name), 0 <= (getattr(self, name) or 0) < math.inf,
                   "a finite number of at least 0")  # fmt: skip
        _check("alpha", self.alpha, 0 <= self.alpha <= 1, "a number in [0, 1]")
        _check("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two in [0, 1)")
        _check("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0,
               "a number above 0")  # fmt: skip
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise InputError(
                "nesterov needs momentum above 0 and dampening 0, "
                f"got momentum={self.momentum} and dampening={self.dampening}"
            )

    @property
    def decay(self) -> float:
        """Return the number that `weight_decay` stands for."""
        default = 1e-2 if self.name == "adamw" else 0.0
        return default if self.weight_decay is None else self.weight_decay


@dataclass(frozen=True)
class Schedule:
    """A `Schedule` is one of torch's schedulers of the learning rate, or a constant one."""

    name: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "constant"
    """The schedule of the learning rate: a constant one, or torch's `StepLR`, `CosineAnnealingLR`,
    `OneCycleLR` or `ReduceLROnPlateau`."""
    every: int = 1
    """The steps of the optimizer for each step of the scheduler: 1, or the batches of an epoch."""
    step_size: int | None = None
    """The steps between two falls of `step`, which has no default for it."""
    gamma: float = 0.1
    """The factor of each fall of `step`."""
    T_max: int | None = None
    """The steps of `cosine` down to `eta_min`; by default those of the whole run."""
    eta_min: float = 0.0
    """The lowest learning rate of `cosine`."""
    max_lr: float | None = None
    """The peak of `one_cycle`, which has no default for it."""
    total_steps: int | None = None
    """The steps of `one_cycle`; by default those of the whole run."""
    pct_start: float = 0.3
    """The part of `one_cycle` over which the learning rate rises."""
    anneal_strategy: Literal["cos", "linear"] = "cos"
    """The shape of the rise and the fall of `one_cycle`."""
    cycle_momentum: bool = True
    """Whether `one_cycle` moves the momentum (`betas[0]` of Adam) against the learning rate."""
    base_momentum: float = 0.85
    """The momentum of `one_cycle` at the peak."""
    max_momentum: float = 0.95
    """The momentum of `one_cycle` at the start and the end."""
    div_factor: float = 25.0
    """The factor by which `max_lr` is larger than the start of `one_cycle`."""
    final_div_factor: float = 1e4
    """The factor by which the start of `one_cycle` is larger than its end."""
    three_phase: bool = False
    """Whether `one_cycle` falls to its start first, and to its end in a third phase."""
    mode: Literal["min", "max"] = "min"
    """Whether `plateau` watches a value that should fall or rise."""
    factor: float = 0.1
    """The factor of each fall of `plateau`."""
    patience: int = 10
    """The steps without an improvement that `plateau` bears."""
    threshold: float = 1e-4
    """How much counts as an improvement to `plateau`."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """Whether `threshold` is a part of the best value or a difference."""
    cooldown: int = 0
    """The steps after a fall of `plateau` that do not count."""
    min_lr: float = 0.0
    """The lowest learning rate of `plateau`."""
    eps: float = 1e-8
    """The fall of `plateau` that is too small to be made."""

    def __post_init__(self) -> None:
        check_types(self)
        _refuse_unused(self, _SCHEDULE_USES)
        for name in ("every", "step_size", "T_max", "total_steps"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "a number of at least 1")
        for name in ("eta_min", "patience", "cooldown", "min_lr", "eps", "max_lr", "gamma"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 0, "a number of at least 0")
        for name in ("div_factor", "final_div_factor"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "a number above 0")
        for name in ("base_momentum", "max_momentum"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < 1, "between 0 and 1")
        _check("factor", self.factor, 0 <= self.factor < 1, "a number in [0, 1)")
        _check("pct_start", self.pct_start, 0 <= self.pct_start <= 1, "a part in [0, 1]")
        for name, needed in (("step", "step_size"), ("one_cycle", "max_lr")):
            if self.name == name and getattr(self, needed) is None:
                raise InputError(f"{needed} is needed by the schedule {name}, got None")
        ends = self.phase_ends
        if any(start == end for start, end in zip((0, *ends), ends, strict=False)):
            raise InputError(
                f"pct_start={self.pct_start} of total_steps={self.total_steps} gives a phase of "
                "no step, by whose length torch divides; change either"
            )

    @property
    def phase_ends(self) -> tuple[float, ...]:
        """Return the last step of each phase of `one_cycle`; empty for others."""
        if self.name != "one_cycle" or self.total_steps is None:
            return ()
        rise = self.pct_start * self.total_steps
        if self.three_phase:
            return rise - 1, 2 * rise - 2, self.total_steps - 1
        return rise - 1, self.total_steps - 1

    @property
    def cycles_momentum(self) -> bool:
        return self.name == "one_cycle" and self.cycle_momentum

    def for_steps(self, steps: int) -> "Schedule":
        """Return the schedule of a run of so many steps: fields that were left open are filled."""
        rounds = -(-steps // self.every)
        if self.name == "cosine" and self.T_max is None:
            return replace(self, T_max=rounds)
        if self.name == "one_cycle" and self.total_steps is None:
            return replace(self, total_steps=rounds)
        return self


@dataclass(frozen=True)
class Recipe:
    """A `Recipe` is an optimizer and the schedule of its learning rate."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_types(self)
        if self.optimizer.dampening != 0 and "momentum_buffer" not in self.slots:
            raise InputError(
                f"dampening={self.optimizer.dampening} needs momentum above 0, got momentum=0"
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """Name the arrays that the optimizer keeps for each parameter, as torch does."""
        optimizer = self.optimizer
        if optimizer.name in ("adam", "adamw"):
            return "exp_avg", "exp_avg_sq"
        slots = [] if optimizer.name == "sgd" else ["square_avg"]
        if optimizer.momentum > 0 or self.schedule.cycles_momentum:
            slots.append("momentum_buffer")
        if optimizer.centered:
            slots.append("grad_avg")
        return tuple(slots)

    def for_steps(self, steps: int) -> "Recipe":
        """Return the recipe of a run of so many steps."""
        return replace(self, schedule=self.schedule.for_steps(steps))

    def check_complete(self) -> None:
        """Refuse a schedule that needs the length of the run and does not have it."""
        for name, needed in (("cosine", "T_max"), ("one_cycle", "total_steps")):
            if self.schedule.name == name and getattr(self.schedule, needed) is None:
                raise InputError(
                    f"{needed} is not known yet; give it, or use recipe.for_steps(steps)"
                )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Return the recipe that `to_json` wrote.

        Raises:
            InputError: not JSON, an unknown field, or a value that a field does not allow.
        """
        return from_json(cls, text)


_OPTIMIZER_USES = {
    "momentum": ("sgd", "rmsprop"),
    "dampening": ("sgd",),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "eps": ("adam", "adamw", "rmsprop"),
    "alpha": ("rmsprop",),
    "centered": ("rmsprop",),
}
_ONE_CYCLE = (
    "max_lr", "total_steps", "pct_start", "anneal_strategy", "cycle_momentum", "base_momentum",
    "max_momentum", "div_factor", "final_div_factor", "three_phase",
)  # fmt: skip
_PLATEAU = (
    "mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps",
)  # fmt: skip
_SCHEDULE_USES = {
    "every": ("step", "cosine", "one_cycle", "plateau"),
    "step_size": ("step",),
    "gamma": ("step",),
    "T_max": ("cosine",),
    "eta_min": ("cosine",),
    **dict.fromkeys(_ONE_CYCLE, ("one_cycle",)),
    **dict.fromkeys(_PLATEAU, ("plateau",)),
}


def rename(part: Part, name: str | None) -> Part:
    """Return an optimizer or schedule by another name; fields that it does not use have their
    default again.

    It is not checked, being only what flags start from: they may have to give a value that has no
    default (`max_lr`).
    """
    uses = _OPTIMIZER_USES if isinstance(part, Optimizer) else _SCHEDULE_USES
    if name not in get_args(type(part).__annotations__["name"]):
        return part
    changed = copy(part)
    object.__setattr__(changed, "name", name)
    for one in dataclasses.fields(part):
        if name not in uses.get(one.name, (name,)):
            object.__setattr__(changed, one.name, one.default)
    return changed


def _refuse_unused(config: Any, uses: Mapping[str, tuple[str, ...]]) -> None:
    unused = [
        f"{f.name}={getattr(config, f.name)}"
        for f in dataclasses.fields(config)
        if config.name not in uses.get(f.name, (config.name,))
        and getattr(config, f.name) != f.default
    ]
    if unused:
        raise InputError(f"{config.name} does not use {', '.join(unused)}; leave it out")


def _check(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"{name} is {rule}, got {value}")
