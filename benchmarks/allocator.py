"""Does a process that keeps the memory that it frees compute faster?

`python -m benchmarks.allocator` times a forward pass and a training step of base width 64 on one
image of 256x256, in JAX and in PyTorch. Each is timed in processes of its own, in turns: one keeps
what it frees (`unet_spec.allocator`), the next gives it back. Run it on a machine that does nothing
else.
"""

import json
import os
import resource
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks.script import RESULTS, make_parser, write_result
from unet_spec.allocator import SWITCH, keep_freed_memory
from unet_spec.environment import environment

RESULT = RESULTS / "allocator.json"
ROUNDS = {"forward": 20, "training step": 8}
"""Runs in a process, after two that warm up."""
FRAMEWORKS = ("jax", "torch")


def compare(*, repeats: int, rounds: dict[str, int] = ROUNDS) -> dict[str, Any]:
    """Return what every process measured, by framework and computation, and the medians."""
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        for framework in FRAMEWORKS:
            for what, count in rounds.items():
                for keeps in (True, False):
                    runs.append(_run_process(framework, what, count, keeps=keeps))
                    print(runs[-1], flush=True)
    return {"environment": environment(), "runs": runs, "rows": [*summarize(runs)]}


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each framework and computation: medians, kept over given back."""
    rows = []
    for framework, what in dict.fromkeys((run["framework"], run["what"]) for run in runs):
        row: dict[str, Any] = {"framework": framework, "what": what}
        for name in ("ms", "page_faults", "peak_mb"):
            kept, back = (
                median(r[name] for r in runs
                       if (r["framework"], r["what"], r["keeps"]) == (framework, what, keeps))
                for keeps in (True, False)
            )  # fmt: skip
            row[name] = {"kept": kept, "given_back": back}
        rows.append({**row, "ratio": row["ms"]["kept"] / row["ms"]["given_back"]})
    return rows


def _run_process(framework: str, what: str, rounds: int, *, keeps: bool) -> dict[str, Any]:
    """Run a process that measures, and return what it says."""
    switch = {SWITCH: "1" if keeps else "0"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.allocator", "--one", framework, what, str(rounds)],
        env={**os.environ, **switch}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def _measure(framework: str, what: str, rounds: int) -> dict[str, Any]:
    """Time runs of one computation in this process."""
    allocator = keep_freed_memory()
    from unet_bench import steps
    from unet_bench.timing import elapsed_ms
    from unet_spec import SLIDES

    problem = steps.Problem(SLIDES, 256, *steps.devices())
    if framework == "jax":
        build = steps.jax_forward if what == "forward" else steps.jax_step
        run = build(problem).run
    else:
        variants = {"forward": steps.torch_forward, "training step": steps.torch_step}
        run = variants[what](problem, "channels_last")
    for _ in range(2):
        elapsed_ms(run)
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = [elapsed_ms(run) for _ in range(rounds)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "framework": framework, "what": what, "keeps": allocator.keeps, "ms": median(times),
        "page_faults": (after.ru_minflt - before.ru_minflt) / rounds,
        "peak_mb": after.ru_maxrss / 1e3,
    }  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--one", nargs=3, metavar=("FRAMEWORK", "WHAT", "ROUNDS"), help="measure")
    flags = parser.parse_args()
    if flags.one:
        framework, what, rounds = flags.one
        print(json.dumps(_measure(framework, what, int(rounds))))
        return
    result = compare(repeats=flags.repeats)
    write_result(flags.out, result)
    for row in result["rows"]:
        print(f"{row['framework']}, {row['what']}: {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
