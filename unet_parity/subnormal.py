"""Subnormal numbers of float32, values below 1.2e-38: in weights, inputs and what a net computes.

XLA on a CPU takes them for 0, as operands and as results; PyTorch computes with them. Mostly that
is far below all rounding. But a ReLU passes a gradient at 1e-40 and none at 0, so in training a
module whose weights are all so small can go two ways.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.comparison import Numbers
from unet_parity.torch_twin import run_module, torch_model
from unet_spec import UNetConfig, narrowing
from unet_spec.parameters import Tensors
from unet_spec.wording import list_names

SMALLEST_NORMAL = narrowing.SMALLEST_NORMAL["float32"]


@dataclass(frozen=True)
class Subnormal:
    """A `Subnormal` counts the subnormal numbers that two nets are given.

    Attributes:
        tensors: how many each tensor of the weights has, of those that have any.
        weights: number of all values in the weights.
        in_input: how many the input has.
        are_zero: JAX takes them for 0 on this device.
    """

    tensors: dict[str, int]
    weights: int
    in_input: int
    are_zero: bool

    def __bool__(self) -> bool:
        return bool(self.tensors or self.in_input)

    def __str__(self) -> str:
        """Say in one sentence how many there are, and where; empty for none."""
        parts = []
        if self.tensors:
            names = [f"{name} ({count})" for name, count in self.tensors.items()]
            count = sum(self.tensors.values())
            parts.append(f"{count} of {self.weights} weights, in {list_names(names, 4)}")
        if self.in_input:
            parts.append(f"{self.in_input} values of the input")
        if not parts:
            return ""
        handling = (
            "JAX takes them for 0 on this device, and PyTorch computes with them"
            if self.are_zero
            else "both frameworks compute with them on this device"
        )
        return (
            f"subnormal numbers of float32, below {SMALLEST_NORMAL:.2g}: {'; '.join(parts)}; "
            f"{handling}"
        )


def count_given(tensors: Tensors, x: np.ndarray) -> Subnormal:
    """Count the subnormal numbers in weights and in an input."""
    floats = narrowing.list_floats(tensors)
    return Subnormal(
        dict(narrowing.find_subnormal(tensors)),
        sum(tensor.size for tensor in floats.values()),
        dict(narrowing.find_subnormal({"x": x})).get("x", 0),
        are_zero_in_jax(),
    )


def are_zero_in_jax() -> bool:
    """Try whether JAX takes subnormal numbers for 0 on its device."""
    scaled = jax.jit(lambda value: value * np.float32(2.0**20))(np.float32(2.0**-130))
    return float(scaled) == 0.0


def make_zero(array: np.ndarray) -> np.ndarray:
    """Return an array with 0 in the place of its subnormal numbers."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.abs(array) < SMALLEST_NORMAL, np.zeros_like(array), array)


def find_computed(config: UNetConfig, numbers: Numbers, *, train: bool) -> dict[str, int]:
    """Count the subnormal numbers that torch computes in float32, by the module that gives them:
    in its output, or in the gradient that arrives there."""
    model = torch_model(config, numbers.tensors, dtype="float32", train=train)
    counts: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> None:
        def count(values: Tensor) -> None:
            magnitudes = values.detach().abs()
            is_subnormal = (magnitudes > 0) & (magnitudes < SMALLEST_NORMAL)
            counts[name] += int(is_subnormal.sum())

        def look(_: nn.Module, __: object, output: Tensor) -> None:
            count(output)
            if output.requires_grad:
                output.register_hook(count)

        module.register_forward_hook(look)

    for name, module in model.named_modules():
        if not list(module.children()):
            watch(name, module)
    run_module(model, numbers.x, numbers.cotangent, numbers.keep)
    return {name: count for name, count in counts.items() if count}


@contextmanager
def zero_in_torch() -> Iterator[bool]:
    """Let torch take subnormal numbers for 0 as well while the block runs.

    Yields whether this processor can. The mode belongs to a thread, so torch has one meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
