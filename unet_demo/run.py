"""`unet demo`: the whole way on synthetic cells, ending in one self-contained HTML page."""

import base64
import html
import io
import json
import time
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

import unet_image
import unet_jax
import unet_torch
from train import loop, synthetic
from train.config import CELLS
from train.progress import Progress
from unet_parity import report, verify
from unet_spec import weight_file
from unet_spec.files import refuse_existing, written

UNSEEN_SEEDS = (7_000_001, 7_000_002, 7_000_003)  # far from those of the training images


def run(out: Path) -> dict[str, Any]:
    """Train, save, open in PyTorch, verify, predict, and write `out`/index.html.

    Raises:
        InputError: `out` exists.
    """
    refuse_existing(out)
    console, began = Console(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    result = loop.run(CELLS, out / "run", progress=Progress(console))
    assert result.weights is not None
    port, twin = unet_jax.load(result.weights), unet_torch.load(result.weights)
    console.print(
        f"{result.weights} opened in PyTorch: {sum(1 for _ in twin.parameters())} tensors"
    )
    found = verify.verify(
        port.config, weights=weight_file.read(result.weights), say=lambda text: console.print(text)
    )
    report.show(found, console)
    pictures = [_compared(port, twin, seed) for seed in UNSEEN_SEEDS]
    summary = {
        "verdict": found.verdict,
        "mean_image_iou": result.mean_image_iou,
        "pixels_differing": sum(p["differing"] for p in pictures),
        "pixels": sum(p["pixels"] for p in pictures),
        "page": str(out / "index.html"),
        "seconds": time.monotonic() - began,
    }
    with written(out / "index.html") as stream:
        stream.write(_page(summary, found, pictures, out / "run" / "metrics.jsonl").encode())
    console.print(f"the page: {out / 'index.html'}")
    return summary


def _compared(port: unet_jax.UNet, twin: unet_torch.UNet, seed: int) -> dict[str, Any]:
    """An image that no training saw, with its truth and what both twins say of it."""
    image, truth = synthetic.cells(seed, height=203, width=259)
    ours, theirs = unet_torch.predict(twin, image), unet_jax.predict(port, image)
    return {
        "image": unet_image.visible(image),
        "truth": unet_image.overlay(image, np.zeros_like(truth), truth),
        "torch": unet_image.overlay(image, ours),
        "jax": unet_image.overlay(image, theirs),
        "differing": int((ours != theirs).sum()),
        "pixels": truth.size,
    }


def _page(
    summary: dict[str, Any], found: verify.Report, pictures: list[dict[str, Any]], metrics: Path
) -> str:
    heads = ("image", "truth", "torch", "jax")
    rows = "".join(
        "<tr>"
        + "".join(f"<td><img alt='{h}' src='{_embedded(p[h])}'></td>" for h in heads)
        + "</tr>"
        for p in pictures
    )
    exact = "".join(
        f"<tr><td>{r.rung}</td><td>{r.dtype}</td><td>{r.mismatches} of {r.outputs:,}</td>"
        f"<td>{r.gradients['mismatches']} in {r.gradients['tensors']} tensors</td>"
        f"<td>{r.distinct}</td><td>{html.escape(r.outcome)}</td></tr>"
        for r in found.exact
    )
    agreement = found.comparisons[0].agreement
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    curve = "".join(
        f"<tr><td>{s['step']}</td><td>{s['loss']:.4f}</td><td>{s['mean_image_iou']:.3f}</td></tr>"
        for s in steps
    )
    template = Template((Path(__file__).parent / "page.html").read_text())
    return template.substitute(
        verdict=html.escape(found.verdict),
        reasons=html.escape("; ".join(found.reasons)),
        iou=f"{summary['mean_image_iou']:.3f}",
        differing=f"{summary['pixels_differing']} of {summary['pixels']:,}",
        pictures=rows,
        exact=exact,
        output=f"{agreement.output:.1e}",
        gradient=f"{max(agreement.gradients.values()):.1e}",
        torch_error=f"{agreement.torch_error / agreement.scale:.1e}",
        jax_error=f"{agreement.jax_error / agreement.scale:.1e}",
        curve=curve,
        environment="".join(
            f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>"
            for k, v in found.environment.items()
        ),
    )


def _embedded(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
