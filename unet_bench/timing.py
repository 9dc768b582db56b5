"""Times of several callables in one run, taken in turns: on a shared machine only ratios hold."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timings:
    """Wall-clock times of every round, in ms, by name.

    Attributes:
        others_cores: cores that other work kept busy meanwhile; None where the system does not
            tell. Far from 0 the times compare nothing, for torch's threads wait for one another:
            beside one busy process on two cores, a training step of base 16 at 256 took torch
            2.2 s in place of 0.11, and JAX 0.36 in place of 0.23 (torch 2.13, jax 0.10.2).
    """

    rounds_ms: dict[str, tuple[float, ...]]
    others_cores: float | None = None

    def ms(self, name: str) -> float:
        """Return the median round."""
        return median(self.rounds_ms[name])

    def best_ms(self, name: str) -> float:
        """Return the quickest round."""
        return min(self.rounds_ms[name])

    def ratio(self, name: str, over: str) -> float:
        """Return one median over another.

        >>> Timings({"a": (2.0, 9.0, 3.0), "b": (1.0, 2.0, 2.0)}).ratio("a", over="b")
        1.5
        """
        return self.ms(name) / self.ms(over)


def alternate(
    runs: Mapping[str, Run], *, budget_s: float, least: int = 5, most: int = 200
) -> Timings:
    """Time `runs`, one call of each per round, after one call of each to warm up.

    Every other round goes backwards, so that none is always first. What a run returns is waited
    for; a run on another framework's accelerator waits by itself.

    Args:
        budget_s: no round begins later than this.
        least: number of rounds in spite of the budget.
        most: number of rounds at which it is enough.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    rounds_ms: dict[str, list[float]] = {name: [] for name in runs}
    order, start, others = list(runs), time.perf_counter(), others_s()
    for number in range(most):
        if number >= least and time.perf_counter() - start > budget_s:
            break
        for name in order:
            rounds_ms[name].append(elapsed_ms(runs[name]))
        order.reverse()
    elapsed, later = time.perf_counter() - start, others_s()
    cores = None if others is None or later is None else max(0.0, later - others) / elapsed
    return Timings({name: tuple(each) for name, each in rounds_ms.items()}, cores)


def elapsed_ms(run: Run) -> float:
    """Measure the wall-clock time of one call and of the wait for its result."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - start)


def others_s() -> float | None:
    """Return the core-seconds since the start of the machine that went to other processes or, of a
    virtual machine, to other guests; None where the system has no `/proc/stat`."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, *rest = map(int, stat.read_text().split()[1:9])
    busy_s = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy_s - time.process_time()


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Compile a jitted function for these arguments; return it and the seconds that this took."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start


def planned_mb(program: Any) -> float | None:
    """Return the memory of a compiled program by XLA's own plan: arguments, results and
    temporaries, in MB of 10^6 bytes; None where the backend does not tell. Scratch inside its
    libraries is not in."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    once = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return (once + plan.temp_size_in_bytes) / 1e6
