"""Whether a reference keeps integers exact, by every operation that it runs on them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from unet_parity.differences import NET
from unet_parity.pair.integer_check import IntegerCheck
from unet_parity.pair.operations import Operation, OperationLog, follow_modules
from unet_parity.torch_twin import run_backward

_PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
_EXACT = {
    *_PRODUCTS, "relu", "threshold_backward", "hardtanh", "hardtanh_backward",
    "reflection_pad2d", "reflection_pad2d_backward", "replication_pad2d",
    "replication_pad2d_backward", "max_pool2d_with_indices",
    "max_pool2d_with_indices_backward", "add", "sub", "neg", "mul", "sum", "abs", "cat", "stack",
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice",
    "slice_backward", "select", "select_backward", "split", "split_with_sizes",
    "unsafe_split", "unsafe_split_with_sizes", "unbind", "clone",
    "copy", "detach", "alias", "contiguous", "squeeze", "unsqueeze", "flip", "constant_pad_nd",
    "upsample_nearest2d", "upsample_nearest2d_backward", "zeros", "zeros_like", "new_zeros",
    "ones_like", "_to_copy", "lift_fresh", "maximum",
    "minimum", "amax", "where", "index_select", "embedding", "pixel_shuffle", "pixel_unshuffle",
    "_reshape_alias", "as_strided", "result_type", "fill", "zero", "gather", "roll", "im2col",
}  # fmt: skip
"""Operators that give integers for integers, without any rounding below 2^24."""
_UNFILLED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operators that give memory without values."""


def check_integers(
    model: nn.Module, call: Callable[[], list[Tensor]], cotangents: Sequence[Tensor]
) -> IntegerCheck:
    """Run a pass in float64, forward and backward, and say whether any operation rounds.

    Args:
        call: gives the outputs.
        cotangents: gradients of a loss by these.
    """
    log = OperationLog()
    with follow_modules(model, log.path), log:
        run_backward(call(), cotangents)
    return IntegerCheck(
        _find_inexact(log.operations), max(map(_largest_sum, log.operations), default=0.0)
    )


def _find_inexact(operations: Sequence[Operation]) -> str:
    """Say which operation does not keep integers exact; empty where all do."""
    for operation in operations:
        name = operation.name.removesuffix("_")
        if name in _UNFILLED:
            continue
        is_exact = name in _EXACT and all(map(_are_integers, operation.outputs))
        if not is_exact and any(t.is_floating_point() for t in operation.outputs):
            return f"{operation.name.strip('_')} in {operation.module or NET} rounds"
    return ""


def _are_integers(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor == tensor.round()).all())


@torch.no_grad()
def _largest_sum(operation: Operation) -> float:
    results = [] if operation.name in _UNFILLED else list(operation.outputs)
    if operation.name in _PRODUCTS:
        results += operation.run_with([t.abs() for t in operation.tensors])
    return max(
        (float(t.abs().max()) for t in results if t.is_floating_point() and t.numel()), default=0
    )
