"""Words that the parser refuses become one sentence: what is wrong, what may stand there, and
where the help is."""

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from unet_command.wording import list_flags, negate, show_word, show_words
from unet_spec import InputError
from unet_train.config import PROMISES

Verb = Callable[..., Any]
_NOUNS = {int: "whole number", float: "number", str: "word", Path: "path"}
OF_PRESETS = {"train": "--out RUN", "plan": "--topology v5e:4x4"}
"""The verbs that take a preset, each with the flag that it cannot do without."""
_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)


def explain_refusal(words: Sequence[str], verbs: Mapping[str, Verb]) -> str | None:
    """Return why a command cannot be run, in a sentence; None where nothing is found.

    Args:
        words: what was typed after `unet`, at least one.
        verbs: functions by their names.
    """
    name, *rest = words
    if name not in verbs:
        return (
            f"{show_word(name)} is no verb of unet{_list_near(name, verbs)}; unet --help lists all"
        )
    fault = next(_find_faults(name, rest, verbs), None)
    if fault is None:
        return None
    preset = [word for word in rest if word in PROMISES][:1] if name in OF_PRESETS else []
    return f"{fault}; {' '.join(['unet', name, *preset, '--help'])} lists all"


def check_switches(words: Sequence[str], verb: Verb) -> None:
    """Refuse `--quick=no`, whose value the parser takes for the name of a file.

    Raises:
        InputError: naming the flag.
    """
    for word in words:
        flag, equals, value = word.partition("=")
        if equals and flag.startswith("--") and list_kinds(verb).get(flag) is bool:
            raise InputError(f"{flag} takes no value, got {show_word(value)}; give it alone")


def list_kinds(verb: Verb) -> dict[str, Any]:
    """Return the type of what each flag of a verb takes; it is `bool` where it takes nothing."""
    kinds: dict[str, Any] = {
        flag: typing.get_type_hints(config)[field]
        for (config, field), flag in list_flags(verb).items()
        if field != "preset"
    }
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("command", "config"):
            kinds["--" + name.replace("_", "-")] = _strip(parameter.annotation)
    kinds.pop("--preprocessing", None)  # a config, whose fields have the flags
    return {**kinds, **{negate(flag): bool for flag, kind in kinds.items() if kind is bool}}


def describe_kind(kind: Any) -> str:
    """Return what a flag of this type takes.

    >>> describe_kind(int), describe_kind(tuple[float, float]), describe_kind(Literal["a", "b"])
    ('a whole number', '2 numbers', 'one of a, b')
    """
    kind = _drop_none(kind)
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(items)
    if typing.get_origin(kind) is not tuple:
        return f"a {_NOUNS[kind]}"
    nouns = _NOUNS[items[0]] + "s"
    return nouns if Ellipsis in items else f"{len(items)} {nouns}"


def _find_faults(name: str, words: list[str], verbs: Mapping[str, Verb]) -> Iterator[str]:
    """Yield what is wrong with the words after a verb."""
    kinds, (places, least, most) = list_kinds(verbs[name]), _list_places(name, verbs[name])
    others, groups = _group_by_flags(words)
    for typed, values in groups:
        flag, shown = typed.replace("_", "-"), show_word(typed)
        kind = kinds.get(flag)
        if kind is None:
            owners = [verb for verb in verbs if flag in list_kinds(verbs[verb])]
            near = f", but one of {owners[0]}" if owners else _list_near(flag, kinds)
            yield f"{shown} is no flag of {name}{near}"
            continue
        if kind is bool and values and len(others) + len(values) > most:
            yield f"{shown} takes no value, got {show_word(values[0])}"
        count, is_open = _count_values(kind)
        if not is_open:
            others += values[count:]
            values = values[:count]
        wrong = [value for value in values if not _fits(value, kind)]
        if wrong or (count is not None and len(values) != count and values != ["None"]):
            got = show_words(wrong[:1] or values)
            yield f"{shown} takes {describe_kind(kind)}, got {got}"
    if len(others) > most:
        takes = f"no word but {' and '.join(places)}" if places else "no word but its flags"
        yield f"{show_word(others[int(most)])} is one word too many; {name} takes {takes}"
    if len(others) < least:
        yield f"{name} needs {places[len(others)]}, and it is missing"
    given = {flag.replace("_", "-") for flag, _ in groups}
    if name in ("train", "predict") and "--out" not in given:
        yield f"{name} needs --out with {describe_kind(Path)}, and it is missing"
    if name == "plan" and "--topology" not in given:
        yield "plan needs --topology with words, and it is missing"
    if name in OF_PRESETS:
        preset = next(number for number, word in enumerate(words) if word in PROMISES)
        for flag in (word.partition("=")[0] for word in words[:preset]):
            if flag.startswith("--"):
                yield f"{flag} stands before the preset; write it behind {words[preset]}"


def _list_places(name: str, verb: Verb) -> tuple[list[str], int, float]:
    """Return what a verb takes that is no flag: the names, and the least and most of them."""
    if name in OF_PRESETS:
        return ["a preset"], 1, 1
    parameters = [
        (parameter, _strip(parameter.annotation))
        for parameter in inspect.signature(verb).parameters.values()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    is_several = any(typing.get_origin(kind) is tuple for _, kind in parameters)
    names = [parameter.name.upper() for parameter, _ in parameters]
    least = sum(
        parameter.default is parameter.empty and typing.get_origin(kind) is not tuple
        for parameter, kind in parameters
    )
    return names, least, float("inf") if is_several else len(names)


def _group_by_flags(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the words that stand behind no flag, and each flag with the words behind it."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for number, word in enumerate(words):
        if word == "--":  # no word behind it is a flag
            groups.append(("", list(words[number + 1 :])))
            break
        if word.startswith("-") and len(word) > 1 and not _NEGATIVE.match(word):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    others = [word for flag, values in groups if not flag for word in values]
    return others, [(flag, values) for flag, values in groups if flag]


def _count_values(kind: Any) -> tuple[int | None, bool]:
    """Return how many words a flag of this type takes, None for any number; and whether it gets
    all that stand behind it."""
    if kind is bool:
        return 0, False
    given = _drop_none(kind)
    if typing.get_origin(given) is not tuple:
        return 1, False
    items = typing.get_args(given)
    count = None if Ellipsis in items else len(items)
    return count, count is None or given is not kind


def _fits(word: str, kind: Any) -> bool:
    """Return whether a word is a value of this type, or of its items."""
    if type(None) in typing.get_args(kind) and word == "None":
        return True
    kind = _drop_none(kind)
    if typing.get_origin(kind) is Literal:
        return word in typing.get_args(kind)
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    try:
        kind(word)
    except ValueError:
        return False
    return True


def _list_near(word: str, known: Iterable[str]) -> str:
    """Return the names that a word may stand for, as a part of a sentence; empty without any."""
    names = {name.lstrip("-"): name for name in known}
    sought = word.lstrip("-")[:80]
    # the part before the point is easily forgotten
    near = [name for short, name in names.items() if short.endswith("." + sought)]
    near = near or [names[name] for name in difflib.get_close_matches(sought, names, cutoff=0.7)]
    if not near:
        return ""
    return f"; {', '.join(near)} {'is' if len(near) == 1 else 'are'} near it"


def _strip(kind: Any) -> Any:
    """Return a type without what the parser is told beside it."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _drop_none(kind: Any) -> Any:
    """Return the type of a value that may be None, where it is given."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    (given,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    return given
