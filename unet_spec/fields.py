"""The fields of frozen dataclasses of plain values: their types, and their JSON."""

import dataclasses
import json
import typing
from typing import Any, Literal, TypeVar

from unet_spec.errors import InputError

T = TypeVar("T")


def from_json(cls: type[T], text: str) -> T:
    """A frozen dataclass of plain values from its JSON form."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{cls.__name__}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{cls.__name__}: a JSON object is needed, got {type(fields).__name__}")
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(fields.keys() - known):
        raise InputError(
            f"{cls.__name__}: unknown field {', '.join(unknown)}; a newer version may have made it"
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def check_types(config: Any) -> None:
    """Refuse a value that is not of its field's type: `InputError` with field and value."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(kind) is Literal:
            if value not in typing.get_args(kind):
                allowed = ", ".join(typing.get_args(kind))
                raise InputError(f"{name} is one of {allowed}, got {value!r}")
        elif typing.get_origin(kind) is tuple:
            item_kind = typing.get_args(kind)[0]
            if type(value) is not tuple or any(type(item) is not item_kind for item in value):
                raise InputError(
                    f"{name} holds {typing.get_args(kind)[0].__name__}s, got {value!r}"
                )
        elif type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{name} is of type {kind.__name__}, got {value!r}")
