"""The errors of every module in float32, and of every gradient, against float64."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unet_parity.bounds import GRADIENT_FACTOR as GRADIENT_FACTOR
from unet_parity.bounds import LOCAL_FACTOR as LOCAL_FACTOR
from unet_parity.differences import difference, error_ratio, module_of, rms, ulp
from unet_parity.leaves import LeafResult
from unet_parity.recording import Recording
from unet_parity.trace import Call, Maps, Trace
from unet_parity.twins import Pass


@dataclass(frozen=True)
class Layer:
    """One module; errors are root mean squares of the difference to float64.

    Attributes:
        scale: root mean square of the float64 output.
        ulp: float32's spacing at that scale.
        torch_error: in a whole float32 pass, so with all that was inherited.
        local_torch_error: of this module alone, on the reference's own input; 0 for a module
            that only holds others.
        local_float64: largest difference between the frameworks in float64, on the reference's
            own input, over the largest value; None for a module that only holds others.
        floor: half units in the last place up to which an error is rounding whatever the other's
            is: 1, and for bilinear up-sampling the size of the map, because PyTorch computes the
            place of a pixel in float32 (9 times XLA's error at 32 pixels).
        torch_flips: values of a ReLU or max-pool that fell the other way than in float64.
    """

    name: str
    kind: str
    scale: float
    ulp: float
    torch_error: float
    jax_error: float
    local_torch_error: float
    local_jax_error: float
    local_float64: float | None
    floor: float
    torch_flips: int
    jax_flips: int

    @property
    def local_ratio(self) -> float:
        return error_ratio(self.local_torch_error, self.local_jax_error, self.scale * self.floor)

    @property
    def holds(self) -> bool:
        """Whether, by itself, neither framework is too far from float64 for the other."""
        return 1 / LOCAL_FACTOR <= self.local_ratio <= LOCAL_FACTOR


@dataclass(frozen=True)
class Gradient:
    """The gradient of one tensor; errors are root mean squares of the difference to float64, in
    which ReLUs and pools fall as in that run.

    Attributes:
        scale: root mean square of the largest gradient in its module.
        floor: as of a layer: a gradient is a sum over all pixels, and frameworks add so many
            numbers in orders that differ by far: PyTorch on CPU nearly one after the other, with
            an error 22 times XLA's over 256x256 pixels. Added so, N terms of size t err by
            t N half units in the last place, as a random walk.
        float64: largest difference between the frameworks in float64, over the largest value in
            its module.
    """

    name: str
    scale: float
    floor: float
    torch_error: float
    jax_error: float
    float64: float

    @property
    def ratio(self) -> float:
        return error_ratio(self.torch_error, self.jax_error, self.scale * self.floor)

    @property
    def holds(self) -> bool:
        """Whether neither framework is too far from float64 for the other."""
        return 1 / GRADIENT_FACTOR <= self.ratio <= GRADIENT_FACTOR


def compare_layers(
    truth: Trace,
    ours: Trace,
    theirs: Recording,
    local: Mapping[str, tuple[np.ndarray, np.ndarray, LeafResult | None]],
    local64: Mapping[str, LeafResult | None],
    flips: tuple[Mapping[str, int], Mapping[str, int]],
) -> tuple[Layer, ...]:
    """Measure every module: a row for each, in the order of the calls.

    Args:
        local: of every leaf, on one float32 input: float64's output, torch's and JAX's.
        flips: of torch's run and of JAX's.
    """
    rows = []
    for path, call in truth.calls.items():
        scale = rms(call.outputs[0])
        alone = (0.0, 0.0)
        if path in local:
            right, torch_output, jax_output = local[path]
            jax_map = None if jax_output is None else jax_output.output
            alone = (_error((right,), (torch_output,)), _error((right,), (jax_map,)))
        exact = local64.get(path)
        rows.append(
            Layer(
                name=path,
                kind=call.kind,
                scale=scale,
                ulp=ulp(scale),
                torch_error=_error(call.outputs, ours.calls[path].outputs),
                jax_error=_error(call.outputs, theirs.maps[path].outputs),
                local_torch_error=alone[0],
                local_jax_error=alone[1],
                local_float64=None if exact is None else difference(call.outputs[0], exact.output),
                floor=float(max(call.inputs[0].shape[2:])) if call.kind == "Upsample" else 1.0,
                torch_flips=flips[0].get(path, 0),
                jax_flips=flips[1].get(path, 0),
            )
        )
    return tuple(rows)


def compare_gradients(
    truth: Trace,
    torch_run: tuple[Pass, Pass],
    jax_run: tuple[Pass, Pass],
    input_float64: float,
    float64: Mapping[str, float],
) -> tuple[Gradient, ...]:
    """Measure the gradients: a row for the input and for every parameter.

    Args:
        truth: in float64.
        torch_run: in float32, and float64 with its decisions.
        float64: differences by name, of `oracle.measure_agreement`.
    """
    right = truth.result
    (ours, our_truth), (theirs, their_truth) = torch_run, jax_run
    scales: dict[str, float] = {}
    for name, gradient in right.gradients.items():
        scales[module_of(name)] = max(scales.get(module_of(name), 0.0), rms(gradient))
    rows = [
        Gradient(
            "input",
            rms(right.input_gradient),
            1.0,
            _error((our_truth.input_gradient,), (ours.input_gradient,)),
            _error((their_truth.input_gradient,), (theirs.input_gradient,)),
            input_float64,
        )
    ]
    for name in right.gradients:
        scale = scales[module_of(name)]
        rows.append(
            Gradient(
                name,
                scale,
                max(
                    1.0,
                    _random_walk_terms(truth.calls[module_of(name)], name, right) / (scale or 1.0),
                ),
                _error((our_truth.gradients[name],), (ours.gradients[name],)),
                _error((their_truth.gradients[name],), (theirs.gradients[name],)),
                float64[name],
            )
        )
    return tuple(rows)


def _random_walk_terms(call: Call, name: str, right: Pass) -> float:
    """Return the number of terms of a gradient, times their root mean square."""
    cotangent = call.cotangents[0]
    terms = cotangent.size / cotangent.shape[1] * rms(cotangent)
    if name.endswith(".bias"):
        return terms
    # a convolution's kernel meets the input, a norm's weight what it has normalised
    return terms * rms((call.inputs if right.gradients[name].ndim > 1 else call.outputs)[0])


def _error(truth: Maps, maps: tuple[np.ndarray | None, ...]) -> float:
    """Return the error of the first map; infinite where it is missing, misshapen or not finite."""
    first = maps[0] if maps else None
    if first is None or first.shape != truth[0].shape or not np.isfinite(first).all():
        return float("inf")
    return rms(first - truth[0])
