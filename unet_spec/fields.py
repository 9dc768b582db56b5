"""Fields of frozen dataclasses of plain values: their types, and their JSON."""

import dataclasses
import functools
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from unet_spec.errors import ConfigError, FieldError, InputError
from unet_spec.plain_json import read_json
from unet_spec.ranges import Range, find_ranges
from unet_spec.wording import list_names

T = TypeVar("T")


def from_json(cls: type[T], text: str) -> T:
    """Return a frozen dataclass of plain values, or of such dataclasses, from its JSON form.

    Raises:
        InputError: not JSON, an unknown field, or a value that a field does not allow. It is not
            a `ConfigError`: what a file says was typed by nobody.
    """
    try:
        plain = read_json(text)
    except ValueError as error:
        raise InputError(f"{cls.__name__}: not JSON ({error})") from error
    try:
        return _from_plain(cls, plain)
    except ConfigError as error:
        raise InputError(f"{cls.__name__}: {error}") from error


def check_fields(config: Any) -> None:
    """Refuse a value that is not of its field's type, or not in the range that the type states.

    Raises:
        FieldError: naming the field.
    """
    check_types(config)
    for name, ranges in _list_ranges(config.__class__).items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        for allowed in ranges:
            for number in numbers:
                rule = None if number is None else allowed.find_fault(number)
                if rule is not None:
                    each = " for each" if isinstance(value, tuple) and not allowed.rule else ""
                    raise FieldError(config, name, rule + each)


def check_types(config: Any) -> None:
    """Refuse a value that is not of its field's type.

    Raises:
        FieldError: it has another type, or is none of the words that are allowed.
    """
    for name, kind in _list_kinds(config.__class__).items():
        if _fits(getattr(config, name), kind):
            continue
        if typing.get_origin(kind) is Literal:
            allowed = ", ".join(typing.get_args(kind))
            raise FieldError(config, name, "is one of {allowed}", allowed=allowed)
        if typing.get_origin(kind) is tuple:
            (item, *_) = typing.get_args(kind)
            raise FieldError(config, name, "holds {kind}s", kind=item.__name__)
        raise FieldError(config, name, "is of type {kind}", kind=_describe_type(kind))


def _from_plain(cls: type[T], fields: Any) -> T:
    if not isinstance(fields, dict):
        raise InputError(f"{cls.__name__}: a JSON object is needed, got {type(fields).__name__}")
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(fields.keys() - kinds.keys()):
        raise InputError(
            f"{cls.__name__}: unknown field {list_names([name[:100] for name in unknown], 4)}; a "
            "newer version may have made it"
        )
    return cls(**{name: _convert(kinds[name], value) for name, value in fields.items()})


@functools.cache  # the start of a command makes many configs
def _list_kinds(cls: type) -> dict[str, Any]:
    """Return the type of each field, without what is annotated."""
    return typing.get_type_hints(cls)


@functools.cache
def _list_ranges(cls: type) -> dict[str, list[Range]]:
    """Return the ranges of each field."""
    kinds = typing.get_type_hints(cls, include_extras=True)
    return {name: find_ranges(kind) for name, kind in kinds.items()}


def _convert(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return _from_plain(typing.cast(type, kind), value)
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type as `typing` writes it."""
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in items
    if typing.get_origin(kind) is tuple:
        if type(value) is not tuple or not (Ellipsis in items or len(items) == len(value)):
            return False
        return all(_fits(item, items[0]) for item in value)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in items)
    if kind is Path:
        return isinstance(value, Path)
    return type(value) is kind or (kind is float and type(value) is int)


def _describe_type(kind: Any) -> str:
    kinds = typing.get_args(kind) or (kind,)
    return " or ".join("None" if one is types.NoneType else one.__name__ for one in kinds)
