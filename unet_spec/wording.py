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
    """Return a text as one line for a terminal, whatever file it came from, and cut."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return make_printable(text)


def make_printable(text: str) -> str:
    r"""Return a text on one line: line breaks, escape sequences and half characters become escapes
    that can be seen.

    >>> make_printable("a\tb\x1b[2J")
    'a\\tb\\x1b[2J'
    """
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


def shorten(text: str, limit: int) -> str:
    """Return the beginning of a text that is longer than a sentence bears, and its length.

    >>> shorten("9" * 5000, 8)
    '99999999... (5000 characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def show_value(value: object) -> str:
    """Return a value as a text; Python writes no integer of more than 4,300 digits.

    >>> show_value(10**30), show_value(2**20_000)
    ('1000000000000000000000000000000', 'an integer of 20001 bits')
    """
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"an integer of {value.bit_length()} bits"
    return str(value)
