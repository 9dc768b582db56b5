"""What a net takes at least, by arithmetic alone, and what is free: no allocation is tried that
must fail, because a machine that runs out of memory kills the process or stands still."""

import sys
from pathlib import Path

from unet_spec.config import UNetConfig
from unet_spec.geometry import levels
from unet_spec.parameters import parameter_count

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def count_map_values(config: UNetConfig, height: int, width: int) -> int:
    """Return how many values the 3x3 convolutions of a net give for one image.

    The backward pass of a step needs them all; what other layers give is not counted.

    Raises:
        InputError: an illegal size.
    """
    rows, columns = levels(config, height), levels(config, width)
    shrink = 2 * config.convolutions if config.padding == "valid" else 0
    values = config.widths[-1] * rows.neck * columns.neck
    for channels, row, column in zip(config.widths, rows.skips, columns.skips, strict=False):
        values += channels * row * column
    for level, row, column in zip(config.ups, rows.ups, columns.ups, strict=True):
        channels = min(level.middle_channels, level.out_channels)
        values += channels * (row - shrink) * (column - shrink)
    return config.convolutions * values


def bytes_of_step(
    config: UNetConfig, *, size_px: int, batch: int, parts: int, copies: int, bytes_of_map: int
) -> int:
    """Return what a training step takes at least.

    Args:
        size_px: side of the input.
        batch: images in a step, which is computed in so many `parts`.
        copies: arrays as large as the parameters: these, the gradients, moments and an average.
        bytes_of_map: of a value between two layers.
    """
    images = batch * size_px**2 * config.in_channels * 4
    maps = batch // parts * count_map_values(config, size_px, size_px) * bytes_of_map
    return 4 * copies * parameter_count(config) + images + maps


def show_gigabytes(count: int) -> str:
    """Return a number of bytes as GB.

    >>> show_gigabytes(1_250_000_000)
    '1.2 GB'
    """
    return f"{count / 10**9:.1f} GB"


def free_bytes() -> int | None:
    """Return the memory that this process can still take, in bytes; None where the system does not
    tell. A limit of a container counts, and one of `ulimit -v`."""
    limits = [*_free_of_system(), *_free_of_cgroups(), *_free_of_process()]
    return min(limits, default=None)


def _free_of_system() -> list[int]:
    for line in _read(_PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return [1024 * int(line.split()[1])]
    return []


def _free_of_cgroups() -> list[int]:
    """Return what each group that this process is in leaves; of either version of cgroups."""
    free = []
    for line in _read(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUP / controllers
        most, now = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else (
            "memory.max", "memory.current"
        )  # fmt: skip
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = _read(folder / most).strip(), _read(folder / now).strip()
            if limit.isdigit() and used.isdigit():
                free.append(max(0, int(limit) - int(used) + _count_cache(folder)))
            if folder == root:
                break
    return free


def _count_cache(group: Path) -> int:
    """Return the bytes of files that a group keeps, and gives back when it needs them."""
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _free_of_process() -> list[int]:
    if sys.platform == "win32":
        return []
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(_PROC / "self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return []
    return [max(0, limit - int(pages[0]) * resource.getpagesize())]


def _read(path: Path) -> str:
    """Return the text of a file of the system; empty where this system has none."""
    try:
        return path.read_text()
    except OSError:
        return ""
