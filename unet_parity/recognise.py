"""What a fault looks like: known bugs are made in the reference until one gives the same numbers.

Every candidate is a sentence and the array that it leads to; the first that equals what the port
gave is the answer. No answer is given on likeness alone.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_parity.compared import OF_A_LEAF, Compared, Kind
from unet_parity.differences import difference
from unet_parity.leaves import LeafResult
from unet_parity.torch_twin import torch_model
from unet_parity.trace import OUTPUT, Call, Trace
from unet_parity.wiring import Wiring
from unet_spec import UNetConfig
from unet_spec.parameters import Tensors

SAME = 1e-9
TORCH_EPS = 1e-5
REACH = range(-4, 5)
SHIFTS = sorted(
    ((dy, dx) for dy in REACH for dx in REACH if dy or dx), key=lambda s: s[0] ** 2 + s[1] ** 2
)
Candidates = Iterator[tuple[str, Tensor | np.ndarray]]


def identify_bug(
    config: UNetConfig,
    tensors: Tensors,
    truth: Trace,
    wiring: Wiring,
    leaves: Mapping[str, LeafResult | None],
    compared: Compared,
    *,
    train: bool,
) -> str:
    """Name the known bug that gives the port's numbers; empty if none does.

    Args:
        truth: the reference in float64.
        wiring: of the port in float64, among `truth`'s numbers.
        leaves: likewise, every leaf by itself.
        compared: where the port first differs from the reference.
        train: as the reference ran.
    """
    if compared.kind in OF_A_LEAF:
        path = compared.place[0]
        model = torch_model(config, tensors, dtype="float64", train=train).requires_grad_(False)
        bugs = _LeafBugs(model, truth.calls[path], tensors, train)
        return _identify_in_leaf(bugs, leaves[path], compared)
    return _identify_in_wiring(truth, wiring, compared)


def _identify_in_leaf(bugs: "_LeafBugs", leaf: LeafResult | None, compared: Compared) -> str:
    if leaf is None:
        return "a layer for maps of another shape"
    match compared.kind:
        case Kind.OUTPUT:
            output = leaf.output
            return _first_equal(bugs.outputs(output), output) or bugs.find_wrong_weight(output)
        case Kind.INPUT_GRADIENT:
            return _first_equal(bugs.input_gradients(), leaf.input_gradients[0])
        case Kind.STATISTIC:
            name = compared.name
            statistic = leaf.statistics[f"{compared.place[0]}.{name}"]
            return _first_equal(bugs.statistics(name), statistic)
    return ""


def _identify_in_wiring(truth: Trace, wiring: Wiring, compared: Compared) -> str:
    place = compared.place
    path, side = place
    if place not in wiring.arrived:
        return "" if wiring.arrived else "a map of another size"
    if compared.kind is Kind.ARRIVING_GRADIENT:
        call = truth.calls[path]
        expected = call.input_gradients if side == "input" else call.cotangents
        maps = wiring.gradients[place]
    elif place == OUTPUT:
        expected, maps = (truth.result.output,), wiring.arrived[place]
    else:
        call = truth.calls[path]
        expected = call.inputs if side == "input" else call.outputs
        maps = wiring.arrived[place]
    for right, wrong in zip(expected, maps, strict=True):
        if difference(right, wrong) > SAME:
            return _first_equal(_wiring_bugs(right, wrong), wrong)
    return ""


def _first_equal(candidates: Candidates, array: np.ndarray) -> str:
    for sentence, candidate in candidates:
        values = candidate.numpy() if isinstance(candidate, Tensor) else candidate
        if difference(values, array) <= SAME:
            return sentence
    return ""


def _wiring_bugs(right: np.ndarray, wrong: np.ndarray) -> Candidates:
    """List what crops, concatenations and the order of calls can do to a map."""
    if right.shape != wrong.shape:
        return
    if not wrong.any():
        yield "all zeros", wrong
    half = right.shape[1] // 2
    yield "channels in reversed order", np.flip(right, 1)
    yield "swapped halves of a concatenation", np.roll(right, half, axis=1)
    for first in range(1, right.shape[1]):
        if difference(right[:, first], wrong[:, 0]) <= SAME:
            yield "swapped parts of a concatenation", np.roll(right, -first, axis=1)
    for axis, turned in ((2, "upside down"), (3, "left and right mirrored")):
        yield f"a map {turned}", np.flip(right, axis)
    # a single channel has no halves
    parts = (("first", slice(None, half)), ("second", slice(half, None))) if half else ()
    for name, part in parts:
        if difference(right[:, part], wrong[:, part]) <= SAME:
            continue
        if not wrong[:, part].any():
            yield f"a missing {name} half of a concatenation", wrong
        yield from _whole_map_bugs(right[:, part], wrong[:, part], wrong, f"the {name} half ")
    yield from _whole_map_bugs(right, wrong, wrong, "")


def _whole_map_bugs(
    right: np.ndarray, wrong: np.ndarray, answer: np.ndarray, what: str
) -> Candidates:
    """List shifts by a pixel, in which only a border may differ otherwise, and scalings."""
    for dy, dx in SHIFTS:
        inside = _overlap(right, -dy, -dx), _overlap(wrong, dy, dx)
        if min(inside[0].shape) and inside[0].any() and difference(*inside) <= SAME:
            yield f"{what}shifted by ({dy}, {dx}) pixels", answer
    if right.ndim == 4 and min(right.shape[2:]) > 2:
        inner = right[:, :, 1:-1, 1:-1], wrong[:, :, 1:-1, 1:-1]
        if inner[0].any() and difference(*inner) <= SAME:
            yield f"{what}another border: padding", answer
    factor = float((right * wrong).sum() / max((right * right).sum(), 1e-300))
    if difference(factor * right, wrong) <= SAME:
        yield f"{what}scaled by {factor:.6g}" if factor else f"{what}all zeros", answer


def _overlap(maps: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return the part of maps that stays inside when they move by (-dy, -dx)."""
    h, w = maps.shape[2:]
    return maps[:, :, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]


