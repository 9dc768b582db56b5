"""How far do optimizers in JAX move from torch's in 50 steps: ours, and stock optax's?

`python -m benchmarks.optimizers` writes `results/optimizers.json` (about two minutes on two
cores); the table in docs/parity.md is this file's.
"""

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_parity.optimizers import BOUND, optimizer_table
from unet_spec.environment import versions

COMMAND = "python -m benchmarks.optimizers"
RESULT = RESULTS / "optimizers.json"
STEPS = 50
SEEDS = range(3)

if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    tables = [optimizer_table(steps=STEPS, seed=seed) for seed in SEEDS]
    rows = [
        {
            "optimizer": same[0].optimizer,
            "schedule": same[0].schedule,
            "ours": max(row.ours for row in same),
            "stock": max(row.stock for row in same),
        }
        for same in zip(*tables, strict=True)
    ]
    for row in rows:
        print(
            f"| {row['optimizer']} | {row['schedule']} | {row['ours']:.0e} | {row['stock']:.0e} |"
        )
    result = {
        "command": COMMAND,
        "what": "float64, largest relative difference of any parameter from torch's after "
        f"{STEPS} steps, the worst of {len(SEEDS)} seeds",
        "bound": BOUND,
        "rows": rows,
        "versions": versions(),
        "environment": environment(),
    }
    write_result(arguments.out, result)
