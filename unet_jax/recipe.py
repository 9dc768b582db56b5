"""The optimizer of a recipe as an optax transformation that moves as torch's does.

optax's own differ from torch's of the same name: RMSprop adds eps inside the root and applies
the learning rate before the momentum, clipping lacks a 1e-6, the plateau fires a step earlier
and only for falling values, and one cycle leaves the momentum alone.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from unet_spec import InputError
from unet_spec.recipe import Optimizer, Recipe, Schedule

Scalar = Array | float


class Plateau(NamedTuple):
    """What `ReduceLROnPlateau` remembers, by torch's names."""

    best: Array
    num_bad_epochs: Array
    cooldown_counter: Array
    last_epoch: Array


class OptimizerState(NamedTuple):
    """All that a step of the optimizer changes besides the parameters.

    Attributes:
        step: number of steps done.
        lr: learning rate of the next step.
        slots: by torch's name (`exp_avg`, ...) a tree like the parameters.
        plateau: of `schedule.name=plateau` only.
    """

    step: Array
    lr: Array
    slots: dict[str, Any]
    plateau: Plateau | None


class _Now(NamedTuple):
    """The numbers of one step, all of the learning rate's type; `step` counts it, and `momentum`
    is None where it is the optimizer's own."""

    step: Array
    lr: Array
    momentum: Array | None


def build(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Return `init(params) -> OptimizerState` and `update(gradients, state, params, value=None)`.

    The updates are for `optax.apply_updates`. `value` is what `plateau` watches: without it its
    scheduler does not step. As in torch, a new learning rate holds from the next step on.

    Where `recipe.optimizer.undecayed` holds names, `params` is a dict by name.

    Raises:
        InputError: the recipe waits for the length of the run (`recipe.for_steps`). `init` raises
            it where `undecayed` names a tensor that there is not.
    """
    recipe.check_complete()
    rules = _jit_rules(recipe.optimizer)

    def init(params: Any) -> OptimizerState:
        recipe.optimizer.check_names(_name_leaves(params))
        slots = {name: jax.tree.map(jnp.zeros_like, params) for name in recipe.slots}
        lr = jnp.asarray(_initial_lr(recipe), float)
        plateau = _plateau(recipe.schedule) if recipe.schedule.name == "plateau" else None
        return OptimizerState(jnp.zeros((), jnp.int32), lr, slots, plateau)

    def update(
        gradients: Any, state: OptimizerState, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, OptimizerState]:
        if params is None:
            raise InputError(
                "params is needed by update, got None: update(gradients, state, params)"
            )
        # an int32 by itself becomes float32, in a float64 run too
        step = (state.step + 1).astype(state.lr.dtype)
        now = _Now(step, state.lr, _cycle_momentum(recipe, state))
        gradients = clip_gradients(gradients, recipe.optimizer.clip_norm)
        updates, slots = _apply_rules(rules, recipe, gradients, params, state.slots, now)
        lr, plateau = _advance_schedule(recipe, state, value)
        return updates, OptimizerState(state.step + 1, lr, slots, plateau)

    return optax.GradientTransformationExtraArgs(init, update)


def make_update(optimizer: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """Return a function of (params, state, gradients, loss) that gives (params, state) a step
    on."""

    def move(params: Any, state: Any, gradients: Any, loss: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return move


def learning_rate(state: OptimizerState) -> Array:
    """Return the learning rate of the next step."""
    return state.lr


def momentum(recipe: Recipe, state: OptimizerState) -> Scalar:
    """Return the momentum of the next step (`betas[0]` of Adam), which `one_cycle` may move."""
    return _momentum(recipe.optimizer, _cycle_momentum(recipe, state))


def clip_gradients(gradients: Any, max_norm: float | None) -> Any:
    """Clip as `torch.nn.utils.clip_grad_norm_` does: g * min(1, max_norm / (norm + 1e-6))."""
    if max_norm is None:
        return gradients
    norms = [jnp.sqrt(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(gradients)]
    norm = jnp.sqrt(sum(jnp.square(n) for n in norms))
    scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)


def _jit_rules(optimizer: Optimizer) -> dict[float, Callable[..., Any]]:
    """Return the rule of every weight decay that the optimizer has."""
    rule = _RULES[optimizer.name]
    decays = {optimizer.decay, 0.0} if optimizer.undecayed else {optimizer.decay}
    # jitted, so that parameters of one shape are traced once
    return {
        decay: jax.jit(partial(rule, replace(optimizer, weight_decay=decay, undecayed=())))
        for decay in decays
    }


def _name_leaves(params: Any) -> list[str]:
    """Return the name of each leaf: its key in a dict by name, and else its path."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def _apply_rules(
    rules: dict[float, Callable[..., Any]],
    recipe: Recipe,
    gradients: Any,
    params: Any,
    slots: Any,
    now: _Now,
) -> tuple[Any, dict[str, Any]]:
    """Apply the rule of its weight decay to every parameter; return trees of updates and of
    slots."""
    tree: Any
    leaves, tree = jax.tree.flatten(params)
    columns = [tree.flatten_up_to(slots[name]) for name in recipe.slots]
    new_columns: list[list[Array]] = [[] for _ in columns]
    updates = []
    for name, parameter, gradient, *old in zip(
        _name_leaves(params), leaves, tree.flatten_up_to(gradients), *columns, strict=True
    ):
        named = dict(zip(recipe.slots, old, strict=True))
        rule = rules[recipe.optimizer.decay_of(name, ndim=parameter.ndim)]
        update, new = rule(gradient, parameter, named, now)
        updates.append(update.astype(parameter.dtype))
        for column, slot in zip(new_columns, recipe.slots, strict=True):
            column.append(new[slot].astype(parameter.dtype))
    trees = [tree.unflatten(column) for column in new_columns]
    return tree.unflatten(updates), dict(zip(recipe.slots, trees, strict=True))


