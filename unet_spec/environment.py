"""What is installed, and where a figure was measured, which goes into every file that holds one."""

import importlib.util
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unet_spec.errors import InputError

EXTRAS = {
    "jax": ("jax", "flax"),
    "torch": ("torch",),
    "images": ("PIL", "tifffile", "imagecodecs", "zarr"),
    "train": (
        *("jax", "flax", "PIL", "tifffile", "imagecodecs", "zarr"),
        *("optax", "orbax", "psutil", "scipy"),
    ),
}
"""The modules that each optional part of the installation brings."""
PACKAGES = ("unet-twins", "jax", "jaxlib", "flax", "optax", "torch", "numpy")


def environment() -> dict[str, str]:
    """Describe the versions of what is installed, and the hardware as far as the system tells."""
    return {
        "python": platform.python_version(),
        **versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": str(usable_cores()),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages on which figures depend, where they are installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def usable_cores() -> int:
    """Count the cores that this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's name, with the vector units that matter to convolutions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    units = {"avx2", "avx512f", "amx_tile"} & set(flags[1].split() if flags else ())
    return " ".join([name[1] if name else platform.processor() or "unknown", *sorted(units)])


def need(*extras: str) -> None:
    """Refuse to go on where a part of the installation is missing.

    Args:
        extras: names of `EXTRAS`, which are those of pyproject.toml.

    Raises:
        InputError: with the command that installs it.
    """
    for extra in extras:
        for module in EXTRAS[extra]:
            if importlib.util.find_spec(module) is None:
                raise InputError(
                    f"{module} is not installed; install it: pip install 'unet-twins[{extra}]'"
                )
