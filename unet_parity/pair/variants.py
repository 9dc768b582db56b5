"""What people get wrong in a port, made in the reference: the variant that gives the port's values
says what the port does."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_parity.pair.logs import translate_operator
from unet_parity.pair.operations import Operation

EPS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "no activation": lambda x: x,
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "leaky ReLU of slope 0.01": F.leaky_relu,
    "leaky ReLU of slope 0.1": lambda x: F.leaky_relu(x, 0.1),
    "leaky ReLU of slope 0.2": lambda x: F.leaky_relu(x, 0.2),
    "ELU": F.elu,
    "GELU by erf, the exact one": F.gelu,
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick GELU, x sigmoid(1.702 x)": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": F.silu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard sigmoid": F.hardsigmoid,
    "hard swish": F.hardswish,
}
_ARE_ACTIVATIONS = (
    "relu", "gelu", "silu", "elu", "leaky_relu", "sigmoid", "tanh", "softplus", "hardtanh",
    "hardswish", "hardsigmoid",
)  # fmt: skip
_MASKS = ("masked_fill", "where", "add")
_NEAR = 40
"""So many operations before it are tried as the source of an operation's input."""


@dataclass(frozen=True)
class Variant:
    """A `Variant` is what an operation gives where something is wrong with it.

    Attributes:
        text: what is wrong.
        tensors: what it gives.
        is_wiring: it is given a value from outside of its module.
        is_later: `tensors` are not what it gives, but what comes of it behind a softmax.
    """

    text: str
    tensors: list[Tensor]
    is_wiring: bool = False
    is_later: bool = False


@torch.no_grad()
def list_variants(operation: Operation, before: Sequence[Operation]) -> Iterator[Variant]:
    """List what an operation gives where something known is wrong with it.

    Args:
        before: the operations that ran before it.
    """
    with suppress(RuntimeError, IndexError, TypeError, ValueError):  # of shapes that do not fit
        for text, tensors in _list_wrong(operation.name.removesuffix("_"), operation):
            is_later = operation.name.removesuffix("_") in _MASKS
            yield Variant(text, tensors, is_later=is_later)
    yield from _list_inputs(operation, before)


