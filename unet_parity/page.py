"""The report of `verify` as one HTML file that needs nothing beside it."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import unet_page
from unet_parity import exact, integer_cases
from unet_parity.comparison import Comparison
from unet_parity.differences import EPS, error_ratio
from unet_parity.float32_errors import GRADIENT_FACTOR, LOCAL_FACTOR, Gradient, Layer
from unet_parity.oracle import FACTOR, GRADIENT_BOUND, OUTPUT_BOUND
from unet_parity.training import BOUND, Trajectory
from unet_parity.verify import BIT_FOR_BIT, ROUNDING, ParityReport
from unet_spec.prediction import choose_class

SENTENCES = {
    "identical": f"PyTorch and JAX compute the same net. {BIT_FOR_BIT} {ROUNDING}",
    "equivalent": f"PyTorch and JAX compute the same net. {ROUNDING}",
    "different": "PyTorch and JAX do not compute the same net.",
}
OTHER_MODULE = "Your module is another net than the one of these weights."
WORST = 5
LABELS, NARROW_LABELS = 8, 3  # of an axis, at most; a label needs about 3 rem


def make_page(report: ParityReport, *, command: str = "") -> str:
    """Make the page of a report.

    Args:
        command: that made it.
    """
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        report=report,
        command=command,
        sentence=_summarise(report),
        tf32=exact.explain_tf32(report.bits),
        no_proof=integer_cases.explain_no_proof(report.config),
        modes=[_describe_mode(comparison, report.x) for comparison in report.comparisons],
        ratio=lambda row: error_ratio(row.torch_error, row.jax_error, row.scale),
        steps=[_describe_steps(trajectory) for trajectory in report.steps],
        bounds={
            "output": OUTPUT_BOUND, "gradient": GRADIENT_BOUND, "factor": FACTOR,
            "local": LOCAL_FACTOR, "gradient_factor": GRADIENT_FACTOR, "steps": BOUND,
        },
    )  # fmt: skip


def _summarise(report: ParityReport) -> str:
    """Return the sentence with which the page begins."""
    is_other = report.own is not None and report.own.pair.verdict == "different"
    if is_other and not any(comparison.problems for comparison in report.comparisons):
        return OTHER_MODULE
    return SENTENCES[report.verdict]


def _describe_mode(comparison: Comparison, x: np.ndarray) -> dict[str, Any]:
    axis = _Axis(
        [
            e / layer.scale
            for layer in comparison.layers
            if layer.scale
            for e in _errors_of_layer(layer)
        ]
        + [e / g.scale for g in comparison.gradients if g.scale for e in _errors_of_gradient(g)]
    )
    at_fault = comparison.faults[0].module if comparison.faults else None
    agreement = comparison.agreement
    return {
        "comparison": comparison,
        "ratio": error_ratio(agreement.torch_error, agreement.jax_error, agreement.scale),
        "axis": axis,
        "at_fault": at_fault,
        "layers": [
            {
                **asdict(layer),
                "depth": layer.name.count("."),
                "label": layer.name.rpartition(".")[2],
                "ratio": layer.local_ratio,
                "inherited": axis.dots(layer.scale, layer.torch_error, layer.jax_error),
                "local": axis.dots(layer.scale, layer.local_torch_error, layer.local_jax_error),
                "fault": layer.name == at_fault,
            }
            for layer in comparison.layers
        ],
        "gradients": [
            {
                **asdict(gradient),
                "ratio": gradient.ratio,
                "dots": axis.dots(gradient.scale, *_errors_of_gradient(gradient)),
            }
            for gradient in comparison.gradients
        ],
        "pixels": _describe_pixels(comparison, x),
    }


class _LogScale:
    """A logarithmic scale from `low` to `high`, in percent of its length."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Return where a value above 0 lies; what is infinite lies at the end."""
        if not value < math.inf:
            return 100.0
        # values that are all the same have no length between them
        length = math.log10(self.high) - math.log10(self.low) or 1.0
        return 100 * (math.log10(value) - math.log10(self.low)) / length


class _Axis:
    """A logarithmic axis over relative errors, in percent of its length.

    `ticks` are (label, place, classes). The classes say in which windows the label stands,
    `on-wide` or `on-narrow`, so that no two labels meet.
    """

    def __init__(self, errors: list[float]):
        exponents = [math.log10(e) for e in [EPS, *errors] if 0 < e < math.inf]
        low, high = math.floor(min(exponents)), math.ceil(max(exponents))
        self._scale = _LogScale(10.0**low, 10.0**high)
        decades = range(low, high + 1)
        classes = {
            "on-wide": decades[:: math.ceil(len(decades) / LABELS)],
            "on-narrow": decades[:: math.ceil(len(decades) / NARROW_LABELS)],
        }
        self.ticks = [
            (
                f"1e{decade}",
                self._scale.place(10.0**decade),
                " ".join(name for name, labelled in classes.items() if decade in labelled),
            )
            for decade in decades
        ]
        self.eps = self._scale.place(EPS)

    def dots(self, scale: float, *errors: float) -> list[dict[str, Any]]:
        """Return torch's and JAX's place; an error of 0 has none."""
        relative = [error / scale if scale else 0.0 for error in errors]
        return [
            {"who": who, "at": self._scale.place(error), "error": error}
            for who, error in zip(("torch", "jax"), relative, strict=True)
            if error > 0
        ]


