"""A recipe says how weights move, in plain values; `unet_torch.recipe` and `unet_jax.recipe`
build it.

Every field has torch's own name and meaning, so a recipe reads like the call that it stands for.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeVar, get_args

from unet_spec.errors import ConfigError
from unet_spec.fields import check_fields, from_json
from unet_spec.ranges import Range, Rate, Steps, Waits

_Part = Annotated[float, Range(0, 1, rule="is a number in [0, 1]")]
_Momentum = Annotated[float, Range(above=0, below=1, rule="is between 0 and 1")]
_Beta = Annotated[float, Range(0, below=1, rule="holds two numbers in [0, 1)")]
# with a rate of up to a million, and this twice below it, no rate leaves float32
_Factor = Annotated[float, Range(1e-6, 1e25, rule="is a number from 1e-6 to 1e25")]

Part = TypeVar("Part", "Optimizer", "Schedule")
_CLIPS = "is a number above 0, up to 1e25"
VECTORS = "vectors"  # in `undecayed`: the biases and the norms


@dataclass(frozen=True)
class Optimizer:
    """An `Optimizer` is `torch.optim.SGD`, `Adam`, `AdamW` or `RMSprop` with its settings."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "adamw"
    """This rule moves the weights."""
    lr: Rate = 1e-3
    """The learning rate starts here; the schedule `one_cycle` has its own, `max_lr`."""
    momentum: _Part = 0.0
    """The momentum of `sgd` and `rmsprop` keeps this part of its past at each step."""
    dampening: _Part = 0.0
    """The momentum of `sgd` leaves out this part of each new gradient."""
    nesterov: bool = False
    """The optimizer `sgd` uses Nesterov's momentum."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """The two running averages of `adam` and `adamw` keep these parts of their past at each
    step."""
    eps: Rate = 1e-8
    """The denominator of `adam`, `adamw` and `rmsprop` is raised by this, outside the root."""
    alpha: _Part = 0.99
    """The running average of `rmsprop` keeps this part of its past at each step."""
    centered: bool = False
    """The optimizer `rmsprop` divides by the variance instead of the mean square."""
    weight_decay: Rate | None = None
    """Every weight is pulled towards 0 by this, apart from the gradient with `adamw`; the
    default is 0.01 for `adamw` and 0 for the others."""
    undecayed: tuple[str, ...] = ()
    """These tensors are not pulled towards 0, by their names in the weight file; `vectors` stands
    for all biases and norms."""
    clip_norm: Annotated[float, Range(above=0, most=1e25, rule=_CLIPS)] | None = None
    """The norm over all gradients is clipped to this, as by `torch.nn.utils.clip_grad_norm_`;
    the default clips nothing."""

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        check_fields(self)
        _refuse_unused(self, _OPTIMIZER_USES)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ConfigError(
                self,
                "{nesterov} needs {momentum} above 0 and {dampening} 0, got {momentum=} and "
                "{dampening=}",
            )
        if self.undecayed and self.decay == 0:
            raise ConfigError(
                self, "{undecayed=} needs {weight_decay} above 0; give it, or leave out {undecayed}"
            )

    @property
    def decay(self) -> float:
        """Return the number that `weight_decay` stands for."""
        default = 1e-2 if self.name == "adamw" else 0.0
        return default if self.weight_decay is None else self.weight_decay

    def decay_of(self, name: str, *, ndim: int) -> float:
        """Return by how much a tensor is pulled towards 0.

        Args:
            ndim: number of its dimensions: biases and norms have one.
        """
        is_free = name in self.undecayed or (ndim == 1 and VECTORS in self.undecayed)
        return 0.0 if is_free else self.decay

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse names in `undecayed` that are none of these, which are those of the net.

        Raises:
            ConfigError: naming the first.
        """
        known = {VECTORS, *names}
        unknown = [name for name in self.undecayed if name not in known]
        if unknown:
            raise ConfigError(
                self,
                "{undecayed} names {name}, which is no trained tensor of this net; give names of "
                "its weight file, or the word {vectors}",
                name=unknown[0],
                vectors=VECTORS,
            )


