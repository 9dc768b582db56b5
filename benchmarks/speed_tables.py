"""Which lines do the README's tables of speed have?

`python -m benchmarks.speed_tables` prints them, from results/bench_cpu.json.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "bench_cpu.json"
WIDE = ("base 32", "base 64")
Rows = Sequence[Mapping[str, Any]]


def list_layers(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each layer."""
    for row in result["rows"]:
        if "flax_ms" in row:
            yield f"| {row['case']} | {row['ratio']:.2f} |"


def list_nets(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each computation of a net, with torch's best variant, and with eager.

    What was timed for the slopes alone is left out.
    """
    further = result.get("only_for_slopes", ())  # earlier results have no slopes
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if row.get("torch_ms") is not None and row["case"] not in further:
            cases.setdefault(row["case"], []).append(row)
    for case, rows in cases.items():
        best = min(rows, key=lambda row: row["torch_ms"])
        eager = next(row for row in rows if row["torch_variant"] == "eager")
        variant, times = best["torch_variant"], (best["jax_ms"], best["torch_ms"])
        jax_ms, torch_ms = (f"{ms:,.0f}" for ms in times)
        yield (
            f"| {case} | {jax_ms} | {torch_ms} ({variant}) | {best['ratio']:.2f} "
            f"| {eager['ratio']:.2f} |"
        )


def describe_nets(result: Mapping[str, Any]) -> str:
    """Return what the table of nets says, in sentences."""
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for line in list_nets(result):
        case, _, _, ratio, _ = (cell.strip() for cell in line.strip("| ").split(" | "))
        ratios[case.startswith(WIDE)].append(float(ratio))
    wide, narrow = (f"{min(r):.2f} to {max(r):.2f}" for r in (ratios[True], ratios[False]))
    return (
        f"Nets of base width 32 and 64 take {wide} times as long in JAX as in PyTorch, and the "
        f"narrower ones {narrow} times."
    )


def list_slopes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each slope."""
    for slope in result.get("slopes", ()):
        lines = [
            f"{slope[name]['constant_ms']:.1f} + {slope[name]['slope_ms']:.1f}"
            for name in ("jax", "torch")
        ]
        yield f"| {slope['name']} | {slope['per']} | {' | '.join(lines)} | {slope['ratio']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    result = json.loads(RESULT.read_text())
    for lines in (list_layers, list_nets, list_slopes):
        print("\n".join(lines(result)), end="\n\n")


if __name__ == "__main__":
    main()
