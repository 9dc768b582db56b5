"""Nets of small integers, in which nothing is ever rounded; numpy alone draws them.

Weights are small integers with few non-zero taps per output, inputs are small integers. Then every
product and every partial sum is an integer that the arithmetic represents, in whatever order.
"""

from dataclasses import dataclass

import numpy as np

from unet_spec import UNetConfig, geometry
from unet_spec.parameters import Tensors, parameters


@dataclass(frozen=True)
class Rung:
    """An arithmetic and what fits it.

    Attributes:
        bits: integers up to 2^bits are exact.
        dtype: in which both twins compute.
        taps: non-zero weights per output, on average, to begin with: 2 keep the size of the
            values level from layer to layer (He's initialisation), more let it grow.
    """

    name: str
    bits: int
    dtype: str
    taps: float


RUNGS = (
    Rung("fp32", 24, "float32", 4),
    Rung("tf32", 11, "float32", 2.5),
    Rung("bf16", 8, "bfloat16", 2),
)


@dataclass(frozen=True)
class Case:
    """One exact net: integer tensors (torch's layout), input and cotangent, and its truth."""

    taps: float
    seed: int
    tensors: Tensors
    x: np.ndarray
    cotangent: np.ndarray


def explain_no_proof(config: UNetConfig) -> str:
    """Say why no exact proof exists for a config; empty if one does."""
    if config.norm != "none":
        return f"norm={config.norm} divides and takes roots"
    if config.activation == "leaky_relu":
        return f"activation=leaky_relu multiplies by {config.negative_slope}, which is rounded"
    if config.up.startswith("bilinear"):
        return f"up={config.up} multiplies by fractions"
    return ""


def make_case(
    config: UNetConfig, *, taps: float, seed: int, size: tuple[int, int] | None = None
) -> Case:
    """Draw integer weights in {-1, 0, 1} with `taps` non-zero ones per output on average,
    biases in {-1, 0, 1}, an input in -2..2, and a sparse cotangent in {-1, 0, 1}.

    Args:
        size: (height, width) of the input; `small_size` without it.
    """
    rng = np.random.default_rng((seed, int(2 * taps)))
    height, width = size or small_size(config)
    out_h, out_w = (geometry.output_size(config, size) for size in (height, width))
    shape = (1, config.classes, out_h, out_w)
    sparse = rng.random(shape) < 64 / np.prod(shape)
    return Case(
        taps,
        seed,
        {p.name: _draw_integers(rng, p.shape, p.kind, taps) for p in parameters(config)},
        rng.integers(-2, 3, (1, config.in_channels, height, width)).astype(np.float32),
        (rng.choice((-1, 1), shape) * sparse).astype(np.float32),
    )


def small_size(config: UNetConfig) -> tuple[int, int]:
    """Return a height and a width, not equal, with a neck of more than one pixel and with outputs
    enough to be distinct."""
    side = max(2 ** (config.depth + 1), 2 * geometry.margin(config) + 16)
    height = geometry.next_legal(config, side)
    return height, geometry.next_legal(config, height + 1)


def _draw_integers(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, taps: float
) -> np.ndarray:
    if kind == "vector":
        return rng.integers(-1, 2, shape).astype(np.float32)
    # one row for each output value: (out, in * h * w), or (out * h * w, in) for up-convolutions
    outputs = int(np.prod(shape[1:])) if kind == "up_conv" else shape[0]
    rows = np.zeros((outputs, int(np.prod(shape)) // outputs), np.float32)
    for row in rows:
        chosen = rng.choice(row.size, min(int(taps + rng.random()), row.size), replace=False)
        row[chosen] = rng.choice((-1, 1), chosen.size)
    return np.ascontiguousarray(rows.T if kind == "up_conv" else rows).reshape(shape)
