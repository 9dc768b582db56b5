"""How much further from float64 than torch's may JAX's float32 be, if nothing is wrong?

`python -m benchmarks.rounding` asks healthy nets (ten minutes on two cores) and writes
`results/rounding.json`. `unet_parity.oracle.FACTOR` rests on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_bench.environment import environment
from unet_parity.differences import error_ratio, rms
from unet_parity.jax_twin import jax_pass
from unet_parity.oracle import random_input, random_tensors
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig
from unet_spec.environment import versions

COMMAND = "python -m benchmarks.rounding"
RESULT = RESULTS / "rounding.json"
SEEDS = range(4)
NORMS: tuple[Literal["none", "batch", "group", "instance"], ...] = (
    "none", "batch", "group", "instance",
)  # fmt: skip
UPS: tuple[Literal["transposed", "bilinear", "bilinear_aligned", "nearest"], ...] = (
    "transposed", "bilinear", "bilinear_aligned", "nearest",
)  # fmt: skip
PADDINGS: tuple[Literal["same", "valid"], ...] = ("same", "valid")
WIDTHS = ((6, 8, 10), (16, 32, 64), (4, 6, 8, 10, 12))
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
EXTREMES = 3


@dataclass(frozen=True)
class Net:
    """One net and its errors.

    Attributes:
        ratio: root mean square error of JAX's float32 output over torch's.
        torch_error: torch's, over the root mean square of the float64 output.
        input_px: height and width.
    """

    ratio: float
    torch_error: float
    config: UNetConfig
    seed: int
    input_px: tuple[int, int]


def rounding(*, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Quantiles and extremes of the ratio over all healthy nets, as they go to the file."""
    nets: list[Net] = []
    for config in configs():
        nets += [measured(config, seed) for seed in SEEDS]
        say(f"{len(nets)} nets: {nets[-1].ratio:.2f} with {config.to_json()}")
    ratios = [net.ratio for net in nets]
    nets.sort(key=lambda net: net.ratio)
    return {
        "command": COMMAND,
        "what": "root mean square error of JAX's float32 output over torch's, both against "
        "torch's float64",
        "count": len(nets),
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(ratios, QUANTILES), strict=True)),
        "lowest": [asdict(net) for net in nets[:EXTREMES]],
        "highest": [asdict(net) for net in nets[-EXTREMES:]],
        "versions": versions(),
        "environment": environment(),
    }


def configs() -> Iterator[UNetConfig]:
    """Every norm, up-sampling, padding and set of widths with one another."""
    for norm, up, padding, widths in product(NORMS, UPS, PADDINGS, WIDTHS):
        yield UNetConfig(widths=widths, padding=padding, norm=norm, groups=2, up=up)


def measured(config: UNetConfig, seed: int) -> Net:
    """The errors of one net with random weights, on a random input."""
    tensors = random_tensors(config, seed=seed)
    x, cotangent, _ = random_input(config, seed=seed)
    truth = torch_pass(config, tensors, x, cotangent, dtype="float64").output
    torch_error = rms(torch_pass(config, tensors, x, cotangent).output - truth)
    jax_error = rms(jax_pass(config, tensors, x, cotangent, jit=False).output - truth)
    scale = rms(truth)
    ratio = error_ratio(torch_error, jax_error, scale)
    return Net(ratio, torch_error / scale, config, seed, (x.shape[2], x.shape[3]))


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    write_result(arguments.out, rounding())