@dataclass(frozen=True)
class Schedule:
    """A `Schedule` says how the learning rate changes.

    It is torch's `StepLR`, `CosineAnnealingLR`, `OneCycleLR` or `ReduceLROnPlateau`, or a constant
    rate.
    """

    name: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "constant"
    """The learning rate follows this rule."""
    every: Steps = 1
    """The scheduler moves once in this many steps of the optimizer: 1, or the batches of an
    epoch."""
    step_size: Steps | None = None
    """The rate of `step` falls once in this many steps of the scheduler; it has no default."""
    gamma: Rate = 0.1
    """Each fall of `step` multiplies the rate by this."""
    T_max: Steps | None = None
    """The rate of `cosine` reaches `eta_min` after this many steps of the scheduler; the default
    is the whole run."""
    eta_min: Rate = 0.0
    """The rate of `cosine` falls to this."""
    max_lr: Rate | None = None
    """The rate of `one_cycle` peaks here; it has no default."""
    total_steps: Steps | None = None
    """The rate of `one_cycle` ends after this many steps of the scheduler; the default is the
    whole run."""
    pct_start: Annotated[float, Range(0, 1, rule="is a part in [0, 1]")] = 0.3
    """The rate of `one_cycle` rises over this part of its steps."""
    anneal_strategy: Literal["cos", "linear"] = "cos"
    """The rate of `one_cycle` rises and falls along this curve."""
    cycle_momentum: bool = True
    """The schedule `one_cycle` moves the momentum (`betas[0]` of Adam) against the rate."""
    base_momentum: _Momentum = 0.85
    """The momentum of `one_cycle` is this at the peak of the rate."""
    max_momentum: _Momentum = 0.95
    """The momentum of `one_cycle` is this at the start and the end."""
    div_factor: _Factor = 25.0
    """The rate of `one_cycle` starts at `max_lr` divided by this."""
    final_div_factor: _Factor = 1e4
    """The rate of `one_cycle` ends at its start divided by this."""
    three_phase: bool = False
    """The rate of `one_cycle` falls to its start first, and to its end in a third phase."""
    mode: Literal["min", "max"] = "min"
    """The schedule `plateau` watches a value that should fall (`min`) or rise (`max`)."""
    factor: Annotated[float, Range(0, below=1, rule="is a number in [0, 1)")] = 0.1
    """Each fall of `plateau` multiplies the rate by this."""
    patience: Waits = 10
    """The schedule `plateau` bears this many steps without an improvement."""
    threshold: Annotated[float, Range(-1e6, 1e6)] = 1e-4
    """A change by more than this is an improvement to `plateau`."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """The `threshold` is a part of the best value (`rel`) or a difference (`abs`)."""
    cooldown: Waits = 0
    """The schedule `plateau` counts nothing in this many steps after a fall."""
    min_lr: Rate = 0.0
    """The rate of `plateau` never falls below this."""
    eps: Rate = 1e-8
    """The schedule `plateau` leaves out a fall by no more than this."""

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse_unused(self, _SCHEDULE_USES)
        if self.name == "step" and self.step_size is None:
            raise ConfigError(self, "{name=step} needs {step_size}; give it")
        if self.name == "one_cycle" and self.max_lr is None:
            raise ConfigError(self, "{name=one_cycle} needs {max_lr}; give it")
        ends = self.phase_ends
        if any(start == end for start, end in zip((0, *ends), ends, strict=False)):
            raise ConfigError(
                self,
                "{pct_start=} of {total_steps=} gives a phase of no step, by whose length torch "
                "divides; change either",
            )

    @property
    def phase_ends(self) -> tuple[float, ...]:
        """Return the last step of each phase of `one_cycle`; empty where its length is open."""
        if self.name != "one_cycle" or self.total_steps is None:
            return ()
        rise = self.pct_start * self.total_steps
        if self.three_phase:
            return rise - 1, 2 * rise - 2, self.total_steps - 1
        return rise - 1, self.total_steps - 1

    @property
    def cycles_momentum(self) -> bool:
        """Return whether the momentum moves against the learning rate."""
        return self.name == "one_cycle" and self.cycle_momentum

    def for_steps(self, steps: int) -> "Schedule":
        """Return the schedule of a run of so many steps of the optimizer: what was left open is
        filled."""
        rounds = -(-steps // self.every)
        if self.name == "cosine" and self.T_max is None:
            return replace(self, T_max=rounds)
        if self.name == "one_cycle" and self.total_steps is None:
            return replace(self, total_steps=rounds)
        return self


@dataclass(frozen=True)
class Recipe:
    """A `Recipe` is an optimizer with the schedule of its learning rate."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.optimizer.dampening != 0 and "momentum_buffer" not in self.slots:
            raise ConfigError(
                self,
                "{optimizer.dampening=} needs {optimizer.momentum} above 0, got "
                "{optimizer.momentum=}",
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """Return what the optimizer keeps for each parameter, by torch's names."""
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
        """Refuse a schedule that needs the length of the run and does not have it.

        Raises:
            ConfigError: it is `cosine` without `T_max`, or `one_cycle` without `total_steps`.
        """
        for name, field_ in (("cosine", "T_max"), ("one_cycle", "total_steps")):
            if self.schedule.name == name and getattr(self.schedule, field_) is None:
                raise ConfigError(
                    self,
                    f"{{schedule.{field_}}} is not known yet; give it, or use "
                    "recipe.for_steps(steps)",
                )

    def to_json(self) -> str:
        """Return the recipe as JSON, with its fields in the order of the alphabet."""
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
    """Return an optimizer or schedule by another name; what that does not use has its default.

    It is not checked, being only what flags start from: they may have to give a value that has no
    default (`max_lr`). A name that there is not changes nothing.
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


def _refuse_unused(config: Optimizer | Schedule, uses: Mapping[str, tuple[str, ...]]) -> None:
    unused = []
    for one in dataclasses.fields(config):
        used = config.name in uses.get(one.name, (config.name,))
        if not used and getattr(config, one.name) != one.default:
            unused.append(f"{{{one.name}=}}")
    if unused:
        raise ConfigError(
            config, f"{{name=}} does not use {', '.join(unused)}; leave out what it does not use"
        )
