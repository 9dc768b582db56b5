"""The report on a pair as one HTML file that needs nothing beside it."""

import math
from pathlib import Path
from typing import Any

import unet_page
from unet_parity.bounds import GRADIENT_BOUND, OUTPUT_BOUND, TRAINING_BOUND
from unet_parity.pair.report import PairReport
from unet_spec.files import atomic_write

SENTENCES = {
    "identical": "Both compute the same: bit for bit where nothing is rounded, and elsewhere to "
    "rounding.",
    "equivalent": "Both compute the same, to rounding.",
    "different": "They do not compute the same.",
}
LOW, HIGH = -18, 0
"""Powers of ten at the ends of the scale on which differences are drawn."""


def write_page(path: Path, report: PairReport, *, command: str = "") -> None:
    """Write the page of a report; its folder is made where there is none.

    Args:
        command: that made it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(make_page(report, command=command).encode())


def make_page(report: PairReport, *, command: str = "") -> str:
    """Return the page of a report."""
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        report=report,
        command=command,
        sentence=SENTENCES[report.verdict],
        rows=list_rows(report),
        ticks=[(f"1e{power}", _place(10.0**power)) for power in range(LOW, HIGH + 1, 3)],
        bounds={"output": OUTPUT_BOUND, "gradient": GRADIENT_BOUND, "steps": TRAINING_BOUND},
    )


def list_rows(report: PairReport) -> list[dict[str, Any]]:
    """List what was compared in float64, with the largest difference over all seeds."""
    worst: dict[tuple[str, str], float] = {}
    for comparison in report.comparisons:
        named = {
            "outputs": comparison.output,
            "gradient of the inputs": comparison.input_gradient,
            **{f"gradient of {name}": size for name, size in comparison.gradients.items()},
        }
        if comparison.mode == "training":
            named |= {f"{name} after the pass": s for name, s in comparison.statistics.items()}
        for what, size in named.items():
            key = comparison.mode, what
            worst[key] = max(worst.get(key, 0.0), size)
    return [
        {
            "mode": mode,
            "what": what,
            "size": size,
            "at": _place(size),
            "fault": not size <= (GRADIENT_BOUND if "gradient" in what else OUTPUT_BOUND),
        }
        for (mode, what), size in worst.items()
    ]


def _place(size: float) -> float:
    """Return where a difference lies on the scale, in percent; one of 0 lies at its beginning."""
    if not size > 0:
        return 0.0
    power = math.log10(size) if size < math.inf else HIGH
    return 100 * (min(max(power, LOW), HIGH) - LOW) / (HIGH - LOW)
