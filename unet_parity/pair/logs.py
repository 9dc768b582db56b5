"""What a reference computes on its way, forward and backward, as numpy arrays.

A log has what is needed to find out where a port leaves the reference. It needs no framework, so it
can come from a recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Source = tuple[int, int]
"""(number of an operation, which of its outputs)."""

WORDS = {
    "addmm": "linear layer", "mm": "matrix product", "bmm": "matrix product",
    "native_layer_norm": "layer norm", "native_group_norm": "group norm",
    "native_batch_norm": "batch norm", "native_batch_norm_legit": "batch norm",
    "native_batch_norm_legit_no_training": "batch norm", "cat": "concatenation", "add": "sum",
    "mul": "product", "div": "quotient", "sub": "difference", "masked_fill": "mask",
    "max_pool2d_with_indices": "max-pool", "avg_pool2d": "average pool",
    "adaptive_avg_pool2d": "average pool", "upsample_nearest2d": "interpolation",
    "upsample_bilinear2d": "interpolation", "gelu": "GELU", "relu": "ReLU",
    "leaky_relu": "leaky ReLU", "scaled_dot_product_flash_attention_for_cpu": "attention",
}  # fmt: skip


def translate_operator(name: str) -> str:
    """Return what people call an operator of torch; in place it has the same name and a `_`."""
    plain = name.strip("_")
    return WORDS.get(plain, plain)


@dataclass(frozen=True, eq=False)
class LoggedOperation:
    """A `LoggedOperation` is one operation of a forward pass in float64.

    Attributes:
        number: its place among all operations of the pass.
        name: of the operator, such as `gelu` or `native_layer_norm`.
        module: path of the module that calls it.
        inputs: where each tensor among its arguments comes from; None for parameters and the net's
            inputs.
        outputs: what it gave; empty where that does not depend on an input of the net, so that it
            may look otherwise in a port.
    """

    number: int
    name: str
    module: str
    inputs: tuple[Source | None, ...]
    outputs: tuple[np.ndarray, ...]


class ForwardLog(NamedTuple):
    """All operations of a forward pass.

    Attributes:
        operations: in order.
        results: which of them give the outputs of the net; None for an output that none gives.
        calls: the same operations as torch called them, with which mistakes are tried; empty in a
            recording.
    """

    operations: tuple[LoggedOperation, ...]
    results: tuple[Source | None, ...]
    calls: Sequence[Any] = ()


@dataclass(frozen=True, eq=False)
class LoggedCall:
    """A `LoggedCall` is one call of a function through which gradients go, in float64.

    Attributes:
        number: its place among all calls.
        module: path of the module that calls it.
        inputs: the tensors that it was given, by their numbers.
        outputs: those that it gave.
        passed: the gradient that it passed on to each of its inputs.
    """

    number: int
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    passed: dict[int, np.ndarray]


class BackwardLog(NamedTuple):
    """All calls of a pass with their gradients.

    Attributes:
        calls: in order.
        arriving: the whole gradient of each tensor that a call gave.
        parameters: the numbers of the parameters, by their names.
        inputs: the numbers of the net's inputs that are floating-point numbers.
    """

    calls: tuple[LoggedCall, ...]
    arriving: dict[int, np.ndarray]
    parameters: dict[str, int]
    inputs: tuple[int, ...]
