"""The arrays of parameters, whatever holds them: a torch module, pairs, dicts, lists, nnx states.

No framework is imported: what is read is asked for its values.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unet_spec.errors import InputError
from unet_spec.wording import is_name


def name_parameters(parameters: Any) -> dict[str, Any]:
    """Return the leaves of parameters by their names, which are joined by dots.

    Args:
        parameters: a torch module, pairs of a name and a leaf (`named_parameters()`), or dicts and
            lists in one another whose leaves are arrays (such as `nnx.state(model, nnx.Param)`).
            None is no leaf.

    Raises:
        InputError: there is none, a name stands twice, or it cannot be shown.
    """
    leaves = {name: leaf for name, leaf in name_leaves(parameters).items() if leaf is not None}
    if not leaves:
        raise InputError(
            "there are no parameters; give model.named_parameters() in torch, and the dict or "
            "nnx.state(model, nnx.Param) in JAX"
        )
    return leaves


def name_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree as `name_parameters`, with those that are None.

    Raises:
        InputError: a name stands twice, or it cannot be shown.
    """
    if hasattr(tree, "named_parameters"):
        tree = tree.named_parameters()
    leaves: dict[str, Any] = {}
    for name, leaf in _walk(tree, ""):
        if name in leaves:
            raise InputError(f"two parameters have the name {name}; give each its own")
        if not is_name(name):
            raise InputError(f"{name!a} is no name that can be shown; give a shorter or plain one")
        leaves[name] = leaf
    return leaves


def name_framework(leaf: Any) -> str:
    """Return the package that a leaf is of: torch, jax, numpy or another."""
    package = type(leaf).__module__.partition(".")[0]
    return "jax" if package in ("jaxlib", "flax") else package


def name_dtype(leaf: Any) -> str:
    """Return the type of a leaf's values as numpy names it: float32, bfloat16, ..."""
    return str(getattr(leaf, "dtype", "float64")).removeprefix("torch.")


def to_numpy(name: str, leaf: Any) -> np.ndarray:
    """Return the values of a leaf as a numpy array of floats.

    Raises:
        InputError: it holds no floats; it names the leaf.
    """
    if hasattr(leaf, "detach"):  # a tensor of torch, of which numpy does not know bfloat16
        leaf = leaf.detach().cpu()
        leaf = leaf.float() if "bfloat16" in str(leaf.dtype) else leaf
    try:
        values = np.asarray(leaf)
        is_float = values.dtype.kind == "f" or values.dtype.name == "bfloat16"
    except (TypeError, ValueError) as error:
        raise _refuse_leaf(name, type(leaf).__name__) from error
    if not is_float:
        raise _refuse_leaf(name, str(values.dtype))
    return values


def measure_norm(values: np.ndarray) -> float:
    """Return the Euclidean norm of an array, summed in float64."""
    return float(np.linalg.norm(values.astype(np.float64).ravel()))


def _refuse_leaf(name: str, kind: str) -> InputError:
    return InputError(
        f"{name} is of type {kind}, and trained parameters are arrays of floats; give these alone, "
        "such as model.named_parameters() in torch, or nnx.state(model, nnx.Param) in JAX"
    )


def _walk(node: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    """Yield the leaves below a node with their names."""
    if isinstance(node, Mapping):
        items: Iterable[tuple[Any, Any]] = node.items()
    elif node is None or _is_array(node):
        yield prefix or "parameter", node
        return
    elif isinstance(node, Iterable) and not isinstance(node, str | bytes):
        entries = list(node)
        items = entries if _are_named(entries) else enumerate(entries)
    else:
        raise _refuse_leaf(prefix or "it", type(node).__name__)
    for key, inner in items:
        yield from _walk(inner, f"{prefix}.{key}" if prefix else str(key))


def _is_array(node: Any) -> bool:
    """Return whether a node is a leaf; a variable of nnx has the `shape` of its array."""
    return hasattr(node, "shape") or isinstance(node, float | int)


def _are_named(entries: list[Any]) -> bool:
    """Return whether entries are pairs of a name and something."""
    return all(
        isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
        for entry in entries
    )
