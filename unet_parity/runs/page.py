"""The comparison of recorded runs as one HTML file that needs nothing beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import unet_page
from unet_page import plot
from unet_page.plot import Dot, Line, Plot, Points
from unet_parity.runs.distances import FACTOR, LOSS, NEAR_TIE, Distances
from unet_parity.runs.report import RunReport
from unet_spec.files import atomic_write

SENTENCES = {
    "equivalent": "The replay stays with the run, as near as rounding lets it.",
    "different": "The replay does not stay with the run.",
}
LOW, HIGH = 1e-9, 1e3
"""What is drawn lies between these: 0 has no place on a logarithmic axis, nor has infinity."""
KEY = (("replay", "replay"), ("again", "run again"), ("allowed", "allowed"))


def write_page(path: Path, report: RunReport, *, command: str = "") -> None:
    """Write the page of a report.

    Args:
        command: that made it.
    """
    with atomic_write(path) as stream:
        stream.write(make_page(report, command=command).encode())


def make_page(report: RunReport, *, command: str = "") -> str:
    """Return the page of a report."""
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        report=report,
        command=command,
        sentence=SENTENCES[report.verdict],
        factor=FACTOR,
        near_tie=NEAR_TIE,
        curves=[plot_distances(kind, report.first_step) for kind in report.distances],
        rows=report.list_steps(),
        renamed={theirs: ours for theirs, ours in report.pairs.items() if theirs != ours},
    )


def plot_distances(kind: Distances, first_step: int | None) -> Plot:
    """Return the plot of one kind over the steps, of the tensor that is furthest beyond.

    Args:
        first_step: the first step beyond, from 1, whose tensor is drawn; without one the tensor
            that takes the largest share in any step.
    """
    step = first_step - 1 if first_step else int(np.argmax(kind.share.max(axis=1)))
    place = kind.find_worst(step)
    curves = {
        name: _list_points(values[:, place])
        for name, values in (
            ("replay", kind.replay), ("again", kind.again), ("allowed", kind.allowed),
        )
    }  # fmt: skip
    sizes = [size for points in curves.values() for _, size in points]
    dots = []
    if first_step and kind.share[step, place] > 1:
        text = f"step {first_step}: {kind.replay[step, place]:.1e}"
        dots.append(Dot("replay best", first_step, curves["replay"][step][1], text))
    return Plot(
        kind.describe(place) if kind.kind != LOSS else "the loss",
        KEY,
        plot.count_axis(len(kind.share)),
        plot.log_axis(min(sizes), max(sizes)),
        [Line(name, points) for name, points in curves.items()],
        dots,
    )


def _list_points(values: Sequence[float] | np.ndarray) -> Points:
    return [(step, float(np.clip(size, LOW, HIGH))) for step, size in enumerate(values, 1)]
