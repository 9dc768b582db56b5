"""Both sides of a pair on the same numbers: float64 must agree, and float32 err alike."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unet_parity.bounds import GRADIENT_FACTOR, OUTPUT_BOUND
from unet_parity.differences import NET, difference, error_ratio, module_of, rms
from unet_parity.pair.blame import Blame, find_fault
from unet_parity.pair.distances import (
    Allowed,
    Differences,
    allow,
    allow_float32,
    measure,
    worst_difference,
)
from unet_parity.pair.gradients import find_module
from unet_parity.pair.numbers import Numbers
from unet_parity.pair.passes import Arrays, PairPass
from unet_parity.pair.recognise import recognise_gradient, recognise_statistic
from unet_parity.pair.sides import PortSide, ReferenceSide
from unet_spec.judgement import FACTOR


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
    """Compares one pair in one mode, on many numbers.

    Attributes:
        train: the mode is training.
    """

    def __init__(self, reference: ReferenceSide, port: PortSide, *, train: bool):
        self.reference, self.port, self.train = reference, port, train

    def __call__(self, numbers: Numbers, *, seed: int = 0) -> PairComparison:
        """Compare both sides on some numbers.

        Args:
            seed: of these, for the report.
        """
        truth = self.run_reference(numbers, dtype="float64")
        port = self.run_port(numbers, dtype="float64")
        ours = self.run_reference(numbers, dtype="float32")
        differences = measure(truth, port)
        allowed = allow(measure(truth, ours))
        problems = list(differences.list_problems(allowed))
        if problems and self.narrowings:
            allowed = allow_float32(measure(truth, ours))
            problems = list(differences.list_problems(allowed))
        blame = self._find_blame(numbers, truth, port, differences, allowed) if problems else None
        errors, near_ties = (np.nan, np.nan), 0
        if not problems:
            errors, near_ties, problems = self._compare_float32(numbers, truth, ours)
        return PairComparison(
            "training" if self.train else "inference", seed, *differences, *errors, near_ties,
            blame, tuple([str(blame), *problems] if blame else problems),
        )  # fmt: skip

    @cached_property
    def narrowings(self) -> tuple[str, ...]:
        """The functions in which the port computes in float32 or less, though given float64."""
        return self.port.find_narrowings(train=self.train)

    def _find_blame(
        self,
        numbers: Numbers,
        truth: PairPass,
        port: PairPass,
        differences: Differences,
        allowed: Allowed,
    ) -> Blame | None:
        """Find where the port leaves the reference; None where a recording does not show it."""
        if not differences.output <= allowed.output:
            return self._blame_forward(numbers, truth.outputs, port.outputs)
        statistics = [n for n, size in differences.statistics.items() if not size <= allowed.output]
        if statistics:
            return self._blame_statistic(numbers, truth, port, statistics[0])
        bad = [name for name, size in differences.gradients.items() if not size <= allowed.gradient]
        return self._blame_backward(numbers, truth, port, bad)

    def compare_outputs(self, numbers: Numbers) -> tuple[float, float, Blame | None] | None:
        """Return the largest relative difference of the outputs in float64, what is allowed, and
        where the port leaves the reference if it is out of bounds; None where it does not run.
        """
        truth, ours = (
            tuple(self.reference.run_forward(numbers, dtype=dtype, train=self.train).values())
            for dtype in ("float64", "float32")
        )
        port = self.port.run_forward(numbers, train=self.train)
        if port is None:
            return None
        size = worst_difference(truth, port)
        rounding = Differences(worst_difference(truth, ours), 0.0, {}, {})
        allowed = (allow_float32 if self.narrowings else allow)(rounding).output
        if size <= allowed or not self.reference.can_log(numbers):
            return size, allowed, None
        return size, allowed, self._blame_forward(numbers, truth, port)

    def run_reference(self, numbers: Numbers, *, dtype: str) -> PairPass:
        """Run a pass through the reference."""
        return self.reference.run(numbers, dtype=dtype, train=self.train)

    def run_port(self, numbers: Numbers, *, dtype: str) -> PairPass:
        """Run a pass through the port."""
        return self.port.run(numbers, dtype=dtype, train=self.train)

    def _blame_forward(self, numbers: Numbers, truth: Arrays, port: Arrays) -> Blame | None:
        """Find the operation at which the port leaves the reference."""
        with_fault = [
            place
            for place, (ours, theirs) in enumerate(zip(truth, port, strict=True))
            if not difference(ours, theirs) <= OUTPUT_BOUND
        ]
        log = self.reference.log_forward(numbers, train=self.train)
        sources = [log.results[place] for place in with_fault]
        values = self.port.compute_forward(numbers, train=self.train)
        if values is None:
            return None
        return find_fault(log, [source for source in sources if source is not None], values)

    def _blame_backward(
        self, numbers: Numbers, truth: PairPass, port: PairPass, bad: list[str]
    ) -> Blame | None:
        """Find the module at which the port's gradients leave the reference's."""
        log = self.reference.log_backward(numbers, train=self.train)
        values = self.port.compute_backward(numbers, train=self.train)
        if values is None:
            return None
        wrong = [log.parameters[name] for name in bad] or list(log.inputs)
        module = find_module(log, wrong, values)
        own = next((name for name in bad if module_of(name) == module), None)
        if own is None:
            name = bad[-1] if bad else "the input"
            what = f"a gradient on the way to {name} differs"
            return Blame(module or (module_of(name) if bad else "") or NET, what)
        looks_like = recognise_gradient(truth.gradients[own], port.gradients[own])
        return Blame(module, f"the gradient of its {own.rpartition('.')[2]} differs", looks_like)

    def _blame_statistic(
        self, numbers: Numbers, truth: PairPass, port: PairPass, name: str
    ) -> Blame:
        before = numbers.tensors[name].astype(np.float64)
        looks_like = recognise_statistic(
            before,
            truth.statistics[name],
            port.statistics[name],
            self.reference.find_momentum(name),
        )
        what = f"its {name.rpartition('.')[2]} after a pass in training differs"
        return Blame(module_of(name) or NET, what, looks_like)

    def _compare_float32(
        self, numbers: Numbers, truth: PairPass, ours: PairPass
    ) -> tuple[tuple[float, float], int, list[str]]:
        """Compare the errors of both in float32."""
        theirs = self.run_port(numbers, dtype="float32")
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
        near_ties = self.reference.count_near_ties(numbers, train=self.train) if wrong else 0
        if not near_ties:  # a ReLU that falls the other way turns a whole gradient
            problems += wrong
        return (errors[0] / (scale or 1), errors[1] / (scale or 1)), near_ties, problems


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
