"""What the device can do at most: products of matrices, and copies."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from unet_bench.steps import FLOAT32, Arithmetic, synchronised, torch_tf32
from unet_bench.timing import Run, alternate


def matmul_gflops(
    jax_device: jax.Device,
    torch_device: torch.device | None,
    *,
    budget_s: float,
    arithmetic: Arithmetic = FLOAT32,
    side: int | None = None,
    repeat: int = 1,
) -> dict[str, float]:
    """10^9 operations per second of each framework's quickest product of two square matrices.

    Args:
        side: of the matrices; by default 2048 on a CPU and 8192 elsewhere.
        repeat: products that are timed as one, so that starting them does not count.
    """
    side = side or (2048 if jax_device.platform == "cpu" else 8192)
    square = np.random.default_rng(0).standard_normal((side, side), np.float32)
    a = jax.device_put(square, jax_device).astype(arithmetic.dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=arithmetic.precision))
    runs: dict[str, Run] = {"jax": lambda: [product(a) for _ in range(repeat)]}
    if torch_device is not None:
        b = torch.tensor(square, device=torch_device).to(getattr(torch, arithmetic.dtype))
        runs["torch"] = synchronised(lambda: [b @ b for _ in range(repeat)], torch_device)
    with torch_tf32(arithmetic.tf32):
        times = alternate(runs, budget_s=budget_s)
    return {name: repeat * 2 * side**3 / 1e6 / times.best_ms(name) for name in runs}


def copy_gb_per_s(
    jax_device: jax.Device, torch_device: torch.device | None, *, budget_s: float, megabytes: int
) -> dict[str, float]:
    """10^9 bytes per second, read and written, of each framework's quickest copy: torch's
    `copy_`, and in JAX a sum with a number, because XLA leaves a plain copy out.

    Args:
        megabytes: of the array, far more than the caches hold.
    """
    values = np.random.default_rng(0).standard_normal(megabytes * 2**18, np.float32)
    a = jax.device_put(values, jax_device)
    add = jax.jit(lambda a: a + 1)
    runs: dict[str, Run] = {"jax": lambda: add(a)}
    if torch_device is not None:
        b = torch.tensor(values, device=torch_device)
        target = torch.empty_like(b)
        runs["torch"] = synchronised(lambda: target.copy_(b), torch_device)
    times = alternate(runs, budget_s=budget_s)
    return {name: 2 * values.nbytes / 1e6 / times.best_ms(name) for name in runs}
