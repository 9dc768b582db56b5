"""How good is the preset `nuclei`, and how long does it take?

`python -m benchmarks.nuclei IMAGES MASKS` trains it with three seeds, each with a split of its own,
and writes `results/nuclei.json` (most of an hour on two cores).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.script import RESULTS, parse_arguments, write_result

RESULT = RESULTS / "nuclei.json"
SEEDS = (0, 1, 2)
TOLD = ("mean_image_iou", "pooled_iou", "best_mean_image_iou", "training_images",
        "validation_images", "images_per_s", "waiting_share", "seconds")  # fmt: skip


def nuclei(images: str, masks: str, folder: Path) -> dict[str, Any]:
    """The scores of all seeds, their mean and their spread."""
    runs = []
    for seed in SEEDS:
        told = folder / f"{seed}.json"
        subprocess.run(
            [sys.executable, "-m", "unet_cli", "train", "nuclei", "--data.images", images,
             "--data.masks", masks, "--seed", str(seed), "--out", folder / str(seed),
             "--json", told],
            check=True,
        )  # fmt: skip
        runs.append(json.loads(told.read_text()))
    scores = [run["mean_image_iou"] for run in runs]
    return {
        "command": "python -m benchmarks.nuclei IMAGES MASKS",
        "mean_image_iou": mean(scores),
        "standard_deviation": stdev(scores),
        "longest_s": max(run["seconds"] for run in runs),
        "runs": [
            {"seed": seed, **{name: run[name] for name in TOLD}}
            for seed, run in zip(SEEDS, runs, strict=True)
        ],
        "steps": runs[0]["step"],
        "environment": runs[0]["environment"],
    }


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT, folders=("IMAGES", "MASKS"))
    with tempfile.TemporaryDirectory() as place:
        result = nuclei(str(arguments.images), str(arguments.masks), Path(place))
    print(json.dumps({key: result[key] for key in ("mean_image_iou", "standard_deviation")}))
    write_result(arguments.out, result)
