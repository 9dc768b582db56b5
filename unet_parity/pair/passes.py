"""One pass through either side of a pair, forward and backward; everything numpy."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_tree

from unet_parity.jax_twin import compile_jax, fetch_tree
from unet_parity.pair.port import Leaves, Port, is_float, name_leaves
from unet_parity.torch_twin import gradient_of, numpy_of
from unet_spec import InputError

Arrays = tuple[np.ndarray, ...]
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class PairPass:
    """What one pass gave.

    Attributes:
        outputs: all arrays of the outputs, in order, as the side itself lays them out.
        input_gradients: of the inputs that are floating-point numbers, likewise.
        gradients: of the trained parameters, by the reference's names.
        statistics: the other floating-point tensors after the pass, likewise.
    """

    outputs: Arrays
    input_gradients: Arrays
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


class Reference:
    """Somebody's torch module, run with any values in its tensors.

    A dropout drops nothing: what two frameworks draw at random is not the same.

    Attributes:
        state: all tensors, by their names.
        tied: names of tensors that are another one, and the name of that one.
        trained: the names of the parameters.
    """

    def __init__(self, module: nn.Module):
        self.module = deepcopy(module)
        for part in self.module.modules():
            if isinstance(part, DROPOUTS):
                part.p = 0.0
            elif isinstance(part, nn.RNNBase):
                part.dropout = 0.0
            if hasattr(part, "inplace"):  # values that are overwritten cannot be looked at
                setattr(part, "inplace", False)  # noqa: B010  no class of torch declares it
        tensors = self.module.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            first.setdefault(id(tensor), name)
        self.state = {name: numpy_of(tensor) for name, tensor in tensors.items()}
        self.tied = {n: first[id(t)] for n, t in tensors.items() if first[id(t)] != n}
        self.trained = tuple(name for name, _ in self.module.named_parameters())

    def load(self, tensors: Mapping[str, np.ndarray], *, dtype: str, train: bool) -> nn.Module:
        """Return a copy with these values, in a type and a mode."""
        kind = getattr(torch, dtype)
        copy = deepcopy(self.module).to(kind).requires_grad_().train(train)
        state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        own = {name: state[self.tied.get(name, name)] for name in state}
        copy.load_state_dict({**copy.state_dict(), **own}, strict=True)
        return copy

    def run(
        self,
        tensors: Mapping[str, np.ndarray],
        inputs: Arrays,
        *,
        dtype: str,
        train: bool,
        cotangents: Arrays | None = None,
    ) -> PairPass:
        """Run a pass, forward and backward.

        Args:
            inputs: as the module takes them, in order.
            cotangents: gradients of a loss by the outputs; without them there is no backward pass.

        Raises:
            InputError: the module raises an error, or gives no floating-point tensor.
        """
        model = self.load(tensors, dtype=dtype, train=train)
        leaves = to_torch(inputs, dtype)
        outputs = call_reference(model, leaves)
        if cotangents is not None:
            kind = getattr(torch, dtype)
            arriving = [torch.tensor(c, dtype=kind) for c in cotangents]
            pairs = [(y, c) for y, c in zip(outputs, arriving, strict=True) if y.requires_grad]
            torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])
        floats = [leaf for leaf in leaves if leaf.requires_grad]
        held = dict(model.named_parameters())
        return PairPass(
            tuple(map(numpy_of, outputs)),
            tuple(map(gradient_of, floats)),
            {name: gradient_of(held[name]) for name in self.trained},
            {
                name: numpy_of(buffer)
                for name, buffer in model.state_dict().items()
                if name not in held and name not in self.tied and buffer.is_floating_point()
            },
        )


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
    tensors = [t for _, t in _name_tensors(result) if t.is_floating_point()]
    if not tensors:
        raise InputError(f"the reference gives a {type(result).__name__} without tensors")
    return tensors


def name_outputs(model: nn.Module, leaves: Sequence[Tensor]) -> list[str]:
    """Return the paths of a module's floating-point outputs, such as `logits`, in order."""
    with torch.no_grad():
        result = model(*(leaf.clone() for leaf in leaves))
    return [name for name, tensor in _name_tensors(result) if tensor.is_floating_point()]


