"""Which way every ReLU and every max-pool fell.

A value near 0, or two near-equal values in a pool's window, may fall the other way after a
rounding error of 1e-7, and then a whole gradient takes another way: no bound on rounding holds
for it. So such flips are counted, and a float32 gradient is measured against float64 in which
every ReLU and pool falls as it did in that float32 run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.trace import Call, ModuleMaps, Replace

Decisions = dict[str, np.ndarray]


def read_decisions(calls: Mapping[str, Call], run: Mapping[str, ModuleMaps]) -> Decisions:
    """Read from a run where each ReLU lets through, and which of four values each pool takes.

    Args:
        calls: of the reference, for the kinds of the modules.
        run: the maps around every module in that run.
    """
    taken: Decisions = {}
    for path, call in calls.items():
        inputs, outputs = run[path]
        if call.kind in ("ReLU", "LeakyReLU"):
            taken[path] = outputs[0] > 0
        elif call.kind == "MaxPool2d":
            taken[path] = _windows(inputs[0]).argmax(-1)
    return taken


def count_flips(truth: Decisions, run: Decisions) -> dict[str, int]:
    """Count by path how many fell the other way; modules without flips are left out."""
    counts = {path: int(np.count_nonzero(truth[path] != run[path])) for path in truth}
    return {path: count for path, count in counts.items() if count}


def impose(run: Decisions) -> Replace:
    """Make every ReLU and pool fall as it did in a run; for `trace_torch`."""

    def replace(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        if path not in run:
            return None
        x, decision = inputs[0], torch.from_numpy(run[path])
        if isinstance(module, nn.MaxPool2d):
            b, c, h, w = decision.shape
            windows = x[:, :, : 2 * h, : 2 * w].reshape(b, c, h, 2, w, 2)
            windows = windows.transpose(3, 4).reshape(b, c, h, w, 4)
            return windows.gather(-1, decision[..., None])[..., 0]
        return torch.where(decision, x, getattr(module, "negative_slope", 0.0) * x)

    return replace


def _windows(maps: np.ndarray) -> np.ndarray:
    """Cut maps (b, c, h, w) into windows (b, c, h // 2, w // 2, 4), in reading order."""
    b, c, h, w = maps.shape
    windows = maps[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2)
    return windows.swapaxes(3, 4).reshape(b, c, h // 2, w // 2, 4)
