"""Does a run on more images than memory holds start, step and resume as one on few images does?

`python -m benchmarks.more_than_memory` puts 20,000 images of 700 x 1000 in colour, with masks,
into a temporary folder (42 GB decoded, 29 GB on the disk; 2,000 are drawn, and each is ten files).
There it trains with 0.5 GB for decoded images: how soon the first step is done, the most memory,
and whether a killed run that goes on ends in the same bytes. Then it takes turns of some steps:
with all of a few images in memory as arrays, with these in the cache, and with all 20,000 and no
cache. It writes `results/more_than_memory.json` (an hour on two cores).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench import timing
from unet_bench.environment import environment
from unet_spec.training_state import CHECKPOINTS, list_steps
from unet_train.config import PRESETS, DataConfig, TrainConfig
from unet_train.devices.placement import make_placement
from unet_train.input import synthetic
from unet_train.input.dataset import open_dataset
from unet_train.input.prefetch import prefetch_batches
from unet_train.input.samples import Sample
from unet_train.report.progress import Progress
from unet_train.step import compile_steps

RESULT = RESULTS / "more_than_memory.json"
DRAWN, COPIES, SHAPE = 2_000, 10, (700, 1000)
SCENES = 8  # of which every image is a part, turned and with noise of its own
CACHE_GB, STEPS, EVERY = 0.5, 60, 20
IN_MEMORY = 64  # images
ROUNDS, TURN = 5, 30  # steps
FLAGS = [
    "nuclei", "--data.holdout", "0.0005", "--data.cache-gb", str(CACHE_GB), "--steps", str(STEPS),
    "--validate-every", str(STEPS), "--checkpoint-every", str(EVERY), "--keep", "99",
    "--preprocessing.window-px", "None", "--preprocessing.no-mirror",
]  # fmt: skip


@lru_cache
def draw_scene(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw cells on a little more than an image."""
    return synthetic.draw_cells(seed, height=shape[0] + 64, width=shape[1] + 64)