class _LeafBugs:
    """One leaf of the reference in float64, and what it would give with a bug in it."""

    def __init__(self, model: nn.Module, call: Call, tensors: Tensors, train: bool):
        self.module = model.get_submodule(call.path)
        self.call, self.tensors, self.train = call, tensors, train
        self.x = torch.tensor(call.inputs[0], dtype=torch.float64)
        self.padding = self.module.padding if isinstance(self.module, nn.Conv2d) else 0
        self.own = {n: t.detach() for n, t in self.module.state_dict().items()}
        self.groups = getattr(self.module, "num_groups", self.x.shape[1])

    def outputs(self, wrong: np.ndarray) -> Candidates:
        if isinstance(self.module, nn.Conv2d | nn.ConvTranspose2d):
            yield from self._kernels()
        if isinstance(self.module, nn.Conv2d):
            yield from self._paddings()
        yield "a layer that is not there", self.x
        if isinstance(self.module, nn.ReLU | nn.LeakyReLU):
            yield from self._activations(wrong)
        if isinstance(self.module, nn.MaxPool2d):
            yield "average pooling", F.avg_pool2d(self.x, 2)
            yield "minimum pooling", -F.max_pool2d(-self.x, 2)
        if isinstance(self.module, nn.Upsample):
            for name, how in (
                ("nearest", {"mode": "nearest"}),
                ("bilinear, align_corners=False", {"mode": "bilinear", "align_corners": False}),
                ("bilinear, align_corners=True", {"mode": "bilinear", "align_corners": True}),
            ):
                yield f"up-sampling {name}", F.interpolate(self.x, scale_factor=2, **how)
        if isinstance(self.module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
            yield from self._norms()
        yield from self._order(wrong)
        yield from _whole_map_bugs(self.call.outputs[0], wrong, wrong, "an output ")

    def _order(self, wrong: np.ndarray) -> Candidates:
        """Look for the same channels in another order."""
        right = self.call.outputs[0]
        if right.shape != wrong.shape:
            return
        order = [
            next((j for j in range(right.shape[1]) if difference(right[:, j], channel) <= SAME), -1)
            for channel in wrong.swapaxes(0, 1)
        ]
        if -1 not in order:
            yield f"output channels in the order {order}", right[:, order]

    def input_gradients(self) -> Candidates:
        cotangent = torch.tensor(self.call.cotangents[0], dtype=torch.float64)
        right = self.call.input_gradients[0]
        if isinstance(self.module, nn.MaxPool2d):
            yield "a tie's gradient shared among the equal values", _share_ties(self.x, cotangent)
        if isinstance(self.module, nn.ReLU | nn.LeakyReLU):
            for share in (0.5, 1.0):
                at_zero = torch.where(self.x == 0, share * cotangent, torch.tensor(right))
                yield f"a gradient of {share} at exactly 0", at_zero
        yield "a gradient that is stopped", np.zeros_like(right)
        if cotangent.shape == right.shape:
            yield "the cotangent itself", cotangent

    def statistics(self, name: str) -> Candidates:
        """List what a statistic of batch norm can be after the pass."""
        before = torch.tensor(self.tensors[f"{self.call.path}.{name}"]).double()
        yield f"a {name} that is not updated", before
        if name == "num_batches_tracked":
            return
        dims = (0, 2, 3)
        unbiased, biased = (self.x.var(dims, unbiased=u) for u in (True, False))
        batch = {"running_mean": (self.x.mean(dims),), "running_var": (unbiased, biased)}[name]
        for momentum in (0.1, 0.9, 0.01, 0.99):
            for value, kind in zip(batch, ("", " of the biased variance"), strict=False):
                yield f"momentum {momentum}{kind}", (1 - momentum) * before + momentum * value

    def find_wrong_weight(self, output: np.ndarray) -> str:
        """Find which single value of a convolution's weight or bias explains the difference."""
        if not isinstance(self.module, nn.Conv2d | nn.ConvTranspose2d):
            return ""
        rest = output - self.call.outputs[0]
        largest = np.abs(rest).max(axis=(0, 2, 3))
        channels = np.flatnonzero(largest > 1e-3 * largest.max())
        if len(channels) != 1:
            return ""
        channel = int(channels[0])
        best, name = np.inf, ""
        for index, basis in self._bases(channel):
            share = float((rest[:, channel] * basis).sum() / max((basis * basis).sum(), 1e-300))
            left = float(np.abs(rest[:, channel] - share * basis).max())
            if left < best:
                best, name = left, f"{index} off by {share:.2e}"
        # what is left is float64's rounding of the sums around a small difference
        noise = 1e-13 * float(np.abs(self.call.outputs[0]).max())
        return name if best <= noise + 1e-6 * float(np.abs(rest).max()) else ""

    def _bases(self, channel: int) -> Iterator[tuple[str, np.ndarray]]:
        """Return what one more unit in each weight of an output channel adds to it."""
        yield f"bias[{channel}]", np.ones_like(self.call.outputs[0][:, channel])
        weight = self.own["weight"]
        for into in range(self.x.shape[1]):
            part = self.x[:, into : into + 1]
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    unit = torch.zeros((1, 1, *weight.shape[2:]), dtype=torch.float64)
                    unit[0, 0, i, j] = 1
                    if isinstance(self.module, nn.ConvTranspose2d):
                        name = f"weight[{into}, {channel}, {i}, {j}]"
                        basis = F.conv_transpose2d(part, unit, stride=2)
                    else:
                        name = f"weight[{channel}, {into}, {i}, {j}]"
                        basis = F.conv2d(part, unit, padding=self.padding)
                    yield name, basis[:, 0].numpy()

    def _run_with(self, **changed: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, {**self.own, **changed}, self.x)

    def _kernels(self) -> Candidates:
        weight = self.own["weight"]
        turned = {
            "a mirrored kernel": weight.flip(2, 3),
            "a transposed kernel": weight.transpose(2, 3),
            "a kernel mirrored top to bottom": weight.flip(2),
            "a kernel mirrored left to right": weight.flip(3),
            "input and output channels swapped": weight.transpose(0, 1),
            "channels swapped and a mirrored kernel": weight.transpose(0, 1).flip(2, 3),
            "channels swapped and a transposed kernel": weight.transpose(0, 1).transpose(2, 3),
            "swapped halves of the input channels": weight.roll(weight.shape[1] // 2, 1),
            "input channels in reversed order": weight.flip(1),
            "output channels in reversed order": weight.flip(0),
        }
        for sentence, kernel in turned.items():
            if kernel.shape == weight.shape:
                yield sentence, self._run_with(weight=kernel)
        if "bias" in self.own:
            yield "a missing bias", self._run_with(bias=torch.zeros_like(self.own["bias"]))
            yield "a bias that is added twice", self._run_with(bias=2 * self.own["bias"])
        for dtype in (torch.float16, torch.bfloat16):
            short = {n: t.to(dtype).double() for n, t in self.own.items()}
            yield f"weights in {str(dtype).removeprefix('torch.')}", self._run_with(**short)
            yield (
                f"weight in {str(dtype).removeprefix('torch.')}",
                self._run_with(weight=short["weight"]),
            )
        yield from self._weights_of_others()

    def _weights_of_others(self) -> Candidates:
        others = [n.rpartition(".")[0] for n in self.tensors if n.endswith(".weight")]
        for other in others:
            held = {
                n: torch.tensor(self.tensors[f"{other}.{n}"]).double()
                for n in self.own
                if f"{other}.{n}" in self.tensors
            }
            if other != self.call.path and all(
                n in held and held[n].shape == t.shape for n, t in self.own.items()
            ):
                yield f"the weights of {other}", self._run_with(**held)

    def _paddings(self) -> Candidates:
        weight, bias = self.own["weight"], self.own.get("bias")
        if weight.shape[2] == 1 or self.padding != (1, 1):
            return
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                padded = F.pad(self.x, (dx, 2 - dx, dy, 2 - dy))
                yield f"shifted by ({dy - 1}, {dx - 1}) pixels", F.conv2d(padded, weight, bias)
        for mode in ("reflect", "replicate", "circular"):
            padded = F.pad(self.x, (1, 1, 1, 1), mode=mode)
            yield f"padding by {mode} instead of zeros", F.conv2d(padded, weight, bias)

    def _activations(self, wrong: np.ndarray) -> Candidates:
        highest = float(wrong.max())
        if highest < float(self.call.outputs[0].max()):
            yield f"an output clipped at {highest:.6g}", self.module(self.x).clamp(max=highest)
        below = self.x < 0
        slopes = torch.tensor(wrong)[below] / self.x[below]
        if len(slopes):
            slope = float(slopes.median())
            yield f"a slope of {slope:.6g} below 0", F.leaky_relu(self.x, slope)
        yield "ELU", F.elu(self.x)
        yield "GELU", F.gelu(self.x)
        yield "GELU", F.gelu(self.x, approximate="tanh")
        yield "SiLU", F.silu(self.x)

    def _norms(self) -> Candidates:
        ones = {n: torch.ones_like(t) for n, t in self.own.items() if n == "weight"}
        zeros = {n: torch.zeros_like(t) for n, t in self.own.items() if n == "bias"}
        own_source = self._own_source()
        for eps in (TORCH_EPS, 1e-6, 1e-3, 1e-12, 0.0):
            for source, unbiased in self._moments():
                for sentence, changed in (("", {}), ("no weight", ones), ("no bias", zeros)):
                    differences = []
                    if source is not own_source:
                        differences.append(f"{source.value} in place of {own_source.value}")
                    if eps != TORCH_EPS:
                        differences.append(f"eps {eps:g} in place of {TORCH_EPS:g}")
                    if unbiased:
                        differences.append("the unbiased variance")
                    if sentence:
                        differences.append(sentence)
                    if differences:
                        own = {**self.own, **changed}
                        yield ", ".join(differences), self._normalise(source, unbiased, eps, own)

    def _own_source(self) -> "_Source":
        """Return over what this norm takes its statistics."""
        if not isinstance(self.module, nn.BatchNorm2d):
            return _Source.GROUPS
        return _Source.BATCH if self.train else _Source.RUNNING

    def _moments(self) -> Iterator[tuple["_Source", bool]]:
        """List sources of the statistics, and whether their variance is the unbiased one."""
        own_source = self._own_source()
        yield own_source, False
        yield own_source, True
        for source in (_Source.BATCH, _Source.RUNNING, _Source.EACH_MAP):
            has_it = source is not _Source.RUNNING or "running_mean" in self.own
            if source is not own_source and has_it:
                yield source, False
        if self.groups not in (1, self.x.shape[1]):
            yield _Source.INTERLEAVED, False

    def _normalise(
        self, source: "_Source", unbiased: bool, eps: float, own: Mapping[str, Any]
    ) -> Tensor:
        b, c, h, w = self.x.shape
        x = self.x
        if source is _Source.RUNNING:
            mean, var = (own[n][:, None, None] for n in ("running_mean", "running_var"))
        elif source is _Source.BATCH:
            mean = x.mean((0, 2, 3), keepdim=True)
            var = x.var((0, 2, 3), keepdim=True, unbiased=unbiased)
        else:
            parts = c if source is _Source.EACH_MAP else self.groups
            shape, axes = (b, parts, c // parts, h, w), (2, 3, 4)
            if source is _Source.INTERLEAVED:
                shape, axes = (b, c // parts, parts, h, w), (1, 3, 4)
            values = x.reshape(shape)
            mean = values.mean(axes, keepdim=True).expand(shape).reshape(x.shape)
            var = values.var(axes, keepdim=True, unbiased=unbiased).expand(shape).reshape(x.shape)
        weight, bias = own["weight"][:, None, None], own["bias"][:, None, None]
        return (x - mean) / torch.sqrt(var + eps) * weight + bias


class _Source(Enum):
    """Over what a norm takes mean and variance, in words."""

    BATCH = "statistics of the batch"
    RUNNING = "running statistics"
    GROUPS = "statistics of groups"
    EACH_MAP = "statistics of each map"
    INTERLEAVED = "statistics of interleaved groups"


def _share_ties(x: Tensor, cotangent: Tensor) -> Tensor:
    """Return the gradient of a 2x2 max-pool that shares ties."""
    b, c, h, w = cotangent.shape
    windows = x[:, :, : 2 * h, : 2 * w].reshape(b, c, h, 2, w, 2)
    equal = (windows == windows.amax((3, 5), keepdim=True)).double()
    shares = equal / equal.sum((3, 5), keepdim=True) * cotangent[:, :, :, None, :, None]
    gradient = torch.zeros_like(x)
    gradient[:, :, : 2 * h, : 2 * w] = shares.reshape(b, c, 2 * h, 2 * w)
    return gradient
