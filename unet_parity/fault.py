"""Which module is at fault.

In float64 rounding is 1e-16 and a bug is not, so every module is asked by itself, on the
reference's own numbers: leaves by what they compute, forward and backward, and modules that hold
others by what arrives between their parts. The first that is out of line is at fault; what comes
after it only inherits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from unet_parity import recognise
from unet_parity.differences import difference, module_of, module_scales
from unet_parity.leaves import LeafResult
from unet_parity.trace import OUTPUT, Call, Maps, Place, Trace
from unet_parity.wiring import Wiring
from unet_spec import UNetConfig
from unet_spec.parameters import Tensors

LOCAL_BOUND = 1e-12
LOCAL_GRADIENT_BOUND = 1e-11


@dataclass(frozen=True)
class Fault:
    """A module that does something else than the reference's.

    Attributes:
        module: its path; `the net` for the whole.
        where: what differs.
        size: the largest difference over the largest value.
        looks_like: the known bug that gives the same numbers; empty if none does.
        allowed: up to which size a difference is rounding.
    """

    module: str
    where: str
    size: float
    looks_like: str = ""
    allowed: float = LOCAL_BOUND

    def __str__(self) -> str:
        guess = f"; it looks like {self.looks_like}" if self.looks_like else ""
        if not self.size < np.inf:
            return f"{self.module}: {self.where} is missing, misshapen or not finite{guess}"
        return (
            f"{self.module}: {self.where} differs by {self.size:.1e} in float64, "
            f"{self.allowed:.0e} allowed{guess}"
        )


def find(
    config: UNetConfig,
    tensors: Tensors,
    truth: Trace,
    wiring: Wiring,
    local: Mapping[str, LeafResult | None],
    *,
    train: bool,
) -> tuple[Fault, ...]:
    """Every fault of the port, the first module at fault first; forward before backward.

    Args:
        truth: the reference in float64.
        wiring: of the port in float64, among `truth`'s numbers.
        local: likewise, every leaf by itself.
    """
    places = list(_timeline(truth.calls))
    faults = list(_forward(places, truth, wiring, local)) or list(
        _backward(places[::-1], truth, wiring, local)
    )
    if not faults:
        return ()
    first, place = faults[0]
    guess = recognise.looks_like(
        config, tensors, truth, wiring, local, place=place, where=first.where, train=train
    )
    return (replace(first, looks_like=guess), *(fault for fault, _ in faults[1:]))


def _forward(
    places: list[Place], truth: Trace, wiring: Wiring, local: Mapping[str, LeafResult | None]
) -> Iterator[tuple[Fault, Place]]:
    for place in places:
        path = place[0]
        if _computes(truth, place):
            for where, size in _computed(truth.calls[path], truth, local[path]):
                yield Fault(path, where, size), place
        elif place in wiring.arrived:
            size = _largest(_expected(truth, place), wiring.arrived[place])
            if size > LOCAL_BOUND:
                yield Fault(_owner(place), f"what reaches {_named(place)}", size), place
        elif wiring.arrived or place == wiring.order[-1]:
            # never called, or the map at which the pass stopped
            yield Fault(_owner(place), f"what reaches {_named(place)}", np.inf), place


def _backward(
    places: list[Place], truth: Trace, wiring: Wiring, local: Mapping[str, LeafResult | None]
) -> Iterator[tuple[Fault, Place]]:
    for place in places:
        path, side = place
        if side == "input" and truth.calls[path].leaf:
            for where, size in _differentiated(truth.calls[path], truth, local[path]):
                yield Fault(path, where, size, allowed=LOCAL_GRADIENT_BOUND), place
        elif place != OUTPUT:
            call = truth.calls[path]
            expected = call.input_gradients if side == "input" else call.cotangents
            size = _largest(expected, wiring.gradients[place])
            if size > LOCAL_GRADIENT_BOUND:
                owner = _above(path) if side == "output" else path
                where = f"the gradient at {_named(place)}"
                yield Fault(owner, where, size, allowed=LOCAL_GRADIENT_BOUND), place


def _computed(call: Call, truth: Trace, local: LeafResult | None) -> Iterator[tuple[str, float]]:
    if local is None:
        yield "its output", np.inf
        return
    size = difference(call.outputs[0], local.output)
    if size > LOCAL_BOUND:
        yield "its output", size
    for name, found in local.statistics.items():
        size = difference(truth.result.statistics[name], found)
        if size > LOCAL_BOUND:
            yield f"its {name.rpartition('.')[2]}", size


def _differentiated(
    call: Call, truth: Trace, local: LeafResult | None
) -> Iterator[tuple[str, float]]:
    assert local is not None
    size = _largest(call.input_gradients, local.input_gradients)
    if size > LOCAL_GRADIENT_BOUND:
        yield "the gradient of its input", size
    scale = module_scales(truth.result.gradients).get(call.path)
    for name, found in local.gradients.items():
        size = difference(truth.result.gradients[name], found, scale=scale)
        if size > LOCAL_GRADIENT_BOUND:
            yield f"the gradient of its {name.rpartition('.')[2]}", size


def _timeline(calls: Mapping[str, Call]) -> Iterator[Place]:
    """Inputs and outputs of every module in the order in which they happen in the reference."""
    within: list[str] = []
    for path in calls:
        while within and not path.startswith(within[-1] + "."):
            yield within.pop(), "output"
        yield path, "input"
        within.append(path)
    while within:
        yield within.pop(), "output"
    yield OUTPUT


def _computes(truth: Trace, place: Place) -> bool:
    return place != OUTPUT and place[1] == "output" and truth.calls[place[0]].leaf


def _expected(truth: Trace, place: Place) -> Maps:
    if place == OUTPUT:
        return (truth.result.output,)
    call = truth.calls[place[0]]
    return call.inputs if place[1] == "input" else call.outputs


def _largest(expected: Maps, found: Maps) -> float:
    if len(expected) != len(found):
        return np.inf
    return max((difference(e, f) for e, f in zip(expected, found, strict=True)), default=0.0)


def _owner(place: Place) -> str:
    """Who passes a map on to a place: the module around it, or that whose output it is."""
    path, side = place
    return (path or "the net") if side == "output" else _above(path)


def _above(path: str) -> str:
    return module_of(path) or "the net"


def _named(place: Place) -> str:
    path, side = place
    return f"the {side} of {path or 'the net'}"
