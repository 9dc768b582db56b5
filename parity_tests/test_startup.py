"""Commands begin soon: what they need late is imported late, and what was compiled is kept."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import startup
from unet_command.compilations import remove_oldest
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig, weight_file
from unet_spec.weight_file import WeightFile

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"jax", "flax", "torch", "optax", "orbax", "scipy", "jinja2", "matplotlib", "PIL"}


def list_imports(code: str) -> set[str]:
    """Return which packages a process has loaded at the end of some lines of code."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


SHOW_HELP = """
import sys, unet_cli
sys.argv = {words}
try:
    unet_cli.main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("words", [["unet", "--help"], ["unet", "train", "cells", "--help"]])
def test_help_imports_no_framework(words):
    packages = list_imports(SHOW_HELP.format(words=words))
    assert "tyro" in packages
    assert not packages & FRAMEWORKS


@pytest.mark.parametrize("verb", startup.IMPORTS)
def test_a_verb_imports_nothing_that_it_does_not_need_at_its_start(verb):
    packages = list_imports(f"import {startup.IMPORTS[verb]}")
    assert "jax" in packages
    assert not packages & {"torch", "orbax", "scipy", "jinja2", "matplotlib", "tensorboardX"}


@pytest.fixture
def home(tmp_path):
    """A folder with a net, an image and a home; the folders that a person may set are not set."""
    config = UNetConfig(widths=(4, 6))
    weight_file.write(
        tmp_path / "net.safetensors", WeightFile(config, random_tensors(config, seed=1))
    )
    pixels = np.random.default_rng(0).integers(0, 255, (13, 21), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def predict(home: Path, out: str, **settings: str) -> bytes:
    """Return the mask that `unet predict` writes without a word about the cache."""
    environment = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XDG_", "XLA_"))
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "unet_cli", "predict", "net.safetensors", "a.png", "--out", out],
        cwd=home, capture_output=True, text=True,
        env={**environment, "PYTHONPATH": str(ROOT), "HOME": str(home), **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compilation cache" not in done.stderr, done.stderr  # XLA may say that it is slow
    return (home / out / "a_mask.png").read_bytes()


def test_the_next_prediction_compiles_nothing_and_a_damaged_cache_only_costs_time(home):
    cache = home / ".cache" / "unet-twins" / "jax"
    mask = predict(home, "first")
    programs = {path: path.read_bytes() for path in cache.iterdir()}
    assert programs
    # what JAX compiles again, it writes: nothing is left to write
    assert predict(home, "second", JAX_RAISE_PERSISTENT_CACHE_ERRORS="true") == mask
    assert {path: path.read_bytes() for path in cache.iterdir()} == programs
    for path, content in programs.items():
        path.write_bytes(content[:-10])
    assert predict(home, "third") == mask


def test_a_person_can_switch_the_cache_off(home):
    predict(home, "out", JAX_ENABLE_COMPILATION_CACHE="false")
    assert not list(home.rglob("*-cache"))


def test_a_cache_that_grew_too_large_loses_what_was_used_least_recently(tmp_path):
    for number in range(6):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (number, 0))  # read at that time, and written long before
    remove_oldest(tmp_path, largest_bytes=600)
    assert len(list(tmp_path.iterdir())) == 6
    remove_oldest(tmp_path, largest_bytes=599)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4-cache", "5-cache"]
    remove_oldest(tmp_path / "none", largest_bytes=0)


def test_phases_end_with_the_lines_that_a_run_shows(tmp_path):
    lines = "\\n".join([*startup.ENDS.values(), "step 1 of 1 again"])
    here = startup.Commands(tmp_path, ROOT)
    phases = here.time_phases("cache", "-c", f"print('other\\n{lines}')")
    assert [*phases] == [*startup.ENDS, "up to the first step"]
    total = phases.pop("up to the first step")
    assert sum(phases.values()) == pytest.approx(total)
    with pytest.raises(RuntimeError, match="first step"):
        here.time_phases("cache", "-c", "print('no --data.images')")
