"""Every operation of torch in a pass, with the module that it is in and the values around it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_tree
from torch.utils._python_dispatch import TorchDispatchMode

from unet_parity.pair.logs import ForwardLog, LoggedOperation, Source


@dataclass(frozen=True, eq=False)
class Operation:
    """An `Operation` is one call of torch's own operators.

    Attributes:
        number: its place among all operations of the pass.
        name: of the operator, such as `gelu` or `native_layer_norm`.
        module: path of the module that calls it.
        run: the operator.
        arguments: positional ones, with tensors as they were at the call.
        options: named ones.
        inputs: (number of the operation, which of its outputs) that each tensor among the arguments
            comes from; None for parameters and the net's inputs.
        outputs: the tensors that it gave, as they were.
    """

    number: int
    name: str
    module: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    inputs: tuple[Source | None, ...]
    outputs: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments, in order."""
        return [a for a in torch_tree.tree_leaves(self.arguments) if isinstance(a, Tensor)]

    def run_with(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return what the operator gives for other tensors in the place of its own."""
        others = iter(tensors)
        arguments = torch_tree.tree_map(
            lambda a: next(others) if isinstance(a, Tensor) else a, self.arguments
        )
        output = self.run(*arguments, **self.options)
        return [t for t in torch_tree.tree_leaves(output) if isinstance(t, Tensor)]


@dataclass
class OperationLog(TorchDispatchMode):
    """Keeps every operation in its block."""

    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.path: list[str] = [""]
        self.origins: dict[int, Source] = {}
        self._alive: list[Tensor] = []  # an id is one tensor's only as long as it lives

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        # before the call, which may write into its arguments
        origins = tuple(
            self.origins.get(id(a)) for a in torch_tree.tree_leaves(args) if isinstance(a, Tensor)
        )
        copies = torch_tree.tree_map(_copy, args)
        output = func(*args, **options)
        results = [t for t in torch_tree.tree_leaves(output) if isinstance(t, Tensor)]
        number = len(self.operations)
        for place, result in enumerate(results):
            self.origins[id(result)] = (number, place)
        self._alive += results
        self.operations.append(
            Operation(
                number,
                func.overloadpacket.__name__,
                self.path[-1],
                func,
                copies,
                options,
                origins,
                tuple(map(_copy, results)),
            )
        )
        return output


@contextmanager
def follow_modules(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Have the last of some paths be that of the module that is running."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, arguments: Any, name: str = name) -> None:
            path.append(name)

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            path.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def log_forward(
    model: nn.Module, call: Callable[[], Any]
) -> tuple[list[Operation], Mapping[int, Source], Any]:
    """Return all operations of a call, where each living tensor comes from, and what it gave."""
    log = OperationLog()
    with torch.no_grad(), follow_modules(model, log.path), log:
        output = call()
    return log.operations, log.origins, output


def make_log(operations: Sequence[Operation], results: Sequence[Source | None]) -> ForwardLog:
    """Return the log of some operations.

    Args:
        results: which of them give the outputs of the net.
    """
    dependent = _find_dependent(operations)
    logged = tuple(
        LoggedOperation(
            operation.number,
            operation.name,
            operation.module,
            operation.inputs,
            tuple(map(widen, operation.outputs)) if operation.number in dependent else (),
        )
        for operation in operations
    )
    return ForwardLog(logged, tuple(results), operations)


def widen(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor in float64."""
    return tensor.detach().double().numpy()


def _find_dependent(operations: Sequence[Operation]) -> set[int]:
    """Return the operations that compute with floating-point numbers what depends on an input.

    What is computed from weights, or from integers and masks alone, may look otherwise in the port.
    """
    reached: set[int] = set()
    dependent: set[int] = set()
    for operation in operations:
        # an input of the net is copied before anything is done with it
        is_input = operation.name == "clone" and not any(operation.inputs)
        if not is_input and not any(source and source[0] in reached for source in operation.inputs):
            continue
        reached.add(operation.number)
        are_float = [tensor.is_floating_point() for tensor in operation.tensors]
        if any(are_float) and any(tensor.is_floating_point() for tensor in operation.outputs):
            dependent.add(operation.number)
    return dependent


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
