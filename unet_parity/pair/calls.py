"""Every call of a function of torch in a pass, with the gradients around it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as torch_tree

from unet_parity.pair.logs import BackwardLog, LoggedCall
from unet_parity.pair.operations import follow_modules, widen
from unet_parity.torch_twin import run_backward


@dataclass(eq=False)
class Call:
    """A `Call` is one call of a function of torch.

    Attributes:
        number: its place among all calls.
        module: path of the module that calls it.
        inputs: the tensors that it was given, by their ids.
        outputs: those that it gave.
        passed: gradients that it passed on, by its inputs' ids.
    """

    number: int
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
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
            self.calls.append(
                Call(len(self.calls), self.path[-1], tuple(ids), tuple(map(id, results)), passed)
            )
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
    model: nn.Module,
    leaves: Sequence[Tensor],
    call: Callable[[], list[Tensor]],
    cotangents: Sequence[Tensor],
) -> BackwardLog:
    """Return all calls of a forward pass, with their gradients of a backward pass.

    Args:
        leaves: the inputs of the net.
        call: runs it on these.
        cotangents: gradients of a loss by its outputs.
    """
    log = CallLog()
    with follow_modules(model, log.path), log:
        outputs = call()
    run_backward(outputs, cotangents)
    numbers: defaultdict[int, int] = defaultdict(count().__next__)
    calls = tuple(
        LoggedCall(
            call.number,
            call.module,
            tuple(numbers[tensor] for tensor in call.inputs),
            tuple(numbers[tensor] for tensor in call.outputs),
            {numbers[tensor]: widen(gradient) for tensor, gradient in call.passed.items()},
        )
        for call in log.calls
    )
    return BackwardLog(
        calls,
        {numbers[tensor]: widen(gradient) for tensor, gradient in log.arriving.items()},
        {name: numbers[id(tensor)] for name, tensor in model.named_parameters()},
        tuple(numbers[id(leaf)] for leaf in leaves if leaf.requires_grad),
    )
