"""RUN/report.html: what a run gave, as one file that needs nothing beside it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

import unet_page
from unet_page import plot
from unet_page.plot import Dot, Line, Plot
from unet_spec.files import atomic_write

from ..check.diagnosis import Finding
from ..config import PRESETS, to_plain
from ..metrics import format_score
from .pictures import rank_by_iou
from .validation import ImageScore, Scores

NOTHING_TO_SCORE = "no image has a class other than 0, and the net finds none"
PICTURE_PX = 800  # of the longer side
NAMES = {
    "mean_image_iou": "IoU, mean of images",
    "pooled_iou": "IoU, pooled",
    "pooled_dice": "Dice score, pooled",
    "pixel_error": "pixel error, pooled",
    "rand_score": "Rand score, mean of images",
}
# docs/glossary.md has the same sentences
WORDS = {
    "IoU": "The intersection over union of a class is the number of pixels that have it in the "
    "mask and in the prediction, divided by the number that have it in either. 1 is perfect.",
    "Dice score": "For a class it is twice the number of pixels that have it in the mask and in "
    "the prediction, divided by the sum of those that have it in the mask and those that have it "
    "in the prediction. 1 is perfect.",
    "Pixel error": "It is the part of the pixels whose class is predicted wrong. 0 is perfect.",
    "Rand score": "It asks whether objects are whole and apart. It is the number of pairs of "
    "pixels of true objects that mask and prediction both put into one object, divided by the mean "
    "of the numbers that each of them does. 1 is perfect.",
    "Mean of images": "The score of each image is averaged over the images, so that every image "
    "counts the same. The IoU of an image is the mean over its classes without 0, the background.",
    "Pooled": "The pixels of all images are counted together, so that a large image counts more. "
    "IoU and Dice score are then the mean over the classes without 0.",
    "n/a": "There is nothing to divide by, as for a class that is neither in the mask nor in the "
    "prediction. Such a score is left out of every mean.",
}


@dataclass(frozen=True)
class Report:
    """A `Report` is what a run was, and what it gave.

    Attributes:
        config: as in RUN/config.json.
        metrics: lines of RUN/metrics.jsonl.
        scores: of the last weights.
        pictures: (h, w, 3) bytes of the worst and the best held-out images by their names, with
            predicted outlines in orange and true ones in blue.
        class_names: in their order; () for numbers.
        findings: of the data doctor.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, str]
    metrics: Sequence[Mapping[str, Any]]
    scores: Scores
    pictures: Mapping[str, np.ndarray]
    class_names: Sequence[str] = ()
    findings: Sequence[Finding] = ()


def write_page(path: Path, report: Report, *, command: str = "") -> None:
    """Write the page, whole or not at all.

    Args:
        command: that repeats the run.
    """
    with atomic_write(path) as stream:
        stream.write(render_page(report, command=command).encode())


def render_page(report: Report, *, command: str = "") -> str:
    """Return the page as HTML.

    Args:
        command: that repeats the run.
    """
    preset, groups = _compare_with_presets(report.config)
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        report=report,
        score=format_score,
        images=_sort_images(report.scores),
        command=command,
        sentence=summarize(report),
        figures=[*_list_figures(report)],
        words=_choose_words(report.scores),
        curves=[*_make_curves(report)],
        strip=_plot_image_scores(report.scores),
        pictures=_choose_pictures(report),
        classes=[*_class_rows(report)],
        preset=preset,
        groups=groups,
    )


def summarize(report: Report) -> str:
    """Return the result in one sentence."""
    count, last = len(report.scores.images), _last_step(report)
    planned = report.config["steps"]
    steps = f"{last:,}" if last == planned else f"{last:,} of {planned:,}"
    images = f"{count} held-out image{'s' if count > 1 else ''}"
    if report.scores.mean_image_iou is None:
        return f"Nothing to score in {images} after {steps} steps: {NOTHING_TO_SCORE}."
    text = f"Mean IoU {report.scores.mean_image_iou:.3f} over {images} after {steps} steps"
    validations = _points(report, "validation", "mean_image_iou")
    if not validations or (best := _highest(validations))[0] == last:
        return f"{text}."
    return f"{text}; best {best[1]:.3f} at step {best[0]:,}."


