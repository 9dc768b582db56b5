"""Ordinary weights: both twins against one another in float64, and against float64 in float32.

In float64 the twins must agree to rounding: `OUTPUT_BOUND` and `GRADIENT_BOUND`. In float32 no
tolerance says anything by itself, so the question is another one: is one twin further from the
float64 truth than the other? Sums taken in another order give errors of the same size; a bug
gives one that is larger by orders of magnitude.
"""

from dataclasses import dataclass

import numpy as np

from unet_parity.twins import Masks, Pass, jax_pass, torch_pass
from unet_spec import UNetConfig, geometry
from unet_spec.parameters import Tensors, parameters

OUTPUT_BOUND = 1e-12
GRADIENT_BOUND = 1e-10
# 384 healthy nets gave ratios from 0.49 to 2.51 (benchmarks/results/rounding.json)
FACTOR = 8.0


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


def compare(config: UNetConfig, tensors: Tensors, *, train: bool, seed: int = 0) -> Agreement:
    """Both twins on a random input, in float64 and float32."""
    x, cotangent, keep = random_input(config, seed=seed)
    truth = torch_pass(config, tensors, x, cotangent, dtype="float64", train=train, keep=keep)
    port = jax_pass(config, tensors, x, cotangent, dtype="float64", train=train, keep=keep)
    ours = torch_pass(config, tensors, x, cotangent, train=train, keep=keep)
    theirs = jax_pass(config, tensors, x, cotangent, train=train, keep=keep)
    return judge(truth, port, ours, theirs, mode="training" if train else "inference")


def judge(truth: Pass, port: Pass, ours: Pass, theirs: Pass, *, mode: str) -> Agreement:
    """Agreement of two float64 passes, torch's and JAX's, and two float32 passes, likewise."""
    output = difference(truth.output, port.output)
    input_gradient = difference(truth.input_gradient, port.input_gradient)
    scales = _module_scales(truth.gradients)
    gradients = {
        name: difference(value, port.gradients[name], scale=scales[_module(name)])
        for name, value in truth.gradients.items()
    }
    statistics = {
        name: difference(value, port.statistics[name]) for name, value in truth.statistics.items()
    }
    torch_error, jax_error = (_rms(p.output - truth.output) for p in (ours, theirs))
    scale = _rms(truth.output)
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
    ratio = error_ratio(torch_error, jax_error, scale)
    if not 1 / FACTOR <= ratio <= FACTOR:
        problems.append(f"in float32 JAX is {ratio:.1e} times as far from float64 as torch")
    return Agreement(
        mode, output, input_gradient, gradients, statistics, scale, torch_error, jax_error,
        tuple(problems),
    )  # fmt: skip


def random_input(
    config: UNetConfig, *, seed: int, size: tuple[int, int] | None = None, batch: int = 2
) -> tuple[np.ndarray, np.ndarray, Masks]:
    """A normal input, a normal cotangent, and masks for both dropouts; float32, torch's layout.

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
    """He-like normal kernels; other vectors away from their neutral values, so that none can be
    forgotten unseen. float32, torch's layout."""
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


def difference(a: np.ndarray, b: np.ndarray, *, scale: float | None = None) -> float:
    """The largest difference over the scale (the largest value of `a` without one); infinite if
    the shapes differ or anything is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.abs(a).max()) if scale is None else scale
    worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return worst / scale if scale > 0 else (0.0 if worst == 0 else float("inf"))


def error_ratio(torch_error: float, jax_error: float, scale: float) -> float:
    """JAX's error over torch's; below float32's resolution of the scale all errors are equal."""
    floor = 2.0**-24 * scale
    if max(torch_error, jax_error) <= floor:
        return 1.0
    return max(jax_error, floor) / max(torch_error, floor)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _module_scales(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    scales: dict[str, float] = {}
    for name, gradient in gradients.items():
        largest = float(np.abs(gradient).max())
        scales[_module(name)] = max(scales.get(_module(name), 0.0), largest)
    return scales


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
