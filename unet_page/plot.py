"""The plots of pages: axes with ticks that people can read, lines and dots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
POINTS = 500  # of a line; a screen shows no more
MAX_TICKS = 6  # of a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """An `Axis` goes from `low` to `high`, and has `ticks` in between."""

    low: float
    high: float
    ticks: tuple[float, ...] = ()
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies, in percent of the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low)

    @property
    def labels(self) -> list[tuple[str, float]]:
        """Return what is written at the ticks, and where, in percent."""
        return [(f"{tick:,.6g}", self.at(tick)) for tick in self.ticks]


@dataclass(frozen=True)
class Line:
    """A `Line` is a curve; `style` is its class in the page."""

    style: str
    points: Points


@dataclass(frozen=True)
class Dot:
    """A `Dot` is one value, with the text that it shows under the mouse."""

    style: str
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A `Plot` is lines and dots on two axes.

    Attributes:
        key: what the styles mean.
    """

    title: str
    key: Sequence[tuple[str, str]]
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()

    def svg_points(self, line: Line) -> str:
        """Return the points of a line for SVG, in percent of the plot from its top left."""
        return " ".join(f"{self.x.at(x):.2f},{100 - self.y.at(y):.2f}" for x, y in line.points)


def linear_axis(low: float, high: float) -> Axis:
    """Return an axis around two values, from tick to tick."""
    high = high if high > low else low + (abs(low) or 1.0)
    step = _choose_tick_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """Return a logarithmic axis around two values above 0, from tick to tick."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    powers = [10.0**exponent for exponent in exponents]
    ticks = _ticks_around([m * power for power in powers for m in (1, 2, 5)], low, high)
    if len(ticks) > MAX_TICKS:
        ticks = _ticks_around(powers, low, high)
    every = math.ceil(len(ticks) / MAX_TICKS)
    return Axis(ticks[0], ticks[-1], tuple(ticks[::every]), log=True)


def count_axis(last: int) -> Axis:
    """Return an axis of whole numbers from 0 to `last`."""
    last = max(last, 1)
    step = max(1, round(_choose_tick_step(last)))
    return Axis(0, last, tuple(range(0, last + 1, step)))


def thin_points(points: Points) -> Points:
    """Return means of neighbours, so that at most `POINTS` are left."""
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def smooth_points(points: Points) -> Points:
    """Return each value as the mean of a tenth of all, half of them before it and half after."""
    reach = len(points) // 20
    values = [y for _, y in points]
    means = []
    for i, (x, _) in enumerate(points):
        near = values[max(0, i - reach) : i + reach + 1]
        means.append((x, sum(near) / len(near)))
    return means


def _choose_tick_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten that goes three to seven times into a span."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    return max(m * power for m in (1, 2, 5) if m * power <= span / 3 * (1 + 1e-9))


def _ticks_around(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """Return the ticks from the last one below `low` to the first one above `high`."""
    first = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    last = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    if first == last:  # both values lie on one tick, and an axis needs a length
        first, last = first - 1, last + 1
    return list(ticks[first : last + 1])
