"""Each framework's package works on a machine that does not have the other."""

import os
import subprocess
import sys

import numpy as np
import pytest

from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig, weight_file
from unet_spec.weight_file import WeightFile

BLOCKED = {
    "unet_jax": ("torch", "unet_torch", "unet_parity"),
    "unet_torch": ("jax", "jaxlib", "flax", "optax", "unet_jax", "unet_parity"),
}

BLOCKER = '''
import sys
from importlib.machinery import PathFinder

class Blocker(PathFinder):
    """Finds what there is but for some packages, as if these were not installed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path = [Blocker if finder is PathFinder else finder for finder in sys.meta_path]
'''

WORK = """
import sys
import numpy as np
import {package}
model = {package}.load(sys.argv[1])
mask = {package}.predict(model, np.load(sys.argv[2]))
{package}.save(model, sys.argv[3])
np.save(sys.argv[4], mask)
"""


def run(program: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize("package", BLOCKED)
def test_package_loads_predicts_and_saves_without_the_other_framework(package, tmp_path):
    weights, image, copy, mask = (
        tmp_path / n for n in ("cells.safetensors", "image.npy", "copy.safetensors", "mask.npy")
    )
    config = UNetConfig(widths=(6, 8))
    weight_file.write(weights, WeightFile(config, random_tensors(config, seed=1)))
    np.save(image, np.random.default_rng(0).random((13, 21)))
    program = BLOCKER.format(blocked=BLOCKED[package]) + WORK.format(package=package)

    done = run(program, weights, image, copy, mask)
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == weights.read_bytes()
    assert np.load(mask).shape == (13, 21)


@pytest.mark.parametrize("package", BLOCKED)
def test_blocker_blocks(package):
    done = run(BLOCKER.format(blocked=BLOCKED[package]) + f"import {BLOCKED[package][0]}")
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("package", BLOCKED)
def test_importing_a_package_does_not_load_the_other_framework(package):
    done = run(
        f"import {package}, sys; print(sorted({set(BLOCKED[package])!r} & {{*sys.modules}}))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_both_agree_on_loads_no_framework():
    frameworks = {"torch", "jax", "flax"}
    program = f"""
import sys
from unet_spec import config, geometry, layout, parameters, prediction, weight_file
print(sorted({frameworks!r} & {{*sys.modules}}))
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
