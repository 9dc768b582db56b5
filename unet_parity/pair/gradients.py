"""Where a port's gradients first leave the reference's, going backwards, by values alone.

Every function that the reference calls is seen with the gradient that arrives at what it gives, and
with the gradients that it passes on to each of its inputs. A function at fault is given a gradient
that the port computes too, and passes one on that the port does not compute.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as torch_tree

from unet_parity.compared import NET
from unet_parity.pair.blame import contains
from unet_parity.pair.intermediates import Values
from unet_parity.pair.operations import follow_modules

NOTHING = 1e-12
"""A gradient that is smaller than this part of the one behind it is rounding."""


@dataclass(eq=False)
class Call:
    """A `Call` is one call of a function of torch.

    Attributes:
        number: its place among all calls.
        module: path of the module that calls it.
        inputs: the tensors that it was given, by their ids.
        outputs: those that it gave.
        arriving: gradients by its outputs, by their ids.
        passed: gradients that it passed on, by its inputs' ids.
    """

    number: int
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arriving: dict[int, Tensor] = field(default_factory=dict)
    passed: dict[int, Tensor] = field(default_factory=dict)


class CallLog(TorchFunctionMode):
    """Keeps every call in its block through which gradients go."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = [""]
        self.calls: list[Call] = []
        self.arriving: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id is one tensor's only as long as it lives

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, options = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in ("__get__", "__set__") or name.startswith("register") or name.endswith("_"):
            return func(*args, **options)
        ids: list[int] = []
        passed: dict[int, Tensor] = {}
        arguments = torch_tree.tree_map(partial(self._take, ids, passed), args)
        named = torch_tree.tree_map(partial(self._take, ids, passed), options)
        output = func(*arguments, **named)
        results = [
            t for t in torch_tree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad
        ]
        if results and ids:
            call = Call(
                len(self.calls), self.path[-1], tuple(ids), tuple(map(id, results)),
                self.arriving, passed,
            )  # fmt: skip
            self.calls.append(call)
            for result in results:
                self._alive.append(result)
                result.register_hook(partial(self.arriving.__setitem__, id(result)))
        return output

    def _take(self, ids: list[int], passed: dict[int, Tensor], value: Any) -> Any:
        """Give a function a tensor of its own, whose gradient is that through it alone."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        self._alive.append(value)
        ids.append(id(value))
        part = value.view_as(value)
        part.register_hook(partial(_add, passed, id(value)))
        return part


def _add(passed: dict[int, Tensor], tensor: int, gradient: Tensor) -> None:
    passed[tensor] = passed[tensor] + gradient if tensor in passed else gradient


def log_backward(
    model: nn.Module, call: Callable[[], list[Tensor]], cotangents: Sequence[Tensor]
) -> list[Call]:
    """Return all calls of a forward pass, with their gradients of a backward pass."""
    log = CallLog()
    with follow_modules(model, log.path), log:
        outputs = call()
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])
    return log.calls


def find_module(calls: Sequence[Call], wrong: Sequence[Tensor], values: Values) -> str:
    """Return the module at which the port's gradients leave the reference's; empty if none is
    found.

    From each wrong gradient the walk goes towards the output, as long as gradients are not the
    port's.

    Args:
        calls: of the reference, in float64.
        wrong: parameters and inputs whose gradients are not the port's.
        values: of the port's pass, forward and backward, in float64.
    """
    users: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        for tensor in dict.fromkeys(call.inputs):
            users[tensor].append(call)
    faults: dict[int, str] = {}  # by the numbers of calls
    to_visit, visited = [id(tensor) for tensor in wrong], set[int]()
    while to_visit:
        tensor = to_visit.pop()
        if tensor in visited:
            continue
        visited.add(tensor)
        unlike = [call for call in users[tensor] if not _is_known(values, call, tensor)]
        for call in unlike:
            behind = [y for y in call.outputs if y in call.arriving]
            later = [y for y in behind if not contains(values, call.arriving[y])]
            to_visit += later
            if not later:
                faults[call.number] = call.module
        if users[tensor] and not unlike:
            # each use passes on what the port computes too, but not all of it is added
            modules = [call.module for call in users[tensor]]
            faults[users[tensor][-1].number] = _name_common(modules)
    return (faults[max(faults)] or NET) if faults else ""


def _is_known(values: Values, call: Call, tensor: int) -> bool:
    """Say whether the port computes the gradient that a call passes on to a tensor."""
    gradient = call.passed.get(tensor)
    if gradient is None:
        return True
    arriving = [g for y, g in call.arriving.items() if y in call.outputs]
    scale = max((float(g.abs().max()) for g in arriving), default=0.0)
    # what is 0 but for rounding is another rounding in the port
    return float(gradient.abs().max()) <= NOTHING * scale or contains(values, gradient)


def _name_common(paths: Sequence[str]) -> str:
    """Return the innermost module that holds all of some modules.

    >>> _name_common(["block.norm", "block.mlp.0"])
    'block'
    """
    parts = [path.split(".") for path in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
