"""How time grows with the work: a constant, and a slope, of both frameworks.

Over small images or narrow nets a ratio of times is that of the constants: what starting a
computation costs. The slope leaves them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unet_bench.net_times import NetRow


@dataclass(frozen=True)
class Line:
    """A `Line` says that a time is `constant_ms` + `slope_ms` times the work.

    Attributes:
        miss: the largest part by which a time is away from the line.
    """

    constant_ms: float
    slope_ms: float
    miss: float


@dataclass(frozen=True)
class Slope:
    """A `Slope` is how the time of one kind of computation grows, in both frameworks.

    Attributes:
        name: what is computed, and over which sizes.
        per: the unit of the work: a megapixel, or a GFLOP of direct convolutions.
        cases: names of the rows that it goes through.
        work: of each case, in the unit.
        axis: what the page draws below each case: its side in pixels, or its base width.
        jax_ms: of each case.
        torch_ms: of each case, of torch's best variant; empty where torch cannot use the device.
        jax: the line through `jax_ms`.
        torch: the line through `torch_ms`.
        ratio: of the slopes, JAX's over torch's.
    """

    name: str
    per: str
    cases: tuple[str, ...]
    work: tuple[float, ...]
    axis: tuple[int, ...]
    jax_ms: tuple[float, ...]
    torch_ms: tuple[float, ...]
    jax: Line
    torch: Line | None
    ratio: float | None


def fit_line(work: Sequence[float], times_ms: Sequence[float]) -> Line:
    """Return the line with the smallest squares of relative distances.

    Relative, because times are measured to so many percent: else the longest time would decide
    alone, and the constant would be nothing but its error.

    >>> fit_line([1, 2, 8], [5, 7, 19])
    Line(constant_ms=3.0, slope_ms=2.0, miss=0.0)
    """
    x, t = np.asarray(work, float), np.asarray(times_ms, float)
    columns = np.stack([1 / t, x / t], axis=1)
    constant, slope = np.linalg.lstsq(columns, np.ones(len(t)), rcond=None)[0]
    miss = float(np.abs((constant + slope * x) / t - 1).max())
    return Line(*(round(float(value), 12) for value in (constant, slope, miss)))


def fit_slope(name: str, *, per: str, axis: Sequence[int], rows: Sequence[NetRow]) -> Slope:
    """Return how time grows over cases.

    Args:
        per: `megapixel` or `GFLOP`.
        axis: of each case, in the order of the rows.
        rows: that of torch's best variant of each case.
    """
    work = tuple(row.megapixels if per == "megapixel" else row.gflop for row in rows)
    jax_ms = tuple(row.jax_ms for row in rows)
    torch_ms = tuple(row.torch_ms for row in rows if row.torch_ms is not None)
    jax, torch = fit_line(work, jax_ms), None
    if torch_ms:
        torch = fit_line(work, torch_ms)
    return Slope(
        name, per, tuple(row.case for row in rows), work, tuple(axis), jax_ms, torch_ms, jax, torch,
        jax.slope_ms / torch.slope_ms if torch else None,
    )  # fmt: skip
