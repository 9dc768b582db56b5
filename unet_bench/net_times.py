"""The same net with the same weights in both frameworks on one device."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from unet_bench.steps import (
    VARIANTS,
    CompiledRun,
    Problem,
    jax_forward,
    jax_step,
    torch_forward,
    torch_step,
)
from unet_bench.timing import Run, Timings, alternate
from unet_spec.flops import forward_gflop


@dataclass(frozen=True)
class NetRow:
    """One computation, JAX against one variant of torch; median times, JAX's over torch's.

    Attributes:
        torch_variant: `none`, with no times, where torch cannot use JAX's device.
        best: whether no other variant of torch takes less time here.
        gflops: 10^9 direct convolution operations per second of JAX's median time; a training
            step counts as three forward passes.
        share_of_peak: of the quickest float32 matrix product of the same run.
        gflop: 10^9 direct convolution operations of one run.
        megapixels: 10^6 pixels of the images of one run.
        compile_s: of JAX's program.
        torch_first_s: of the variant's first run, which for `compiled` compiles it.
        others_cores: kept busy by other work (`unet_bench.timing.Timings`).
        peak_mb: of JAX's program by XLA's plan (`unet_bench.timing.planned_mb`).
        torch_peak_mb: the most that torch held at once for this variant, where it runs on a GPU.
        apart: JAX's first result from the variant's, before anything is timed, of the largest
            value.
    """

    case: str
    torch_variant: str
    best: bool
    jax_ms: float
    torch_ms: float | None
    ratio: float | None
    gflops: float
    share_of_peak: float
    gflop: float
    megapixels: float
    compile_s: float
    torch_first_s: float | None
    peak_mb: float | None
    others_cores: float | None
    torch_peak_mb: float | None
    apart: float | None


@dataclass(frozen=True)
class Case:
    """One computation that both frameworks do.

    Attributes:
        gflop: 10^9 direct convolution operations of one run.
        megapixels: 10^6 pixels of the images of one run.
        rounding: what both first results may differ by, of the largest value.
    """

    name: str
    gflop: float
    megapixels: float
    rounding: float


def time_nets(
    problem: Problem,
    *,
    peak_gflops: float,
    budget_s: float,
    variants: Sequence[str] = tuple(VARIANTS),
) -> Iterator[NetRow]:
    """Time the forward pass and the training step, with a row for each variant of torch.

    Args:
        peak_gflops: of `unet_bench.ceilings.matmul_gflops`.
        budget_s: for each of the two.
        variants: names of `unet_bench.steps.VARIANTS`, or `COMPILED`.
    """
    gflop = problem.batch * forward_gflop(problem.config, problem.size_px, problem.size_px)
    megapixels = problem.batch * problem.size_px**2 / 1e6
    for what, make_jax, make_torch, passes in (
        ("forward", jax_forward, torch_forward, 1),
        ("training step", jax_step, torch_step, 3),
    ):
        case = Case(
            f"{problem.name}, {what}", passes * gflop, megapixels, problem.arithmetic.rounding
        )
        theirs = {}
        if problem.torch_device is not None:
            theirs = {variant: partial(make_torch, problem, variant) for variant in variants}
        yield from time_case(
            case, make_jax(problem), theirs, peak_gflops=peak_gflops, budget_s=budget_s
        )


def time_case(
    case: Case,
    ours: CompiledRun,
    theirs: Mapping[str, Callable[[], Run]],
    *,
    peak_gflops: float,
    budget_s: float,
) -> Iterator[NetRow]:
    """Time one computation, and yield a row for each variant of torch.

    JAX takes turns with each variant by itself, so that it follows no other's threads and caches.

    Args:
        budget_s: for all variants together.
        theirs: by the name of each variant, what builds its run; empty where torch cannot use the
            device.

    Raises:
        AssertionError: the frameworks compute two different things.
    """
    runs, first, first_s, peaks_mb = {"jax": ours.run}, {"jax": ours.run()}, {}, {}
    for variant, build in theirs.items():
        held = _held_bytes()
        runs[variant] = build()
        start = time.perf_counter()
        first[variant] = runs[variant]()
        first_s[variant] = time.perf_counter() - start
        peaks_mb[variant] = _peak_mb(runs[variant], held)
    apart = check_equal(first, rounding=case.rounding)
    del first
    if theirs:
        share_s = budget_s / len(theirs)
        pairs = {
            name: alternate({"jax": ours.run, name: runs[name]}, budget_s=share_s)
            for name in theirs
        }
    else:
        pairs = {"none": alternate(runs, budget_s=budget_s)}
    best = min(theirs, key=lambda variant: pairs[variant].ms(variant), default="none")
    for variant, times in pairs.items():
        gflops = case.gflop / (times.ms("jax") / 1e3)
        yield NetRow(
            case.name, variant, variant == best, times.ms("jax"), *_torch_times(times, variant),
            gflops, gflops / peak_gflops, case.gflop, case.megapixels,
            ours.compile_s, first_s.get(variant), ours.peak_mb,
            times.others_cores, peaks_mb.get(variant), apart.get(variant),
        )  # fmt: skip


def check_equal(results: Mapping[str, Any], *, rounding: float) -> dict[str, float]:
    """Return how far JAX's result is from the others', of the largest value; two different
    computations are not timed: `AssertionError`.

    Args:
        results: logits or a loss, by framework or variant, JAX's as `jax`.
        rounding: the bound.
    """
    ours, apart = _numpy(results["jax"]), {}
    for name in results.keys() - {"jax"}:
        theirs = _numpy(results[name])
        assert ours.shape == theirs.shape, f"jax gives {ours.shape}, {name} {theirs.shape}"
        apart[name] = worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        assert worst <= rounding, f"jax and {name} differ by {worst:.1e} of the largest value"
    return apart


def _held_bytes() -> int:
    """Return the bytes that torch holds on its GPU; 0 where it has none."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _peak_mb(run: Run, held: int) -> float | None:
    """Return the most that torch held at once in a run, in MB of 10^6 bytes, without what it held
    before the run was made; None on CPU, where torch does not tell."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - held) / 1e6


def _torch_times(times: Timings, variant: str) -> tuple[float | None, float | None]:
    """Return the variant's time, and JAX's over it."""
    if variant not in times.rounds_ms:
        return None, None
    return times.ms(variant), times.ratio("jax", over=variant)


def _numpy(value: Any) -> np.ndarray:
    """Return logits or a loss, in JAX's layout."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).cpu().numpy()
