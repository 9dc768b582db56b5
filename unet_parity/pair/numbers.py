"""The numbers that both sides of a pair are given, drawn around those of the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unet_parity.differences import hash_tensors
from unet_parity.pair.passes import Arrays

LARGE = 8.0
"""Every second draw of the inputs has so much larger values: ReLU6 differs from ReLU above 6, and a
mask of -1e4 from one of -inf where values are large."""
Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs, in order."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """What both sides of a pair are given for one pass.

    Attributes:
        name: by which a recording knows them, such as `seed 1`.
        tensors: of the reference, by their names.
        inputs: as the reference takes them.
        cotangents: gradients of a loss by the reference's outputs; empty for a forward pass.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    inputs: Arrays
    cotangents: Arrays = ()

    @cached_property
    def sha256(self) -> str:
        """Return the sha256 of all of them."""
        arrays = enumerate((*self.inputs, *self.cotangents))
        return hash_tensors({**self.tensors, **{f"array {i}": array for i, array in arrays}})


def draw_numbers(
    state: Mapping[str, np.ndarray], inputs: Arrays, outputs: Arrays, *, seed: int
) -> Numbers:
    """Draw the numbers of a seed; 0 stands for the reference's own values and inputs.

    Args:
        outputs: of the reference, for their shapes.
    """
    rng = np.random.default_rng((seed, 1))
    return Numbers(
        f"seed {seed}",
        state if seed == 0 else draw_tensors(state, seed=seed),
        inputs if seed == 0 else draw_inputs(inputs, seed, spread=1.0 if seed % 2 else LARGE),
        tuple(rng.standard_normal(y.shape).astype(np.float32) for y in outputs),
    )


def draw_size(state: Mapping[str, np.ndarray], inputs: Arrays, shapes: Shapes) -> Numbers:
    """Draw the numbers with which a pair is compared on inputs of other shapes."""
    name = f"inputs of {' and '.join(map(str, shapes))}"
    return Numbers(name, draw_tensors(state, seed=1), draw_shapes(inputs, shapes, seed=1))


def name_inputs(inputs: Arrays) -> dict[str, np.ndarray]:
    """Return inputs by what sentences call them."""
    return {f"input {place + 1}": x for place, x in enumerate(inputs)}


def draw_tensors(state: Mapping[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """Draw values around those of a reference; what is never negative stays so."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, array in state.items():
        if array.dtype.kind != "f":
            drawn[name] = array
        elif name.endswith("running_var"):
            drawn[name] = (array * rng.uniform(0.5, 1.5, array.shape)).astype(array.dtype)
        else:
            spread = float(array.std()) if array.size > 1 else 0.0
            noise = rng.standard_normal(array.shape) * (spread or 0.2)
            drawn[name] = (array + noise).astype(array.dtype)
    return drawn


def draw_inputs(inputs: Arrays, seed: int, *, spread: float = 1.0) -> Arrays:
    """Draw inputs of the same shapes; integers stay as they are.

    Args:
        spread: of the values, as a multiple of that of the given ones.
    """
    rng = np.random.default_rng((seed, 2))
    return tuple(
        (x.mean() + spread * (x.std() or 1.0) * rng.standard_normal(x.shape)).astype(x.dtype)
        if x.dtype.kind == "f"
        else x
        for x in inputs
    )


def draw_shapes(inputs: Arrays, shapes: Shapes, *, seed: int) -> Arrays:
    """Draw inputs of other shapes: floating-point numbers spread as before, integers of these."""
    rng = np.random.default_rng((seed, 4))
    return tuple(
        (x.mean() + (x.std() or 1.0) * rng.standard_normal(shape)).astype(x.dtype)
        if x.dtype.kind == "f"
        else rng.choice(x.ravel(), shape)
        for x, shape in zip(inputs, shapes, strict=True)
    )


def draw_batch(inputs: Arrays, outputs: Arrays, step: int) -> tuple[Arrays, Arrays]:
    """Draw the inputs and the targets of a training step."""
    rng = np.random.default_rng((step, 3))
    targets = tuple(rng.standard_normal(y.shape).astype(np.float32) for y in outputs)
    return draw_inputs(inputs, step + 1), targets
