"""The JAX side of a pair: a port that answers in the reference's layout and names."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import unet_jax.recipe
from unet_parity.jax_twin import compile_jax
from unet_parity.pair.correspondence import (
    Correspondence,
    convert_state,
    match_tensors,
    read_converter,
)
from unet_parity.pair.intermediates import find_narrowings, record
from unet_parity.pair.layouts import Layouts, find_layouts
from unet_parity.pair.numbers import Numbers
from unet_parity.pair.passes import Arrays, PairPass, TakenStep
from unet_parity.pair.port import Port, make_port
from unet_parity.pair.port_run import PortRun, name_arrays
from unet_parity.pair.sides import Batches, Matching, ReferenceSide, Tensors
from unet_parity.pair.values import TOLERANCE, ComputedValues, Values
from unet_spec import InputError
from unet_spec.recipe import Recipe
from unet_spec.wording import list_names

FLOAT32_TOLERANCE = 1e-5
"""Two values are the same where they are this near, if the port computes in float32."""


class MatchedPort:
    """A port and its match with a reference; what it runs is compiled once for many values.

    Args:
        inputs: of the shapes on which it is traced.

    Attributes:
        matching: how it goes with the reference.
    """

    def __init__(
        self,
        port: Port,
        match: Correspondence,
        layouts: Layouts,
        *,
        reference: ReferenceSide,
        inputs: Arrays,
    ):
        self.port, self.match, self.layouts = port, match, layouts
        self._state, self._trained = reference.state, reference.trained
        self._inputs = inputs
        self._copies = match.copies()
        self.matching = Matching(
            port.has_training,
            match.unlike(reference.state),
            tuple(match.list_narrow()),
            tuple(match.missing()),
            tuple(match.unused()),
        )

        @cache
        def make_run(dtype: str, train: bool) -> PortRun:
            return PortRun(port, layouts.prepare, dtype=dtype, train=train)

        self._make_run: Callable[[str, bool], PortRun] = make_run
        self._narrowings: dict[bool, tuple[str, ...]] = {}

    def run(self, numbers: Numbers, *, dtype: str, train: bool) -> PairPass:
        """Run a pass, forward and backward."""
        leaves = self.match.to_port(numbers.tensors)
        arriving = self.layouts.give(numbers.cotangents)
        run = self._make_run(dtype, train)
        outputs, after, of_leaves, of_inputs = run.run(leaves, numbers.inputs, arriving)
        gradients = self.match.to_reference(
            {n: of_leaves.get(n, np.zeros(p.shape)) for n, p in self.match.places.items()}
        )
        held = {n: c for n, c in self._copies.items() if c.any()}
        moved = self.match.to_reference({n: np.asarray(after[n], np.float64) for n in after})
        statistics = {n: moved[n] / np.maximum(c, 1) for n, c in held.items()}
        return PairPass(
            self.layouts.take(outputs),
            self.layouts.take_inputs(of_inputs, numbers.inputs),
            {name: gradients[name] for name in self._trained if name in held},
            {name: value for name, value in statistics.items() if name not in self._trained},
        )

    def run_forward(self, numbers: Numbers, *, train: bool) -> Arrays | None:
        """Return the outputs in float64; None where it does not run on such inputs."""
        leaves, run = self.match.to_port(numbers.tensors), self._make_run("float64", train)
        try:
            run.list_outputs(leaves, numbers.inputs)
        except InputError:
            return None
        return self.layouts.take(run.run_forward(leaves, numbers.inputs))

    def compute_forward(self, numbers: Numbers, *, train: bool) -> ComputedValues:
        """Return all values of a forward pass in float64."""
        closed, arguments = self._trace(numbers.tensors, numbers.inputs, train=train)
        values, results = record(closed, arguments, tolerance=self._find_tolerance(train))
        given = Values(values.tolerance)
        for output in results[: len(self.layouts.order)]:
            given.add(output)
        return ComputedValues(values, given)

    def compute_backward(self, numbers: Numbers, *, train: bool) -> ComputedValues:
        """Return all values of a pass in float64, forward and backward."""
        with jax.enable_x64(True):
            closed, arguments = self._make_run("float64", train).trace_both(
                self.match.to_port(numbers.tensors),
                numbers.inputs,
                self.layouts.give(numbers.cotangents),
            )
        values, _ = record(closed, arguments, tolerance=self._find_tolerance(train))
        return ComputedValues(values, Values())

    def find_narrowings(self, *, train: bool) -> tuple[str, ...]:
        """Return the functions in which it computes in float32 or less, though given float64."""
        if train not in self._narrowings:
            closed, _ = self._trace(self._state, self._inputs, train=train)
            self._narrowings[train] = tuple(dict.fromkeys(find_narrowings(closed.jaxpr)))
        return self._narrowings[train]

    def take_steps(
        self, tensors: Tensors, batches: Batches, recipe: Recipe, *, train: bool
    ) -> Iterator[TakenStep]:
        """Train in float64 on the mean square of the distance to targets."""
        trained = [
            name for name in self.match.places if set(self.match.sources(name)) & set(self._trained)
        ]
        with jax.enable_x64(True):
            leaves = {n: _widen(a) for n, a in self.match.to_port(tensors).items()}
            optimizer = unet_jax.recipe.build(recipe)
            params = {name: leaves[name] for name in trained}
            state = optimizer.init(params)
            move = jax.jit(unet_jax.recipe.make_update(optimizer))

            def loss(params: Any, leaves: Any, inputs: Any, targets: Any) -> Any:
                outputs, after = self.port.run({**leaves, **params}, tuple(inputs), train)
                arrays = list(name_arrays(outputs).values())
                squares = [jnp.square(y - t).mean() for y, t in zip(arrays, targets, strict=True)]
                return sum(squares), after

            differentiate = compile_jax(jax.value_and_grad(loss, has_aux=True), "float64")
        for inputs, targets in batches:
            with jax.enable_x64(True):
                port_inputs = [_widen(x) for x in self.layouts.prepare(inputs)]
                goals = [_widen(t) for t in self.layouts.give(targets)]
                (value, after), gradients = differentiate(params, leaves, port_inputs, goals)
                params, state = move(params, state, gradients, value)
                leaves = {**after, **params}
                weights = self.match.to_reference(
                    {n: np.asarray(a, np.float64) for n, a in leaves.items()}
                )
            copies = self._copies
            yield TakenStep(
                float(value),
                {n: weights[n] / copies[n] for n in self._trained if copies[n].all()},
            )

    def _trace(self, tensors: Tensors, inputs: Arrays, *, train: bool) -> Any:
        with jax.enable_x64(True):
            return self._make_run("float64", train).trace(self.match.to_port(tensors), inputs)

    def _find_tolerance(self, train: bool) -> float:
        return FLOAT32_TOLERANCE if self.find_narrowings(train=train) else TOLERANCE


def _widen(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float64 if array.dtype.kind == "f" else None)


def match_port(
    reference: ReferenceSide,
    port: Any,
    inputs: Arrays,
    outputs: Mapping[str, np.ndarray],
    *,
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
) -> MatchedPort:
    """Return somebody's port as the side of a pair.

    The arguments are those of `unet_parity.verify_pair`.

    Args:
        inputs: in the order of the reference's arguments.
        outputs: of the reference on these, by their paths.

    Raises:
        InputError: the port does not run, or the two cannot be matched.
    """
    wrapped, match = _match_tensors(reference, port, params=params, convert=convert, names=names)
    run = PortRun(wrapped, lambda arrays: arrays, dtype="float64", train=False)
    leaves = match.to_port(reference.state)
    try:
        layouts = find_layouts(
            inputs,
            {name: y.shape for name, y in outputs.items()},
            lambda arrays: run.list_outputs(leaves, arrays),
            channels_last=channels_last,
        )
    except InputError as error:
        if match.missing():
            missing = list_names(match.missing(), 4)
            raise InputError(f"{error}; it is given no values of {missing}") from error
        raise
    return MatchedPort(wrapped, match, layouts, reference=reference, inputs=inputs)


def _match_tensors(
    reference: ReferenceSide,
    port: Any,
    *,
    params: Any,
    convert: Callable[[Any], Any] | None,
    names: Mapping[str, str] | None,
) -> tuple[Port, Correspondence]:
    """Return the port, and which of its values are which of the reference's.

    Raises:
        InputError: they cannot be matched.
    """
    if convert is not None:
        if params is not None or names is not None:
            raise InputError("convert says all that params and names say; leave these out")
        match = read_converter(convert, reference.state, reference.tied)
        result = convert_state(convert, reference.state)
        if result is None:
            raise InputError("convert returns None; let it return the port's parameters")
        return make_port(port, result), match
    wrapped = make_port(port, params)
    return wrapped, match_tensors(reference.state, wrapped.leaves, names, reference.tied)
