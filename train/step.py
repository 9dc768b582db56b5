"""One training step: a pure function of state and batch, compiled once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from train.config import TrainConfig
from train.losses import cross_entropy
from train.metrics import confusion
from unet_jax import Numerics, functional
from unet_jax import recipe as optimizers


class State(NamedTuple):
    """All that a step changes.

    Attributes:
        params: trained arrays by the slides' names.
        stats: batch norm's statistics.
        optimizer: of `unet_jax.recipe`.
        step: number of steps done.
    """

    params: dict[str, Array]
    stats: dict[str, Array]
    optimizer: optimizers.State
    step: Array


class Metrics(NamedTuple):
    """What a step measured: mean loss, and the batch's confusion matrix."""

    loss: Array
    confusion: Array


def make_step(
    config: TrainConfig,
) -> tuple[Callable[[], State], Callable[[State, ArrayLike, ArrayLike], tuple[State, Metrics]]]:
    """(init, step): `init()` gives the state at step 0, `step(state, x, truth)` the next one.

    The state given to `step` is donated: only the one that it returns may be used after it.
    """
    net = functional(config.net, numerics=Numerics(dtype=jnp.dtype(config.compute)))
    optimizer = optimizers.build(config.recipe)

    def init() -> State:
        params, stats = net.init(jax.random.key(config.seed))
        return State(params, stats, optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: State, x: Array, truth: Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(params: dict[str, Array]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            logits, stats = net.apply(params, x, state.stats, train=True, key=key)
            return cross_entropy(logits, truth), (logits, stats)

        (value, (logits, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        matrix = confusion(logits.argmax(-1), truth, classes=config.net.classes)
        return State(params, stats, moments, state.step + 1), Metrics(value, matrix)

    return jax.jit(init), jax.jit(step, donate_argnums=0)