def _list_wrong(name: str, operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    if name in _ARE_ACTIVATIONS:
        for text, function in ACTIVATIONS.items():
            yield text, [function(operation.tensors[0])]
    elif name == "native_layer_norm":
        yield from _list_layer_norms(operation)
    elif "batch_norm" in name:
        yield from _list_batch_norms(operation)
    elif name in ("addmm", "mm", "bmm"):
        yield from _list_products(operation)
    elif name == "convolution":
        yield from _list_convolutions(operation)
    elif name in ("mul", "div"):
        yield from _list_scales(operation)
    elif name in ("_softmax", "_log_softmax"):
        x = operation.tensors[0]
        for axis in range(x.ndim):
            yield f"a softmax over axis {axis}", [x.softmax(axis)]
        yield "no softmax", [x]
    elif name == "cat":
        axis = operation.arguments[1] if len(operation.arguments) > 1 else 0
        yield "a concatenation in the other order", [torch.cat(operation.tensors[::-1], axis)]
    elif name in _MASKS:
        yield from _list_masks(operation)
    elif name in ("max_pool2d_with_indices", "avg_pool2d"):
        yield from _list_pools(operation)
    elif name in ("mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d"):
        x = operation.tensors[0]
        yield "a maximum in place of a mean", [x.amax((-2, -1)) if x.ndim > 2 else x.amax(-1)]
        yield "a sum in place of a mean", [x.sum((-2, -1)) if x.ndim > 2 else x.sum(-1)]
    elif name.startswith("upsample"):
        x, size = operation.tensors[0], operation.outputs[0].shape[2:]
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
            yield f"{mode} interpolation", [F.interpolate(x, tuple(size), mode=mode)]
        aligned = F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
        yield "bilinear interpolation with aligned corners", [aligned]


def _list_layer_norms(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    x, shape, weight, bias, own = operation.arguments[:5]
    for eps in EPS:
        if eps != own:
            yield f"eps={eps:g} in place of {own:g}", [F.layer_norm(x, shape, weight, bias, eps)]
    yield "a missing weight", [F.layer_norm(x, shape, None, bias, own)]
    yield "a missing bias", [F.layer_norm(x, shape, weight, None, own)]
    yield "neither weight nor bias", [F.layer_norm(x, shape, None, None, own)]
    if weight is not None:
        axes = tuple(range(-len(shape), 0))
        deviation = x.std(axes, keepdim=True)
        unbiased = (x - x.mean(axes, keepdim=True)) / torch.sqrt(deviation**2 + own)
        yield "a variance over n - 1", [unbiased * weight + bias]
        yield "eps outside the root", [
            (x - x.mean(axes, keepdim=True))
            / (x.var(axes, correction=0, keepdim=True).sqrt() + own)
            * weight + bias
        ]  # fmt: skip
        root = torch.sqrt((x**2).mean(axes, keepdim=True) + own)
        yield "a norm that takes no mean off", [x / root * weight + bias]
    yield "no norm", [x]


def _list_batch_norms(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    x, weight, bias, mean, var = operation.tensors[:5]
    own = operation.arguments[-1]
    train = "no_training" not in operation.name and True in operation.arguments[5:6]
    for eps in EPS:
        if eps != own:
            text = f"eps={eps:g} in place of {own:g}"
            yield text, [F.batch_norm(x, mean.clone(), var.clone(), weight, bias, train, eps=eps)]
    for text, w, b in (
        ("a missing weight", None, bias),
        ("a missing bias", weight, None),
    ):
        yield text, [F.batch_norm(x, mean.clone(), var.clone(), w, b, train, eps=own)]
    other = "the running statistics" if train else "the statistics of the batch"
    result = F.batch_norm(x, mean.clone(), var.clone(), weight, bias, not train, eps=own)
    yield f"{other} in their place", [result]
    yield "no norm", [x]


def _list_products(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    *bias, a, b = operation.tensors
    for text, first, second in (
        ("a transposed weight", a, b.mT),
        ("a transposed first factor", a.mT, b),
        ("exchanged factors", b, a),
    ):
        if first.shape[-1] == second.shape[-2]:
            product = first @ second
            yield text, [product + bias[0] if bias and product.shape[-1:] == bias[0].shape[-1:]
                         else product]  # fmt: skip
    if bias:
        yield "a missing bias", [a @ b]
    yield "an input in the reverse order", [_add(a.flip(-1) @ b, bias)]


def _add(product: Tensor, bias: list[Tensor]) -> Tensor:
    return product + bias[0] if bias else product


def _list_convolutions(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    x, weight, bias, stride, padding, dilation, transposed, more, groups = operation.arguments[:9]

    def run(x: Tensor = x, weight: Tensor = weight, bias: Tensor | None = bias, **other: object):
        options = {"stride": stride, "padding": padding, "dilation": dilation, **other}
        result = torch.ops.aten.convolution(
            x, weight, bias, options["stride"], options["padding"], options["dilation"],
            transposed, more, groups,
        )  # fmt: skip
        return [result]

    axes = tuple(range(2, weight.ndim))
    yield "a mirrored kernel", run(weight=weight.flip(axes))
    for axis in axes if len(axes) > 1 else ():
        yield f"a kernel mirrored along axis {axis}", run(weight=weight.flip(axis))
    if len(axes) == 2 and weight.shape[2] == weight.shape[3]:
        turned = weight.transpose(2, 3)
        yield "a kernel with height and width exchanged", run(weight=turned)
        yield "the same, and mirrored", run(weight=turned.flip(axes))
    if weight.shape[0] == weight.shape[1]:
        yield "a kernel with inputs and outputs exchanged", run(weight=weight.transpose(0, 1))
        yield "the same, and mirrored", run(weight=weight.transpose(0, 1).flip(axes))
    if bias is not None:
        yield "a missing bias", run(bias=None)
    yield "an input with its channels in the reverse order", run(x=x.flip(1))
    expected = operation.outputs[0]
    if transposed:
        yield from _list_transposed(run, padding, expected)
        return
    for text, borders in _list_borders(x, weight, stride, padding, dilation):
        if min(borders) >= 0:
            yield text, run(x=F.pad(x, borders), padding=[0] * len(axes))
    if max(dilation) > 1:
        sides = [((size - 1) // 2) for size in weight.shape[2:]]
        yield "no dilation", run(dilation=[1] * len(axes), padding=sides)


def _list_transposed(
    run: Callable[..., list[Tensor]], padding: list[int], expected: Tensor
) -> Iterator[tuple[str, list[Tensor]]]:
    """List transposed convolutions that are cut elsewhere."""
    if len(padding) != 2:
        return
    (whole,) = run(padding=[0, 0])
    height, width = expected.shape[2:]
    for top in range(whole.shape[2] - height + 1):
        for left in range(whole.shape[3] - width + 1):
            cut = whole[:, :, top : top + height, left : left + width]
            rows, columns = padding[0] - top, padding[1] - left
            yield f"an output shifted by {rows} rows and {columns} columns", [cut]


def _list_borders(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Iterator[tuple[str, list[int]]]:
    """List other paddings, as (before, after) of each axis, the last axis first."""
    count = weight.ndim - 2
    same, shifted = [], []
    for axis in range(count):
        size, reach = x.shape[2 + axis], dilation[axis] * (weight.shape[2 + axis] - 1)
        outputs = -(-size // stride[axis])
        total = max(0, (outputs - 1) * stride[axis] + reach + 1 - size)
        same.append((total // 2, total - total // 2))
        shifted.append((2 * padding[axis], 0))
    for text, sides in (
        ('padding="SAME", which pads more at the end', same),
        ("all padding at the beginning", shifted),
        ("all padding at the end", [side[::-1] for side in shifted]),
    ):
        yield text, [number for side in sides[::-1] for number in side]


def _list_scales(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    x = operation.tensors[0]
    numbers = [a for a in operation.arguments if isinstance(a, int | float)]
    tensors = operation.tensors[1:]
    if tensors and tensors[0].numel() == 1:
        numbers.append(float(tensors[0]))
    if not numbers:
        return
    yield "no scale", [x]
    factor = numbers[0] if operation.name.startswith("mul") else 1 / numbers[0]
    yield "a factor in place of its reciprocal", [x / factor]
    for size in sorted({*x.shape, *(a * b for a in x.shape for b in x.shape)}):
        for text, scale in ((f"1/sqrt({size})", size**-0.5), (f"1/{size}", 1 / size)):
            if not math.isclose(scale, factor):
                yield f"a scale of {text}", [x * scale]


def _list_masks(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    """List masks of other values and places."""
    tensors = operation.tensors
    if len(tensors) < 2:
        return
    infinite = [t for t in tensors if torch.isinf(t).any() or t.dtype == torch.bool]
    if not infinite:
        return
    mask = infinite[0] if infinite[0].dtype == torch.bool else torch.isinf(infinite[0])
    x = next((t for t in tensors if t is not infinite[0] and t.ndim >= 2), None)
    if x is None:
        return
    for value in (-1.0, -10.0, -100.0, -1e3, -1e4, -1e9):
        yield f"a mask of {value:g} in place of -inf", [(x + value * mask).softmax(-1)]
        yield f"values of {value:g} in masked places", [x.masked_fill(mask, value).softmax(-1)]
    yield "no mask", [x.softmax(-1)]
    size = x.shape[-1]
    for shift in (-1, 1, 2):
        later = torch.ones(x.shape[-2], size, dtype=torch.bool).triu(1 + shift)
        weights = x.masked_fill(later, -torch.inf).softmax(-1).nan_to_num()
        yield f"a mask that is {abs(shift)} {'early' if shift < 0 else 'late'}", [weights]
    yield (
        "a mask of the past in place of the future",
        [x.masked_fill(mask.mT, -torch.inf).softmax(-1)],
    )


def _list_pools(operation: Operation) -> Iterator[tuple[str, list[Tensor]]]:
    x, size = operation.arguments[:2]
    stride = operation.arguments[2] if len(operation.arguments) > 2 else size
    padding = operation.arguments[3] if len(operation.arguments) > 3 else 0
    stride = stride or size
    yield "an average pool", [F.avg_pool2d(x, size, stride, padding)]
    yield (
        "an average pool that leaves the border out",
        [F.avg_pool2d(x, size, stride, padding, count_include_pad=False)],
    )
    yield "a max-pool", [F.max_pool2d(x, size, stride, padding)]


def _list_inputs(operation: Operation, before: Sequence[Operation]) -> Iterator[Variant]:
    """List what an operation gives for other values in the place of one of its inputs."""
    tensors = operation.tensors
    for place, tensor in enumerate(tensors):
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        yield from _try(operation, "one input missing", place, torch.zeros_like(tensor))
        if operation.inputs[place] is not None:  # a value that the net has computed
            for text, function in ACTIVATIONS.items():
                changed = function(tensor)
                if not torch.equal(changed, tensor):
                    yield from _try(operation, f"{text} in front of it", place, changed)
        for axis in range(1, tensor.ndim):
            turned = tensor.flip(axis)
            yield from _try(operation, f"an input reversed along axis {axis}", place, turned)
        for other in reversed(before[-_NEAR:]):
            for result in other.outputs:
                if result.shape == tensor.shape and result.is_floating_point():
                    text = f"another value in the place of an input, that of {_describe(other)}"
                    is_wiring = other.module != operation.module and tensor.ndim > 1
                    yield from _try(operation, text, place, result, is_wiring=is_wiring)
    if len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        for text, kept in (("its first input alone", 0), ("its second input alone", 1)):
            yield Variant(text, [tensors[kept]])


def _try(
    operation: Operation, text: str, place: int, tensor: Tensor, *, is_wiring: bool = False
) -> Iterator[Variant]:
    tensors = list(operation.tensors)
    tensors[place] = tensor
    try:
        yield Variant(text, operation.run_with(tensors)[:1], is_wiring)
    except (RuntimeError, TypeError):
        return


def _describe(operation: Operation) -> str:
    word = translate_operator(operation.name)
    return f"{operation.module}'s {word}" if operation.module else f"the net's {word}"
