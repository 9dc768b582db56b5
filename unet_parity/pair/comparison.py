"""Both sides of a pair on the same numbers: float64 must agree, and float32 err alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import torch

from unet_parity.compared import NET
from unet_parity.differences import difference, error_ratio, module_of, rms
from unet_parity.float32_errors import GRADIENT_FACTOR
from unet_parity.oracle import FACTOR, OUTPUT_BOUND
from unet_parity.pair.blame import Blame, find_fault
from unet_parity.pair.correspondence import Correspondence
from unet_parity.pair.distances import (
    Allowed,
    Differences,
    allow,
    allow_float32,
    measure,
    worst_difference,
)
from unet_parity.pair.gradients import find_module, log_backward
from unet_parity.pair.intermediates import TOLERANCE, Values, find_narrowings, record
from unet_parity.pair.layouts import Layouts
from unet_parity.pair.operations import Operation, log_forward
from unet_parity.pair.passes import Arrays, PairPass, PortRun, Reference, call_reference, to_torch
from unet_parity.pair.port import Port
from unet_parity.pair.recognise import recognise_gradient, recognise_statistic

Tensors = Mapping[str, np.ndarray]
FLOAT32_TOLERANCE = 1e-5
"""Two values are the same where they are this near, if the port computes in float32."""
MOST_LOCATED = 2**18
"""Of inputs with more values, every operation of both sides would take too much memory."""


@dataclass(frozen=True)
class PairComparison:
    """A pair in one mode; differences in float64 are relative.

    Attributes:
        mode: `inference` or `training`.
        seed: of the numbers.
        output: the largest difference of the outputs.
        input_gradient: likewise.
        gradients: likewise of each trained parameter, over the largest in its module.
        statistics: likewise of what training moves beside the parameters.
        torch_error: of the outputs in float32 against float64, root mean square over their scale.
        jax_error: likewise.
        near_ties: values so near to where a ReLU or a pool decides that rounding may turn it; they
            are counted only where gradients are out of line in float32.
        blame: where the port first leaves the reference; None where it does not.
        problems: all that is out of bounds, in words, the first fault first.
    """

    mode: str
    seed: int
    output: float
    input_gradient: float
    gradients: dict[str, float]
    statistics: dict[str, float]
    torch_error: float
    jax_error: float
    near_ties: int
    blame: Blame | None
    problems: tuple[str, ...]


class PairComparer:
    """Compares one pair in one mode, compiled once for many values of one shape.

    Args:
        inputs: of that shape.
    """

    def __init__(
        self,
        reference: Reference,
        port: Port,
        match: Correspondence,
        layouts: Layouts,
        *,
        inputs: Arrays,
        train: bool,
    ):
        self.reference, self.port, self.match = reference, port, match
        self._inputs = inputs
        self.layouts, self.train = layouts, train
        self._copies = match.copies()
        self._runs = {
            dtype: PortRun(port, layouts.prepare, dtype=dtype, train=train)
            for dtype in ("float64", "float32")
        }

    def __call__(
        self, tensors: Tensors, inputs: Arrays, cotangents: Arrays, *, seed: int = 0
    ) -> PairComparison:
        """Compare both sides on these values.

        Args:
            cotangents: gradients of a loss by the reference's outputs.
            seed: of these values, for the report.
        """
        numbers = tensors, inputs, cotangents
        truth = self.run_reference(*numbers, dtype="float64")
        port = self.run_port(*numbers, dtype="float64")
        ours = self.run_reference(*numbers, dtype="float32")
        differences = measure(truth, port)
        allowed = allow(measure(truth, ours))
        problems = list(differences.list_problems(allowed))
        if problems and self.narrowings:
            allowed = allow_float32(measure(truth, ours))
            problems = list(differences.list_problems(allowed))
        blame = self._find_blame(*numbers, truth, port, differences, allowed) if problems else None
        errors, near_ties = (np.nan, np.nan), 0
        if blame is None:
            errors, near_ties, problems = self._compare_float32(*numbers, truth, ours)
        return PairComparison(
            "training" if self.train else "inference", seed, *differences, *errors, near_ties,
            blame, tuple([str(blame), *problems] if blame else problems),
        )  # fmt: skip

    @cached_property
    def narrowings(self) -> tuple[str, ...]:
        """The functions in which the port computes in float32 or less, though given float64."""
        closed, _ = self._trace_port(self.reference.state, self._inputs)
        return tuple(dict.fromkeys(find_narrowings(closed.jaxpr)))

    @property
    def _tolerance(self) -> float:
        return FLOAT32_TOLERANCE if self.narrowings else TOLERANCE

    def _find_blame(
        self,
        tensors: Tensors,
        inputs: Arrays,
        cotangents: Arrays,
        truth: PairPass,
        port: PairPass,
        differences: Differences,
        allowed: Allowed,
    ) -> Blame:
        """Find where the port leaves the reference."""
        if not differences.output <= allowed.output:
            return self._blame_forward(tensors, inputs, truth.outputs, port.outputs)
        statistics = [n for n, size in differences.statistics.items() if not size <= allowed.output]
        if statistics:
            return self._blame_statistic(tensors, truth, port, statistics[0])
        bad = [name for name, size in differences.gradients.items() if not size <= allowed.gradient]
        return self._blame_backward(tensors, inputs, cotangents, truth, port, bad)

    def compare_outputs(
        self, tensors: Tensors, inputs: Arrays
    ) -> tuple[float, float, Blame | None]:
        """Return the largest relative difference of the outputs in float64, what is allowed, and
        where the port leaves the reference if it is out of bounds.

        Raises:
            InputError: one of both does not run.
        """
        truth, ours = (
            self.reference.run(tensors, inputs, dtype=dtype, train=self.train).outputs
            for dtype in ("float64", "float32")
        )
        leaves, run = self.match.to_port(tensors), self._runs["float64"]
        run.list_outputs(leaves, inputs)
        port = self.layouts.take(run.run_forward(leaves, inputs))
        size = worst_difference(truth, port)
        rounding = Differences(worst_difference(truth, ours), 0.0, {}, {})
        allowed = (allow_float32 if self.narrowings else allow)(rounding).output
        if size <= allowed or sum(x.size for x in inputs) > MOST_LOCATED:
            return size, allowed, None
        return size, allowed, self._blame_forward(tensors, inputs, truth, port)

    def run_reference(
        self, tensors: Tensors, inputs: Arrays, cotangents: Arrays, *, dtype: str
    ) -> PairPass:
        """Run a pass through the reference."""
        return self.reference.run(
            tensors, inputs, dtype=dtype, train=self.train, cotangents=cotangents
        )

    def run_port(
        self, tensors: Tensors, inputs: Arrays, cotangents: Arrays, *, dtype: str
    ) -> PairPass:
        """Run a pass through the port; everything comes in the reference's layout and names."""
        leaves = self.match.to_port(tensors)
        numbers = self.layouts.give(cotangents)
        outputs, after, of_leaves, of_inputs = self._runs[dtype].run(leaves, inputs, numbers)
        gradients = self.match.to_reference(
            {n: of_leaves.get(n, np.zeros(p.shape)) for n, p in self.match.places.items()}
        )
        held = {n: c for n, c in self._copies.items() if c.any()}
        moved = self.match.to_reference({n: np.asarray(after[n], np.float64) for n in after})
        statistics = {n: moved[n] / np.maximum(c, 1) for n, c in held.items()}
        trained = self.reference.trained
        return PairPass(
            self.layouts.take(outputs),
            self.layouts.take_inputs(of_inputs, inputs),
            {name: gradients[name] for name in trained if name in held},
            {name: value for name, value in statistics.items() if name not in trained},
        )

    def _blame_forward(
        self, tensors: Tensors, inputs: Arrays, truth: Arrays, port: Arrays
    ) -> Blame:
        """Find the operation at which the port leaves the reference."""
        with_fault = [
            place
            for place, (ours, theirs) in enumerate(zip(truth, port, strict=True))
            if not difference(ours, theirs) <= OUTPUT_BOUND
        ]
        operations, places = self.log(tensors, inputs)
        sources = [places[place] for place in with_fault if places[place] is not None]
        closed, arguments = self._trace_port(tensors, inputs)
        values, results = record(closed, arguments, tolerance=self._tolerance)
        numbers = Values(self._tolerance)
        for output in results[: len(truth)]:
            numbers.add(output)
        places_at_fault = [place for place in sources if place is not None]
        return find_fault(operations, places_at_fault, values, numbers)

    def log(
        self, tensors: Tensors, inputs: Arrays
    ) -> tuple[list[Operation], list[tuple[int, int] | None]]:
        """Return the reference's operations in float64, and which of them give its outputs."""
        model = self.reference.load(tensors, dtype="float64", train=self.train)
        leaves = [leaf.detach() for leaf in to_torch(inputs, "float64")]
        operations, origins, outputs = log_forward(model, lambda: call_reference(model, leaves))
        return operations, [origins.get(id(output)) for output in outputs]

    def _trace_port(self, tensors: Tensors, inputs: Arrays) -> Any:
        with jax.enable_x64(True):
            return self._runs["float64"].trace(self.match.to_port(tensors), inputs)

    def _blame_backward(
        self,
        tensors: Tensors,
        inputs: Arrays,
        cotangents: Arrays,
        truth: PairPass,
        port: PairPass,
        bad: list[str],
    ) -> Blame:
        """Find the module at which the port's gradients leave the reference's."""
        model = self.reference.load(tensors, dtype="float64", train=self.train)
        leaves = to_torch(inputs, "float64")
        arriving = [torch.tensor(c, dtype=torch.float64) for c in cotangents]
        calls = log_backward(model, lambda: call_reference(model, leaves), arriving)
        with jax.enable_x64(True):
            closed, arguments = self._runs["float64"].trace_both(
                self.match.to_port(tensors), inputs, self.layouts.give(cotangents)
            )
        values, _ = record(closed, arguments, tolerance=self._tolerance)
        held: dict[str, torch.Tensor] = dict(model.named_parameters())
        wrong = [held[name] for name in bad] or [x for x in leaves if x.requires_grad]
        module = find_module(calls, wrong, values)
        own = next((name for name in bad if module_of(name) == module), None)
        if own is None:
            name = bad[-1] if bad else "the input"
            what = f"a gradient on the way to {name} differs"
            return Blame(module or (module_of(name) if bad else "") or NET, what)
        looks_like = recognise_gradient(truth.gradients[own], port.gradients[own])
        return Blame(module, f"the gradient of its {own.rpartition('.')[2]} differs", looks_like)

    def _blame_statistic(
        self, tensors: Tensors, truth: PairPass, port: PairPass, name: str
    ) -> Blame:
        before = tensors[name].astype(np.float64)
        looks_like = recognise_statistic(
            before, truth.statistics[name], port.statistics[name], self._momentum(name)
        )
        what = f"its {name.rpartition('.')[2]} after a pass in training differs"
        return Blame(module_of(name) or NET, what, looks_like)

    def _momentum(self, name: str) -> float:
        part = self.reference.module.get_submodule(module_of(name))
        return float(getattr(part, "momentum", None) or 0.1)

    def _compare_float32(
        self,
        tensors: Tensors,
        inputs: Arrays,
        cotangents: Arrays,
        truth: PairPass,
        ours: PairPass,
    ) -> tuple[tuple[float, float], int, list[str]]:
        """Compare the errors of both in float32."""
        theirs = self.run_port(tensors, inputs, cotangents, dtype="float32")
        scale = rms(_join(truth.outputs))
        errors = [rms(_join(run.outputs) - _join(truth.outputs)) for run in (ours, theirs)]
        ratio = error_ratio(errors[0], errors[1], scale)
        problems = []
        if not 1 / FACTOR <= ratio <= FACTOR:
            problems.append(
                f"in float32 the port is {ratio:.3g} times as far from float64 as the reference, "
                f"{FACTOR:g} allowed"
            )
        wrong = list(_compare_gradients(truth, ours, theirs))
        near_ties = self._count_near_ties(tensors, inputs) if wrong else 0
        if not near_ties:  # a ReLU that falls the other way turns a whole gradient
            problems += wrong
        return (errors[0] / (scale or 1), errors[1] / (scale or 1)), near_ties, problems

    def _count_near_ties(self, tensors: Tensors, inputs: Arrays) -> int:
        """Count what may fall the other way in float32 than in float64."""
        operations, _ = self.log(tensors, inputs)
        return sum(map(count_ties, operations))


