"""Errors of what the user gave: one sentence each, which may name fields of a config."""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from unet_spec.wording import show, show_value

LONGEST_VALUE = 300
"""A sentence shows so many characters of a value that something else than a person gave."""


class InputError(ValueError):
    """An `InputError` is raised where what the user gave cannot be used.

    Its text is one sentence with the name, the rule and the remedy.

    The command `unet` prints it and ends with status 2; anything else it lets through is a bug.
    Names from files may stand in it, so it is kept to one line of characters that can be shown.
    """

    def __init__(self, sentence: str):
        super().__init__(show(sentence))


@dataclass(frozen=True)
class Name:
    """A `Name` is a field of a config, as a sentence names it.

    Attributes:
        owner: the config class that the path starts from.
        path: names that lead to the field: `batch` in `DataConfig`, `data.batch` in `TrainConfig`.
    """

    owner: type
    path: str


@dataclass(frozen=True)
class Setting:
    """A `Setting` is a field of a config together with a value, as a sentence names both."""

    name: Name
    value: Any


@dataclass(frozen=True)
class Value:
    """A `Value` is what a field was given, as a sentence shows it."""

    value: Any


Part = str | Name | Setting | Value


class ConfigError(InputError):
    """A `ConfigError` is an `InputError` whose sentence names fields of a config.

    The fields stay values, so that whoever shows the sentence can name them in the reader's own
    terms: Python's by default (`crop_px=50`), and a flag of the command line there
    (`--data.crop-px 50`). A template marks them:

    - `{crop_px}` is the name of the field,
    - `{crop_px=}` its name and the value that it has in the config,
    - `{crop_px=64}` its name and another value, such as the one that is advised,
    - `{anything}` that is among `values` is that value as it stands.

    >>> from unet_spec import SLIDES
    >>> print(ConfigError(SLIDES, "{file}: use {bias=False}, not {bias=}", file="net.json"))
    net.json: use bias=False, not bias=True

    Attributes:
        parts: the sentence, from its first part to its last.
    """

    def __init__(self, config: Any, template: str, /, **values: Any):
        """Fill the template.

        Args:
            config: an instance, or a class where no `{name=}` asks for a value.
            template: the sentence.
            values: whatever else it is filled with.
        """
        self.parts = tuple(_split(config, template, values))
        super().__init__(self.word(_word_in_python))

    def word(self, word_part: Callable[[Part], str]) -> str:
        """Return the sentence in which names, settings and values are worded by a function."""
        return show(
            "".join(part if isinstance(part, str) else word_part(part) for part in self.parts)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross the border of a process as a plain sentence: not every config can be pickled."""
        return InputError, (str(self),)


class FieldError(ConfigError):
    """A `FieldError` is raised where the value of one field breaks a rule.

    Its sentence is "FIELD RULE, got VALUE; REMEDY".

    >>> from unet_spec import SLIDES
    >>> print(FieldError(SLIDES, "bias", "is False with {norm=batch}", remedy="use {norm=none}"))
    bias is False with norm=batch, got True; use norm=none

    Attributes:
        field: the path of the field in its config.
        rule: what the value has to be, as a template of `ConfigError`.
        value: what it is.
        remedy: what to do, as a template; empty where the rule says it.
    """

    def __init__(self, config: Any, field: str, rule: str, /, *, remedy: str = "", **values: Any):
        """Take the value from the config, which is an instance."""
        self.field, self.rule, self.remedy = field, rule, remedy
        self.value = attrgetter(field)(config)
        template = f"{{{field}}} {rule}, got {{got}}" + (f"; {remedy}" if remedy else "")
        super().__init__(config, template, got=Value(self.value), **values)


def _split(config: Any, template: str, values: dict[str, Any]) -> Iterator[Part]:
    """Yield the parts of a template, filled."""
    owner = config if isinstance(config, type) else type(config)
    for text, marked, _, _ in string.Formatter().parse(template):
        yield text
        if marked is None:
            continue
        path, equals, value = marked.partition("=")
        if marked in values:
            value = values[marked]
            yield value if isinstance(value, Value) else str(value)
        elif not equals:
            yield Name(owner, path)
        else:
            yield Setting(Name(owner, path), value or attrgetter(path)(config))


def _word_in_python(part: Part) -> str:
    """Return a name or a value as Python has it."""
    match part:
        case Name(_, path):
            return path
        case Setting(name, value):
            return f"{name.path}={value}"
        case Value(Path() as path):
            return str(path)
        case Value(int() as number):
            return show_value(number)
        case Value(value):
            text = repr(value)
            return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..."
        case str():
            return part
