"""The state of a run, to and from arrays of the port."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from unet_jax import recipe as jax_recipe
from unet_jax.functional import split
from unet_jax.recipe import OptimizerState, Plateau
from unet_jax.weights import place_array
from unet_spec import Preprocessing, UNetConfig, layout
from unet_spec.origin import Origin
from unet_spec.recipe import Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

Arrays = Mapping[str, Any]


def from_training_state(
    state: TrainingState,
) -> tuple[dict[str, Array], dict[str, Array], OptimizerState]:
    """Return (params, stats, optimizer's state), for `functional` and `unet_jax.recipe.build`.

    A float64 run stays so under `jax.enable_x64` and becomes float32 without.
    """
    config = state.weights.config
    arrays = layout.to_jax(config, state.weights.tensors)
    slots = {name: _to_jax(state, tensors) for name, tensors in state.slots.items()}
    return (
        *split(config, {name: place_array(name, a, _kind(a)) for name, a in arrays.items()}),
        OptimizerState(
            jnp.asarray(state.step, jnp.int32),
            jnp.asarray(state.scheduler["lr"], float),
            slots,
            _plateau(state),
        ),
    )


def average_of(state: TrainingState) -> dict[str, Array]:
    """Return the running average in JAX's layout; {} where the run keeps none."""
    return _to_jax(state, state.average)


def to_training_state(
    config: UNetConfig,
    recipe: Recipe,
    params: Arrays,
    stats: Arrays,
    state: OptimizerState,
    *,
    preprocessing: Preprocessing = Preprocessing(),
    class_names: tuple[str, ...] = (),
    origin: Origin | None = None,
    average: Arrays = MappingProxyType({}),
    devices: str = "",
) -> TrainingState:
    """Return the run as NumPy arrays in torch's layout; the arguments stay as they are.

    Args:
        average: the running average of `params` and `stats`, as `average_of` returns it.
        devices: what computed it, in words.
    """
    weights = WeightFile(
        config, layout.to_torch(config, {**params, **stats}), preprocessing, class_names, origin
    )
    return TrainingState(
        weights,
        recipe,
        int(state.step),
        {name: layout.to_torch(config, group) for name, group in state.slots.items()},
        _scheduler(recipe, state),
        layout.to_torch(config, average),
        devices,
    )


def _to_jax(state: TrainingState, tensors: Arrays) -> dict[str, Array]:
    """Some tensors in JAX's layout, which takes those of a whole net."""
    whole = {**state.weights.tensors, **tensors}
    arrays = layout.to_jax(state.weights.config, whole)
    return {name: place_array(name, arrays[name], _kind(arrays[name])) for name in tensors}


def _kind(array: np.ndarray) -> Any:
    return jnp.result_type(float) if array.dtype == np.float64 else array.dtype


def _plateau(state: TrainingState) -> Plateau | None:
    if state.recipe.schedule.name != "plateau":
        return None
    values = state.scheduler
    return Plateau(
        jnp.asarray(values["best"], float),
        jnp.asarray(values["num_bad_epochs"], jnp.int32),
        jnp.asarray(values["cooldown_counter"], jnp.int32),
        jnp.asarray(values["last_epoch"], jnp.int32),
    )


def _scheduler(recipe: Recipe, state: OptimizerState) -> dict[str, float]:
    plain = {"lr": float(state.lr), "last_epoch": int(state.step) // recipe.schedule.every}
    if recipe.schedule.cycles_momentum:
        plain["momentum"] = float(jax_recipe.momentum(recipe, state))
    if state.plateau is None:
        return plain
    return {
        **plain,
        "best": float(state.plateau.best),
        "num_bad_epochs": int(state.plateau.num_bad_epochs),
        "cooldown_counter": int(state.plateau.cooldown_counter),
        "last_epoch": int(state.plateau.last_epoch),
    }
