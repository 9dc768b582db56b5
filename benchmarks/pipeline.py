"""How much of a step's time is the net's, and how much is waiting for data and augmentation?

`python -m benchmarks.pipeline` alternates the bare compiled step, on one batch that is there, with
the steps of a run: batches made, moved, augmented and counted, and in every round a checkpoint,
after as many steps as lie between two; validations are not in it. Then it starts the same run
twice, to see what the compilation cache saves. It writes `results/pipeline.json` (a quarter of an
hour on two cores).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.environment import environment
from benchmarks.timing import alternate
from train import mesh
from train.batches import batches
from train.checkpoint import Checkpoints
from train.config import PRESETS
from train.progress import Progress
from train.samples import load
from train.step import compiled
from unet_spec.files import written

COMMAND = "python -m benchmarks.pipeline"
RESULT = Path(__file__).parent / "results" / "pipeline.json"
ROUNDS = 12  # the first of each warms up
STEPS = PRESETS["nuclei"].checkpoint_every


def pipeline(folder: Path) -> dict[str, Any]:
    """Steps per second of both in every round; each goes first in every other one."""
    config = replace(PRESETS["nuclei"], steps=(ROUNDS + 1) * STEPS)
    placement = mesh.place(config)
    steps, samples = compiled(config, placement), load(config)
    made = batches(config, placement, samples, first=0)
    state = steps.init()
    seen = steps.prepare(next(made).result(), np.int32(0))
    rounds = count(1)
    with (
        Checkpoints(folder, keep=config.keep) as saved,
        Progress(Console(quiet=True)).steps(config.steps) as bar,
    ):

        def bare() -> Any:
            nonlocal state
            for _ in range(STEPS):
                state, _ = steps.step(state, seen)
            return state

        def whole() -> Any:
            nonlocal state
            for step in range(STEPS):
                batch = steps.prepare(bar.awaited(next(made)), np.int32(step))
                state, metrics = steps.step(state, batch)
                bar.advance(metrics, images=config.data.batch)
            bar.settle()
            saved.save(STEPS * next(rounds), state, card={})
            bar.resume()
            return state

        times = alternate({"bare": bare, "whole": whole}, budget_s=0, least=ROUNDS - 1)
    return {
        "command": COMMAND,
        "preset": "nuclei",
        "steps_between_checkpoints": STEPS,
        "steps_per_s": {name: 1e3 * STEPS / times.ms(name) for name in times.rounds_ms},
        "share": times.ratio("bare", over="whole"),
        "rounds_ms": times.rounds_ms,
        "others_cores": times.others_cores,
        "environment": environment(),
    }


def starts() -> list[dict[str, float]]:
    """What the first start of a run waits for, and what the second one, in another process."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for number in range(2):
            told = Path(folder) / f"{number}.json"
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "unet_cli", "train", "nuclei", "--steps", "1",
                 "--out", f"{folder}/{number}", "--json", told],
                env=environment, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            whole_s = time.perf_counter() - began
            rows.append({"compile_s": json.loads(told.read_text())["compile_s"], "run_s": whole_s})
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        result = {**pipeline(Path(place) / "checkpoints"), "starts": starts()}
    print(json.dumps({key: result[key] for key in ("steps_per_s", "share", "starts")}))
    with written(RESULT) as stream:
        stream.write(json.dumps(result, indent=2).encode() + b"\n")
