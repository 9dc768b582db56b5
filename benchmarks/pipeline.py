"""How much of a step's time is the net's, and how much is waiting for data and augmentation?

`python -m benchmarks.pipeline` alternates the bare compiled step, on one batch that is there, with
the step of a run: batches made, moved, augmented and counted. Then it starts the same run twice,
to see what the compilation cache saves. It writes `results/pipeline.json` (some minutes on two
cores).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from rich.console import Console

from benchmarks.environment import environment
from train import mesh
from train.config import PRESETS
from train.loop import batches
from train.progress import Progress
from train.samples import load
from train.step import compiled
from unet_spec.files import written

COMMAND = "python -m benchmarks.pipeline"
RESULT = Path(__file__).parent / "results" / "pipeline.json"
ROUNDS, STEPS = 8, 20


def pipeline() -> dict[str, Any]:
    """Steps per second of both, and the ratio of each round."""
    config = replace(PRESETS["nuclei"], steps=(ROUNDS + 1) * STEPS)
    placement = mesh.place(config)
    steps, samples = compiled(config, placement), load(config)
    made = batches(config, placement, samples, first=0)
    state = steps.init()
    seen = steps.prepare(next(made)[0], np.int32(0))
    rows = []
    with Progress(Console(quiet=True)).steps(config.steps) as bar:
        for number in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = steps.step(state, seen)
            jax.block_until_ready(state)
            bare = time.perf_counter()
            for step in range(STEPS):
                batch, waited_s = next(made)
                state, metrics = steps.step(state, steps.prepare(batch, np.int32(step)))
                bar.advance(metrics, images=config.data.batch, waited_s=waited_s)
            jax.block_until_ready(state)
            whole = time.perf_counter()
            if number:  # the first round warms up
                rows.append({"bare": STEPS / (bare - began), "whole": STEPS / (whole - bare)})
    return {
        "command": COMMAND,
        "preset": "nuclei",
        "bare_steps_per_s": median(row["bare"] for row in rows),
        "whole_steps_per_s": median(row["whole"] for row in rows),
        "share": median(row["whole"] / row["bare"] for row in rows),
        "rounds": rows,
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
    result = {**pipeline(), "starts": starts()}
    print(json.dumps({key: result[key] for key in ("bare_steps_per_s", "share", "starts")}))
    with written(RESULT) as stream:
        stream.write(json.dumps(result, indent=2).encode() + b"\n")
