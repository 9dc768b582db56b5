"""In what precision products are computed: it is set, measured and described."""

from typing import Any

from unet_parity.jax_side import FLOAT32_BITS as FLOAT32_BITS
from unet_parity.jax_side import describe_jax
from unet_parity.jax_side import significand_bits as significand_bits
from unet_parity.torch_side import describe_torch
from unet_parity.torch_side import use_full_precision as use_full_precision


def describe_precision(precision: Any = "highest") -> dict[str, str]:
    """Describe the devices, and the precision of products on both sides."""
    return {**describe_jax(precision), **describe_torch()}
