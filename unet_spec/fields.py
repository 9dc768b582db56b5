"""The fields of frozen dataclasses of plain values: their types, and their JSON."""

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from unet_spec.errors import InputError

T = TypeVar("T")


def from_json(cls: type[T], text: str) -> T:
    """Read a frozen dataclass of plain values, or of such dataclasses, from its JSON form."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{cls.__name__}: not JSON ({error})") from error
    return _from_plain(cls, fields)


def check_types(config: Any) -> None:
    """Refuse a value that is not of its field's type: `InputError` with field and value."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if _fits(value, kind):
            continue
        if typing.get_origin(kind) is Literal:
            allowed = ", ".join(typing.get_args(kind))
            raise InputError(f"{name} is one of {allowed}, got {value!r}")
        if typing.get_origin(kind) is tuple:
            raise InputError(f"{name} holds {typing.get_args(kind)[0].__name__}s, got {value!r}")
        raise InputError(f"{name} is of type {_name(kind)}, got {value!r}")


def _from_plain(cls: type[T], fields: Any) -> T:
    if not isinstance(fields, dict):
        raise InputError(f"{cls.__name__}: a JSON object is needed, got {type(fields).__name__}")
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(fields.keys() - kinds.keys()):
        raise InputError(
            f"{cls.__name__}: unknown field {', '.join(unknown)}; a newer version may have made it"
        )
    return cls(**{name: _value(kinds[name], value) for name, value in fields.items()})


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return _from_plain(typing.cast(type, kind), value)
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        counted = Ellipsis in items or len(items) == len(value) if type(value) is tuple else False
        return counted and all(_fits(item, items[0]) for item in value)
    if typing.get_origin(kind) is types.UnionType:
        return any(_fits(value, one) for one in typing.get_args(kind))
    return type(value) is kind or (kind is float and type(value) is int)


def _name(kind: Any) -> str:
    kinds = typing.get_args(kind) or (kind,)
    return " or ".join("None" if one is types.NoneType else one.__name__ for one in kinds)
