"""What `unet bench` runs: the same computations in one run on this device, as ratios."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from unet_bench import layer_times, net_times
from unet_bench.ceilings import matmul_gflops
from unet_bench.environment import device_name, environment
from unet_bench.layer_times import LayerRow
from unet_bench.net_times import NetRow
from unet_bench.steps import PRECISION, Problem, devices, torch_tf32
from unet_spec import SLIDES, UNetConfig
from unet_spec.environment import versions

SIZE_PX = 256
BUSY_CORES = 0.2
"""Other work beyond which a ratio is marked (`unet_bench.timing.Timings`)."""
NARROW = UNetConfig(widths=(16, 32, 64, 128, 256))


def bench(*, quick: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time the layers against plain Flax, and of whole nets against torch.

    Args:
        quick: one size of each layer, the narrow net only, fewer rounds: under a minute on two
            idle cores in place of four.
        say: is called with a line for each row as it is measured.
    """
    jax_device, torch_device = devices()
    say(f"on {device_name(jax_device)}; {PRECISION}")
    if torch_device is None:
        say("torch cannot use this device: JAX alone is timed")
    with torch_tf32(False):
        peak = matmul_gflops(jax_device, torch_device, budget_s=1 if quick else 3)
        say(f"float32 matrix product: {peak:.0f} GFLOP/s")
        rows = [asdict(row) for row in _rows(quick, peak, say)]
    return {
        "device": device_name(jax_device),
        "precision": PRECISION,
        "matmul_gflops": peak,
        "versions": versions(),
        "environment": environment(),
        "rows": rows,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `bench` gave as tables."""
    console.print(f"{result['device']}; {result['precision']}")
    console.print(_layer_table([row for row in result["rows"] if "flax_ms" in row]))
    console.print(_net_table([row for row in result["rows"] if "torch_ms" in row]))
    if any(_busy(row) for row in result["rows"]):
        console.print("* other work kept the cores busy: this ratio says little; repeat it alone")


def _rows(
    quick: bool, peak_gflops: float, say: Callable[[str], None]
) -> Iterator[LayerRow | NetRow]:
    jax_device, torch_device = devices()
    for layer in layer_times.time_layers(jax_device, budget_s=0.5 if quick else 2, quick=quick):
        say(f"{layer.case}: {layer.ratio:.2f} x Flax")
        yield layer
    for config in (NARROW,) if quick else (NARROW, SLIDES):
        problem = Problem(config, SIZE_PX, jax_device, torch_device)
        for net in net_times.time_nets(
            problem, peak_gflops=peak_gflops, budget_s=5 if quick else 10
        ):
            against = f", {net.ratio:.2f} x torch {net.torch_variant}" if net.ratio else ""
            say(f"{net.case}: {net.jax_ms:.0f} ms{against}")
            yield net


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
        table.add_row(
            row["case"], row["torch_variant"], _number(row["jax_ms"]), _number(row["torch_ms"]),
            _ratio(row), _number(row["share_of_peak"], 2),
        )  # fmt: skip
    return table


def _busy(row: dict[str, Any]) -> bool:
    return (row["others_cores"] or 0) > BUSY_CORES


def _ratio(row: dict[str, Any]) -> str:
    return _number(row["ratio"], 2) + ("*" if _busy(row) else "")


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
