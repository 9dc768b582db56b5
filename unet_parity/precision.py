"""In what precision products are computed: it is set, measured and described."""

from typing import Any

FLOAT32_BITS = 24


def use_full_precision() -> None:
    """Have torch compute real float32 products, also on NVIDIA GPUs, whose convolutions are TF32
    otherwise.

    JAX's precision is given to every product instead (`unet_jax.Numerics`).
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def significand_bits(precision: Any = "highest") -> int:
    """Measure how many bits of a float32 factor JAX's device keeps: 24, or 11 in TF32,
    or 8 in one bfloat16 pass. The device is asked, not looked up."""
    import jax
    import jax.numpy as jnp

    bits = jnp.arange(1, FLOAT32_BITS + 1)
    factors = (2.0**bits - 1).astype(jnp.float32)
    x = jnp.broadcast_to(factors[:, None, None, None], (FLOAT32_BITS, 8, 8, 16))
    kernel = jnp.zeros((1, 1, 16, 16), jnp.float32).at[0, 0].set(jnp.eye(16))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )
    is_exact = (y == x).all(axis=(1, 2, 3))
    return int(jnp.where(is_exact, bits, 0).max())


def describe_precision(precision: Any = "highest") -> dict[str, str]:
    """Describe the devices, and the precision of products on both sides."""
    return {**describe_jax(precision), **describe_torch()}


def describe_jax(precision: Any = "highest") -> dict[str, str]:
    """Describe JAX's device, and the precision of its products."""
    import jax

    bits = significand_bits(precision)
    return {
        "jax_device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "jax_precision": f"{precision}: float32 products keep {bits} bits of their factors",
    }


def describe_torch() -> dict[str, str]:
    """Describe torch's device, and the precision of its products."""
    import torch

    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return {
        "torch_device": "cpu",
        "torch_threads": str(torch.get_num_threads()),
        "torch_precision": f"float32 products in float32, TF32 {'on' if tf32 else 'off'}",
    }
