"""What `unet bench` runs: the same computations in one run on this device, as ratios."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import layers, nets
from benchmarks.environment import device_name, environment, load, versions
from benchmarks.layers import LayerRow
from benchmarks.nets import NetRow, matmul_gflops
from benchmarks.steps import PRECISION, Problem, devices, no_tf32
from unet_spec import SLIDES, UNetConfig

SIZE_PX = 256
# processes; under a load of 8 on two cores the ratio to torch, whose threads wait for one another,
# fell from about 1 to 0.2
BUSY = 0.5
NARROW = UNetConfig(widths=(16, 32, 64, 128, 256))


def bench(*, quick: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Times of the layers against plain Flax, and of whole nets against torch.

    Args:
        quick: the narrow net only and fewer rounds: under a minute on two cores, and not four.
        say: is told each row as it is measured.
    """
    jax_device, torch_device = devices()
    load_before = load()
    if load_before is not None and load_before > BUSY:
        say(f"load {load_before}: other work slows one framework more than the other")
    say(f"on {device_name(jax_device)}; {PRECISION}")
    if torch_device is None:
        say("torch cannot use this device: JAX alone is timed")
    with no_tf32():
        peak = matmul_gflops(jax_device, torch_device, budget_s=1 if quick else 3)
        say(f"float32 matrix product: {peak:.0f} GFLOP/s")
        rows = [asdict(row) for row in _rows(quick, peak, say)]
    return {
        "device": device_name(jax_device),
        "precision": PRECISION,
        "matmul_gflops": peak,
        "load_before": load_before,
        "versions": versions(),
        "environment": environment(),
        "rows": rows,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `bench` gave as tables."""
    console.print(f"{result['device']}; {result['precision']}")
    console.print(_layer_table([row for row in result["rows"] if "flax_ms" in row]))
    console.print(_net_table([row for row in result["rows"] if "torch_ms" in row]))


def _rows(
    quick: bool, peak_gflops: float, say: Callable[[str], None]
) -> Iterator[LayerRow | NetRow]:
    jax_device, torch_device = devices()
    for layer in layers.measured(jax_device, budget_s=0.5 if quick else 2):
        say(f"{layer.case}: {layer.ratio:.2f} x Flax")
        yield layer
    for config in (NARROW,) if quick else (NARROW, SLIDES):
        problem = Problem(config, SIZE_PX, jax_device, torch_device)
        for net in nets.measured(problem, peak_gflops=peak_gflops, budget_s=5 if quick else 10):
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
        table.add_row(row["case"], *times, f"{row['ratio']:.2f}")
    return table


def _net_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="whole nets, median ms; ratio is JAX over torch")
    for column in ("case", "torch"):
        table.add_column(column)
    for column in ("JAX", "torch", "ratio", "GFLOP/s", "of peak", "compile s", "memory MB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["case"], row["torch_variant"], _number(row["jax_ms"]), _number(row["torch_ms"]),
            _number(row["ratio"], 2), _number(row["gflops"]), _number(row["share_of_peak"], 2),
            _number(row["compile_s"], 1), _number(row["peak_mb"]),
        )  # fmt: skip
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
