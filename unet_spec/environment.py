"""What is installed, and where a figure was measured, which goes into every file that holds one."""

import glob
import importlib.util
import os
import platform
import re
import sys
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
_COMPILERS = ("libtpu", "jax_plugins")
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")
# the PCI numbers of Google, NVIDIA and AMD
_VENDORS = {"0x1ae0", "0x10de", "0x1002"}
_VARIABLES = re.compile("(TPU|COLAB_TPU|CUDA|NVIDIA|HIP|ROCR)_")
_OF_COMPILERS = ("TPU_SKIP_MDS_QUERY", "TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL")
"""Variables that keep a TPU's compiler quiet, and are set where no chip is."""
PACKAGES = ("unet-twins", "jax", "jaxlib", "libtpu", "flax", "optax", "torch", "numpy")


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


def leave_out_accelerators() -> None:
    """Keep JAX from looking for accelerators where compilers for them are installed and no chip is.

    It would load each of them at its start, which takes time and writes to stderr.
    """
    if "JAX_PLATFORMS" in os.environ or not sys.platform.startswith("linux"):
        return
    has_compiler = any(importlib.util.find_spec(module) for module in _COMPILERS)
    if has_compiler and not has_accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_accelerator() -> bool:
    """Return whether anything says that this machine has a TPU or a GPU."""
    named = [name for name in os.environ if name not in _OF_COMPILERS]
    if any(map(_VARIABLES.match, named)) or any(map(glob.glob, _ACCELERATORS)):
        return True
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor")
    return any(Path(vendor).read_text().strip() in _VENDORS for vendor in vendors)


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
