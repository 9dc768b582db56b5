"""Where the first value was made that is not finite."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from unet_jax import functional, recipe
from unet_jax.functional import fill_arrays
from unet_jax.model import UNet
from unet_spec.parameters import parameters

from .. import losses
from ..config import TrainConfig
from ..devices.placement import Placement
from ..devices.processes import gather_to_host
from ..input.crops import Batch, choose_samples, cut_batch
from ..input.samples import Sample
from ..step import (
    State,
    accumulate_gradients,
    dropout_keys,
    make_numerics,
    prepare_batch,
    split_into_parts,
)


def explain_step(
    config: TrainConfig, placement: Placement, samples: Sequence[Sample], state: State
) -> str:
    """Compute the step after a state again, in parts, and say in words what is not finite.

    Args:
        samples: those to train on.
    """
    data, seed, step = config.data, config.seed, int(state.step)
    chosen = choose_samples(len(samples), step, data=data, seed=seed)
    names = [samples[number].name for number in chosen]
    rows = placement.local(data.batch)
    crops = cut_batch(samples, step, data=data, net=config.net, seed=seed, rows=rows)
    prepare = jax.jit(partial(prepare_batch, config))
    batch = prepare(placement.put(crops, batch=data.batch), np.int32(step))
    try:
        return explain_nonfinite(config, gather_to_host(state), gather_to_host(batch), names)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return f"where is not known, for that step by itself, in parts, fails ({reason})"


def explain_nonfinite(config: TrainConfig, state: State, batch: Batch, names: Sequence[str]) -> str:
    """Say in words what is not finite, where it came to be and in which image.

    Args:
        state: before the step.
        batch: what the net saw in the step.
        names: of the images of the batch.
    """
    state, batch = jax.tree.map(jnp.asarray, (state, batch))
    if (image := _first_nonfinite_image(batch.x)) is not None:
        return f"the input made from {names[image]} holds NaN or infinite values"
    for path, array in {**state.params, **state.stats}.items():
        if not _is_finite(array):
            return f"{path} holds NaN or infinite values"
    count = config.accumulate
    parts = split_into_parts(batch, count)
    for index, key in enumerate(dropout_keys(config.seed, state.step, parts=count)):
        part = jax.tree.map(lambda array, i=index: array[i], parts)
        reason = _explain_part(config, state, part, names[index::count], key)
        if reason is not None:
            return reason
    gradients, _, loss, _ = accumulate_gradients(config, state, batch)
    updates, _ = recipe.build(config.recipe).update(
        gradients, state.optimizer, state.params, value=loss
    )
    for parameter in parameters(config.net):
        if parameter.trained and not _is_finite(updates[parameter.name]):
            return f"all gradients are finite, but the update of {parameter.name} is not"
    for what, arrays in (("gradients", gradients), ("updates", updates)):
        if not _is_finite(optax.tree.norm(arrays)):
            return f"all {what} are finite, but so large that their norm is not"
    return "outside of the compiled step every module, gradient and update is finite"


def _explain_part(
    config: TrainConfig, state: State, batch: Batch, names: Sequence[str], key: jax.Array
) -> str | None:
    """Say what in one part of an accumulated step is not finite; None where all is."""
    for path, output in _record_outputs(config, state, batch.x, key):
        if (image := _first_nonfinite_image(output)) is not None:
            return f"{path} is the first module whose output is not finite, in {names[image]}"
    for image, name in enumerate(names):
        one = jax.tree.map(lambda array, i=image: array[i : i + 1], batch)
        if not _is_finite(_loss_of_logits(config, output[image : image + 1], one)):
            return f"every module is finite, but the loss is not, in {name}"
    gradients = jax.grad(lambda params: _loss(config, params, state, batch, key))(state.params)
    bad = [
        p.name for p in parameters(config.net) if p.trained and not _is_finite(gradients[p.name])
    ]
    if bad:  # from the loss backwards, so the last one is the first that went wrong
        return f"the output is finite, but the gradient of {bad[-1]} is not"
    return None


def _record_outputs(
    config: TrainConfig, state: State, x: jax.Array, key: jax.Array
) -> list[tuple[str, jax.Array]]:
    """Return the path and the output of every leaf module, in the order of the calls."""
    plain = make_numerics(config.compute, remat=False)  # which would trace what is watched
    net = nnx.eval_shape(lambda: UNet(config.net, numerics=plain, rngs=nnx.Rngs(0)))
    model = fill_arrays(net, {**state.params, **state.stats})
    model.train()
    outputs: list[tuple[str, jax.Array]] = []
    leaves = [
        (path, module) for path, module in nnx.iter_modules(model) if path and _is_leaf(module)
    ]
    for path, module in leaves:
        name = ".".join(str(part) for part in path if part != "layers")
        _replace_module(model, path, _RecordingModule(name, module, outputs))
    model(x, rngs=nnx.Rngs(dropout=key))
    return outputs


def _is_leaf(module: nnx.Module) -> bool:
    """Return whether a module computes by itself: it holds no other module."""
    return not any(isinstance(child, nnx.Module) for _, child in nnx.iter_children(module))


class _RecordingModule:
    """A `_RecordingModule` calls a module and appends (path, output) to a list."""

    def __init__(self, path: str, module: Any, outputs: list[tuple[str, jax.Array]]):
        self.path, self.module, self.outputs = path, module, outputs

    def __call__(self, *arguments: Any) -> jax.Array:
        output = self.module(*arguments)
        self.outputs.append((self.path, output))
        return output


def _replace_module(model: nnx.Module, path: tuple[Any, ...], value: Any) -> None:
    """Put a value in the place of a module inside of a model."""
    above: Any = model
    for name in path[:-1]:
        above = above[name] if isinstance(name, int) else getattr(above, name)
    if isinstance(path[-1], int):
        above[path[-1]] = value
    else:
        setattr(above, path[-1], value)


def _loss(
    config: TrainConfig, params: Any, state: State, batch: Batch, key: jax.Array
) -> jax.Array:
    """Return the loss of one part of a batch."""
    numerics = make_numerics(config.compute, remat=config.remat)
    apply = functional(config.net, numerics=numerics).apply
    logits, _ = apply(params, batch.x, state.stats, train=True, key=key)
    return _loss_of_logits(config, logits, batch)


def _loss_of_logits(config: TrainConfig, logits: jax.Array, batch: Batch) -> jax.Array:
    """Return the loss of logits of a batch."""
    return losses.loss(
        logits, batch.truth, batch.weight, config=config.loss, output=config.net.output
    )


def _first_nonfinite_image(array: Any) -> int | None:
    """Return the index of the first image that is not finite; None where all are."""
    values = np.asarray(array, np.float32)
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return int(bad.argmax()) if bad.any() else None


def _is_finite(array: Any) -> bool:
    """Return whether all values of an array are finite."""
    return bool(np.isfinite(np.asarray(array, np.float32)).all())
