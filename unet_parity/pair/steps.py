"""Training steps of both sides of a pair, from the same values on the same batches, in float64."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import unet_jax.recipe
import unet_torch.recipe
from unet_parity.differences import difference
from unet_parity.jax_twin import compile_jax
from unet_parity.pair.comparison import PairComparer
from unet_parity.pair.passes import Arrays, call_reference, name_arrays, to_torch
from unet_parity.torch_twin import numpy_of
from unet_parity.training import BOUND, make_update
from unet_spec.recipe import Recipe


@dataclass(frozen=True)
class PairSteps:
    """Training steps of a pair.

    Attributes:
        torch_losses: before each step.
        jax_losses: likewise.
        distances: of the port's parameters from the reference's after each step: the largest
            difference over the largest value.
        furthest: after each step, the parameter that is furthest.
    """

    torch_losses: list[float]
    jax_losses: list[float]
    distances: list[float]
    furthest: list[str]

    @property
    def first_wrong(self) -> int | None:
        """Return the number of the first step after which they are too far apart, from 1."""
        return next((i + 1 for i, d in enumerate(self.distances) if not d <= BOUND), None)

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        step = self.first_wrong
        if step is None:
            return ""
        return (
            f"after training step {step} the parameters are {self.distances[step - 1]:.1e} apart in"
            f" float64, {BOUND:.0e} allowed; furthest is {self.furthest[step - 1]}"
        )


def train_side_by_side(
    comparer: PairComparer,
    tensors: Mapping[str, np.ndarray],
    batches: list[tuple[Arrays, Arrays]],
    recipe: Recipe,
) -> PairSteps:
    """Train both sides on the mean square of the distance to random targets.

    Args:
        batches: (inputs, targets) of each step, as the reference has them.
    """
    recipe = recipe.for_steps(len(batches))
    steps = PairSteps([], [], [], [])
    ours = _train_reference(comparer, tensors, batches, recipe)
    theirs = _train_port(comparer, tensors, batches, recipe)
    for (loss, values), (other_loss, others) in zip(ours, theirs, strict=True):
        sizes = {name: difference(values[name], others[name]) for name in others}
        furthest = max(sizes, key=lambda name: sizes[name])
        steps.torch_losses.append(loss)
        steps.jax_losses.append(other_loss)
        steps.distances.append(sizes[furthest])
        steps.furthest.append(furthest)
    return steps


def _train_reference(
    comparer: PairComparer,
    tensors: Mapping[str, np.ndarray],
    batches: list[tuple[Arrays, Arrays]],
    recipe: Recipe,
) -> Any:
    model = comparer.reference.load(tensors, dtype="float64", train=comparer.train)
    optimizer, scheduler = unet_torch.recipe.build(recipe, model.named_parameters())
    for step, (inputs, targets) in enumerate(batches):
        outputs = call_reference(model, to_torch(inputs, "float64"))
        goals = [torch.tensor(t, dtype=torch.float64) for t in targets]
        loss = torch.stack(
            [(y - t).square().mean() for y, t in zip(outputs, goals, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step, value=loss.item())
        yield loss.item(), {name: numpy_of(p) for name, p in model.named_parameters()}


def _train_port(
    comparer: PairComparer,
    tensors: Mapping[str, np.ndarray],
    batches: list[tuple[Arrays, Arrays]],
    recipe: Recipe,
) -> Any:
    match, port, layouts = comparer.match, comparer.port, comparer.layouts
    trained = [
        name for name in match.places if set(match.sources(name)) & set(comparer.reference.trained)
    ]
    copies = match.copies()
    with jax.enable_x64(True):
        leaves = {n: _widen(a) for n, a in match.to_port(tensors).items()}
        optimizer = unet_jax.recipe.build(recipe)
        params = {name: leaves[name] for name in trained}
        state = optimizer.init(params)
        move = jax.jit(make_update(optimizer))

        def loss(params: Any, leaves: Any, inputs: Any, targets: Any) -> Any:
            outputs, after = port.run({**leaves, **params}, tuple(inputs), comparer.train)
            port_outputs = list(name_arrays(outputs).values())
            squares = [jnp.square(y - t).mean() for y, t in zip(port_outputs, targets, strict=True)]
            return sum(squares), after

        differentiate = compile_jax(jax.value_and_grad(loss, has_aux=True), "float64")
    for inputs, targets in batches:
        with jax.enable_x64(True):
            port_inputs = [_widen(x) for x in layouts.prepare(inputs)]
            goals = [_widen(t) for t in layouts.give(targets)]
            (value, after), gradients = differentiate(params, leaves, port_inputs, goals)
            params, state = move(params, state, gradients, value)
            leaves = {**after, **params}
            weights = match.to_reference({n: np.asarray(a, np.float64) for n, a in leaves.items()})
        yield (
            float(value),
            {n: weights[n] / copies[n] for n in comparer.reference.trained if copies[n].all()},
        )


def _widen(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float64 if array.dtype.kind == "f" else None)
