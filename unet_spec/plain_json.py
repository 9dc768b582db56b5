"""JSON from files, read with care: what Python takes too easily is refused."""

import json
import math
from typing import Any

MOST_LEVELS = 200
"""Objects and lists in one another; code that walks through them calls itself for each."""


def read_json(text: str | bytes) -> Any:
    """Return what a JSON says.

    Raises:
        ValueError: it is no JSON; a name stands twice in an object, so that one of the values would
            be lost; a number is NaN, infinite or longer than Python reads; or objects and lists are
            nested in too many levels.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=_make_object,
            parse_constant=_refuse_constant,
            parse_float=_read_float,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):  # Python's words, which advise to raise it
            raise ValueError("it has a number of thousands of digits") from error
        raise
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError("it is nested too deeply")
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return content


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in it")
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value
