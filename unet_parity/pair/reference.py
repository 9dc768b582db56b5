"""The torch side of a pair: somebody's module, run with any values in its tensors."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_tree

import unet_torch.recipe
from unet_parity.differences import module_of
from unet_parity.pair.calls import log_backward
from unet_parity.pair.exactness import check_integers
from unet_parity.pair.integer_check import IntegerCheck
from unet_parity.pair.logs import BackwardLog, ForwardLog, Source
from unet_parity.pair.near_ties import count_ties
from unet_parity.pair.numbers import Numbers, Shapes, draw_shapes, name_inputs
from unet_parity.pair.operations import Operation, log_forward, make_log
from unet_parity.pair.passes import Arrays, PairPass, TakenStep
from unet_parity.pair.sides import Batches, Tensors
from unet_parity.pair.sizes import list_sizes
from unet_parity.torch_twin import gradient_of, numpy_of, run_backward
from unet_spec import InputError
from unet_spec.recipe import Recipe
from unet_spec.wording import list_names

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
MOST_LOGGED = 2**18
"""Of inputs with more values, every operation of both sides would take too much memory."""
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Reference:
    """Somebody's torch module, run with any values in its tensors.

    A dropout drops nothing: what two frameworks draw at random is not the same.

    Attributes:
        state: all tensors, by their names.
        tied: names of tensors that are another one, and the name of that one.
        trained: the names of the parameters.
        has_statistics: a pass in training moves statistics, as of batch norm.
    """

    def __init__(self, module: nn.Module):
        self.module = copy_without_dropout(module)
        for part in self.module.modules():
            if hasattr(part, "inplace"):  # values that are overwritten cannot be looked at
                setattr(part, "inplace", False)  # noqa: B010  no class of torch declares it
        tensors = self.module.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            first.setdefault(id(tensor), name)
        self.state = {name: numpy_of(tensor) for name, tensor in tensors.items()}
        self.tied = {n: first[id(t)] for n, t in tensors.items() if first[id(t)] != n}
        self.trained = tuple(name for name, _ in self.module.named_parameters())
        self.has_statistics = any(
            isinstance(part, NORMS) and part.track_running_stats for part in self.module.modules()
        )

    def load(self, tensors: Mapping[str, np.ndarray], *, dtype: str, train: bool) -> nn.Module:
        """Return a copy with these values, in a type and a mode."""
        kind = getattr(torch, dtype)
        copy = deepcopy(self.module).to(kind).requires_grad_().train(train)
        state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        own = {name: state[self.tied.get(name, name)] for name in state}
        copy.load_state_dict({**copy.state_dict(), **own}, strict=True)
        return copy

    def run(self, numbers: Numbers, *, dtype: str, train: bool) -> PairPass:
        """Run a pass, forward and backward.

        Raises:
            InputError: the module raises an error, or gives no floating-point tensor.
        """
        model, leaves = self._enter(numbers, dtype=dtype, train=train)
        outputs = call_reference(model, leaves)
        run_backward(outputs, _to_cotangents(numbers, dtype))
        held = dict(model.named_parameters())
        return PairPass(
            tuple(map(numpy_of, outputs)),
            tuple(gradient_of(leaf) for leaf in leaves if leaf.requires_grad),
            {name: gradient_of(held[name]) for name in self.trained},
            {
                name: numpy_of(buffer)
                for name, buffer in model.state_dict().items()
                if name not in held and name not in self.tied and buffer.is_floating_point()
            },
        )

    def run_forward(self, numbers: Numbers, *, dtype: str, train: bool) -> dict[str, np.ndarray]:
        """Return the outputs by their paths, such as `logits`, in order.

        Raises:
            InputError: as of `run`.
        """
        model, leaves = self._enter(numbers, dtype=dtype, train=train)
        return {name: numpy_of(output) for name, output in _name_outputs(model, leaves)}

    def can_log(self, numbers: Numbers) -> bool:
        """Say whether all operations on inputs of this size fit into memory."""
        return sum(x.size for x in numbers.inputs) <= MOST_LOGGED

    def log_forward(self, numbers: Numbers, *, train: bool) -> ForwardLog:
        """Return all operations of a forward pass in float64."""
        operations, origins, outputs = self._log_operations(numbers, train=train)
        return make_log(operations, [origins.get(id(output)) for output in outputs])

    def log_backward(self, numbers: Numbers, *, train: bool) -> BackwardLog:
        """Return all calls of a pass in float64 with their gradients."""
        model, leaves = self._enter(numbers, dtype="float64", train=train)
        call = partial(call_reference, model, leaves)
        return log_backward(model, leaves, call, _to_cotangents(numbers, "float64"))

    def count_near_ties(self, numbers: Numbers, *, train: bool) -> int:
        """Count what may fall the other way in float32 than in float64."""
        operations, _, _ = self._log_operations(numbers, train=train)
        return sum(map(count_ties, operations))

    def check_integers(self, numbers: Numbers) -> IntegerCheck:
        """Say whether a pass over integers rounds any."""
        model, leaves = self._enter(numbers, dtype="float64", train=False)
        call = partial(call_reference, model, leaves)
        return check_integers(model, call, _to_cotangents(numbers, "float64"))

    def list_sizes(self, tensors: Tensors, inputs: Arrays) -> list[Shapes]:
        """Return other shapes of the inputs that the module takes."""

        def takes(shapes: Shapes) -> bool:
            numbers = Numbers("", tensors, draw_shapes(inputs, shapes, seed=0))
            try:
                self.run_forward(numbers, dtype="float64", train=False)
            except InputError:
                return False
            return True

        return list_sizes(takes, inputs)

    def take_steps(
        self, tensors: Tensors, batches: Batches, recipe: Recipe, *, train: bool
    ) -> Iterator[TakenStep]:
        """Train in float64 on the mean square of the distance to targets."""
        model = self.load(tensors, dtype="float64", train=train)
        optimizer, scheduler = unet_torch.recipe.build(recipe, model.named_parameters())
        for step, (inputs, targets) in enumerate(batches):
            outputs = call_reference(model, to_torch(inputs, "float64"))
            goals = [torch.tensor(t, dtype=torch.float64) for t in targets]
            squares = [(y - t).square().mean() for y, t in zip(outputs, goals, strict=True)]
            loss = torch.stack(squares).sum()
            optimizer.zero_grad()
            loss.backward()
            unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step, value=loss.item())
            values = {name: numpy_of(p) for name, p in model.named_parameters()}
            yield TakenStep(loss.item(), values)

    def find_momentum(self, statistic: str) -> float:
        """Return the part that a new batch has in a statistic."""
        part = self.module.get_submodule(module_of(statistic))
        return float(getattr(part, "momentum", None) or 0.1)

    def _enter(
        self, numbers: Numbers, *, dtype: str, train: bool
    ) -> tuple[nn.Module, list[Tensor]]:
        """Return the module with the tensors of some numbers, and their inputs."""
        model = self.load(numbers.tensors, dtype=dtype, train=train)
        return model, to_torch(numbers.inputs, dtype)

    def _log_operations(
        self, numbers: Numbers, *, train: bool
    ) -> tuple[list[Operation], Mapping[int, Source], list[Tensor]]:
        model, leaves = self._enter(numbers, dtype="float64", train=train)
        return log_forward(model, partial(call_reference, model, [x.detach() for x in leaves]))


def copy_without_dropout(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose dropouts drop nothing."""
    copy = deepcopy(module)
    for part in copy.modules():
        if isinstance(part, DROPOUTS):
            part.p = 0.0
        elif isinstance(part, nn.RNNBase):
            part.dropout = 0.0
    return copy


