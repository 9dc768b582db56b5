"""The same net with the same weights in both frameworks on one device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unet_bench.steps import (
    VARIANTS,
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
    """One net, JAX against one variant of torch; median times, JAX's over torch's.

    Attributes:
        torch_variant: `none`, with no times, where torch cannot use JAX's device.
        gflops: 10^9 direct convolution operations per second of JAX's median time; a training
            step counts as three forward passes.
        share_of_peak: of the quickest float32 matrix product of the same run.
        compile_s: of JAX's program.
        others_cores: kept busy by other work (`unet_bench.timing.Timings`).
        peak_mb: of JAX's program by XLA's plan (`unet_bench.timing.planned_mb`).
        torch_peak_mb: the most that torch held at once for this variant, where it runs on a GPU.
        apart: JAX's first result from the variant's, before anything is timed, of the largest
            value.
    """

    case: str
    torch_variant: str
    jax_ms: float
    torch_ms: float | None
    ratio: float | None
    gflops: float
    share_of_peak: float
    compile_s: float
    peak_mb: float | None
    others_cores: float | None
    torch_peak_mb: float | None
    apart: float | None


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
    for what, make_jax, make_torch, passes in (
        ("forward", jax_forward, torch_forward, 1),
        ("training step", jax_step, torch_step, 3),
    ):
        ours = make_jax(problem)
        runs, first, peaks_mb = {"jax": ours.run}, {"jax": ours.run()}, {}
        for variant in variants if problem.torch_device is not None else ():
            held = _held_bytes()
            runs[variant] = make_torch(problem, variant)
            first[variant] = runs[variant]()
            peaks_mb[variant] = _peak_mb(runs[variant], held)
        apart = check_equal(first, rounding=problem.arithmetic.rounding)
        del first
        times = alternate(runs, budget_s=budget_s)
        gflops = passes * gflop / (times.ms("jax") / 1e3)
        for variant in list(runs)[1:] or ["none"]:
            yield NetRow(
                f"{problem.name}, {what}", variant, times.ms("jax"), *_torch_times(times, variant),
                gflops, gflops / peak_gflops, ours.compile_s, ours.peak_mb,
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