def _name_tensors(result: Any) -> list[tuple[str, Tensor]]:
    if isinstance(result, Mapping):  # such as the outputs of transformers
        result = dict(result)
    paths, _ = torch_tree.tree_flatten_with_path(result)
    return [
        (".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path), leaf)
        for path, leaf in paths
        if isinstance(leaf, Tensor)
    ]


class PortRun:
    """Passes through the port, compiled once for many values.

    Args:
        prepare: brings the inputs from the reference's layout to the port's.
    """

    def __init__(self, port: Port, prepare: Callable[[Arrays], Arrays], *, dtype: str, train: bool):
        self.port, self.prepare, self.dtype, self.train = port, prepare, dtype, train
        with jax.enable_x64(dtype == "float64"):
            self._forward = compile_jax(self._run_forward, dtype)
            self._both = compile_jax(self._run_both, dtype)

    def list_outputs(self, leaves: Leaves, inputs: Arrays) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs by their paths, in order.

        Raises:
            InputError: the port raises an error.
        """

        names: list[str] = []

        def run(leaves: Leaves, inputs: list[Any]) -> list[Any]:
            outputs = name_arrays(self.port.run(leaves, tuple(inputs), self.train)[0])
            names.extend(outputs)
            return list(outputs.values())

        with jax.enable_x64(self.dtype == "float64"):
            try:
                shapes = jax.eval_shape(run, *self._enter(leaves, inputs))
            except Exception as error:  # whatever a stranger's code raises
                arguments = ", ".join(str(x.shape) for x in self.prepare(inputs))
                text = " ".join(str(error).split())[:300]
                raise InputError(
                    f"the port does not run on inputs of the shapes {arguments}: "
                    f"{type(error).__name__}: {text}"
                ) from error
        return {name: shape.shape for name, shape in zip(names, shapes, strict=True)}

    def run(self, leaves: Leaves, inputs: Arrays, cotangents: Arrays) -> tuple[Any, ...]:
        """Return outputs, the parameters after the pass, and the gradients of the floating-point
        parameters and inputs, all as the port lays them out."""
        with jax.enable_x64(self.dtype == "float64"):
            arguments = [jnp.asarray(c, self.dtype) for c in cotangents]
            result = self._both(*self._enter(leaves, inputs), arguments)
        outputs, after, of_leaves, of_inputs = map(fetch_tree, result)
        return tuple(outputs), after, of_leaves, tuple(of_inputs)

    def run_forward(self, leaves: Leaves, inputs: Arrays) -> Arrays:
        """Return the outputs alone, as the port lays them out."""
        with jax.enable_x64(self.dtype == "float64"):
            outputs, _ = self._forward(*self._enter(leaves, inputs))
        return tuple(fetch_tree(outputs))

    def trace(self, leaves: Leaves, inputs: Arrays) -> tuple[Any, list[Any]]:
        """Return the port's forward pass as a jaxpr, and the arrays to evaluate it with."""
        entered = self._enter(leaves, inputs)
        closed = jax.make_jaxpr(self._run_forward)(*entered)
        return closed, jax.tree.leaves(entered)

    def trace_both(
        self, leaves: Leaves, inputs: Arrays, cotangents: Arrays
    ) -> tuple[Any, list[Any]]:
        """Return likewise the forward and the backward pass."""
        entered = (*self._enter(leaves, inputs), [jnp.asarray(c, self.dtype) for c in cotangents])
        return jax.make_jaxpr(self._run_both)(*entered), jax.tree.leaves(entered)

    def _enter(self, leaves: Leaves, inputs: Arrays) -> tuple[Leaves, list[Any]]:
        def cast(array: np.ndarray) -> jax.Array:
            return jnp.asarray(array, self.dtype if is_float(array) else None)

        return (
            {name: cast(leaf) for name, leaf in leaves.items()},
            [cast(x) for x in self.prepare(inputs)],
        )

    def _run_forward(self, leaves: Leaves, inputs: list[Any]) -> tuple[list[Any], Leaves]:
        outputs, after = self.port.run(leaves, tuple(inputs), self.train)
        return list(name_arrays(outputs).values()), after

    def _run_both(self, leaves: Leaves, inputs: list[Any], cotangents: list[Any]) -> Any:
        moved = {n: a for n, a in leaves.items() if jnp.issubdtype(a.dtype, jnp.floating)}
        places = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]

        def forward(moved: Leaves, floats: list[Any]) -> Any:
            arguments = list(inputs)
            for place, x in zip(places, floats, strict=True):
                arguments[place] = x
            return self._run_forward({**leaves, **moved}, arguments)

        outputs, pull, after = jax.vjp(forward, moved, [inputs[i] for i in places], has_aux=True)
        arguments = [c.astype(y.dtype) for c, y in zip(cotangents, outputs, strict=True)]
        return outputs, after, *pull(arguments)


def name_arrays(outputs: Any) -> Leaves:
    """Return the floating-point arrays of outputs by their paths."""
    return {
        name: y
        for name, y in name_leaves(outputs).items()
        if jnp.issubdtype(getattr(y, "dtype", np.int32), jnp.floating)
    }
