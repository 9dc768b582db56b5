"""Plots of the report: where values lie on axes whose ticks people can read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
POINTS = 500  # of a line; a screen shows no more


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`."""

    low: float
    high: float
    ticks: tuple[float, ...] = ()
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        low, high, value = (
            (math.log(v) if self.log else v) for v in (self.low, self.high, value)
        )  # fmt: skip
        return 100 * (value - low) / (high - low)

    @property
    def labels(self) -> list[tuple[str, float]]:
        """What is written where."""
        return [(f"{tick:,.6g}", self.at(tick)) for tick in self.ticks]


@dataclass(frozen=True)
class Line:
    """A curve; `style` is its class in the page."""

    style: str
    points: Points


@dataclass(frozen=True)
class Dot:
    """One value, and what it says under the mouse."""

    style: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Lines and dots on two axes.

    Attributes:
        key: what the styles mean.
    """

    title: str
    key: Sequence[tuple[str, str]]
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()

    def drawn(self, line: Line) -> str:
        """The points of a line for SVG, in percent, downwards."""
        return " ".join(f"{self.x.at(x):.2f},{100 - self.y.at(y):.2f}" for x, y in line.points)


def linear_axis(low: float, high: float) -> Axis:
    """An axis around two values, from tick to tick."""
    high = high if high > low else low + (abs(low) or 1.0)
    step = _choose_tick_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis around two values above 0, from tick to tick."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = _ticks_around([m * 10.0**n for n in exponents for m in (1, 2, 5)], low, high)
    if len(ticks) > 6:
        ticks = _ticks_around([10.0**n for n in exponents], low, high)
    return Axis(ticks[0], ticks[-1], tuple(ticks[:: math.ceil(len(ticks) / 6)]), log=True)


def count_axis(last: int) -> Axis:
    """An axis of whole numbers from 0 to `last`."""
    last = max(last, 1)
    step = max(1, round(_choose_tick_step(last)))
    return Axis(0, last, tuple(range(0, last + 1, step)))


def thin_points(points: Points) -> Points:
    """Means of neighbours, so that at most `POINTS` are left."""
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def smooth_points(points: Points) -> Points:
    """Each value as the mean of a tenth of all, half of them before it and half after."""
    reach = len(points) // 20
    values = [y for _, y in points]
    means = []
    for i, (x, _) in enumerate(points):
        near = values[max(0, i - reach) : i + reach + 1]
        means.append((x, sum(near) / len(near)))
    return means


def _choose_tick_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, that goes three to seven times into a span."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    return max(m * power for m in (1, 2, 5) if m * power <= span / 3 * (1 + 1e-9))


def _ticks_around(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """Those from the last at or below `low` to the first at or above `high`; at least two."""
    first = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    last = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    return list(ticks[first - (first == last) : last + 1 + (first == last)])
