"""Words that several refusals and reports share."""

from collections.abc import Sequence

LONGEST_NAME = 1000
"""The name of a tensor or a class has at most so many characters."""
LONGEST = 2000
"""A sentence has at most so many characters; the middle of a longer one is left out."""


def is_name(name: str) -> bool:
    """Return whether a text can be a name that tables and sentences show."""
    return name.isprintable() and len(name) <= LONGEST_NAME


def show(text: str) -> str:
    """Return a text as one line for a terminal, whatever file it came from.

    Line breaks, escape sequences and half characters become visible escapes.

    >>> print(show("a\\x1b[31m and \\n"))
    a\\x1b[31m and \\n
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_names(names: Sequence[str], limit: int) -> str:
    """List names in a sentence: the first ones, and the number of the others.

    >>> list_names(["neck", "up_1", "out"], 4)
    'neck, up_1, out'
    >>> list_names(["neck", "up_1", "out"], 1)
    'neck and 2 more'
    """
    listed = ", ".join(names[:limit])
    if len(names) > limit:
        return f"{listed} and {len(names) - limit} more"
    return listed