def open_reference(
    module: nn.Module, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray]
) -> tuple[Reference, Arrays]:
    """Return a module as the side of a pair, and its inputs in the order of its arguments.

    Raises:
        InputError: the inputs are not those that it takes, a value is not finite, or it draws
            random numbers.
    """
    arrays = _read_inputs(inputs, module)
    reference = Reference(module)
    _refuse_infinite(reference.state, arrays)
    _refuse_random(reference, arrays)
    return reference, arrays


def to_torch(inputs: Arrays, dtype: str) -> list[Tensor]:
    """Return tensors of arrays, those of floating-point numbers in a type and with gradients."""
    kind = getattr(torch, dtype)
    return [
        torch.tensor(x, dtype=kind, requires_grad=True) if x.dtype.kind == "f" else torch.tensor(x)
        for x in inputs
    ]


def call_reference(model: nn.Module, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return all floating-point tensors that a module gives, in order.

    Raises:
        InputError: it raises an error, or gives none.
    """
    return [tensor for _, tensor in _name_outputs(model, leaves)]


def _name_outputs(model: nn.Module, leaves: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return likewise the path of each of these tensors and the tensor."""
    try:
        # copies, which the module may change in place
        result = model(*(leaf.clone() for leaf in leaves))
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise InputError(
            f"the reference does not run on inputs of the shapes {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error
    named = [(path, t) for path, t in _name_tensors(result) if t.is_floating_point()]
    if not named:
        raise InputError(f"the reference gives a {type(result).__name__} without tensors")
    return named


def _name_tensors(result: Any) -> list[tuple[str, Tensor]]:
    if isinstance(result, Mapping):  # such as the outputs of transformers
        result = dict(result)
    paths, _ = torch_tree.tree_flatten_with_path(result)
    return [
        (".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path), leaf)
        for path, leaf in paths
        if isinstance(leaf, Tensor)
    ]


def _to_cotangents(numbers: Numbers, dtype: str) -> list[Tensor]:
    return [torch.tensor(c, dtype=getattr(torch, dtype)) for c in numbers.cotangents]


def _read_inputs(
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray], module: nn.Module
) -> Arrays:
    """Return the inputs in the order of the arguments of `forward`.

    Raises:
        InputError: there is none, or several have names that are no arguments.
    """
    if not inputs:
        raise InputError("inputs are empty; give the arrays that the reference takes")
    if not isinstance(inputs, Mapping):
        return tuple(np.asarray(array) for array in inputs)
    arguments = list(inspect.signature(module.forward).parameters)
    other = [name for name in inputs if name not in arguments]
    if not other:
        return tuple(np.asarray(inputs[name]) for name in arguments if name in inputs)
    is_numbered = all(re.fullmatch(r"arr_\d+", name) for name in inputs)  # by numpy.savez
    if len(inputs) > 1 and not is_numbered:
        raise InputError(
            f"{list_names(other, 3)}: no such argument of the reference's forward, which takes "
            f"{', '.join(arguments)}; name the inputs like these"
        )
    return tuple(np.asarray(array) for array in inputs.values())


def _refuse_random(reference: Reference, inputs: Arrays) -> None:
    """Refuse a reference that draws random numbers: nothing can be compared with it."""
    numbers = Numbers("", reference.state, inputs)
    first, second = (
        reference.run_forward(numbers, dtype="float64", train=False).values() for _ in range(2)
    )
    if not all(map(np.array_equal, first, second)):
        raise InputError(
            "the reference gives another output each time: it draws random numbers even in "
            "inference; let it draw none (a functional dropout needs training=self.training)"
        )


def _refuse_infinite(state: Mapping[str, np.ndarray], inputs: Arrays) -> None:
    named = {**state, **name_inputs(inputs)}
    bad = [name for name, array in named.items() if not np.isfinite(array).all()]
    if bad:
        raise InputError(
            f"NaN or infinite values in {list_names(bad, 3)}: nothing can be said of them; take "
            "other weights or inputs"
        )
