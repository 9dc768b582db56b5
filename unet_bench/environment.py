"""What the frameworks see of the hardware, beside `unet_spec.environment`."""

import os

import jax
import torch

from unet_spec import environment as installed


def environment() -> dict[str, str]:
    """Describe versions, hardware and devices, for the file that holds a figure."""
    return {
        **installed.environment(),
        "jax_device": device_name(jax.devices()[0]),
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch_threads": str(torch.get_num_threads()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def device_name(device: jax.Device) -> str:
    """Name a device, with its model where the platform tells it: `gpu (NVIDIA A100)`, `cpu
    (...)`."""
    kind = installed.cpu_model() if device.platform == "cpu" else device.device_kind
    return f"{device.platform} ({kind})"