def _last_step(report: Report) -> int:
    """Return the last step that was logged."""
    return max((line["step"] for line in report.metrics), default=0)


def _highest(points: plot.Points) -> tuple[float, float]:
    """Return the best validation; of equals the first."""
    return max(points, key=lambda point: point[1])


def _points(report: Report, kind: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of one measured quantity, where it was finite."""
    return [
        (line["step"], line[name])
        for line in report.metrics
        if line["kind"] == kind and line.get(name) is not None
    ]


def _list_figures(report: Report) -> Iterator[tuple[str, str]]:
    """Yield each number at the top of the page with its name."""
    for name, value in report.scores.headline.items():
        yield NAMES.get(name, name.replace("_", " ")), format_score(value)
    speeds, waits, peaks = (
        [value for _, value in _points(report, "train", name)]
        for name in ("images_per_s", "waiting_share", "peak_memory_bytes")
    )
    if speeds:
        yield "images per second, median", f"{median(speeds):.1f}"
    if waits:
        yield "time waiting for input", f"{100 * fmean(waits):.1f} %"
    if peaks:
        yield "peak memory", f"{max(peaks) / 1e9:.2f} GB"


def _choose_words(scores: Scores) -> dict[str, str]:
    """Return what the words of the page mean, without those that it does not have."""
    return {
        word: meaning
        for word, meaning in WORDS.items()
        if word != "Rand score" or "rand_score" in scores.headline
    }


def _make_curves(report: Report) -> Iterator[Plot]:
    """Yield the curves over the steps of which something was measured."""
    x = plot.count_axis(_last_step(report))
    if losses := [(step, loss) for step, loss in _points(report, "train", "loss") if loss > 0]:
        yield _plot_losses(x, losses)
    if scores := _points(report, "validation", "mean_image_iou"):
        yield _plot_ious(x, scores, plot.thin_points(_points(report, "train", "iou")))
    if rates := _points(report, "train", "lr"):
        yield _curve_from_0("Learning rate", f"last {rates[-1][1]:.3g}", x, rates)
    if speeds := _points(report, "train", "images_per_s"):
        middle = median(speed for _, speed in speeds)
        yield _curve_from_0("Images per second", f"median {middle:.1f}", x, speeds)


def _plot_losses(x: plot.Axis, losses: plot.Points) -> Plot:
    """Return the plot of the losses in training, raw and smoothed."""
    raw = plot.thin_points(losses)
    values = [loss for _, loss in raw]
    return Plot(
        "Loss, logarithmic",
        [("training", f"smoothed; last {losses[-1][1]:.3g}")],
        x,
        plot.log_axis(min(values), max(values)),
        [Line("training raw", raw), Line("training", plot.smooth_points(raw))],
        _lone_point(raw),
    )


def _plot_ious(x: plot.Axis, scores: plot.Points, training: plot.Points) -> Plot:
    """Return the plot of the IoU of held-out images, and of crops in training."""
    best = _highest(scores)
    key = [("validation", f"held-out images; best {best[1]:.3f} at step {best[0]:,}")]
    if training:
        key.append(("training", "crops in training"))
    dots = []
    for step, iou in scores:
        style = "validation best" if step == best[0] else "validation"
        dots.append(Dot(style, step, iou, f"step {step:,}: {iou:.3f}"))
    lines = [Line("training raw", training), Line("validation", scores)]
    y = _make_iou_axis([iou for _, iou in (*scores, *training)])
    return Plot("Mean IoU", key, x, y, lines, dots)


def _curve_from_0(title: str, summary: str, x: plot.Axis, points: plot.Points) -> Plot:
    """Return a plot of one curve on an axis that begins at 0."""
    few = plot.thin_points(points)
    y = plot.linear_axis(0, max(value for _, value in few))
    return Plot(title, [("training", summary)], x, y, [Line("training", few)], _lone_point(few))


def _lone_point(points: plot.Points) -> list[Dot]:
    """Return a dot in place of a line of one point, which nobody would see."""
    if len(points) != 1:
        return []
    ((x, y),) = points
    return [Dot("training", x, y, f"step {x:,.0f}: {y:.3g}")]


def _make_iou_axis(values: Sequence[float]) -> plot.Axis:
    """Return an axis around scores, or from 0 to 1 where they are all the same or none."""
    low, high = min(values, default=0), max(values, default=0)
    return plot.linear_axis(low, high) if high > low else plot.linear_axis(0, 1)


def _plot_image_scores(scores: Scores) -> Plot:
    """Return the plot of the IoU of every image that has one, the worst first."""
    rows = [(image, image.iou) for image in _sort_images(scores) if image.iou is not None]
    x = plot.Axis(-0.5, max(len(rows), 1) - 0.5)
    dots = [
        Dot("validation", i, iou, f"{row.name}: IoU {iou:.3f}, Dice {format_score(row.dice)}")
        for i, (row, iou) in enumerate(rows)
    ]
    y = _make_iou_axis([iou for _, iou in rows])
    key, lines = [], []
    if scores.mean_image_iou is not None:
        mean = scores.mean_image_iou
        key.append(("mean", f"mean {mean:.3f}"))
        lines.append(Line("mean", [(x.low, mean), (x.high, mean)]))
    return Plot("IoU of every image, the worst first", key, x, y, lines, dots)


def _sort_images(scores: Scores) -> list[ImageScore]:
    """Return the images, the worst first, and those without a score last."""
    order = rank_by_iou(scores.images)
    without = [index for index, image in enumerate(scores.images) if image.iou is None]
    return [scores.images[index] for index in (*order, *without)]


def _choose_pictures(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the images that have a picture, the worst half and the best half."""
    entries: list[dict[str, Any]] = []
    for image in _sort_images(report.scores):
        if image.name in report.pictures:
            url = unet_page.picture_url(report.pictures[image.name], largest_px=PICTURE_PX)
            entries.append({"image": image, "url": url})
    if not entries:
        return []
    if len(entries) == 1:
        return [("The held-out image", entries)]
    if report.scores.mean_image_iou is None:
        return [("Without a score", entries)]
    half = len(entries) // 2
    return [("The worst", entries[:half]), ("The best", entries[half:])]


def _class_rows(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the rows of the confusion matrix, as parts of the true pixels."""
    scores = report.scores
    for index, row in enumerate(scores.confusion):
        pixels = sum(row)
        yield {
            "name": report.class_names[index] if report.class_names else f"{index}",
            "pixels": pixels,
            "cells": [(count, count / pixels if pixels else None) for count in row],
            "iou": scores.pooled_iou[index],
            "dice": scores.pooled_dice[index],
        }


def _compare_with_presets(
    config: Mapping[str, Any],
) -> tuple[str, dict[str, list[tuple[str, str, bool]]]]:
    """Return the nearest preset, and the fields of a config by their part.

    A field is (name, value, whether it is another one than the preset's).
    """
    ours = _flatten(config)
    others: dict[str, set[str]] = {}  # the fields that differ from each preset
    for name, preset in PRESETS.items():
        theirs = _flatten(to_plain(preset))
        others[name] = {path for path, value in ours.items() if value != theirs.get(path)}
    nearest = min(others, key=lambda name: len(others[name]))
    groups: dict[str, list[tuple[str, str, bool]]] = {"run": []}
    for path, value in ours.items():
        part, _, name = path.rpartition(".")
        row = (name, _format_value(value), path in others[nearest])
        groups.setdefault(part or "run", []).append(row)
    return nearest, groups


def _flatten(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values by dotted names, with lists for tuples, which JSON does not have."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{before}{name}.")
        else:
            flat[before + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _format_value(value: Any) -> str:
    """Return the value of a field in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_format_value, value)) or "none"
    return "none" if value is None else f"{value}"