def count_ties(operation: Operation) -> int:
    """Count the values of a ReLU near 0, and the windows of a pool that noise decides otherwise."""
    name = operation.name.removesuffix("_")
    x = operation.tensors[0] if operation.tensors else None
    if x is None or not x.is_floating_point():
        return 0
    near = 2.0**-20 * float(x.abs().max())
    if name in ("relu", "leaky_relu", "clamp_min", "hardtanh", "threshold"):
        return int((x.abs() < near).sum())
    if name == "max_pool2d_with_indices":
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        _, shaken = operation.run_with([x + near * noise])
        return int((shaken != operation.outputs[1]).sum())
    return 0


def _compare_gradients(truth: PairPass, ours: PairPass, theirs: PairPass) -> list[str]:
    """Say which gradients err otherwise in the port than in the reference, in float32."""
    scales: dict[str, float] = {}
    for name, value in truth.gradients.items():
        scales[module_of(name)] = max(scales.get(module_of(name), 0.0), rms(value))
    problems = []
    for name, right in truth.gradients.items():
        if name not in theirs.gradients:
            continue
        errors = [rms(run.gradients[name] - right) for run in (ours, theirs)]
        # a gradient is a sum over the batch and all places, in whatever order
        floor = scales[module_of(name)] * np.sqrt(_join(truth.outputs).size)
        ratio = error_ratio(errors[0], errors[1], floor)
        if not 1 / GRADIENT_FACTOR <= ratio <= GRADIENT_FACTOR:
            problems.append(
                f"the gradient of {name}: in float32 the port is {ratio:.3g} times as far from "
                f"float64 as the reference, {GRADIENT_FACTOR:g} allowed"
            )
    return problems[:1]


def _join(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])
