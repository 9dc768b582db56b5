"""What `unet bench` prints: a table of the layers, one of the nets, and one of the slopes."""

from typing import Any

from rich.console import Console
from rich.table import Table

BUSY_CORES = 0.2
"""Other work beyond which a ratio is marked (`unet_bench.timing.Timings`)."""
BUSY = "* other work kept the cores busy: this ratio says little; repeat it alone"


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `unet_bench.bench.bench` gave."""
    console.print(f"{result['device']}; {result['precision']}; {result['allocator']}")
    console.print(_layer_table(layer_rows(result)))
    console.print(_net_table(net_rows(result)))
    if result["slopes"]:
        console.print(_slope_table(result["slopes"]))
    for note in result["notes"]:
        console.print(note)
    if any(is_busy(row) for row in result["rows"]):
        console.print(BUSY)


def layer_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of layers, ours against Flax's."""
    return [row for row in result["rows"] if "flax_ms" in row]


def net_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of nets, JAX against torch."""
    return [row for row in result["rows"] if "torch_ms" in row]


def is_busy(row: dict[str, Any]) -> bool:
    """Return whether other work kept the cores busy while a row was measured."""
    return (row["others_cores"] or 0) > BUSY_CORES


def format_number(value: float | None, digits: int = 0) -> str:
    """Return a number with commas, and a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _layer_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="layers, median ms")
    table.add_column("case")
    for column in ("ours", "plain Flax", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        times = (f"{row['ours_ms']:.2f}", f"{row['flax_ms']:.2f}")
        table.add_row(row["case"], *times, _ratio(row))
    return table


def _net_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="whole nets, median ms; ratio is JAX over torch")
    for column in ("case", "torch"):
        table.add_column(column)
    for column in ("JAX", "torch", "ratio", "of peak"):
        table.add_column(column, justify="right")
    for row in rows:
        variant = row["torch_variant"] + (" (best)" if row["best"] and row["torch_ms"] else "")
        times = (format_number(row["jax_ms"]), format_number(row["torch_ms"]))
        share = format_number(row["share_of_peak"], 2)
        table.add_row(row["case"], variant, *times, _ratio(row), share)
    return table


def _slope_table(slopes: list[dict[str, Any]]) -> Table:
    table = Table(title="how time grows: a constant in ms + a slope in ms for each unit of work")
    for column in ("computation", "unit"):
        table.add_column(column)
    for column in ("JAX", "torch's best", "ratio of slopes"):
        table.add_column(column, justify="right")
    for slope in slopes:
        lines = (_line(slope["jax"]), _line(slope["torch"]))
        table.add_row(slope["name"], slope["per"], *lines, format_number(slope["ratio"], 2))
    return table


def _line(line: dict[str, float] | None) -> str:
    return "-" if line is None else f"{line['constant_ms']:.1f} + {line['slope_ms']:.1f}"


def _ratio(row: dict[str, Any]) -> str:
    return format_number(row["ratio"], 2) + ("*" if is_busy(row) else "")
