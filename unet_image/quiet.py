"""Decoders that say nothing themselves: what they find is raised, or does not matter."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = "PIL|tifffile|imagecodecs|zarr|numcodecs"
_inside = threading.local()


@contextmanager
def silence_decoders() -> Iterator[None]:
    """Keep warnings and log lines of the decoders from being printed, in this thread.

    A file of which they warn is either read whole or refused by our own sentence.
    """
    # No `catch_warnings`: it puts the filters of the whole process back, also those that another
    # thread has set meanwhile. This filter stays, and is for these libraries only.
    warnings.filterwarnings("ignore", module=rf"({LIBRARIES})(\.|$)")
    before = getattr(_inside, "is_reading", False)
    _inside.is_reading = True
    try:
        yield
    finally:
        _inside.is_reading = before


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return whether a log line comes of another's use of the library."""
    return not getattr(_inside, "is_reading", False)


for _name in LIBRARIES.split("|"):
    logging.getLogger(_name).addFilter(_is_not_ours)
