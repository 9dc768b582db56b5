"""Install the project as its users do, and do everything that it offers: `python -m
parity_tests.installed` builds the wheel and installs it into empty environments. It takes minutes,
so continuous integration runs it beside the tests."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
DRAW = """
import numpy, pathlib
from PIL import Image
for index in range(4):
    image = numpy.random.default_rng(index).integers(0, 255, (40, 48), numpy.uint8)
    for folder, pixels in (("IMAGES", image), ("MASKS", 255 * (image > 127).astype(numpy.uint8))):
        pathlib.Path(folder).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"{folder}/{index}.png")
"""
LOAD = """
import numpy, unet_jax, unet_spec
init, apply = unet_jax.functional(unet_spec.UNetConfig(widths=(4, 6)))
model = unet_jax.UNet(unet_spec.UNetConfig(widths=(4, 6)), rngs=__import__("flax").nnx.Rngs(0))
unet_jax.save(model, "cells.safetensors")
print(unet_jax.predict(unet_jax.load("cells.safetensors"), numpy.zeros((13, 21))).shape)
"""
TRAIN = (
    "train cells --data.images IMAGES --data.masks MASKS --net.widths 4 6 --data.batch 2 "
    "--data.crop-px 32 --steps 2 --validate-every 2 --checkpoint-every 2 --out RUN"
)

# as the command `unet demo`, which continuous integration runs at its whole length too
DEMO = """
import dataclasses, sys, unet_cli, unet_spec
from unet_demo import run
values = run.run.__kwdefaults__
small = {"net": unet_spec.UNetConfig(widths=(4, 6)), "steps": 4, "validate_every": 2}
values["config"] = dataclasses.replace(values["config"], checkpoint_every=4, **small)
sys.argv[1:] = ["demo"]
sys.exit(unet_cli.main())
"""


class Environment:
    """A new virtual environment, and an empty folder in which its commands run.

    Args:
        variables: of the environment of its commands, beside those of this process.
    """

    def __init__(self, place: Path, variables: Mapping[str, str] = {}):
        self.folder, self.place = place / "work", place / "environment"
        self.variables = variables
        self.folder.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", self.place], check=True)

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command of the environment and return what it printed.

        Raises:
            AssertionError: it ended with another status.
        """
        outside = ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS")
        inherited = {name: value for name, value in os.environ.items() if name not in outside}
        done = subprocess.run(
            [self.place / "bin" / command[0], *command[1:]],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**inherited, "COLUMNS": "200", **self.variables}, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def install(self, *requirements: str) -> None:
        """Install with the tested versions."""
        self.run("pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *requirements)

    def megabytes(self) -> float:
        """What the environment takes on the disk, in millions of bytes."""
        files = (path.lstat() for path in self.place.rglob("*") if not path.is_symlink())
        return sum(found.st_size for found in files) / 1e6


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree into a folder."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "-w", folder, ROOT],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_jax_alone(place: Path, wheel: Path) -> None:
    """Load, predict and save with `[jax]`, then do as the refusal of an image says."""
    environment = Environment(place)
    environment.install(f"{wheel}[jax]")
    print(f"[jax]: {environment.megabytes():,.0f} MB")
    packages = environment.run("pip", "list").lower()
    for absent in ("torch", "imagecodecs", "tifffile", "pillow"):
        assert not re.search(rf"^{absent}\s", packages, re.MULTILINE), absent
    assert "(13, 21)" in environment.run("python", "-c", LOAD)
    refused = environment.run(
        "unet", "predict", "cells.safetensors", "image.png", "--out", "OUT", status=2
    )
    advice = re.search(r"install it: (pip install '(unet-twins\[\w+\])')", refused)
    assert advice is not None, refused
    environment.install(advice[2])
    environment.run("python", "-c", DRAW)
    environment.run("unet", "predict", "cells.safetensors", "IMAGES", "--out", "OUT")
    print(f"[jax] and, as advised, {advice[2]}: predicts; {environment.megabytes():,.0f} MB")


def check_all(place: Path, wheel: Path) -> None:
    """Do with `[all]` everything that `unet` offers."""
    environment = Environment(place)
    environment.install(f"{wheel}[all]")
    print(f"[all]: {environment.megabytes():,.0f} MB")
    environment.run("python", "-c", DEMO)
    print("  unet demo, a short one")
    for command in (
        "verify demo_run/run/weights.safetensors --steps 2 --report page.html --json verify.json",
        "bench --quick --json bench.json --report bench.html",
    ):  # fmt: skip
        environment.run("unet", *command.split())
        print(f"  unet {command}")
    check_training(environment)
    for name in ("demo_run/index.html", "page.html", "bench.json", "bench.html", "back.pt"):
        assert (environment.folder / name).stat().st_size > 0, name


def check_training(environment: Environment) -> None:
    """Train, predict and convert in an environment that has everything."""
    environment.run("python", "-c", DRAW)
    for command in (
        TRAIN, "predict RUN/weights.safetensors IMAGES --out OUT", "convert RUN back.pt",
    ):  # fmt: skip
        environment.run("unet", *command.split())
        print(f"  unet {command}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the wheel, install it with `[jax]` and with `[all]`, and check both."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        wheel = build_wheel(here)
        check_jax_alone(here / "jax", wheel)
        check_all(here / "all", wheel)


if __name__ == "__main__":
    main()
