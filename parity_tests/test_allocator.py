"""A process that keeps freed memory takes no page twice, and the user can say no."""

import os
import platform
import subprocess
import sys

import pytest

from unet_spec import allocator
from unet_spec.allocator import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
FAULTS = """
import resource, sys
import ctypes
from unet_spec.allocator import keep_freed_memory
print(keep_freed_memory().text)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def fill(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

def count_faults():
    sizes = (100_000_000, 30_000_000, 90_000_000)
    for size in sizes:
        fill(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in sizes:
        fill(size)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

count_faults()
"""
PAGES = 220_000_000 // 4096


def faults(**variables):
    """What a process says of its allocator, and the page faults of its second round of buffers."""
    clean = {k: v for k, v in os.environ.items() if k != allocator.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**clean, **variables}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    text, count = done.stdout.splitlines()
    return text, int(count)


@glibc
def test_memory_that_is_kept_is_not_asked_for_again():
    if allocator.find_reason_against({}) is not None:
        pytest.skip("the machine has an accelerator")
    text, count = faults()
    assert text.startswith("freed memory is kept")
    assert count < PAGES / 100
    # and without it every page is
    text, count = faults(**{allocator.SWITCH: "0"})
    assert text == "freed memory goes back to the system, because UNET_KEEP_FREED_MEMORY is 0"
    assert count > PAGES / 2


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({allocator.SWITCH: "0"}, "UNET_KEEP_FREED_MEMORY is 0"),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, "the user has set MALLOC_TRIM_THRESHOLD_"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "the user has set GLIBC_TUNABLES"),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, "the user has set LD_PRELOAD"),
    ],
)
def test_what_the_user_has_chosen_stays(environment, reason, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator, "_mallopt", lambda: pytest.fail("it was set"))
    kept = keep_freed_memory(environment)
    assert (kept.keeps, kept.text) == (
        False, f"freed memory goes back to the system, because {reason}"
    )  # fmt: skip


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator, "_mallopt", lambda: pytest.fail("it was set"))
    assert keep_freed_memory({}).text.endswith("because the C library is not glibc")


def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(allocator, "DEVICES", tmp_path)
    assert allocator.find_reason_against({"LD_PRELOAD": "libsomething.so"}) is None
    for name in ("nvidia0", "accel3", "vfio/0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert allocator.find_reason_against({}) == "the machine has an accelerator"
        (tmp_path / name).unlink()


def test_what_glibc_refuses_is_named(monkeypatch):
    monkeypatch.setattr(allocator, "find_reason_against", lambda environment: None)
    refusing = {option for option, _ in (allocator.OPTIONS["M_MMAP_MAX"],)}
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda option, _: option not in refusing)
    kept = keep_freed_memory({})
    assert (kept.keeps, kept.text) == (
        False, "freed memory goes back to the system, because glibc refuses to set M_MMAP_MAX"
    )  # fmt: skip
