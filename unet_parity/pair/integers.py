"""The exact proof for any net: integers, of which no operation rounds any, compared with ==.

Weights, inputs and gradients are small integers. Where all that a net computes are sums of products
and choices, every value is an integer; below 2^24 float32 holds it exactly, in whatever order the
sums are taken. So the order of operations, which differs between frameworks, makes no difference,
and a bug of any size does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unet_parity.compared import NET
from unet_parity.pair.comparison import PairComparer
from unet_parity.pair.operations import Operation, OperationLog, follow_modules
from unet_parity.pair.passes import Arrays, Reference, call_reference, to_torch
from unet_spec.wording import list_names

BITS = 24
"""Of float32's significand: it holds all integers up to 2^24."""
TAPS = (6, 4, 3, 2, 1)
"""So many weights of each row are not 0; fewer where values would become too large."""
_PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
_EXACT = {
    *_PRODUCTS, "relu", "threshold_backward", "max_pool2d_with_indices",
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


@dataclass(frozen=True)
class IntegerProof:
    """An `IntegerProof` says whether both sides are equal in every bit.

    Attributes:
        refused: why there is no proof, in words; empty where there is one.
        values: how many values of outputs and gradients were compared.
        unequal: the outputs and gradients that are not equal, by their names.
        largest: the largest sum of absolute products.
        shapes: of the inputs.
    """

    refused: str = ""
    values: int = 0
    unequal: tuple[str, ...] = ()
    largest: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def holds(self) -> bool:
        """Say whether every value is equal."""
        return not self.refused and not self.unequal

    def __str__(self) -> str:
        if self.refused:
            return f"no exact proof: {self.refused}"
        if self.unequal:
            verb = "differs" if len(self.unequal) == 1 else "differ"
            return f"in exact arithmetic {list_names(self.unequal, 3)} {verb}"
        return (
            f"{self.values:,} values of outputs and gradients are equal, bit for bit, in arithmetic"
            f" that rounds nothing (largest sum 2^{np.log2(max(self.largest, 1)):.1f} of 2^{BITS})"
        )


def prove(
    comparer: PairComparer, inputs: Arrays, cotangents: Arrays, *, seed: int = 0
) -> IntegerProof:
    """Compare both sides on integers.

    Args:
        inputs: whose shapes, and whose integers, are taken.
        cotangents: likewise.
    """
    reference = comparer.reference
    shapes = tuple(x.shape for x in inputs)
    reason = "its sums are too large for float32, whatever weights are drawn"
    for taps in TAPS:
        rng = np.random.default_rng((seed, taps))
        tensors = draw_integers(reference.state, rng, taps=taps)
        drawn_inputs = tuple(_draw_like(x, rng, 2) for x in inputs)
        arriving = tuple(_draw_like(c, rng, 1) for c in cotangents)
        operations, largest = _certify(reference, tensors, drawn_inputs, arriving)
        inexact = _find_inexact(operations)
        if inexact is not None:
            return IntegerProof(inexact, shapes=shapes)
        if largest <= 2**BITS:
            return _compare(comparer, tensors, drawn_inputs, arriving, largest)
    return IntegerProof(reason, shapes=shapes)


def draw_integers(
    state: Mapping[str, np.ndarray], rng: np.random.Generator, *, taps: int
) -> dict[str, np.ndarray]:
    """Draw weights of -1, 0 and 1, of which `taps` in each row are not 0."""
    drawn = {}
    for name, array in state.items():
        if array.dtype.kind != "f":
            drawn[name] = array
        elif array.ndim < 2:
            drawn[name] = rng.integers(-1, 2, array.shape).astype(np.float32)
        else:
            rows = np.zeros((len(array), array[0].size), np.float32)
            for row in rows:
                chosen = rng.choice(row.size, min(taps, row.size), replace=False)
                row[chosen] = rng.choice((-1, 1), chosen.size)
            drawn[name] = rows.reshape(array.shape)
    return drawn


def _draw_like(array: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return rng.integers(-most, most + 1, array.shape).astype(np.float32)


def _certify(
    reference: Reference, tensors: Mapping[str, np.ndarray], inputs: Arrays, cotangents: Arrays
) -> tuple[list[Operation], float]:
    """Return every operation of a pass in float64, forward and backward, and the largest sum of
    absolute products in any of them."""
    model = reference.load(tensors, dtype="float64", train=False)
    leaves = to_torch(inputs, "float64")
    log = OperationLog()
    with follow_modules(model, log.path), log:
        outputs = call_reference(model, leaves)
        arriving = [torch.tensor(c, dtype=torch.float64) for c in cotangents]
        torch.autograd.backward(outputs, arriving)
    return log.operations, max(map(_largest_sum, log.operations), default=0.0)


def _find_inexact(operations: list[Operation]) -> str | None:
    """Say which operation does not keep integers exact; None where all do."""
    for operation in operations:
        name = operation.name.removesuffix("_")
        if name in _UNFILLED:
            continue
        is_exact = name in _EXACT and all(map(_are_integers, operation.outputs))
        if not is_exact and any(t.is_floating_point() for t in operation.outputs):
            return f"{operation.name.strip('_')} in {operation.module or NET} rounds"
    return None


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


def _compare(
    comparer: PairComparer,
    tensors: Mapping[str, np.ndarray],
    inputs: Arrays,
    cotangents: Arrays,
    largest: float,
) -> IntegerProof:
    ours = comparer.run_reference(tensors, inputs, cotangents, dtype="float32")
    theirs = comparer.run_port(tensors, inputs, cotangents, dtype="float32")
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for what, first, second in (
        ("output", ours.outputs, theirs.outputs),
        ("gradient of input", ours.input_gradients, theirs.input_gradients),
    ):
        rows |= {f"{what} {i + 1}": pair for i, pair in enumerate(zip(first, second, strict=True))}
    for name, gradient in theirs.gradients.items():
        rows[f"gradient of {name}"] = (ours.gradients[name], gradient)
    unequal = tuple(name for name, (a, b) in rows.items() if not np.array_equal(a, b))
    count = sum(a.size for a, _ in rows.values())
    return IntegerProof("", count, unequal, largest, tuple(x.shape for x in inputs))