def draw_image(number: int, folder: Path, shape: tuple[int, int]) -> int:
    """Draw an image and its mask, in `COPIES` files each; return the bytes of the files."""
    rng = np.random.default_rng(number)
    gray, mask = draw_scene(int(rng.integers(SCENES)), shape)
    row, column = rng.integers(0, 64, 2)
    inside = np.s_[row : row + shape[0], column : column + shape[1]]
    flip = np.s_[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    noise = rng.integers(0, 4, (*shape, 3), np.uint8)  # of a sensor: the last two bits
    image = (gray[inside][flip][..., None] // (1, 2, 3)).astype(np.uint8) & 0xFC | noise
    count = 0
    for part, pixels in (("images", image), ("masks", 255 * mask[inside][flip])):
        first = folder / part / f"{number:05}_0.png"
        Image.fromarray(pixels).save(first, compress_level=1)
        for copy in range(1, COPIES):
            shutil.copyfile(first, folder / part / f"{number:05}_{copy}.png")
        count += COPIES * first.stat().st_size
    return count


def draw_images(folder: Path, drawn: int, shape: tuple[int, int]) -> int:
    """Draw all images in some processes; return the bytes of their files."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    count = 0
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        sizes = workers.map(partial(draw_image, folder=folder, shape=shape), range(drawn))
        for done, size in enumerate(sizes, start=1):
            count += size
            if done % 100 == 0:
                print(f"drawn: {done} of {drawn}", flush=True)
    return count


def run_and_kill(folder: Path, flags: Sequence[str], *, kill_at: int) -> dict[str, Any]:
    """Train in peace, and killed once; return what both took, and whether they ended alike."""
    where = ["--data.images", str(folder / "images"), "--data.masks", str(folder / "masks")]
    began = time.monotonic()
    whole = _start([*flags, *where], folder / "whole")
    start_s = None
    assert whole.stdout is not None
    for line in whole.stdout:
        print(line, end="", flush=True)
        if line.startswith("step 1 of"):
            start_s = time.monotonic() - began
    whole.stdout.close()
    _, status, usage = os.wait4(whole.pid, 0)
    whole.returncode = os.waitstatus_to_exitcode(status)
    if whole.returncode or start_s is None:
        raise RuntimeError("the run did not come to its end")
    killed = _start([*flags, *where], folder / "killed", quiet=True)
    while kill_at not in list_steps(folder / "killed" / CHECKPOINTS):
        if killed.poll() is not None:
            raise RuntimeError("the run ended before it was killed")
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    if _start([*flags, *where], folder / "killed", quiet=True).wait():
        raise RuntimeError("the killed run did not go on")
    hashes = {
        name: hashlib.sha256((folder / name / "weights.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "killed")
    }
    return {
        "start_s": start_s,
        "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "killed_after_step": kill_at,
        "equal": hashes["whole"] == hashes["killed"],
        "sha256": hashes,
    }


def _start(flags: Sequence[str], out: Path, *, quiet: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "unet_cli", "train", *flags, "--out", str(out)]
    target = subprocess.DEVNULL if quiet else subprocess.PIPE
    return subprocess.Popen(command, stdout=target, text=True)


def compare_speeds(folder: Path, config: TrainConfig, *, rounds: int, turn: int) -> dict[str, Any]:
    """Take turns of some steps from memory, from a warm cache, and with all images decoded anew."""
    few = folder / "few"
    for part in ("images", "masks"):
        (few / part).mkdir(parents=True)
        for path in sorted((folder / part).iterdir())[:IN_MEMORY]:
            (few / part / path.name).symlink_to(path)

    def settings(place: Path, cache_gb: float) -> DataConfig:
        """Return the config of the data in a folder."""
        return replace(
            config.data, images=place / "images", masks=place / "masks", cache_gb=cache_gb,
            holdout=1e-9,
        )  # fmt: skip

    warm = open_dataset(replace(config, data=settings(few, 99))).training
    arrays: list[Sample] = list(warm)  # which also fills the cache
    cold = open_dataset(replace(config, data=settings(folder, 0))).training
    placement = make_placement(config)
    steps = compile_steps(config, placement)
    sources: dict[str, Sequence[Sample]] = {"memory": arrays, "warm": warm, "cold": cold}
    with Progress(Console(quiet=True)).steps(10**9) as bar:

        def make_turn(samples: Sequence[Sample]) -> Callable[[], Any]:
            """Return a function that takes the next steps on these samples.

            Every batch is made in the turn: none is there when it begins, none is left at its end.
            """
            state, done = steps.init(), 0

            def take_turn() -> Any:
                nonlocal state, done
                made = prefetch_batches(
                    samples, placement, data=config.data, net=config.net, seed=config.seed,
                    steps=range(done, done + turn),
                )  # fmt: skip
                for batch in made:
                    state, metrics = steps.step(state, bar.wait_for(batch))
                    bar.advance(metrics, images=config.data.batch)
                done += turn
                return state

            return take_turn

        runs = {name: make_turn(samples) for name, samples in sources.items()}
        times = timing.alternate(runs, budget_s=0, least=rounds, most=rounds)
    return {
        "steps_per_s": {name: 1e3 * turn / times.ms(name) for name in runs},
        "share_of_memory": {name: times.ratio("memory", over=name) for name in ("warm", "cold")},
        "rounds_ms": times.rounds_ms,
        "others_cores": times.others_cores,
    }


def more_than_memory(folder: Path, *, drawn: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Draw the images, train on them and compare speeds."""
    on_disk, images = draw_images(folder, drawn, shape), drawn * COPIES
    print(f"{on_disk / 1e9:.1f} GB on the disk", flush=True)
    config = replace(PRESETS["nuclei"], steps=10**9)
    return {
        "images": images,
        "shape": shape,
        "decoded_bytes": images * shape[0] * shape[1] * 3,
        "bytes_on_disk": on_disk,
        "cache_gb": CACHE_GB,
        **run_and_kill(folder, FLAGS, kill_at=EVERY),
        **compare_speeds(folder, config, rounds=ROUNDS, turn=TURN),
        "environment": environment(),
    }


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    with tempfile.TemporaryDirectory() as place:
        result = more_than_memory(Path(place), drawn=DRAWN, shape=SHAPE)
    print(json.dumps(result))
    write_result(arguments.out, result)
