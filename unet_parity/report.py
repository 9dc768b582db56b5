"""The report of `verify` as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from unet_parity.oracle import FACTOR, GRADIENT_BOUND, OUTPUT_BOUND, Agreement, error_ratio
from unet_parity.verify import Report

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
    for agreement in report.agreements:
        console.print(_agreement_table(agreement))
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
