"""Passes through a port in its own layout, compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unet_parity.jax_twin import compile_jax, fetch_tree
from unet_parity.pair.passes import Arrays
from unet_parity.pair.port import Leaves, Port, is_float, name_leaves
from unet_parity.twins import is_small
from unet_spec import InputError


class PortRun:
    """Passes through the port, compiled once for many values.

    Args:
        prepare: brings the inputs from the reference's layout to the port's.
    """

    def __init__(self, port: Port, prepare: Callable[[Arrays], Arrays], *, dtype: str, train: bool):
        self.port, self.prepare, self.dtype, self.train = port, prepare, dtype, train

        @cache
        def compile_run(run: Callable[..., Any], quick: bool) -> Callable[..., Any]:
            return compile_jax(run, dtype, quick=quick)

        self._compile = compile_run

    def list_outputs(self, leaves: Leaves, inputs: Arrays) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs by their paths, in order.

        Raises:
            InputError: the port raises an error.
        """

        names: list[str] = []

        def run(leaves: Leaves, inputs: list[Any]) -> list[Any]:
            outputs = name_arrays(self.port.run(leaves, tuple(inputs), self.train)[0])
            names.extend(outputs)
            return list(outputs.values())

        with jax.enable_x64(self.dtype == "float64"):
            try:
                shapes = jax.eval_shape(run, *self._enter(leaves, inputs))
            except Exception as error:  # whatever a stranger's code raises
                arguments = ", ".join(str(x.shape) for x in self.prepare(inputs))
                text = " ".join(str(error).split())[:300]
                raise InputError(
                    f"the port does not run on inputs of the shapes {arguments}: "
                    f"{type(error).__name__}: {text}"
                ) from error
        return {name: shape.shape for name, shape in zip(names, shapes, strict=True)}

    def run(self, leaves: Leaves, inputs: Arrays, cotangents: Arrays) -> tuple[Any, ...]:
        """Return outputs, the parameters after the pass, and the gradients of the floating-point
        parameters and inputs, all as the port lays them out."""
        with jax.enable_x64(self.dtype == "float64"):
            arguments = [jnp.asarray(c, self.dtype) for c in cotangents]
            run = self._compile(self._run_both, _are_small(inputs))
            result = run(*self._enter(leaves, inputs), arguments)
        outputs, after, of_leaves, of_inputs = map(fetch_tree, result)
        return tuple(outputs), after, of_leaves, tuple(of_inputs)

    def run_forward(self, leaves: Leaves, inputs: Arrays) -> Arrays:
        """Return the outputs alone, as the port lays them out."""
        with jax.enable_x64(self.dtype == "float64"):
            run = self._compile(self._run_forward, _are_small(inputs))
            outputs, _ = run(*self._enter(leaves, inputs))
        return tuple(fetch_tree(outputs))

    def trace(self, leaves: Leaves, inputs: Arrays) -> tuple[Any, list[Any]]:
        """Return the port's forward pass as a jaxpr, and the arrays to evaluate it with."""
        entered = self._enter(leaves, inputs)
        closed = jax.make_jaxpr(self._run_forward)(*entered)
        return closed, jax.tree.leaves(entered)

    def trace_both(
        self, leaves: Leaves, inputs: Arrays, cotangents: Arrays
    ) -> tuple[Any, list[Any]]:
        """Return likewise the forward and the backward pass."""
        entered = (*self._enter(leaves, inputs), [jnp.asarray(c, self.dtype) for c in cotangents])
        return jax.make_jaxpr(self._run_both)(*entered), jax.tree.leaves(entered)

    def _enter(self, leaves: Leaves, inputs: Arrays) -> tuple[Leaves, list[Any]]:
        def cast(array: np.ndarray) -> jax.Array:
            return jnp.asarray(array, self.dtype if is_float(array) else None)

        return (
            {name: cast(leaf) for name, leaf in leaves.items()},
            [cast(x) for x in self.prepare(inputs)],
        )

    def _run_forward(self, leaves: Leaves, inputs: list[Any]) -> tuple[list[Any], Leaves]:
        outputs, after = self.port.run(leaves, tuple(inputs), self.train)
        return list(name_arrays(outputs).values()), after

    def _run_both(self, leaves: Leaves, inputs: list[Any], cotangents: list[Any]) -> Any:
        moved = {n: a for n, a in leaves.items() if jnp.issubdtype(a.dtype, jnp.floating)}
        places = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]

        def forward(moved: Leaves, floats: list[Any]) -> Any:
            arguments = list(inputs)
            for place, x in zip(places, floats, strict=True):
                arguments[place] = x
            return self._run_forward({**leaves, **moved}, arguments)

        outputs, pull, after = jax.vjp(forward, moved, [inputs[i] for i in places], has_aux=True)
        arguments = [c.astype(y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
        return outputs, after, *pull(arguments)


def _are_small(inputs: Arrays) -> bool:
    """Say whether a pass takes less than its optimised compilation, which only images change."""
    return all(is_small(x) for x in inputs if x.ndim == 4)


def name_arrays(outputs: Any) -> Leaves:
    """Return the floating-point arrays of outputs by their paths."""
    return {
        name: y
        for name, y in name_leaves(outputs).items()
        if jnp.issubdtype(getattr(y, "dtype", np.int32), jnp.floating)
    }
