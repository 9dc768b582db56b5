"""In what somebody's own module differs from JAX's net, where a known difference explains it."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_parity.compared import OF_A_LEAF, Compared, Kind
from unet_parity.differences import difference
from unet_parity.own_module import OwnModule
from unet_parity.recognise import SAME
from unet_parity.trace import Place, Trace
from unet_parity.wiring import Wiring
from unet_torch.model import UNet

SETTINGS = (
    "kernel_size", "stride", "padding", "padding_mode", "dilation", "output_padding", "groups",
    "num_groups", "eps", "momentum",
)  # fmt: skip


def explain_difference(own: OwnModule, trace: Trace, wiring: Wiring, compared: Compared) -> str:
    """Say in what a module differs from JAX's net at a place; empty if nothing known explains it.

    Args:
        trace: of the module in float64.
        wiring: of JAX's net among its numbers.
        compared: where they first differ.
    """
    if compared.kind in OF_A_LEAF:
        return _compare_settings(own, compared.place[0])
    if compared.kind is Kind.ARRIVING_VALUE and compared.place in wiring.arrived:
        return _compare_arrivals(own, trace, wiring, compared.place)
    return ""


def _compare_settings(own: OwnModule, path: str) -> str:
    """Compare what a layer of torch was built with."""
    with torch.device("meta"):
        ours = UNet(own.config).get_submodule(path)
    theirs = own.module.get_submodule(own.layers[path][0])
    differences = [
        f"{name}={getattr(theirs, name)} in your module and {getattr(ours, name)} in the file's net"
        for name in SETTINGS
        if hasattr(theirs, name)
        and hasattr(ours, name)
        and getattr(theirs, name) != getattr(ours, name)
    ]
    return ", ".join(differences)


def _compare_arrivals(own: OwnModule, trace: Trace, wiring: Wiring, place: Place) -> str:
    """Compare what lies between a layer and the one that was called before it."""
    path, side = place
    if not path or side != "input":
        return ""
    theirs, ours = trace.calls[path].inputs[0], wiring.arrived[place][0]
    for level in own.config.ups:
        for channels in (level.up_channels, level.skip_channels):
            if difference(np.roll(theirs, channels, axis=1), ours) <= SAME:
                return "a concatenation in the other order"
    paths = list(trace.calls)
    before = paths.index(path) - 1
    if before < 0:
        return ""
    output = torch.tensor(trace.calls[paths[before]].outputs[0])
    names = [
        next((n for n, y in _list_ways(output, arrived) if difference(arrived, y) <= SAME), "")
        for arrived in (theirs, ours)
    ]
    return f"{names[0]} in your module in place of {names[1]}" if all(names) else ""


def _list_ways(x: Tensor, result: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """List activations, with and without a pool, that may have led from one map to another."""
    halved = (x.shape[2] // 2, x.shape[3] // 2)
    for name, y in _list_activations(x, result):
        if y.shape == result.shape:
            yield name, y.numpy()
        elif (*y.shape[:2], *halved) == result.shape:
            yield f"{name} and max-pool", F.max_pool2d(y, 2).numpy()
            yield f"{name} and average pool", F.avg_pool2d(y, 2).numpy()


def _list_activations(x: Tensor, result: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    yield "no activation", x
    yield "ReLU", F.relu(x)
    yield "ReLU6", F.relu6(x)
    if x.shape == result.shape and bool((below := x < 0).any()):
        slope = float((torch.tensor(result)[below] / x[below]).median())
        yield f"leaky ReLU of slope {slope:.6g}", F.leaky_relu(x, slope)
    yield "ELU", F.elu(x)
    yield "GELU", F.gelu(x)
    yield "SiLU", F.silu(x)
