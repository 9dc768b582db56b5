"""Decoders that say nothing themselves: what they find is raised, or does not matter."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = "PIL|tifffile|imagecodecs|zarr|numcodecs"
_inside = threading.local()
_descriptor_lock = threading.Lock()


@contextmanager
def silence_decoders() -> Iterator[None]:
    """Keep warnings and log lines of the decoders from being printed, in this thread.

    A file of which they warn is either read whole or refused by our own sentence.
    """
    # No `catch_warnings`: it puts the filters of the whole process back, also those that another
    # thread has set meanwhile. This filter stays, and is for these libraries only.
    # (What Python itself warns of in an expression that tifffile evaluates has no module.)
    warnings.filterwarnings("ignore", module=rf"({LIBRARIES})(\.|$)|<unknown>$")
    before = getattr(_inside, "is_reading", False)
    _inside.is_reading = True
    try:
        yield
    finally:
        _inside.is_reading = before


@contextmanager
def silence_errors() -> Iterator[None]:
    """Keep a C library, which writes into the standard error, from being heard.

    Meanwhile no thread of the process is heard there, so it is only for a library that does.
    """
    with _descriptor_lock:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return whether a log line comes of another's use of the library."""
    return not getattr(_inside, "is_reading", False)


for _name in LIBRARIES.split("|"):
    logging.getLogger(_name).addFilter(_is_not_ours)
