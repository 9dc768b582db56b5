"""Does somebody's own net go on in JAX, and come back, as it goes on in PyTorch?

`python -m benchmarks.own_net IMAGES MASKS` takes the net of docs/your-own-net.md, which has
milesial's names, and trains it on real images with AdamW (no weight decay on biases and norms) and
a cosine schedule: 20 steps in PyTorch, then `unet convert` and `unet train --start` for 20 steps,
then `unet convert` back and 20 steps in PyTorch, whose own code loads the file strictly. Beside it:
60 steps in PyTorch, and the same with the batches of the middle 20 steps the other way round, which
only changes the order of sums. It writes `results/own_net.json` (a minute on two cores).
"""

import importlib
import json
import re
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

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_spec import UNetConfig
from unet_spec.recipe import Schedule
from unet_train.config import AugmentConfig, DataConfig, TrainConfig
from unet_train.input.crops import cut_batch
from unet_train.input.samples import load_samples
from unet_train.input.split import split_samples

RESULT = RESULTS / "own_net.json"
COMMAND = "python -m benchmarks.own_net IMAGES MASKS"
DOCUMENT = Path(__file__).parent.parent / "docs" / "your-own-net.md"
LEG, WIDTH, CROP_PX, BATCH = 20, 8, 96, 8
STEPS = 3 * LEG
OFF = [field.name.replace("_", "-") for field in fields(AugmentConfig) if field.default == 0.0]
FLAGS = [
    "--data.crop-px", str(CROP_PX), "--data.batch", str(BATCH), "--loss.dice", "0", "--ema", "0",
    "--augment.no-flips", "--augment.no-quarter-turns", *(f"--augment.{name}=0" for name in OFF),
    "--validate-every", str(2 * LEG), "--steps", str(2 * LEG),
]  # fmt: skip


def own_net(images: Path, masks: Path, folder: Path) -> dict[str, Any]:
    """All runs, and how far each is from PyTorch's own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    (folder / "my_unet.py").write_text(blocks[0])
    config = TrainConfig(
        net=UNetConfig(), data=DataConfig(images=images, masks=masks, crop_px=CROP_PX, batch=BATCH),
        augment=AugmentConfig(flips=False, quarter_turns=False), schedule=Schedule("cosine"),
        steps=STEPS,
    )  # fmt: skip
    training, _ = split_samples(load_samples(config), data=config.data, seed=config.seed)

    def run(theirs: "Theirs", until: int, *, turned: bool = False) -> None:
        theirs.run(config, training, until, turned=turned)

    stays = Theirs(folder)
    begin = stays.parameters()
    run(stays, LEG)
    other, mover = (Theirs(folder, deepcopy(stays.content())) for _ in range(2))
    run(stays, STEPS)
    run(other, 2 * LEG, turned=True)
    run(other, STEPS)
    torch.save(mover.content(), folder / "my_run.pt")
    reference = ["--reference", "my_unet.py:UNet", "--reference-arguments", f"1, 2, width={WIDTH}"]
    _unet("convert", "my_run.pt", "start.safetensors", *reference, cwd=folder)
    _unet("train", "nuclei", "--data.images", str(images), "--data.masks", str(masks), *FLAGS,
          "--start", "start.safetensors", "--out", "jax", cwd=folder)  # fmt: skip
    _unet("convert", "jax", "back.pt", cwd=folder)
    back = torch.load(folder / "back.pt", weights_only=True)
    assert list(back["state_dict"]) == list(mover.content()["state_dict"])
    returned = Theirs(folder, back)
    run(returned, STEPS)
    moved = distance(stays.parameters(), begin)
    return {
        "command": COMMAND,
        "steps": STEPS,
        "leg": LEG,
        "distance": {
            "another order of sums": distance(other.parameters(), stays.parameters()) / moved,
            "torch, JAX, torch": distance(returned.parameters(), stays.parameters()) / moved,
        },
        "loss": {"first": stays.losses[0], "last": stays.losses[-1]},
        "environment": environment(),
    }


class Theirs:
    """Net, optimizer and scheduler as they stand in somebody's script."""

    def __init__(self, folder: Path, content: dict[str, Any] | None = None):
        sys.path.insert(0, str(folder))
        torch.manual_seed(0)
        self.net: nn.Module = importlib.import_module("my_unet").UNet(1, 2, width=WIDTH)
        sys.path.remove(str(folder))
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim == 1]
        groups: list[Any] = [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer: Any = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.losses: list[float] = []
        if content is not None:
            self.net.load_state_dict(content["state_dict"], strict=True)
            self.optimizer.load_state_dict(content["optimizer"])
            self.scheduler.load_state_dict(content["scheduler"])

    def run(self, config: TrainConfig, training: Any, until: int, *, turned: bool) -> None:
        """Train up to a step, as the scheduler counts them."""
        self.net.train()
        for step in range(self.scheduler.last_epoch, until):
            made = cut_batch(training, step, data=config.data, net=config.net, seed=config.seed)
            x, truth = torch.tensor(made.x).permute(0, 3, 1, 2), torch.tensor(made.truth).long()
            if turned:
                x, truth = x.flip(0), truth.flip(0)
            loss = nn.functional.cross_entropy(self.net(x), truth)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(loss.item())

    def content(self) -> dict[str, Any]:
        return {
            "epoch": 1,
            "state_dict": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def parameters(self) -> np.ndarray:
        """All trained values in one row."""
        values = [p.detach().numpy().ravel() for p in self.net.parameters()]
        return np.concatenate(values).astype(np.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))


def _unet(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "unet_cli", *arguments], cwd=cwd, check=True)


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT, folders=("IMAGES", "MASKS"))
    with tempfile.TemporaryDirectory() as place:
        result = own_net(arguments.images, arguments.masks, Path(place))
    print(json.dumps(result["distance"]))
    write_result(arguments.out, result)
