"""Does a run that is killed again and again end in the bytes of one that was not?

`python -m benchmarks.killed IMAGES MASKS` trains once in peace, then again with 20 SIGKILLs at
random moments, and writes `results/killed.json` (some minutes on two cores).
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_spec.environment import environment
from unet_spec.training_state import CHECKPOINTS, list_steps
from unet_train.report.metrics_log import read_metrics

RESULT = RESULTS / "killed.json"
KILLS, STEPS, EVERY = 20, 1000, 10
START_S = 6.0  # about what a start takes, so many a kill hits it
SEED = 0
FLAGS = [
    "nuclei", "--net.widths", "8", "16", "32", "--net.norm", "batch", "--data.crop-px", "96",
    "--data.batch", "4", "--steps", str(STEPS), "--validate-every", "50",
    "--checkpoint-every", str(EVERY), "--ema", "0.99", "--augment.elastic-px", "5",
    "--preprocessing.window-px", "None", "--preprocessing.no-mirror",  # it validates 20 times
]  # fmt: skip


def killed(images: Path, masks: Path, folder: Path) -> dict[str, Any]:
    """Both runs, and what each kill cost."""
    flags = [*FLAGS, "--data.images", str(images), "--data.masks", str(masks)]
    began = time.monotonic()
    _started(flags, folder / "whole").wait()
    whole_s = time.monotonic() - began
    # on average the kills leave half of the steps to the last start
    longest_s = START_S + whole_s / KILLS
    draw = random.Random(SEED)
    kills: list[dict[str, int]] = []
    while len(kills) < KILLS:
        run = _started(flags, folder / "killed")
        try:
            run.wait(draw.uniform(1, longest_s))
            raise RuntimeError(f"the run came to its end after {len(kills)} kills")
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
        kills.append({"done": _done(folder / "killed"), "saved": _saved(folder / "killed")})
        print(f"kill {len(kills)}: {kills[-1]}", flush=True)
    last = _started(flags, folder / "killed")
    if last.wait():
        raise RuntimeError("the run did not come to its end")
    hashes = {name: _hashes(folder / name) for name in ("whole", "killed")}
    return {
        "steps": STEPS,
        "checkpoint_every": EVERY,
        "kills": len(kills),
        "at_the_kills": kills,
        "equal": hashes["whole"] == hashes["killed"],
        "sha256": hashes,
        "whole_s": whole_s,
        "longest_s": longest_s,
        "environment": environment(),
    }


def _started(flags: list[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "unet_cli", "train", *flags, "--out", str(out)]
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log)


def _done(run: Path) -> int:
    """The last step that a killed run has told of."""
    return max((line["step"] for line in read_metrics(run)), default=0)


def _saved(run: Path) -> int:
    """The step of the newest checkpoint after a kill."""
    return max(list_steps(run / CHECKPOINTS), default=0)


def _hashes(run: Path) -> dict[str, str]:
    files = ("weights.safetensors", "best.safetensors", f"{CHECKPOINTS}/{STEPS}.safetensors")
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files}


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT, folders=("IMAGES", "MASKS"))
    place = Path(tempfile.mkdtemp())
    try:
        result = {
            "command": "python -m benchmarks.killed IMAGES MASKS",
            **killed(arguments.images, arguments.masks, place),
        }
    finally:
        shutil.rmtree(place)
    print(json.dumps({key: result[key] for key in ("kills", "equal", "whole_s")}))
    write_result(arguments.out, result)
