"""Signals that ask a run to stop.

Nothing here imports JAX, because a signal may come before JAX is there.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

AGAIN_S = 1.0  # a terminal and a wrapper may both pass on the same Ctrl-C


class StopAskedError(Exception):
    """A `StopAskedError` is raised when somebody asks to stop."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """End the process at once when a signal comes in the block, in which no steps are taken.

    An exception would be swallowed in a callback, such as JAX's in the garbage collection. Files
    are whole or not there.
    """

    def leave(number: int) -> None:
        _print_line(f"unet: {signal.Signals(number).name}; what was written before is whole")
        os._exit(128 + number)

    with _install_handlers(leave):
        yield


@contextmanager
def collect_signals() -> Iterator[list[str]]:
    """Yield a list that gets the names of the signals that ask to stop.

    A second one, more than `AGAIN_S` after the first, acts as if nobody had collected it.
    """
    names: list[str] = []
    first_s = math.inf

    def ask(number: int) -> None:
        nonlocal first_s
        name, now = signal.Signals(number).name, time.monotonic()
        if not names:
            names.append(name)
            first_s = now
            _print_line(f"{name}: saving, then it stops; once more, and it stops at once")
        elif now - first_s > AGAIN_S:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

    with _install_handlers(ask) as before:
        yield names


def iterate_until_stopped(requests: Sequence[str], items: Iterable[T]) -> Iterator[T]:
    """Yield the items, as long as nobody asks to stop.

    Args:
        requests: names of signals, as `collect_signals` yields them.

    Raises:
        StoppedError: somebody did, before the next one.
    """
    for item in items:
        if requests:
            raise StopAskedError
        yield item


@contextmanager
def _install_handlers(handler: Callable[[int], None]) -> Iterator[dict[int, Any]]:
    """Call a handler for signals in the block; yield the handlers that come back at its end."""
    before: dict[int, Any] = {}
    for wanted in (signal.SIGTERM, signal.SIGINT):
        before[wanted] = signal.signal(wanted, lambda number, _: handler(number))
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _print_line(text: str) -> None:
    """Print a line to stderr, even where the signal has interrupted a print."""
    os.write(2, f"{text}\n".encode())
