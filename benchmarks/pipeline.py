"""How much of a step's time is the net's, and how much is data, augmentation and bookkeeping?

`python -m benchmarks.pipeline` takes turns, every few steps: the bare compiled step, on one batch
that is there and augmented, and the steps of a run: batches made, moved, augmented and counted,
with a checkpoint whenever one is due; validations are not in it. A round is the time of as many
steps as lie between two checkpoints. Then it starts the same run twice, to see what the compilation
cache saves. It writes `results/pipeline.json` (a quarter of an hour on two cores).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench import timing
from unet_bench.environment import environment
from unet_train.config import PRESETS
from unet_train.devices.placement import make_placement
from unet_train.devices.processes import gather_to_host
from unet_train.input.dataset import open_dataset
from unet_train.input.prefetch import prefetch_batches
from unet_train.report.progress import Progress
from unet_train.run.checkpoints import Checkpoints
from unet_train.run.states import to_training_state
from unet_train.step import compile_steps, prepare_batch, update_state

COMMAND = "python -m benchmarks.pipeline"
RESULT = RESULTS / "pipeline.json"
ROUNDS = 11
STEPS = PRESETS["nuclei"].checkpoint_every  # of a round
TURN = 10  # steps; the machine's speed drifts within seconds
TURNS = STEPS // TURN  # of a round


def pipeline(folder: Path) -> dict[str, Any]:
    """Steps per second of both in every round; each goes first in every other turn."""
    config = replace(PRESETS["nuclei"], steps=(ROUNDS + 2) * STEPS)
    placement = make_placement(config)
    steps, samples = compile_steps(config, placement), open_dataset(config).training
    made = prefetch_batches(
        samples, placement,
        data=config.data, net=config.net, seed=config.seed, steps=range(config.steps),
    )  # fmt: skip
    state, crops = steps.init(), next(made).result()
    seen = jax.jit(partial(prepare_batch, config))(crops, state.step)
    step, _ = timing.compile_timed(
        jax.jit(partial(update_state, config), donate_argnums=0), state, seen
    )
    done = 0
    with (
        closing(made),
        Checkpoints(folder, keep=config.keep) as saved,
        Progress(Console(quiet=True)).steps(config.steps) as bar,
    ):

        def bare() -> Any:
            nonlocal state
            for _ in range(TURN):
                state, _ = step(state, seen)
            return state

        def whole() -> Any:
            nonlocal state, done
            if done % STEPS == 0:
                host = gather_to_host(state)
                saved.save(done, partial(to_training_state, config, host), best=None)
                bar.restart_clock()
            for turn in range(TURN):
                state, metrics = steps.step(state, bar.wait_for(next(made)))
                bar.advance(metrics, images=config.data.batch, settle=turn == TURN - 1)
            done += TURN
            return state

        turns = ROUNDS * TURNS
        runs = {"bare": bare, "whole": whole}
        times = timing.alternate(runs, budget_s=0, least=turns, most=turns)
    rounds = timing.Timings(
        {
            name: tuple(sum(each[i : i + TURNS]) for i in range(0, turns, TURNS))
            for name, each in times.rounds_ms.items()
        },
        times.others_cores,
    )
    return {
        "command": COMMAND,
        "preset": "nuclei",
        "steps_between_checkpoints": STEPS,
        "steps_per_s": {name: 1e3 * STEPS / rounds.ms(name) for name in rounds.rounds_ms},
        "share": rounds.ratio("bare", over="whole"),
        "rounds_ms": rounds.rounds_ms,
        "others_cores": rounds.others_cores,
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
                 "--data.synthetic", "48", "--out", f"{folder}/{number}", "--json", told],
                env=environment, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            whole_s = time.perf_counter() - began
            rows.append({"compile_s": json.loads(told.read_text())["compile_s"], "run_s": whole_s})
    return rows


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    with tempfile.TemporaryDirectory() as place:
        result = {**pipeline(Path(place) / "checkpoints"), "starts": starts()}
    print(json.dumps({key: result[key] for key in ("steps_per_s", "share", "starts")}))
    write_result(arguments.out, result)
