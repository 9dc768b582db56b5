"""Which module is at fault.

In float64 rounding is 1e-16 and a bug is not, so every module is run by itself, on the
reference's own numbers: leaves by what they compute, forward and backward, and modules that hold
others by what arrives between their parts. The first that is out of line is at fault; what comes
after it only inherits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unet_parity import recognise
from unet_parity.compared import NET, Compared, Kind
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
        compared: what differs.
        size: the largest difference over the largest value.
        looks_like: the known bug that gives the same numbers; empty if none does.
        allowed: up to which size a difference is rounding.
    """

    module: str
    compared: Compared
    size: float
    looks_like: str = ""
    allowed: float = LOCAL_BOUND

    def __str__(self) -> str:
        guess = f"; it looks like {self.looks_like}" if self.looks_like else ""
        if not self.size < np.inf:
            return f"{self.module}: {self.compared} is missing, misshapen or not finite{guess}"
        return (
            f"{self.module}: {self.compared} differs by {self.size:.1e} in float64, "
            f"{self.allowed:.0e} allowed{guess}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fault as plain values; what differs is in words."""
        return {
            "module": self.module,
            "where": str(self.compared),
            "size": self.size,
            "looks_like": self.looks_like,
            "allowed": self.allowed,
        }


def find_faults(
    config: UNetConfig,
    tensors: Tensors,
    truth: Trace,
    wiring: Wiring,
    leaves: Mapping[str, LeafResult | None],
    *,
    train: bool,
) -> tuple[Fault, ...]:
    """Find every fault of the port, the first module at fault first; forward before backward.

    Args:
        truth: the reference in float64.
        wiring: of the port in float64, among `truth`'s numbers.
        leaves: likewise, every leaf by itself.
    """
    places = list(_list_places(truth.calls))
    faults = list(_find_forward(places, truth, wiring, leaves))
    if not faults:
        faults = list(_find_backward(places[::-1], truth, wiring, leaves))
    if not faults:
        return ()
    guess = recognise.identify_bug(
        config, tensors, truth, wiring, leaves, faults[0].compared, train=train
    )
    return (replace(faults[0], looks_like=guess), *faults[1:])


def _find_forward(
    places: list[Place], truth: Trace, wiring: Wiring, leaves: Mapping[str, LeafResult | None]
) -> Iterator[Fault]:
    for place in places:
        path = place[0]
        if _is_output_of_leaf(truth, place):
            yield from _compare_leaf(truth.calls[path], truth, leaves[path])
            continue
        compared = Compared(Kind.ARRIVING_VALUE, place)
        if place in wiring.arrived:
            size = _largest_difference(_expected_maps(truth, place), wiring.arrived[place])
            if size > LOCAL_BOUND:
                yield Fault(_name_owner(place), compared, size)
        elif wiring.arrived or place == wiring.order[-1]:
            # never called, or the map at which the pass stopped
            yield Fault(_name_owner(place), compared, np.inf)


def _find_backward(
    places: list[Place], truth: Trace, wiring: Wiring, leaves: Mapping[str, LeafResult | None]
) -> Iterator[Fault]:
    for place in places:
        path, side = place
        if side == "input" and truth.calls[path].leaf:
            yield from _compare_leaf_gradients(truth.calls[path], truth, leaves[path])
        elif place != OUTPUT:
            call = truth.calls[path]
            expected = call.input_gradients if side == "input" else call.cotangents
            size = _largest_difference(expected, wiring.gradients[place])
            if size > LOCAL_GRADIENT_BOUND:
                owner = _name_parent(path) if side == "output" else path
                compared = Compared(Kind.ARRIVING_GRADIENT, place)
                yield Fault(owner, compared, size, allowed=LOCAL_GRADIENT_BOUND)


def _compare_leaf(call: Call, truth: Trace, leaf: LeafResult | None) -> Iterator[Fault]:
    place = call.path, "output"
    output = Compared(Kind.OUTPUT, place)
    if leaf is None:
        yield Fault(call.path, output, np.inf)
        return
    size = difference(call.outputs[0], leaf.output)
    if size > LOCAL_BOUND:
        yield Fault(call.path, output, size)
    for name, statistic in leaf.statistics.items():
        if name not in truth.result.statistics:  # a count that an old file does not have
            continue
        size = difference(truth.result.statistics[name], statistic)
        if size > LOCAL_BOUND:
            yield Fault(call.path, Compared(Kind.STATISTIC, place, _last_part(name)), size)


def _compare_leaf_gradients(call: Call, truth: Trace, leaf: LeafResult | None) -> Iterator[Fault]:
    assert leaf is not None
    place, allowed = (call.path, "input"), LOCAL_GRADIENT_BOUND
    size = _largest_difference(call.input_gradients, leaf.input_gradients)
    if size > allowed:
        yield Fault(call.path, Compared(Kind.INPUT_GRADIENT, place), size, allowed=allowed)
    scale = module_scales(truth.result.gradients).get(call.path)
    for name, gradient in leaf.gradients.items():
        size = difference(truth.result.gradients[name], gradient, scale=scale)
        if size > allowed:
            compared = Compared(Kind.PARAMETER_GRADIENT, place, _last_part(name))
            yield Fault(call.path, compared, size, allowed=allowed)


def _list_places(calls: Mapping[str, Call]) -> Iterator[Place]:
    """List inputs and outputs of every module in the order in which the reference has them."""
    open_modules: list[str] = []
    for path in calls:
        while open_modules and not path.startswith(open_modules[-1] + "."):
            yield open_modules.pop(), "output"
        yield path, "input"
        open_modules.append(path)
    while open_modules:
        yield open_modules.pop(), "output"
    yield OUTPUT


def _is_output_of_leaf(truth: Trace, place: Place) -> bool:
    return place != OUTPUT and place[1] == "output" and truth.calls[place[0]].leaf


def _expected_maps(truth: Trace, place: Place) -> Maps:
    if place == OUTPUT:
        return (truth.result.output,)
    call = truth.calls[place[0]]
    return call.inputs if place[1] == "input" else call.outputs


def _largest_difference(expected: Maps, maps: Maps) -> float:
    if len(expected) != len(maps):
        return np.inf
    return max((difference(e, m) for e, m in zip(expected, maps, strict=True)), default=0.0)


def _name_owner(place: Place) -> str:
    """Name who passes a map on to a place: the module around it, or that whose output it is."""
    path, side = place
    return (path or NET) if side == "output" else _name_parent(path)


def _name_parent(path: str) -> str:
    return module_of(path) or NET


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
