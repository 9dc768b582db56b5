"""Memory that is freed and taken again: whether the C library keeps it or gives it back.

By default glibc asks the system for every large buffer and gives it back when it is freed. The
system fills each page with zeros when it is first touched, so every step of a net pays for pages
that the step before had.
"""

import ctypes
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

SWITCH = "UNET_KEEP_FREED_MEMORY"
"""The variable of the environment that leaves the allocator alone where it is 0."""
DEVICES = Path("/dev")
ACCELERATORS = ("nvidia[0-9]*", "kfd", "dxg", "accel*", "vfio/[0-9]*")
"""The files of /dev that NVIDIA's, AMD's and Google's devices have."""
OPTIONS = {
    # numbers from glibc's malloc.h. M_ARENA_MAX is not among them: threads that shared one arena
    # took up to a third longer for narrow nets. M_MMAP_THRESHOLD is not, because glibc before 2.35
    # takes none above 32 MiB
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),  # never
}
"""What is set, by its name in glibc: a number for `mallopt`, and a value."""


class Allocator(NamedTuple):
    """An `Allocator` says whether this process keeps the memory that it frees.

    Attributes:
        text: the same in words, with the reason where it does not.
    """

    keeps: bool
    text: str


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> Allocator:
    """Have this process keep the memory that it frees, for what it computes on a CPU.

    It is called before the process starts threads, and holds for both frameworks. The process
    then keeps the most that it took at once, until it ends. Nothing is changed where the C library
    is not glibc, where the machine has an accelerator, where the user has chosen an allocator or
    set glibc's up, and where UNET_KEEP_FREED_MEMORY is 0.
    """
    reason = find_reason_against(environment)
    if reason is None and (refused := [n for n, o in OPTIONS.items() if _mallopt()(*o) != 1]):
        reason = f"glibc refuses to set {', '.join(refused)}"
    if reason is not None:
        return Allocator(False, f"freed memory goes back to the system, because {reason}")
    return Allocator(True, f"freed memory is kept ({SWITCH}=0 gives it back)")


def find_reason_against(environment: Mapping[str, str]) -> str | None:
    """Return why the allocator is left as it is, or None.

    >>> find_reason_against({"UNET_KEEP_FREED_MEMORY": "0"})
    'UNET_KEEP_FREED_MEMORY is 0'
    """
    if environment.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if platform.libc_ver()[0] != "glibc":
        return "the C library is not glibc"
    chosen = find_choice(environment)
    if chosen is not None:
        return f"the user has set {chosen}"
    if any(path for pattern in ACCELERATORS for path in DEVICES.glob(pattern)):
        return "the machine has an accelerator"
    return None


def find_choice(environment: Mapping[str, str]) -> str | None:
    """Return the variable by which a user has set an allocator up, or None.

    >>> find_choice({"PATH": "/bin", "MALLOC_TOP_PAD_": "1"})
    'MALLOC_TOP_PAD_'
    """
    for name, value in environment.items():
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            return name
        if name == "LD_PRELOAD" and "malloc" in value:
            return name
    return None


def _mallopt() -> Callable[[int, int], int]:
    """Return glibc's function of this process, which gives 1 where it takes a value."""
    return ctypes.CDLL(None).mallopt