def _describe_steps(trajectory: Trajectory) -> dict[str, Any]:
    """Describe the curves of training steps: losses, and distances on a logarithmic scale."""
    curves = {
        "JAX to PyTorch, parameters": trajectory.parameters,
        "JAX to PyTorch, batch statistics": trajectory.statistics,
        "PyTorch to itself, sums in another order": trajectory.torch_yardstick,
        "JAX to itself, sums in another order": trajectory.jax_yardstick,
    }
    distances = {name: values for name, values in curves.items() if values}
    positive = [v for values in distances.values() for v in values if 0 < v < math.inf]
    low, high = (min(positive), max(positive)) if positive else (1e-17, 1e-16)
    scale = _LogScale(low, high)
    losses = [*trajectory.torch_losses, *trajectory.jax_losses]
    bottom, top = min(losses), max(losses)

    def place_loss(value: float) -> float:
        return 100 * (value - bottom) / max(top - bottom, 1e-12)

    return {
        "trajectory": trajectory,
        "low": low,
        "high": high,
        "bottom": bottom,
        "top": top,
        "losses": [
            _draw_line(trajectory.torch_losses, place_loss),
            _draw_line(trajectory.jax_losses, place_loss),
        ],
        "distances": [
            {"name": name, "line": _draw_line(values, scale.place, least=0), "last": values[-1]}
            for name, values in distances.items()
        ],
    }


def _draw_line(
    values: list[float], place: Callable[[float], float], *, least: float = -math.inf
) -> str:
    """Return the points of an SVG polyline in a square of 100 x 100, whose y runs downwards.

    Args:
        place: of a value on the axis, in percent from the bottom.
        least: values that are no larger, or infinite, have no point.
    """
    width = max(len(values) - 1, 1)
    points = []
    for step, value in enumerate(values):
        if least < value < math.inf:
            points.append(f"{100 * step / width:.2f},{100 - place(value):.2f}")
    return " ".join(points)


def _describe_pixels(comparison: Comparison, x: np.ndarray) -> dict[str, Any] | None:
    """Describe pictures of the first image and of both errors, and the worst pixels in numbers."""
    truth, ours, theirs = (getattr(comparison.outputs, n) for n in ("torch64", "torch32", "jax32"))
    if not np.isfinite(theirs).all() or theirs.shape != truth.shape:
        return None
    errors = [np.abs(run[0] - truth[0]).max(axis=0) for run in (ours, theirs)]
    apart = np.abs(ours[0] - theirs[0]).max(axis=0)
    largest = max(float(e.max()) for e in errors) or 1.0
    worst = np.argsort(apart, axis=None)[::-1][:WORST]
    rows = []
    for flat in worst:
        row, column = (int(i) for i in np.unravel_index(flat, apart.shape))
        channel = int(np.abs(ours[0] - theirs[0])[:, row, column].argmax())
        values = [float(run[0, channel, row, column]) for run in (truth, ours, theirs)]
        rows.append({"row": row, "column": column, "channel": channel, "values": values})
    image = x[0].mean(axis=0)
    return {
        "largest": largest,
        "rows": rows,
        "pictures": [
            ("the input", _gray(_stretch(image))),
            ("class, by PyTorch", _gray(choose_class(ours[0], axis=0) / max(len(ours[0]) - 1, 1))),
            ("class, by JAX", _gray(choose_class(theirs[0], axis=0) / max(len(theirs[0]) - 1, 1))),
            ("PyTorch's error", _gray(errors[0] / largest)),
            ("JAX's error", _gray(errors[1] / largest)),
        ],
    }


def _stretch(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low or 1.0)


def _gray(values: np.ndarray) -> str:
    """Return a gray picture of values from 0 to 1 as a data URL."""
    return unet_page.picture_url((255 * values.clip(0, 1)).astype(np.uint8))


def _errors_of_layer(layer: Layer) -> tuple[float, ...]:
    return (
        layer.torch_error, layer.jax_error, layer.local_torch_error, layer.local_jax_error,
    )  # fmt: skip


def _errors_of_gradient(gradient: Gradient) -> tuple[float, float]:
    return gradient.torch_error, gradient.jax_error
