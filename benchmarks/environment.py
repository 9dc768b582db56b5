"""Where a figure was measured, for the file that holds it."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import jax
import torch


def versions() -> dict[str, str]:
    """Of everything that the figures depend on."""
    names = ("jax", "jaxlib", "flax", "torch", "numpy", "unet-twins")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def environment() -> dict[str, str | int | None]:
    """The hardware, and what the frameworks see of it."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "jax_device": device_name(jax.devices()[0]),
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch_threads": torch.get_num_threads(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def device_name(device: jax.Device) -> str:
    """Its model where the platform tells it: `gpu (NVIDIA A100)`, `cpu (...)`."""
    kind = cpu_model() if device.platform == "cpu" else device.device_kind
    return f"{device.platform} ({kind})"


def cpu_model() -> str:
    """The model's name, with what a hypervisor leaves of it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    units = [each for each in ("avx2", "avx512f", "amx_tile") if each in known]
    return " ".join([name[1] if name else platform.processor() or "unknown", *units])


def memory_gb() -> int | None:
    """Main memory in units of 2^30 bytes; None where the system does not tell."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
