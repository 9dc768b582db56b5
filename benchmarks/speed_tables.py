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
    """Yield a line for each computation of a net, with torch's best variant, and with eager."""
    for case, rows in _group_nets(result).items():
        best, eager = _find_best(rows), next(r for r in rows if r["torch_variant"] == "eager")
        jax_ms, torch_ms = (f"{best[name]:,.0f}" for name in ("jax_ms", "torch_ms"))
        yield (
            f"| {case} | {jax_ms} | {torch_ms} ({best['torch_variant']}) | {best['ratio']:.2f} "
            f"| {eager['ratio']:.2f} |"
        )


def describe_nets(result: Mapping[str, Any]) -> str:
    """Return what the table of nets says, in a sentence."""
    best = {case: _find_best(rows)["ratio"] for case, rows in _group_nets(result).items()}
    wide = [ratio for case, ratio in best.items() if case.startswith(WIDE)]
    narrow = [ratio for case, ratio in best.items() if not case.startswith(WIDE)]
    return (
        f"Nets of base width 32 and 64 take {min(wide):.2f} to {max(wide):.2f} times as long in "
        f"JAX as in PyTorch, and the narrower ones {min(narrow):.2f} to {max(narrow):.2f} times."
    )


def _group_nets(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each computation of a net, without those for the slopes alone."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if row.get("torch_ms") is not None and row["case"] not in result["only_for_slopes"]:
            cases.setdefault(row["case"], []).append(row)
    return cases


def _find_best(rows: Rows) -> Mapping[str, Any]:
    return min(rows, key=lambda row: row["torch_ms"])


def list_slopes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each slope."""
    for slope in result["slopes"]:
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
    print(describe_nets(result))


if __name__ == "__main__":
    main()
