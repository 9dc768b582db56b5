"""How far apart are healthy twins, module by module? And is there ever a false alarm?

`python -m benchmarks.verdicts` compares nets of every kind with many weights and writes
`results/verdicts.json` (ten minutes on two cores). The bounds of `unet_parity.fault` and
`unet_parity.float32_errors` rest on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_parity import oracle
from unet_parity.comparison import Comparer, Comparison, Numbers
from unet_spec import UNetConfig
from unet_spec.environment import versions

COMMAND = "python -m benchmarks.verdicts"
RESULT = RESULTS / "verdicts.json"
SEEDS = range(13)
Norm = Literal["none", "batch", "group", "instance"]
Up = Literal["transposed", "bilinear", "bilinear_aligned", "nearest"]
NETS: tuple[tuple[Norm, Up], ...] = (
    ("none", "transposed"),
    ("batch", "bilinear_aligned"),
    ("group", "nearest"),
    ("instance", "bilinear"),
)
Padding = Literal["same", "valid"]
SHAPES: tuple[tuple[Padding, tuple[int, ...]], ...] = (
    ("same", (16, 32, 64)),
    ("valid", (4, 6, 8, 10, 12)),
)
QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)


@dataclass(frozen=True)
class Case:
    """One comparison of healthy twins: what it says, and the most extreme of all that it measures.

    Attributes:
        local_float64: largest difference of a module by itself, in float64.
        gradient_float64: largest relative difference of a gradient in float64.
        local_ratios: least and largest, of JAX's error over torch's, of a module by itself.
        gradient_ratios: likewise, of the gradients.
    """

    alarms: tuple[str, ...]
    local_float64: float
    gradient_float64: float
    local_ratios: tuple[float, float]
    gradient_ratios: tuple[float, float]
    flips: tuple[int, int]
    mode: str
    weights: str
    seed: int
    config: UNetConfig


def verdicts(*, say: Callable[[str], None] = print) -> dict[str, Any]:
    """All cases, and what they reach, as they go to the file."""
    cases: list[Case] = []
    for config in configs():
        for compared, weights, seed in comparisons(config):
            cases.append(case(compared, config, weights, seed))
        say(f"{len(cases)} cases, {sum(bool(c.alarms) for c in cases)} false alarms")
    return {
        "command": COMMAND,
        "count": len(cases),
        "false_alarms": sum(bool(c.alarms) for c in cases),
        "alarms": [asdict(c) for c in cases if c.alarms],
        "largest_local_float64": max(c.local_float64 for c in cases),
        "largest_gradient_float64": max(c.gradient_float64 for c in cases),
        "local_ratios": _quantiles([r for c in cases for r in c.local_ratios]),
        "gradient_ratios": _quantiles([r for c in cases for r in c.gradient_ratios]),
        "cases_with_flips": sum(any(c.flips) for c in cases),
        "versions": versions(),
        "environment": environment(),
    }


def configs() -> Iterator[UNetConfig]:
    """Every norm and up-sampling, in shallow, wide, padded nets and deep, narrow, unpadded ones."""
    for (norm, up), (padding, widths) in product(NETS, SHAPES):
        yield UNetConfig(
            in_channels=3, classes=4, widths=widths, padding=padding, norm=norm, groups=2, up=up,
            activation="leaky_relu" if norm == "instance" else "relu",
            dropout=0.3 if norm == "group" else 0.0,
        )  # fmt: skip


def comparisons(config: UNetConfig) -> Iterator[tuple[Comparison, str, int]]:
    """Yield those of a net with random weights, in inference and training, at several scales."""
    for train in (False, True):
        comparer = Comparer(config, train=train)
        for seed in SEEDS:
            tensors = oracle.random_tensors(config, seed=seed)
            weights = "normal"
            if seed % 2:
                tensors, weights = heavy_tailed(tensors, seed), "heavy-tailed"
            x, cotangent, keep = oracle.random_input(config, seed=seed)
            yield comparer(Numbers(tensors, x, cotangent, keep)), weights, seed


def heavy_tailed(tensors: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Weights as training leaves them: most of them small, some large (Student's t, 3 degrees)."""
    rng = np.random.default_rng(seed)
    return {
        name: t
        if t.ndim < 2
        else (t * np.abs(rng.standard_t(3, t.shape)) / np.sqrt(3)).astype(np.float32)
        for name, t in tensors.items()
    }


def case(compared: Comparison, config: UNetConfig, weights: str, seed: int) -> Case:
    """What one comparison reached."""
    local = [layer.local_ratio for layer in compared.layers]
    gradients = [row.ratio for row in compared.gradients]
    return Case(
        alarms=compared.problems,
        local_float64=max(layer.local_float64 or 0.0 for layer in compared.layers),
        gradient_float64=max(row.float64 for row in compared.gradients),
        local_ratios=(min(local), max(local)),
        gradient_ratios=(min(gradients), max(gradients)),
        flips=compared.flips,
        mode=compared.agreement.mode,
        weights=weights,
        seed=seed,
        config=config,
    )


def _quantiles(values: list[float]) -> dict[str, float]:
    return dict(zip(map(str, QUANTILES), np.quantile(values, QUANTILES).tolist(), strict=True))


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    write_result(arguments.out, verdicts())
