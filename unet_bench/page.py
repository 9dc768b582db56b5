"""The report of `bench` as one HTML file that needs nothing beside it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import unet_page
from unet_bench.tables import BUSY, format_number, is_busy, layer_rows, net_rows
from unet_page import plot
from unet_page.plot import Axis, Dot, Line, Plot

FEW = 3
"""Labels that an axis of ratios has in a narrow window."""
AXES = {"megapixel": "side of the image in pixels", "GFLOP": "base width"}
"""What stands below a plot over this unit of work."""
MARGIN = 1.15
Row = Mapping[str, Any]


def make_page(result: Row, *, command: str = "") -> str:
    """Make the page of what `unet_bench.bench.bench` gave.

    Args:
        command: that made it.
    """
    rows, layers = net_rows(dict(result)), layer_rows(dict(result))
    nets = group_variants(rows)
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        result=result,
        command=command,
        sentence=summarize(nets),
        nets=nets,
        layers=layers,
        net_axis=make_ratio_axis([row["ratio"] for row in rows if row["ratio"] is not None]),
        layer_axis=make_ratio_axis([row["ratio"] for row in layers]),
        label_ticks=label_ticks,
        number=format_number,
        busy=is_busy,
        busy_note=BUSY if any(is_busy(row) for row in result["rows"]) else "",
        times=[plot_times(slope) for slope in result["slopes"]],
        speeds=[plot_speeds(slope, result) for slope in result["slopes"]],
        axes=AXES,
    )


def group_variants(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a case for each computation, with the rows of torch's variants and the best of them.

    `best` is None where torch was not timed.
    """
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return [
        {
            "name": name,
            "rows": variants,
            "best": next((r for r in variants if r["best"] and r["torch_ms"] is not None), None),
        }
        for name, variants in cases.items()
    ]


def summarize(cases: Sequence[Row]) -> str:
    """Return the result in one sentence."""
    ratios = sorted(case["best"]["ratio"] for case in cases if case["best"] is not None)
    if not ratios:
        return "JAX alone was timed, because torch cannot use this device."
    quicker = sum(ratio < 1 for ratio in ratios)
    return (
        f"JAX takes {ratios[0]:.2f} to {ratios[-1]:.2f} times as long as torch's best variant; it "
        f"is the quicker one in {quicker} of {len(ratios)} computations."
    )


def make_ratio_axis(ratios: Sequence[float]) -> Axis:
    """Return a logarithmic axis around ratios and 1."""
    return plot.log_axis(min([1.0, *ratios]), max([1.0, *ratios]))


def label_ticks(axis: Axis) -> list[tuple[str, float, str]]:
    """Return the labels of an axis, where they stand, and in which windows, as classes."""
    every = -(-len(axis.labels) // FEW)
    return [
        (label, at, "on-wide on-narrow" if number % every == 0 else "on-wide")
        for number, (label, at) in enumerate(axis.labels)
    ]


def plot_times(slope: Row) -> Plot:
    """Return the plot of a time over sizes or widths, both axes logarithmic."""
    curves = _list_curves(slope)
    values = [value for _, _, times in curves for value in times]
    return Plot(
        f"{slope['name']}, ms",
        [(style, name) for style, name, _ in curves],
        _make_x_axis(slope["axis"]),
        plot.log_axis(min(values), max(values)),
        [Line(style, _pair(slope["axis"], times)) for style, _, times in curves],
        [*_dots(slope, curves, unit="ms")],
    )


def plot_speeds(slope: Row, result: Row) -> Plot:
    """Return the plot of the operations per second over sizes or widths, with the peak."""
    gflop = {row["case"]: row["gflop"] for row in net_rows(dict(result))}
    work = [gflop[case] for case in slope["cases"]]
    curves = [
        (style, name, [1e3 * each / ms for each, ms in zip(work, times, strict=True)])
        for style, name, times in _list_curves(slope)
    ]
    peak = result["matmul_gflops"]
    top = max(peak, *(value for _, _, values in curves for value in values))
    x = _make_x_axis(slope["axis"])
    lines = [Line(style, _pair(slope["axis"], values)) for style, _, values in curves]
    return Plot(
        f"{slope['name']}, GFLOP/s",
        [*((style, name) for style, name, _ in curves), ("mean", f"peak {peak:,.0f}")],
        x,
        plot.linear_axis(0, top),
        [*lines, Line("mean", [(x.low, peak), (x.high, peak)])],
        [*_dots(slope, curves, unit="GFLOP/s")],
    )


def _list_curves(slope: Row) -> list[tuple[str, str, Sequence[float]]]:
    """Return (style, name, ms of each case) of JAX and, where it was timed, of torch."""
    curves = [("jax", "JAX", slope["jax_ms"])]
    if slope["torch_ms"]:
        curves.append(("torch", "torch's best", slope["torch_ms"]))
    return curves


def _make_x_axis(values: Sequence[int]) -> Axis:
    """Return a logarithmic axis whose ticks are the sizes that were measured.

    It is a little longer, so that the first label stands beside those of the other axis.
    """
    return Axis(min(values) / MARGIN, max(values) * MARGIN, tuple(values), log=True)


def _dots(
    slope: Row, curves: Sequence[tuple[str, str, Sequence[float]]], *, unit: str
) -> Iterator[Dot]:
    for style, name, values in curves:
        for case, x, value in zip(slope["cases"], slope["axis"], values, strict=True):
            yield Dot(style, x, value, f"{case}, {name}: {value:,.3g} {unit}")


def _pair(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(x, y, strict=True))
