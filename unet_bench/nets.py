"""The same net with the same weights in both frameworks on one device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from unet_bench.flops import forward_gflop
from unet_bench.steps import (
    VARIANTS,
    Problem,
    jax_forward,
    jax_step,
    synchronised,
    torch_forward,
    torch_step,
)
from unet_bench.timing import Run, Timings, alternate

# of the largest value, before anything is timed; float32 through 23 convolutions gives 1e-5
ROUNDING = 1e-4


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


def measured(problem: Problem, *, peak_gflops: float, budget_s: float) -> Iterator[NetRow]:
    """Rows of the forward pass and of the training step, one for each variant of torch.

    Args:
        peak_gflops: of `matmul_gflops`.
        budget_s: for each of the two.
    """
    gflop = forward_gflop(problem.config, problem.size_px, problem.size_px)
    for what, make_jax, make_torch, passes in (
        ("forward", jax_forward, torch_forward, 1),
        ("training step", jax_step, torch_step, 3),
    ):
        ours = make_jax(problem)
        runs = {"jax": ours.run}
        if problem.torch_device is not None:
            runs |= {variant: make_torch(problem, variant) for variant in VARIANTS}
        check_equal(runs)
        times = alternate(runs, budget_s=budget_s)
        gflops = passes * gflop / (times.ms("jax") / 1e3)
        for variant in list(runs)[1:] or ["none"]:
            yield NetRow(
                f"{problem.name}, {what}", variant, times.ms("jax"), *_torch_times(times, variant),
                gflops, gflops / peak_gflops, ours.compile_s, ours.peak_mb,
                times.others_cores,
            )  # fmt: skip


def matmul_gflops(
    jax_device: jax.Device, torch_device: torch.device | None, *, budget_s: float
) -> float:
    """10^9 operations per second of the quickest float32 matrix product, in either framework."""
    side = 2048 if jax_device.platform == "cpu" else 8192
    square = np.random.default_rng(0).standard_normal((side, side), np.float32)
    a = jax.device_put(square, jax_device)
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    runs: dict[str, Run] = {"jax": lambda: product(a)}
    if torch_device is not None:
        b = torch.tensor(square, device=torch_device)
        runs["torch"] = synchronised(lambda: b @ b, torch_device)
    times = alternate(runs, budget_s=budget_s)
    return 2 * side**3 / 1e6 / min(times.best_ms(name) for name in runs)


def check_equal(runs: dict[str, Run]) -> None:
    """Refuse to time two different computations: `AssertionError`."""
    ours = _numpy(runs["jax"]())
    for name, run in runs.items():
        theirs = _numpy(run()) if name != "jax" else ours
        assert ours.shape == theirs.shape, f"jax gives {ours.shape}, {name} {theirs.shape}"
        worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        assert worst <= ROUNDING, f"jax and {name} differ by {worst:.1e} of the largest value"


def _torch_times(times: Timings, variant: str) -> tuple[float | None, float | None]:
    """The variant's time, and JAX's over it."""
    if variant not in times.rounds_ms:
        return None, None
    return times.ms(variant), times.ratio("jax", over=variant)


def _numpy(value: Any) -> np.ndarray:
    """Logits or a loss, in JAX's layout."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    return (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).cpu().numpy()
