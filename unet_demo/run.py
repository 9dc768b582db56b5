"""`unet demo`: the whole way on synthetic cells, from training to a proof, ending in a page."""

import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import unet_image
import unet_jax
import unet_page
import unet_torch
from unet_parity import page, report, verify
from unet_spec import weight_file
from unet_spec.files import atomic_write, refuse_existing
from unet_train import loop
from unet_train.config import CELLS, TrainConfig
from unet_train.input import synthetic
from unet_train.metrics import format_score
from unet_train.report.progress import Progress
from unet_train.run import folder as run_folder

INDEX, PARITY, RUN = "index.html", "parity.html", "run"
UNSEEN_SEEDS = (7_000_001, 7_000_002, 7_000_003)  # far from those of the training images


def run(out: Path, *, config: TrainConfig = CELLS, command: str = "") -> dict[str, Any]:
    """Train, open the weights in PyTorch, verify, predict, and write three pages into `out`.

    Args:
        out: `index.html` is written there, with `parity.html` and the run's own `report.html`,
            to which it links.
        config: a training run on synthetic cells.
        command: the command that repeats the demo, for its pages.

    Raises:
        InputError: `out` exists.
    """
    refuse_existing(out)
    console, began = Console(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    result = loop.run(config, out / RUN, progress=Progress(console), command=command)
    assert result.weights is not None
    weights = Path(result.weights)
    port, twin = unet_jax.load(weights), unet_torch.load(weights)
    console.print(f"{weights} opened in PyTorch: {sum(1 for _ in twin.parameters())} tensors")
    parity = verify.verify(
        port.config,
        weights=weight_file.read(weights),
        say=lambda text: console.print(text, highlight=False),
    )
    report.show(parity, console)
    with atomic_write(out / PARITY) as stream:
        verify_command = shlex.join(["unet", "verify", str(weights)])
        stream.write(page.make_page(parity, command=verify_command).encode())
    rows = [_predict_with_both(port, twin, seed) for seed in UNSEEN_SEEDS]
    summary = {
        "verdict": parity.verdict,
        "mean_image_iou": result.mean_image_iou,
        "pixels_differing": sum(row["differing"] for row in rows),
        "pixels": sum(row["pixels"] for row in rows),
        "weights": str(weights),
        "page": str(out / INDEX),
        "seconds": time.monotonic() - began,
    }
    with atomic_write(out / INDEX) as stream:
        text = unet_page.render(
            Path(__file__).with_name("page.html"),
            summary=summary,
            iou=format_score(result.mean_image_iou),
            sentence=page.SENTENCES[parity.verdict],
            rows=rows,
            parity=PARITY,
            run=f"{RUN}/{run_folder.PAGE}",
            command=command,
        )
        stream.write(text.encode())
    console.print(f"the page: {out / INDEX}")
    return summary


def _predict_with_both(port: unet_jax.UNet, twin: unet_torch.UNet, seed: int) -> dict[str, Any]:
    """Return pictures of an image that no training saw: its truth, and what each twin predicts."""
    image, truth = synthetic.draw_cells(seed, height=203, width=259)
    by_torch, by_jax = unet_torch.predict(twin, image), unet_jax.predict(port, image)
    pictures = {
        "image": unet_image.make_visible(image),
        "truth": unet_image.overlay(image, np.zeros_like(truth), truth),
        "PyTorch": unet_image.overlay(image, by_torch),
        "JAX": unet_image.overlay(image, by_jax),
    }
    return {
        "pictures": {name: unet_page.picture_url(pixels) for name, pixels in pictures.items()},
        "differing": int((by_torch != by_jax).sum()),
        "pixels": truth.size,
    }
