"""An error becomes the one sentence after `unet: `, with fields named as the flags of the verb."""

import errno
import shlex
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from unet_spec.errors import ConfigError, Name, Part, Setting, Value
from unet_spec.wording import make_printable

Flags = dict[tuple[type, str], str]
"""The flag of each field: (`DataConfig`, `crop_px`) is `--data.crop-px`."""


def list_flags(verb: Callable[..., Any]) -> Flags:
    """Return the flags of all fields of the configs that a verb takes."""
    hints = typing.get_type_hints(verb, include_extras=True)
    flags: Flags = {}
    for name, hint in hints.items():
        config, prefix = hint, f"{name}."
        if typing.get_origin(hint) is typing.Annotated:
            config, *options = typing.get_args(hint)
            if any(getattr(option, "name", None) == "" for option in options):
                prefix = ""
        if is_dataclass(config):
            flags |= list_fields(typing.cast(type, config), prefix)
    return flags


def list_fields(config: type, prefix: str = "") -> Flags:
    """Return the flags of all fields of a config, and of the configs in it.

    Args:
        config: a dataclass.
        prefix: what stands before each name, such as `net.`.
    """
    flags: Flags = {}
    for field in fields(config):
        if isinstance(field.type, type) and is_dataclass(field.type):
            flags |= list_fields(field.type, f"{prefix}{field.name}.")
        else:
            flags[config, field.name] = "--" + f"{prefix}{field.name}".replace("_", "-")
    return flags


def word_error(error: Exception, flags: Flags) -> str:
    """Return the sentence of an error that wrong input or the system caused.

    Args:
        error: an `InputError` or an `OSError`.
        flags: those of the verb that was typed; fields without a flag keep their names.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "mend that, or name another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room, or name another place"
        return make_printable(f"{where}{error.strerror}; {remedy}")
    sentence = str(error)
    if isinstance(error, ConfigError):
        sentence = error.word(lambda part: _word_as_typed(part, flags))
    # names of files, and what files say, may be anything
    return make_printable(" ".join(sentence.split()))


def _word_as_typed(part: Part, flags: Flags) -> str:
    match part:
        case Value(value):
            return _type(value)
        case Setting(name, value):
            flag = _find_flag(name, flags)
            if flag is None:
                return f"{name.path}={value}"
            if value is True:
                return flag
            if value is False:
                return _negate(flag)
            return f"{flag} {_type(value)}"
        case Name():
            return _find_flag(part, flags) or part.path
        case str():
            return part


def _find_flag(name: Name, flags: Flags) -> str | None:
    """Return the flag of a field, or None where the verb has none."""
    owner, path = name.owner, name.path.split(".")
    for part in path[:-1]:
        kinds = {field.name: field.type for field in fields(owner)} if is_dataclass(owner) else {}
        kind = kinds.get(part)
        if not isinstance(kind, type):
            return None
        owner = kind
    return flags.get((owner, path[-1]))


def _negate(flag: str) -> str:
    """Return the flag that turns another off: `--net.no-bias` of `--net.bias`."""
    prefix, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{prefix}{dot}no-{name}"


def _type(value: Any) -> str:
    """Return a value as it is typed after its flag."""
    if isinstance(value, tuple):
        return " ".join(map(_type, value)) or "nothing"
    return shlex.quote(str(value))
