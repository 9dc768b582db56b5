"""Ordinary weights: both twins against one another in float64, and against float64 in float32.

In float64 the twins must agree to rounding: `OUTPUT_BOUND` and `GRADIENT_BOUND`. In float32 no
tolerance says anything by itself, so the question is another one: is one twin further from the
float64 truth than the other? Sums taken in another order give errors of the same size; a bug
gives one that is larger by orders of magnitude.
"""

from dataclasses import dataclass

import numpy as np

from unet_parity.bounds import GRADIENT_BOUND as GRADIENT_BOUND
from unet_parity.bounds import OUTPUT_BOUND as OUTPUT_BOUND
from unet_parity.differences import difference, error_ratio, module_of, module_scales, rms
from unet_parity.twins import Masks, Pass
from unet_spec import UNetConfig, geometry, judgement
from unet_spec.parameters import parameters

FACTOR = judgement.FACTOR


@dataclass(frozen=True)
class Agreement:
    """How far the twins are from one another in one mode; errors are relative.

    Attributes:
        mode: `inference`, or `training` (batch statistics, dropout with the same masks).
        output: in float64, the largest difference over the largest value.
        input_gradient: likewise.
        gradients: likewise of every parameter, over the largest value in the gradients of its
            module: a bias before batch norm has a gradient of exactly 0, and noise instead.
        statistics: likewise of batch norm's statistics after the pass.
        scale: root mean square of the float64 output.
        torch_error: root mean square error of torch's float32 output.
        jax_error: of JAX's.
        problems: what is out of bounds, in words; empty if nothing is.
    """

    mode: str
    output: float
    input_gradient: float
    gradients: dict[str, float]
    statistics: dict[str, float]
    scale: float
    torch_error: float
    jax_error: float
    problems: tuple[str, ...]


def measure_agreement(truth: Pass, port: Pass, ours: Pass, theirs: Pass, *, mode: str) -> Agreement:
    """Measure the agreement of two float64 passes, torch's and JAX's, and two float32 passes,
    likewise."""
    output = difference(truth.output, port.output)
    input_gradient = difference(truth.input_gradient, port.input_gradient)
    scales = module_scales(truth.gradients)
    gradients = {
        name: difference(value, port.gradients[name], scale=scales[module_of(name)])
        for name, value in truth.gradients.items()
    }
    statistics = {
        name: difference(value, port.statistics[name]) for name, value in truth.statistics.items()
    }
    bounded = [
        ("the output", output, OUTPUT_BOUND),
        ("the input's gradient", input_gradient, GRADIENT_BOUND),
    ]
    bounded += [
        (f"the gradient of {name}", value, GRADIENT_BOUND) for name, value in gradients.items()
    ]
    bounded += [(name, value, OUTPUT_BOUND) for name, value in statistics.items()]
    problems = [
        f"{what} differs by {value:.1e} in float64, {bound:.0e} allowed"
        for what, value, bound in bounded
        if not value <= bound
    ]
    torch_error, jax_error = (rms(p.output - truth.output) for p in (ours, theirs))
    scale = rms(truth.output)
    ratio = error_ratio(torch_error, jax_error, scale)
    if not 1 / FACTOR <= ratio <= FACTOR:
        problems.append(
            f"in float32 the output of JAX is {ratio:.3g} times as far from float64 as torch's, "
            f"{FACTOR:g} allowed"
        )
    return Agreement(
        mode, output, input_gradient, gradients, statistics, scale, torch_error, jax_error,
        tuple(problems),
    )  # fmt: skip


def random_input(
    config: UNetConfig, *, seed: int, size: tuple[int, int] | None = None, batch: int = 2
) -> tuple[np.ndarray, np.ndarray, Masks]:
    """Draw a normal input, a normal cotangent, and masks for both dropouts; float32, torch's
    layout.

    Args:
        size: (height, width); without it two unlike legal ones, from 2^(depth+1) on.
    """
    rng = np.random.default_rng(seed)
    height = geometry.next_legal(config, 2 ** (config.depth + 1))
    height, width = size or (height, geometry.next_legal(config, height + 1))
    rows, columns = geometry.levels(config, height), geometry.levels(config, width)
    x = rng.standard_normal((batch, config.in_channels, height, width))
    cotangent = rng.standard_normal((batch, config.classes, rows.output, columns.output))
    sites = (
        (config.widths[-2], rows.skips[-1], columns.skips[-1]),
        (config.widths[-1], rows.neck, columns.neck),
    )
    keep = [rng.random((batch, *site)) >= config.dropout for site in sites]
    return x.astype(np.float32), cotangent.astype(np.float32), keep


def random_tensors(config: UNetConfig, *, seed: int) -> dict[str, np.ndarray]:
    """Draw He-like normal kernels; other vectors away from their neutral values, so that none can
    be forgotten unseen. float32, torch's layout."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape, kind in parameters(config):
        if kind == "count":
            tensors[name] = np.array(3, np.int64)
        elif name.endswith("running_var") or (kind == "vector" and name.endswith("weight")):
            tensors[name] = rng.uniform(0.5, 2, shape).astype(np.float32)
        elif kind in ("vector", "statistic"):
            tensors[name] = rng.normal(0, 0.3, shape).astype(np.float32)
        else:
            fan_in = shape[0] if kind == "up_conv" else np.prod(shape[1:])
            tensors[name] = rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
    return tensors
