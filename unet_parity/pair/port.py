"""The JAX side of a pair: a function of parameters, an nnx module, or a linen module."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from unet_spec import InputError

Leaves = dict[str, Any]
"""Arrays of a tree by their paths, such as `blocks.0.attn.kernel`."""


@dataclass(frozen=True)
class Port:
    """A `Port` is somebody's JAX net as a pure function, and its parameters by their paths.

    Attributes:
        call: takes (parameters as the net has them, inputs, train) and returns (outputs,
            parameters after the pass, whose statistics may have moved).
        structure: of the parameters as the net has them.
        leaves: the parameters that were given.
        has_training: it computes something else in training, or may.
    """

    call: Callable[[Any, tuple[Any, ...], bool], tuple[Any, Any]]
    structure: Any
    leaves: dict[str, np.ndarray]
    has_training: bool

    def run(self, leaves: Leaves, inputs: tuple[Any, ...], train: bool) -> tuple[Any, Leaves]:
        """Return the outputs, and all parameters after the pass by their paths."""
        tree = jax.tree.unflatten(self.structure, [leaves[name] for name in self.leaves])
        outputs, after = self.call(tree, inputs, train)
        moved = name_leaves(after)
        return outputs, {name: moved.get(name, leaf) for name, leaf in leaves.items()}


def make_port(port: Any, params: Any) -> Port:
    """Return the port of what somebody gives.

    Args:
        port: an `nnx.Module`; a linen module, whose variables `params` are; or a function of
            (params, *inputs). A function or a linen module that computes something else in training
            has an argument `train`, with which a function returns (outputs, params after).
        params: a tree of arrays. For an nnx module another one of the same class, or None.

    Raises:
        InputError: they do not go together.
    """
    if isinstance(port, nnx.Module):
        return _wrap_nnx(params if isinstance(params, nnx.Module) else port)
    if isinstance(params, nnx.Module):
        return _wrap_nnx(params)
    if params is None:
        raise InputError(
            "the port has no parameters; give convert, which makes them of the reference's "
            "state_dict, or give them as params"
        )
    leaves = {name: np.asarray(leaf) for name, leaf in name_leaves(params).items()}
    structure = jax.tree.structure(params)
    if isinstance(port, linen.Module) and "params" not in params:
        raise InputError('the variables of a linen module are a dict with "params"; give it whole')
    if isinstance(port, linen.Module):
        flag = _find_flag(type(port).__call__)
        return Port(partial(_call_linen, port, flag), structure, leaves, flag is not None)
    if not callable(port):
        raise InputError(
            f"the port is a {type(port).__name__}; give a function of (params, *inputs), an "
            "nnx.Module or a linen.Module"
        )
    has_training = "train" in _list_arguments(port)
    return Port(partial(_call_function, port, has_training), structure, leaves, has_training)


def name_leaves(tree: Any) -> Leaves:
    """Return the arrays of a tree by their paths."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        # where nnx keeps the array of a variable is no part of its name
        names[name.removesuffix(".value").removesuffix(".raw_value")] = leaf
    return names


def is_float(array: np.ndarray) -> bool:
    """Say whether an array holds floating-point numbers; numpy does not know bfloat16 for one."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def _wrap_nnx(module: nnx.Module) -> Port:
    definition, keys, state = _split(module)

    def call(tree: Any, inputs: tuple[Any, ...], train: bool) -> tuple[Any, Any]:
        net = nnx.merge(definition, keys, tree, copy=True)
        for _, part in nnx.iter_modules(net):
            if isinstance(part, nnx.Dropout):  # it drops nothing, as in the reference
                part.rate = 0.0
        if train:
            net.train()
        else:
            net.eval()
        outputs = net(*inputs)
        return outputs, _split(net)[2]

    leaves = {name: np.asarray(leaf) for name, leaf in name_leaves(state).items()}
    return Port(call, jax.tree.structure(state), leaves, has_training=True)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Return what a module is, its random keys, and all of its other arrays."""
    parts: tuple[Any, ...] = nnx.split(module, nnx.RngState, ...)
    return parts[0], parts[1], parts[2]


def _call_function(
    port: Callable[..., Any], has_training: bool, tree: Any, inputs: tuple[Any, ...], train: bool
) -> tuple[Any, Any]:
    if train and has_training:
        outputs, after = port(tree, *inputs, train=True)
        return outputs, after
    return port(tree, *inputs), tree


def _call_linen(
    module: linen.Module, flag: str | None, tree: Any, inputs: tuple[Any, ...], train: bool
) -> tuple[Any, Any]:
    named: dict[str, Any] = (
        {} if flag is None else {flag: train if flag in _TRAINING else not train}
    )
    if not train:
        return module.apply(tree, *inputs, **named), tree
    moving = [name for name in tree if name != "params"]
    outputs, moved = module.apply(tree, *inputs, **named, mutable=moving)
    return outputs, {**tree, **moved}


_TRAINING = ("train", "training", "is_training")
_INFERENCE = ("deterministic", "use_running_average", "eval")
"""What linen modules call the argument that says in which mode they are."""


def _find_flag(function: Callable[..., Any]) -> str | None:
    arguments = _list_arguments(function)
    return next((name for name in (*_TRAINING, *_INFERENCE) if name in arguments), None)


def _list_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables have none
        return {}
