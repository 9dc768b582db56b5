"""A foreign checkpoint without its weights and states, as plain JSON, and the file again from it.

What `torch.save` wrote is a tree of dicts, lists and values. Each node becomes a dict of one entry
that names its kind: `{"value": 3}`, `{"dict": [[key, node], ...]}`, `{"weight": NAME}` and so on.
So a file goes back in the form in which it came, with its keys, its order and its other values.
"""

import base64
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_spec import InputError
from unet_torch.checkpoint import STEPS, Checkpoint

MOST_VALUES = 4096  # of a tensor beside the net, such as the class weights of a loss
MOST_NODES = 50_000
"""So many values beside the net are kept, such as the losses of a run; the card holds them."""
Node = dict[str, Any]


def describe(checkpoint: Checkpoint, *, of_net: set[str]) -> tuple[Node, list[str], list[str]]:
    """Return the tree of a checkpoint, the places of the tensors in it that are not the net's, and
    those of what is left out.

    What the states of an optimizer and a scheduler hold is in neither list.

    Args:
        of_net: names of the tensors that are the net's; they become marks.
    """
    left_out: list[str] = []
    tensors: list[str] = []
    rest = MOST_NODES
    optimizer, scheduler = (
        None if found is None else found[0]
        for found in (checkpoint.optimizer, checkpoint.scheduler)
    )
    net, inside = checkpoint.content, len(checkpoint.place)
    for key in checkpoint.place:
        net = net[key]

    def visit(value: Any, place: tuple[Any, ...]) -> Node:
        nonlocal rest
        if value is net:
            pairs = [
                [name, {"weight": name} if name in of_net else visit(item, (*place, name))]
                for name, item in value.items()
            ]
            return {_kind_of_dict(value): pairs}
        if place == checkpoint.place[: len(place)]:  # around the net
            return _describe_value(value, place, visit, left_out)
        is_outermost = len(place) == 1 and inside > 0
        if is_outermost and place[0] == optimizer:
            return {"optimizer": isinstance(value, list)}
        if is_outermost and place[0] in STEPS and type(value) is int:
            return {"step": value}
        count = _count_values(value, most=rest)
        if count > rest:
            left_out.append(".".join(map(str, place)))
            return {"left out": type(value).__name__}
        rest -= count
        if is_outermost and place[0] == scheduler:
            return {"scheduler": visit_beside(value, place, [])}
        return visit_beside(value, place, tensors)

    def visit_beside(value: Any, place: tuple[Any, ...], found: list[str]) -> Node:
        def visit_inside(item: Any, below: tuple[Any, ...]) -> Node:
            return visit_beside(item, below, found)

        node = _describe_value(value, place, visit_inside, left_out)
        if "tensor" in node:  # within the net's own dict by its name there
            is_inside = place[:inside] == checkpoint.place
            found.append(".".join(map(str, place[inside:] if is_inside else place)))
        return node

    return visit(checkpoint.content, ()), tensors, left_out


def rebuild(
    node: Node,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> Any:
    """Return what `torch.save` shall write.

    Args:
        weights: by the names of the file.
        optimizer: its `state_dict`; None leaves it out, as it does the scheduler's.
        step: number of steps done; None leaves the file's own.
    """
    states = {"optimizer": optimizer, "scheduler": scheduler}

    def is_left_out(child: Node) -> bool:
        kind = next(iter(child))
        return kind == "left out" or (kind in states and states[kind] is None)

    def build(node: Node) -> Any:
        ((kind, value),) = node.items()
        if kind in ("dict", "ordered dict"):
            pairs = [(key, build(child)) for key, child in value if not is_left_out(child)]
            return OrderedDict(pairs) if kind == "ordered dict" else dict(pairs)
        if kind in ("list", "tuple"):
            items = [build(child) for child in value if not is_left_out(child)]
            return items if kind == "list" else tuple(items)
        if kind in states:
            in_list = value is True or (kind == "scheduler" and "list" in value)
            return [states[kind]] if in_list else states[kind]
        if kind == "weight":
            return weights[value]
        if kind == "step":
            return value if step is None else step
        if kind == "float":
            return float(value)
        if kind == "tensor":
            return _build_tensor(value)
        return value

    try:
        return build(node)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"the origin in its metadata is damaged ({error!r})") from error


def find_scheduler(node: Node) -> dict[str, Any] | None:
    """Return the state of the scheduler that a file came with, or None."""
    for _, child in node.get("dict") or node.get("ordered dict") or []:
        if "scheduler" in child:
            states = rebuild({"list": [child["scheduler"]]}, weights={})
            state = states[0][0] if isinstance(states[0], list) else states[0]
            return state if isinstance(state, dict) else None
    return None


def _describe_value(
    value: Any, place: tuple[Any, ...], visit: Callable[[Any, tuple[Any, ...]], Node],
    left_out: list[str],
) -> Node:  # fmt: skip
    """Return the node of a value of any kind; what is too large or unknown is left out."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        pairs = [[key, visit(item, (*place, key))] for key, item in value.items()]
        return {_kind_of_dict(value): pairs}
    if type(value) in (list, tuple):
        items = [visit(item, (*place, number)) for number, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is float and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if isinstance(value, Tensor) and value.numel() <= MOST_VALUES:
        return {"tensor": _describe_tensor(value)}
    left_out.append(".".join(map(str, place)))
    return {"left out": type(value).__name__}


def _count_values(value: Any, *, most: int) -> int:
    """Return how many values are in there, each as often as it is named; above `most` it stops."""
    count, waiting = 0, [value]
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value
    return count


def _kind_of_dict(value: Any) -> str:
    return "ordered dict" if isinstance(value, OrderedDict) else "dict"


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "base64": base64.b64encode(raw.numpy().tobytes()).decode(),
    }


def _build_tensor(plain: Mapping[str, Any]) -> Tensor:
    dtype = getattr(torch, plain["dtype"])
    raw = bytearray(base64.b64decode(plain["base64"]))
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(plain["shape"])
