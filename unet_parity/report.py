"""The report of `verify` as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from unet_parity.comparison import Comparison
from unet_parity.differences import error_ratio
from unet_parity.layers import LOCAL_FACTOR
from unet_parity.oracle import FACTOR, GRADIENT_BOUND, OUTPUT_BOUND, Agreement
from unet_parity.training import Trajectory
from unet_parity.verify import Recorded, Report

_COLOURS = {"identical": "bold green", "equivalent": "bold green", "different": "bold red"}


def show(report: Report, console: Console) -> None:
    """Print the verdict with what it rests on."""
    structure = report.structure
    console.print(
        f"{structure['tensors']} tensors, {structure['parameters']:,} parameters, "
        f"{structure['convolutions']} convolutions"
    )
    if report.exact:
        console.print(_exact_table(report))
    for comparison in report.comparisons:
        console.print(_agreement_table(comparison.agreement))
        _show_layers(comparison, console)
    for trajectory in report.steps:
        console.print(_steps(trajectory))
    if report.recorded is not None:
        console.print(_recorded(report.recorded))
    console.print(f"verdict: {report.verdict}", style=_COLOURS[report.verdict])
    for reason in report.reasons:
        console.print(f"  {reason}")


def _exact_table(report: Report) -> Table:
    table = Table(title="exact arithmetic: values on which torch, JAX and float64 are not equal")
    for column in ("rung", "padding", "in", "outputs", "gradients", "input", "distinct"):
        table.add_column(column)
    for row in report.exact:
        shown = (
            f"{row.mismatches} of {row.outputs:,}",
            f"{row.gradients['mismatches']} in {row.gradients['tensors']}",
            f"{row.input_gradient['mismatches']} of {row.input_gradient['values']:,}",
        )
        if row.refused:
            shown = (row.refused, "", "")
        table.add_row(row.rung, row.padding, row.dtype, *shown, str(row.distinct))
    return table


def _agreement_table(agreement: Agreement) -> Table:
    a = agreement
    table = Table(title=f"ordinary weights, {a.mode}")
    for column in ("relative to the largest value", "found", "allowed"):
        table.add_column(column)
    rows = [
        ("float64, torch to JAX: output", a.output, OUTPUT_BOUND),
        ("float64: gradient of the input", a.input_gradient, GRADIENT_BOUND),
        ("float64: worst gradient of a parameter", max(a.gradients.values()), GRADIENT_BOUND),
    ]
    if a.statistics:
        rows.append(("float64: batch statistics", max(a.statistics.values()), OUTPUT_BOUND))
    for what, found, allowed in rows:
        table.add_row(what, f"{found:.1e}", f"{allowed:.0e}")
    scale = a.scale or 1.0
    table.add_row("float32 torch to float64 (rms)", f"{a.torch_error / scale:.1e}", "")
    ratio = error_ratio(a.torch_error, a.jax_error, a.scale)
    table.add_row(
        "float32 JAX to float64 (rms)",
        f"{a.jax_error / scale:.1e}",
        f"{ratio:.2f} x torch's; up to {FACTOR:.0f} x",
    )
    return table


def _show_layers(comparison: Comparison, console: Console) -> None:
    """The worst module and gradient, and the flips; the page has all of them."""
    if not comparison.layers:
        return
    layer = max(comparison.layers, key=lambda row: _away(row.local_ratio))
    gradient = max(comparison.gradients, key=lambda row: _away(row.ratio))
    flips = comparison.flips
    console.print(
        f"float32, JAX's distance to float64 over torch's, furthest from 1 (allowed: "
        f"{LOCAL_FACTOR:.0f} x either way)\n"
        f"  of {len(comparison.layers)} modules by themselves: {layer.local_ratio:.2f}, "
        f"{layer.name}\n"
        f"  of {len(comparison.gradients)} gradients: {gradient.ratio:.2f}, {gradient.name}; "
        f"near-ties fell the other way {flips[0]} times in torch, {flips[1]} in JAX",
        highlight=False,
    )


def _steps(trajectory: Trajectory) -> str:
    count = len(trajectory.parameters)
    text = f"{trajectory.dtype}, {count} training steps: {trajectory.parameters[-1]:.1e} apart"
    if trajectory.torch_yardstick:
        text += (
            f"; with sums in another order torch is {trajectory.torch_yardstick[-1]:.1e} from "
            f"itself, JAX {trajectory.jax_yardstick[-1]:.1e}"
        )
    return text


def _recorded(recorded: Recorded) -> str:
    scale = recorded.scale or 1.0
    return (
        f"recorded output to float64 (rms): {recorded.error / scale:.1e}, "
        f"torch here {recorded.torch_error / scale:.1e}, JAX {recorded.jax_error / scale:.1e}; "
        f"ratio {recorded.ratio:.2f}, up to {FACTOR:.0f} x is rounding"
    )


def _away(ratio: float) -> float:
    """How far a ratio is from 1, either way."""
    return max(ratio, 1 / ratio)