def _sgd(
    optimizer: Optimizer, gradient: Array, parameter: Array, slots: dict[str, Array], now: _Now
) -> tuple[Array, dict[str, Array]]:
    gradient = _add_decay(optimizer, gradient, parameter)
    if not slots:
        return -now.lr * gradient, {}
    momentum = _momentum(optimizer, now.momentum)
    moved = slots["momentum_buffer"] * momentum + gradient * (1 - optimizer.dampening)
    # the first gradient enters the buffer whole, without dampening
    buffer = jnp.where(now.step == 1, gradient, moved)
    direction = gradient + buffer * momentum if optimizer.nesterov else buffer
    return -now.lr * direction, {"momentum_buffer": buffer}


def _adam(
    optimizer: Optimizer, gradient: Array, parameter: Array, slots: dict[str, Array], now: _Now
) -> tuple[Array, dict[str, Array]]:
    beta1 = _momentum(optimizer, now.momentum)
    beta2 = optimizer.betas[1]
    decoupled = optimizer.name == "adamw"
    if not decoupled:
        gradient = _add_decay(optimizer, gradient, parameter)
    exp_avg = slots["exp_avg"] + (gradient - slots["exp_avg"]) * (1 - beta1)
    exp_avg_sq = slots["exp_avg_sq"] * beta2 + gradient * gradient * (1 - beta2)
    step_size = now.lr / _bias_correction(beta1, now.step)
    root = jnp.sqrt(_bias_correction(beta2, now.step))
    update = -step_size * exp_avg / (jnp.sqrt(exp_avg_sq) / root + optimizer.eps)
    if decoupled:
        update = (_shrink(parameter, 1 - now.lr * optimizer.decay) + update) - parameter
    return update, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def _rmsprop(
    optimizer: Optimizer, gradient: Array, parameter: Array, slots: dict[str, Array], now: _Now
) -> tuple[Array, dict[str, Array]]:
    gradient, rest = _add_decay(optimizer, gradient, parameter), 1 - optimizer.alpha
    new = {"square_avg": slots["square_avg"] * optimizer.alpha + gradient * gradient * rest}
    mean_square = new["square_avg"]
    if optimizer.centered:
        new["grad_avg"] = slots["grad_avg"] + (gradient - slots["grad_avg"]) * rest
        mean_square = mean_square - new["grad_avg"] * new["grad_avg"]
    direction = gradient / (jnp.sqrt(mean_square) + optimizer.eps)
    if "momentum_buffer" in slots:
        momentum = _momentum(optimizer, now.momentum)
        direction = slots["momentum_buffer"] * momentum + direction
        new["momentum_buffer"] = direction
    return -now.lr * direction, new


_RULES = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "rmsprop": _rmsprop}


