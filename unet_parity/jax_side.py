"""What every comparison needs of JAX alone: compiled functions, values as numpy arrays, and its
precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

FLOAT32_BITS = 24


def compile_jax(run: Callable[..., Any], dtype: str, *, quick: bool = True, **options: Any) -> Any:
    """Compile a function as `jax.jit` does.

    Args:
        quick: for float64, which nobody trains in, leave LLVM's optimisations out: on CPU they
            take five times as long as the rest of a compilation. Convolutions of large maps
            then run five times as long.
    """
    if dtype == "float64" and quick and jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(run, **options)


def fetch_tree(tree: Any) -> Any:
    """Fetch a tree as numpy arrays; bfloat16, which numpy does not have, as float64."""
    return jax.tree.map(
        lambda a: np.asarray(a, np.float64) if a.dtype == jnp.bfloat16 else np.asarray(a), tree
    )


def make_update(optimizer: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """Return a function of (params, state, gradients, loss) that gives (params, state) a step
    on."""

    def move(params: Any, state: Any, gradients: Any, loss: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return move


def significand_bits(precision: Any = "highest") -> int:
    """Measure how many bits of a float32 factor JAX's device keeps: 24, or 11 in TF32,
    or 8 in one bfloat16 pass. The device is asked, not looked up."""
    bits = jnp.arange(1, FLOAT32_BITS + 1)
    factors = (2.0**bits - 1).astype(jnp.float32)
    x = jnp.broadcast_to(factors[:, None, None, None], (FLOAT32_BITS, 8, 8, 16))
    kernel = jnp.zeros((1, 1, 16, 16), jnp.float32).at[0, 0].set(jnp.eye(16))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
    is_exact = (y == x).all(axis=(1, 2, 3))
    return int(jnp.where(is_exact, bits, 0).max())


def describe_jax(precision: Any = "highest") -> dict[str, str]:
    """Describe JAX's device, and the precision of its products."""
    bits = significand_bits(precision)
    return {
        "jax_device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "jax_precision": f"{precision}: float32 products keep {bits} bits of their factors",
    }
