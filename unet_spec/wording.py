"""Words that several refusals and reports share."""

from collections.abc import Sequence


def make_printable(text: str) -> str:
    r"""Return a text with escapes in the place of what would steer a terminal, or end the line.

    >>> make_printable("a\x1b[31m.png")
    'a\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