def _cycle_momentum(recipe: Recipe, state: OptimizerState) -> Array | None:
    schedule = recipe.schedule
    if not schedule.cycles_momentum:
        return None
    top, bottom = schedule.max_momentum, schedule.base_momentum
    turns = (top, bottom, top, top) if schedule.three_phase else (top, bottom, top)
    epoch = jnp.asarray(state.step // schedule.every, state.lr.dtype)
    return _cycle(schedule, epoch, turns)


def _momentum(optimizer: Optimizer, cycled: Array | None) -> Scalar:
    if cycled is not None:
        return cycled
    return optimizer.betas[0] if optimizer.name in ("adam", "adamw") else optimizer.momentum


def _add_decay(optimizer: Optimizer, gradient: Array, parameter: Array) -> Array:
    return gradient + parameter * optimizer.decay if optimizer.decay else gradient


def _shrink(parameter: Array, factor: Array) -> Array:
    """Return parameter * factor, rounded before anything is added to it, as in torch.

    XLA on CPU fuses product and sum into one rounding, through `optimization_barrier` and
    `reduce_precision` too. That took float32 parameters 15 to 22 times as far from torch's in 50
    steps as all other rounding together. A sign that is set to what it is anyway keeps them apart.
    """
    return jnp.copysign(parameter * factor, parameter * jnp.sign(factor))


def _bias_correction(beta: Scalar, step: Array) -> Array:
    """Return 1 - beta^step, whose digits float32 would cancel away: -expm1(step * log(beta))."""
    if isinstance(beta, float | int):
        # log(0) has no value in Python; there 1 - 0^step is 1
        return -jnp.expm1(step * (math.log(beta) if beta else -math.inf))
    return -jnp.expm1(step * jnp.log(beta))


def _initial_lr(recipe: Recipe) -> Scalar:
    if recipe.schedule.name != "one_cycle":
        return recipe.optimizer.lr
    # computed, because a phase shorter than a step does not begin at its start
    return _cycle(recipe.schedule, jnp.zeros((), float), _one_cycle_rates(recipe.schedule))


def _advance_schedule(
    recipe: Recipe, state: OptimizerState, value: Any
) -> tuple[Array, Plateau | None]:
    """Return the learning rate after a step, and what `plateau` remembers."""
    schedule, done = recipe.schedule, state.step + 1
    due = done % schedule.every == 0
    if state.plateau is None:
        lr = _next_lr(schedule, state.lr, done // schedule.every, base=recipe.optimizer.lr)
        return jnp.where(due, lr, state.lr), None
    if value is None:
        return state.lr, state.plateau
    new = _step_plateau(schedule, state.lr, state.plateau, value)
    return jax.tree.map(lambda n, o: jnp.where(due, n, o), new, (state.lr, state.plateau))


def _next_lr(schedule: Schedule, lr: Array, epoch: Array, *, base: float) -> Array:
    """Return the learning rate from a step of the scheduler on, from the one before."""
    if schedule.name == "step":
        assert schedule.step_size is not None
        return jnp.where(epoch % schedule.step_size == 0, lr * schedule.gamma, lr)
    if schedule.name == "cosine":
        assert schedule.T_max is not None
        part = (epoch % (2 * schedule.T_max)).astype(lr.dtype) / schedule.T_max
        return _anneal(base, schedule.eta_min, part)
    if schedule.name == "one_cycle":
        return _cycle(schedule, epoch.astype(lr.dtype), _one_cycle_rates(schedule))
    return lr


def _one_cycle_rates(schedule: Schedule) -> tuple[float, ...]:
    """Return the learning rates between which `one_cycle` goes, phase by phase."""
    assert schedule.max_lr is not None
    start = schedule.max_lr / schedule.div_factor
    end = start / schedule.final_div_factor
    if schedule.three_phase:
        return start, schedule.max_lr, start, end
    return start, schedule.max_lr, end


def _cycle(schedule: Schedule, epoch: Array, turns: tuple[float, ...]) -> Array:
    """Return the value of `one_cycle` at a step of the scheduler.

    Args:
        turns: the values between which it goes, phase by phase.
    """
    assert schedule.total_steps is not None
    # torch raises past the last step, which a compiled step cannot: the last value stays
    epoch = jnp.minimum(epoch, schedule.total_steps)
    ends = schedule.phase_ends
    shape = _anneal if schedule.anneal_strategy == "cos" else _linear
    phases = [
        shape(here, there, (epoch - start) / (end - start))
        for here, there, start, end in zip(turns, turns[1:], (0.0, *ends), ends, strict=False)
    ]
    value = phases[-1]
    for end, phase in reversed(list(zip(ends[:-1], phases, strict=False))):
        value = jnp.where(epoch <= math.floor(end), phase, value)
    return value


def _anneal(start: float, end: float, part: Array) -> Array:
    """Follow half a cosine: cos^2 is (1 + cos) / 2 without the cancellation."""
    return end + (start - end) * jnp.square(jnp.cos(part * (math.pi / 2)))


def _linear(start: float, end: float, part: Array) -> Array:
    return end + (start - end) * (1 - part)


def _step_plateau(schedule: Schedule, lr: Array, old: Plateau, value: Any) -> tuple[Array, Plateau]:
    """Do what `ReduceLROnPlateau.step(value)` does."""
    better = _is_better(schedule, value, old.best)
    cooling = old.cooldown_counter > 0
    bad = jnp.where(better | cooling, 0, old.num_bad_epochs + 1)
    falls = bad > schedule.patience
    lower = jnp.maximum(lr * schedule.factor, schedule.min_lr)
    cooldown = jnp.where(cooling, old.cooldown_counter - 1, old.cooldown_counter)
    return jnp.where(falls & (lr - lower > schedule.eps), lower, lr), Plateau(
        best=jnp.where(better, jnp.asarray(value, old.best.dtype), old.best),
        num_bad_epochs=jnp.where(falls, 0, bad),
        cooldown_counter=jnp.where(falls, schedule.cooldown, cooldown),
        last_epoch=old.last_epoch + 1,
    )


def _is_better(schedule: Schedule, value: Any, best: Array) -> Array:
    sign = -1 if schedule.mode == "min" else 1
    if schedule.threshold_mode == "rel":
        return sign * value > sign * (best * (1 + sign * schedule.threshold))
    return sign * value > sign * (best + sign * schedule.threshold)


def _plateau(schedule: Schedule) -> Plateau:
    worst = jnp.asarray(math.inf if schedule.mode == "min" else -math.inf, float)
    # three arrays, because a buffer cannot be donated twice
    return Plateau(worst, *(jnp.zeros((), jnp.int32) for _ in range(3)))
