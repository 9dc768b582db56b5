"""Which parameter of the net each param group of a torch optimizer holds.

torch saves param groups as numbers. With one group they count the parameters of the model. With
several they count the groups' parameters, and which those are is settled by `param_names`, where
they were saved, or by the order and the shapes of what the optimizer keeps of each parameter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from unet_spec import InputError
from unet_spec.origin import Group

States = Mapping[str, Any]
Shape = tuple[int, ...]

HOW_TO_NAME = (
    "names = {id(p): n for n, p in model.named_parameters()}; "
    'for g in optimizer.param_groups: g["param_names"] = [names[id(p)] for p in g["params"]]'
)
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net)\.)+")
_MOST_PLACES = 10_000  # beyond it the search stops: many groups of equal shapes are ambiguous


def read_groups(
    optimizer: States, shapes: Mapping[str, Shape], *, ours_by_theirs: Mapping[str, str]
) -> tuple[Group, ...]:
    """Return the param groups of an optimizer's `state_dict`, with our names of their parameters.

    Args:
        shapes: of the trained parameters by our names, in the order of `model.parameters()`.
        ours_by_theirs: our name by the name that `param_names` may have; a prefix such as
            `module.` does not matter.

    Raises:
        InputError: it does not move them all, or which group holds which is not certain.
    """
    groups = optimizer["param_groups"]
    moved = [index for group in groups for index in group["params"]]
    refuse_other_number(len(moved), of_net=len(shapes))
    names = _read_names(groups, shapes, ours_by_theirs)
    if names is None:
        names = _match_shapes(groups, _read_shapes(optimizer), shapes)
    return tuple(_split(groups, names))


def make_group(names: Sequence[str], group: States) -> Group:
    """Return one param group as plain values."""
    settings = {name: _to_plain(value) for name, value in group.items() if name != "params"}
    return Group(tuple(names), settings)


def refuse_other_number(moved: int, *, of_net: int) -> None:
    """Refuse an optimizer that does not move all parameters of the net.

    Raises:
        InputError: it moves more or fewer.
    """
    if moved != of_net:
        raise InputError(
            f"its optimizer moves {moved} parameters, and the net has {of_net}; a recipe moves "
            "them all"
        )


def _read_names(
    groups: Sequence[States], shapes: Mapping[str, Shape], ours_by_theirs: Mapping[str, str]
) -> list[str] | None:
    """Return our names as `param_names` says them; None where it does not."""
    if not all("param_names" in group for group in groups):
        return None
    known = {_unwrap(theirs): ours for theirs, ours in ours_by_theirs.items()}
    theirs = [_unwrap(name) for group in groups for name in group["param_names"]]
    names = [known.get(name, name) for name in theirs]
    return names if sorted(names) == sorted(shapes) else None


def _unwrap(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _read_shapes(optimizer: States) -> dict[int, Shape | None]:
    """Return the shape of each parameter by its number; None where the optimizer keeps nothing."""
    shapes: dict[int, Shape | None] = {}
    for group in optimizer["param_groups"]:
        for index in group["params"]:
            kept = optimizer["state"].get(index, {}).values()
            tensors = [t for t in kept if isinstance(t, torch.Tensor) and t.ndim > 0]
            shapes[index] = tuple(tensors[0].shape) if tensors else None
    return shapes


def _match_shapes(
    groups: Sequence[States], kept: Mapping[int, Shape | None], shapes: Mapping[str, Shape]
) -> list[str]:
    """Return the names of the groups' parameters, one group after the other.

    In every group the parameters stand in the order of the model, so the model's list is the
    groups' lists merged. All merges whose shapes fit are followed at once, parameter by parameter:
    a place says how far each group is.

    Raises:
        InputError: no merge fits, or several do.
    """
    columns = [[kept[index] for index in group["params"]] for group in groups]
    places: dict[tuple[int, ...], tuple[int, list[int]]] = {(0,) * len(groups): (1, [])}
    for shape in shapes.values():
        following: dict[tuple[int, ...], tuple[int, list[int]]] = {}
        for place, (ways, owners) in places.items():
            for owner in _list_owners(columns, place, shape):
                after = (*place[:owner], place[owner] + 1, *place[owner + 1 :])
                before = following[after][0] if after in following else 0
                following[after] = (before + ways, [*owners, owner])
        places = following
        if len(places) > _MOST_PLACES:
            _refuse_ambiguous(len(groups))
    if not places:
        raise InputError(
            f"the shapes of what its optimizer keeps in {len(groups)} param groups are not those "
            "of the net in the order of its parameters; save the names with it, before "
            f"optimizer.state_dict(): {HOW_TO_NAME}"
        )
    ((ways, owners),) = places.values()
    if ways > 1:
        _refuse_ambiguous(len(groups))
    ordered = zip(owners, shapes, strict=True)
    return [name for _, name in sorted(ordered, key=lambda pair: pair[0])]


def _list_owners(
    columns: Sequence[Sequence[Shape | None]], place: tuple[int, ...], shape: Shape
) -> Iterator[int]:
    """Yield the groups whose next parameter may have this shape."""
    for owner, (column, done) in enumerate(zip(columns, place, strict=True)):
        if done < len(column) and column[done] in (shape, None):
            yield owner


def _refuse_ambiguous(count: int) -> None:
    raise InputError(
        f"its optimizer has {count} param groups, and which of them holds which parameter is not "
        "certain by the shapes of what it keeps; save the names with it, before "
        f"optimizer.state_dict(): {HOW_TO_NAME}"
    )


def _split(groups: Sequence[States], names: Sequence[str]) -> Iterator[Group]:
    """Yield the groups with their part of a list of names."""
    rest = iter(names)
    for group in groups:
        yield make_group([next(rest) for _ in group["params"]], group)


def _to_plain(value: Any) -> Any:
    """Return a setting as a plain value: a learning rate may be a tensor."""
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
