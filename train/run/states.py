"""The state of a step as a checkpoint and as a weight file hold it, and back on the devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.training_state import average_of, from_training_state
from unet_jax.training_state import to_training_state as describe_run
from unet_jax.weights import place_array
from unet_spec import layout
from unet_spec.origin import Origin
from unet_spec.parameters import parameters
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

from ..config import TrainConfig
from ..step import State, copy_for_average


def to_training_state(
    config: TrainConfig, state: State, *, origin: Origin | None = None, devices: str = ""
) -> TrainingState:
    """Return what a checkpoint holds of a state, whose arrays are on the host.

    Args:
        origin: of the net that the run started from.
        devices: what computed it, in words.
    """
    return describe_run(
        config.net,
        config.recipe,
        state.params,
        state.stats,
        state.optimizer,
        preprocessing=config.preprocessing,
        class_names=config.class_names,
        origin=origin,
        average=state.ema,
        devices=devices,
    )


def to_weight_file(
    config: TrainConfig, state: State, *, origin: Origin | None = None
) -> WeightFile:
    """Return what predicts: the weights of a state, or their average, where the config has one.

    Args:
        origin: of the net that the run started from.
    """
    arrays = {**state.params, **state.stats, **state.ema}
    tensors = layout.to_torch(config.net, arrays)
    return WeightFile(config.net, tensors, config.preprocessing, config.class_names, origin)


def resume_state(source: TrainingState, like: State) -> State:
    """Return the state in a checkpoint, on the devices of `like`, with everything it holds."""
    params, stats, optimizer = from_training_state(source)
    average = average_of(source)
    if like.ema and not average:  # a run that kept none begins one
        average = copy_for_average(params, stats)
    step = jnp.asarray(source.step, jnp.int32)
    ema = average if like.ema else {}
    return _place(State(params, stats, optimizer, ema, step, jnp.zeros((), bool)), like)


def start_from_weights(source: WeightFile, like: State) -> State:
    """Return the state at step 0 with these weights, on the devices of `like`."""
    arrays = {
        name: place_array(name, array, jnp.result_type(float))
        for name, array in layout.to_jax(source.config, source.tensors).items()
    }
    trained = {p.name for p in parameters(source.config) if p.trained}
    params = {name: array for name, array in arrays.items() if name in trained}
    stats = {name: array for name, array in arrays.items() if name not in trained}
    ema = copy_for_average(params, stats) if like.ema else {}
    return _place(like._replace(params=params, stats=stats, ema=ema), like)


def _place(state: State, like: State) -> State:
    """Return the arrays of a state in the types and on the devices of another."""

    def place(array: Any, model: Any) -> jax.Array:
        host = np.asarray(array, model.dtype)  # a file may hold float64
        return jax.make_array_from_callback(host.shape, model.sharding, lambda part: host[part])

    return jax.tree.map(place, state, like)
