"""The most that a device can do: products of matrices, and copies."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from unet_bench.steps import FLOAT32, Arithmetic, torch_tf32, wait_for_device
from unet_bench.timing import Run, alternate


def matmul_gflops(
    jax_device: jax.Device,
    torch_device: torch.device | None,
    *,
    side: int,
    budget_s: float,
    arithmetic: Arithmetic = FLOAT32,
    repeat: int = 1,
) -> float:
    """Return the 10^9 operations per second of the quickest product of two matrices.

    Args:
        side: of the matrices, which are square.
        repeat: products that are timed as one, so that starting them hardly counts.
    """
    square = np.random.default_rng(0).standard_normal((side, side), np.float32)
    a = jax.device_put(square, jax_device).astype(arithmetic.dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=arithmetic.precision))
    runs: dict[str, Run] = {"jax": lambda: [product(a) for _ in range(repeat)]}
    if torch_device is not None:
        b = torch.tensor(square, device=torch_device, dtype=getattr(torch, arithmetic.dtype))
        runs["torch"] = wait_for_device(lambda: [b @ b for _ in range(repeat)], torch_device)
    with torch_tf32(arithmetic.tf32):
        times = alternate(runs, budget_s=budget_s)
    return repeat * 2 * side**3 / 1e6 / min(times.best_ms(name) for name in runs)


def copy_gb_s(
    jax_device: jax.Device, torch_device: torch.device | None, *, size_bytes: int, budget_s: float
) -> float:
    """Return the 10^9 bytes per second, read and written, of the quickest copy.

    Args:
        size_bytes: of the array; more than all caches hold.
    """
    values = np.random.default_rng(0).standard_normal(size_bytes // 4, np.float32)
    a = jax.device_put(values, jax_device)
    # XLA may leave a plain copy out
    negate = jax.jit(jnp.negative)
    runs: dict[str, Run] = {"jax": lambda: negate(a)}
    if torch_device is not None:
        b = torch.tensor(values, device=torch_device)
        target = torch.empty_like(b)
        runs["torch"] = wait_for_device(lambda: target.copy_(b), torch_device)
    times = alternate(runs, budget_s=budget_s)
    return 2 * values.nbytes / 1e6 / min(times.best_ms(name) for name in runs)
