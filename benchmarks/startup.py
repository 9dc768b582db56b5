"""How long does a command take until its first result, with and without what was compiled before?

`python -m benchmarks.startup` times commands as a person gives them, each as a process of its own:
`unet --help`, `unet predict` with one image and with images of as many sizes, and
`unet train cells` up to its first step, in the phases that its lines show. A cold command finds an
empty compilation cache, a warm one the cache that the command before it left. It writes
`results/startup.json` (three minutes on two cores).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.script import RESULTS, make_parser, write_result
from unet_bench.environment import environment
from unet_bench.timing import others_s

COMMAND = "python -m benchmarks.startup"
RESULT = RESULTS / "startup.json"
ROUNDS = 3  # cold and warm, each; the medians are written
SIZES = 20
SIDES_PX = (128, 520)  # of the images
# a phase of `unet train` ends with the first line that begins so
ENDS = {
    "imports": "no --data.images",
    "data and checks": "compiling for",
    "compilation": "compiled in",
    "first step": "step 1 of 1",
}
IMPORTS = {
    "predict": "unet_command.predicting, unet_jax.predict, unet_jax.weights",
    "train": "unet_cli, unet_train.loop, unet_train.report.progress",
}


def measure(folder: Path, checkout: Path, *, rounds: int) -> dict[str, Any]:
    """Return the seconds of all commands, the median of some rounds.

    Args:
        folder: runs, images and caches are written there.
        checkout: the code that is measured.
    """
    draw_images(folder)
    here = Commands(folder, checkout)
    began, others = time.perf_counter(), _others_s()
    results = [_measure_round(here, number) for number in range(rounds)]
    elapsed, later = time.perf_counter() - began, _others_s()
    cores = None if others is None or later is None else max(0.0, later - others) / elapsed
    return {"command": COMMAND, "rounds": rounds, **_take_medians(results),
            "others_cores": cores, "environment": environment()}  # fmt: skip


def draw_images(folder: Path) -> None:
    """Write one image into `one`, and images of noise, each of another size, into `many`."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(*SIDES_PX, (SIZES, 2))
    for name, shapes in (("one", [(200, 256)]), ("many", sizes)):
        (folder / name).mkdir()
        for number, shape in enumerate(shapes):
            pixels = rng.integers(0, 255, tuple(shape), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")


class Commands:
    """A `Commands` runs commands in a folder, with the code of a checkout and its own caches."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.checkout = folder, checkout

    def time(self, cache: str, *words: str) -> float:
        """Return the seconds of Python with these arguments."""
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self._environment(cache), check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began

    def time_phases(self, cache: str, *words: str) -> dict[str, float]:
        """Return the seconds of each phase of a run up to its first step."""
        phases, waiting = {}, dict(ENDS)
        began = last = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, env=self._environment(cache), text=True,
            stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                phase = next(iter(waiting), None)
                if phase is not None and line.startswith(waiting[phase]):
                    now = time.perf_counter()
                    phases[phase], last = now - last, now
                    del waiting[phase]
        if process.returncode or waiting:
            raise RuntimeError(f"{words}: status {process.returncode}, and no line for {waiting}")
        return {**phases, "up to the first step": last - began}

    def count_programs(self, cache: str) -> int:
        """Count what was compiled into a cache."""
        return len([path for path in (self.folder / cache).rglob("*") if path.is_file()])

    def _environment(self, cache: str) -> dict[str, str]:
        return {
            **os.environ, "PYTHONPATH": str(self.checkout), "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / cache),
        }  # fmt: skip


def _measure_round(here: Commands, number: int) -> dict[str, Any]:
    """Time each command once, cold and warm."""
    unet = ("-m", "unet_cli")
    help_s = here.time("none", *unet, "--help")
    import_s = {verb: here.time("none", "-c", f"import {names}") for verb, names in IMPORTS.items()}
    cache = f"cache_train_{number}"
    train = {
        state: here.time_phases(
            cache, *unet, "train", "cells", "--steps", "1", "--out", f"run_{state}_{number}"
        )
        for state in ("cold", "warm")
    }
    weights = f"run_cold_{number}/weights.safetensors"
    predict = {}
    for images in ("one", "many"):
        cache = f"cache_{images}_{number}"
        row: dict[str, float] = {}
        for state in ("cold", "warm"):
            out = f"out_{images}_{state}_{number}"
            row[state] = here.time(cache, *unet, "predict", weights, images, "--out", out)
        predict[images] = {
            "images": len([*(here.folder / images).iterdir()]), **row,
            "programs": here.count_programs(cache),
        }  # fmt: skip
    return {"help_s": help_s, "import_s": import_s, "train_s": train, "predict_s": predict}


def _others_s() -> float | None:
    """Return the core-seconds that went to processes other than this one and its commands."""
    others, own = others_s(), os.times()
    return None if others is None else others - own.children_user - own.children_system


def _take_medians(results: Sequence[Any]) -> Any:
    """Return the medians of numbers in dicts of one form."""
    if isinstance(results[0], dict):
        return {key: _take_medians([each[key] for each in results]) for key in results[0]}
    return round(median(results), 3)


def main() -> None:
    """Measure, print and write the result."""
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument(
        "--checkout", metavar="DIR", type=Path, default=Path(__file__).parent.parent,
        help="measure the code of this checkout; by default the script's own",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=ROUNDS, help=f"by default {ROUNDS}"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.checkout.resolve(), rounds=arguments.rounds)
    for name in ("help_s", "import_s", "train_s", "predict_s", "others_cores"):
        print(name, result[name])
    write_result(arguments.out, result)


if __name__ == "__main__":
    main()
