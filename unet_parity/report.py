"""The report of `verify` as tables for a terminal."""

from rich.console import Console
from rich.table import Table

from unet_parity.oracle import Agreement, error_ratio
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
    console.print(_agreement_table(report.agreements))
    console.print(f"verdict: {report.verdict}", style=_COLOURS[report.verdict])
    for reason in report.reasons:
        console.print(f"  {reason}")


def _exact_table(report: Report) -> Table:
    table = Table(title="exact arithmetic: values on which torch, JAX and float64 are not equal")
    for column in (
        "rung",
        "padding",
        "computed in",
        "outputs",
        "parameter gradients",
        "input gradient",
        "distinct outputs",
    ):
        table.add_column(column)
    for row in report.exact:
        counts = (
            f"{row.mismatches} of {row.outputs:,}",
            f"{row.gradients['mismatches']} in {row.gradients['tensors']} tensors",
            f"{row.input_gradient['mismatches']} of {row.input_gradient['values']:,}",
        )
        shown = (row.refused, "", "") if row.refused else counts
        table.add_row(row.rung, row.padding, row.dtype, *shown, str(row.distinct))
    return table


def _agreement_table(agreements: tuple[Agreement, ...]) -> Table:
    table = Table(title="ordinary weights")
    for column in (
        "mode", "float64: output", "input gradient", "worst gradient", "statistics",
        "float32 error: torch", "JAX", "ratio",
    ):  # fmt: skip
        table.add_column(column)
    for a in agreements:
        table.add_row(
            a.mode,
            f"{a.output:.1e}",
            f"{a.input_gradient:.1e}",
            f"{max(a.gradients.values()):.1e}",
            f"{max(a.statistics.values()):.1e}" if a.statistics else "-",
            f"{a.torch_error / a.scale:.1e}" if a.scale else "-",
            f"{a.jax_error / a.scale:.1e}" if a.scale else "-",
            f"{error_ratio(a.torch_error, a.jax_error, a.scale):.2f}",
        )
    return table
