"""How far a pass is from the reference's in float64, and how much of that is rounding."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unet_parity.bounds import GRADIENT_BOUND, GRADIENT_FACTOR, OUTPUT_BOUND
from unet_parity.differences import difference, module_of, module_scales
from unet_parity.pair.passes import Arrays, PairPass
from unet_spec.judgement import FACTOR

NO_SCALE = 1e-6
"""A module whose gradients are below this part of the largest is measured by that part."""
ENLARGED = 64 * 2.0**-29
"""Of an error in float32, what is allowed in float64: 29 bits less, and 64 times as much, because
both sides err, and each in its own way."""


class Differences(NamedTuple):
    """How far a pass is from a float64 pass of the reference, relatively; the fields are those of
    `PairComparison`."""

    output: float
    input_gradient: float
    gradients: dict[str, float]
    statistics: dict[str, float]

    def list_problems(self, allowed: "Allowed") -> Iterator[str]:
        """Say what is out of bounds."""
        named = {"the output": self.output}
        named |= {f"{name} after the pass": size for name, size in self.statistics.items()}
        for what, size in named.items():
            if not size <= allowed.output:
                yield f"{what} differs by {size:.1e} in float64, {allowed.output:.0e} allowed"
        named = {"the input": self.input_gradient, **self.gradients}
        for name, size in named.items():
            if not size <= allowed.gradient:
                yield (
                    f"the gradient of {name} differs by {size:.1e} in float64, "
                    f"{allowed.gradient:.0e} allowed"
                )


class Allowed(NamedTuple):
    """Up to which size a difference in float64 is rounding."""

    output: float
    gradient: float


def measure(truth: PairPass, other: PairPass) -> Differences:
    """Measure how far a pass is from a float64 pass of the reference."""
    scales = module_scales(truth.gradients)
    # a gradient that is 0 but for rounding has no scale of its own
    least = NO_SCALE * max(scales.values(), default=0.0)
    gradients = {
        name: difference(
            value, other.gradients[name], scale=max(scales[module_of(name)], least) or None
        )
        for name, value in truth.gradients.items()
        if name in other.gradients
    }
    statistics = {
        name: difference(value, other.statistics[name])
        for name, value in truth.statistics.items()
        if name in other.statistics
    }
    return Differences(
        worst_difference(truth.outputs, other.outputs),
        worst_difference(truth.input_gradients, other.input_gradients),
        gradients,
        statistics,
    )


def allow(float32: Differences) -> Allowed:
    """Return what is rounding in float64, by what it is in float32 in the reference alone.

    A deep net enlarges rounding errors, in both types alike.
    """
    largest = [size for size in float32.gradients.values() if size < np.inf]
    gradient = max([float32.input_gradient, *largest])
    output = max([float32.output, *float32.statistics.values()])
    return Allowed(
        max(OUTPUT_BOUND, min(output, 1.0) * ENLARGED),
        max(GRADIENT_BOUND, min(gradient, 1.0) * ENLARGED),
    )


def allow_float32(float32: Differences) -> Allowed:
    """Return likewise what is rounding where the port computes parts in float32."""
    gradient = max([float32.input_gradient, *float32.gradients.values()])
    output = max([float32.output, *float32.statistics.values()])
    return Allowed(FACTOR * output, GRADIENT_FACTOR * gradient)


def worst_difference(truth: Arrays, port: Arrays) -> float:
    """Return the largest difference of any of some arrays, each over its largest value."""
    if len(truth) != len(port):
        return float("inf")
    return max((difference(a, b) for a, b in zip(truth, port, strict=True)), default=0.0)
