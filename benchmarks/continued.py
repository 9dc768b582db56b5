"""Does `unet train` go on with a PyTorch run as PyTorch itself does?

`python -m benchmarks.continued IMAGES MASKS` trains with a plain PyTorch loop (AdamW, cosine,
clipping), saves a checkpoint after a third of the steps and goes on; `unet convert` and
`unet train --start` go on from the same checkpoint. Beside them, because training multiplies
rounding errors: PyTorch once more, every batch the other way round, which only changes the order
of sums; and what is done by hand, the weights alone, while optimizer, schedule and batches begin
anew. It writes `results/continued.json` (some minutes on two cores).
"""

import json
import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import unet_torch
from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_spec import UNetConfig
from unet_spec.recipe import Optimizer, Schedule
from unet_train.config import AugmentConfig, DataConfig, TrainConfig
from unet_train.input.crops import cut_batch
from unet_train.input.samples import Sample, load_samples
from unet_train.input.split import split_samples
from unet_train.metrics import confusion, foreground_iou
from unet_train.report.metrics_log import read_metrics

RESULT = RESULTS / "continued.json"
COMMAND = "python -m benchmarks.continued IMAGES MASKS"
STEPS, HANDOVER, EVERY = 600, 200, 50
LR, CLIP = 2e-3, 1.0
NET = UNetConfig(widths=(8, 16, 32, 64), norm="batch")
OFF = [field.name.replace("_", "-") for field in fields(AugmentConfig) if field.default == 0.0]
FLAGS = [
    "--data.crop-px", "96", "--data.batch", "8", "--loss.dice", "0", "--ema", "0",
    "--augment.no-flips", "--augment.no-quarter-turns", *(f"--augment.{name}=0" for name in OFF),
    "--validate-every", str(EVERY),
]  # fmt: skip

Curve = dict[int, float]  # of a run: mean IoU of the held-out images at some steps


def continued(images: Path, masks: Path, folder: Path) -> dict[str, Any]:
    """All runs, and how far each is from PyTorch's own."""
    config = TrainConfig(
        net=NET, data=DataConfig(images=images, masks=masks, crop_px=96),
        augment=AugmentConfig(flips=False, quarter_turns=False), optimizer=Optimizer(lr=LR),
        schedule=Schedule("cosine"), steps=STEPS,
    )  # fmt: skip
    sides = split_samples(load_samples(config), data=config.data, seed=config.seed)
    torch.manual_seed(0)
    first = _Torch(config, sides, unet_torch.UNet(NET))
    before = first.train(HANDOVER)
    torch.save(first.checkpoint(), folder / "run.pt")
    turned = _Torch(config, sides, unet_torch.UNet(NET), turned=True)
    turned.restore(deepcopy(first.checkpoint()), step=HANDOVER)
    runs = {
        "torch": first.train(STEPS),
        "torch, sums in another order": turned.train(STEPS),
    }
    where = ["--data.images", str(images), "--data.masks", str(masks)]
    _unet("convert", "run.pt", "start.safetensors", cwd=folder)
    _unet("train", "nuclei", *where, *FLAGS, "--start", "start.safetensors", "--steps",
          str(STEPS), "--optimizer.clip-norm", str(CLIP), "--out", "jax", cwd=folder)  # fmt: skip
    runs["unet train --start"] = _curve(folder / "jax", after=HANDOVER)
    _unet("convert", "run.pt", "weights.safetensors", "--weights-only", cwd=folder)
    _unet("train", "nuclei", *where, *FLAGS, "--start", "weights.safetensors", "--schedule.name",
          "cosine", "--optimizer.lr", str(LR), "--optimizer.clip-norm", str(CLIP), "--steps",
          str(STEPS - HANDOVER), "--out", "weights", cwd=folder)  # fmt: skip
    runs["weights alone, all else anew"] = _curve(folder / "weights", after=0, shift=HANDOVER)
    return {
        "command": COMMAND,
        "steps": STEPS,
        "handed_over_at": HANDOVER,
        "before": before,
        "iou": runs,
        "furthest_iou": {name: _apart(runs["torch"], run) for name, run in runs.items()},
        "environment": environment(),
    }


class _Torch:
    """A training loop as it stands in many projects."""

    def __init__(
        self,
        config: TrainConfig,
        sides: tuple[list[Sample], list[Sample]],
        model: Any,
        *,
        turned: bool = False,
    ):
        self.config, self.sides, self.model, self.turned = config, sides, model, turned
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.step = 0

    def train(self, until: int) -> Curve:
        ious = {}
        while self.step < until:
            made = cut_batch(
                self.sides[0], self.step, data=self.config.data, net=NET, seed=self.config.seed
            )
            x, truth = torch.tensor(made.x).permute(0, 3, 1, 2), torch.tensor(made.truth).long()
            if self.turned:
                x, truth = x.flip(0), truth.flip(0)
            loss = nn.functional.cross_entropy(self.model.train()(x), truth)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            if self.step % EVERY == 0:
                ious[self.step] = self.iou()
                print(f"torch, step {self.step}: IoU {ious[self.step]:.3f}", flush=True)
        return ious

    def iou(self) -> float:
        """Mean over the held-out images."""
        model = self.model.eval()
        return float(np.mean([
            foreground_iou(np.asarray(confusion(unet_torch.predict(model, s.image), s.mask,
                                                classes=NET.classes), np.float64))
            for s in self.sides[1]
        ]))  # fmt: skip

    def checkpoint(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any], *, step: int) -> None:
        for name, content in checkpoint.items():
            getattr(self, name).load_state_dict(content)
        self.step = step


def _unet(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "unet_cli", *arguments], cwd=cwd, check=True)


def _curve(run: Path, *, after: int, shift: int = 0) -> Curve:
    lines = [
        line for line in read_metrics(run) if line["kind"] == "validation" and line["step"] > after
    ]
    return {line["step"] + shift: line["mean_image_iou"] for line in lines}


def _apart(torch_run: Curve, other: Curve) -> float:
    assert torch_run.keys() == other.keys()
    return max(abs(other[step] - iou) for step, iou in torch_run.items())


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT, folders=("IMAGES", "MASKS"))
    with tempfile.TemporaryDirectory() as place:
        result = continued(arguments.images, arguments.masks, Path(place))
    print(json.dumps(result["furthest_iou"]))
    write_result(arguments.out, result)
