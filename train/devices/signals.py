"""Signals that ask a run to stop. Nothing here imports JAX: one may come before it is there."""

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
    """Somebody asked to stop."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Where no steps are under way a signal ends the process: an exception would be swallowed in a
    callback, as JAX has one in the garbage collection. Files are whole or not there."""

    def leave(number: int) -> None:
        _print_line(f"unet: {signal.Signals(number).name}; what was written before is whole")
        os._exit(128 + number)

    with _install_handlers(leave):
        yield


@contextmanager
def collect_signals() -> Iterator[list[str]]:
    """The names of the signals that ask to stop; who asks again, later, is not kept waiting."""
    asked: list[str] = []
    since = math.inf

    def ask(number: int) -> None:
        nonlocal since
        name, now = signal.Signals(number).name, time.monotonic()
        if not asked:
            asked.append(name)
            since = now
            _print_line(f"{name}: saving, then it stops; once more, and it stops at once")
        elif now - since > AGAIN_S:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

    with _install_handlers(ask) as before:
        yield asked


def iterate_until_stopped(asked: Sequence[str], items: Iterable[T]) -> Iterator[T]:
    """The items, as long as nobody asks to stop.

    Raises:
        StoppedError: somebody did, before the next one.
    """
    for item in items:
        if asked:
            raise StopAskedError
        yield item


@contextmanager
def _install_handlers(handler: Callable[[int], None]) -> Iterator[dict[int, Any]]:
    """The handlers of before, which come back at the end."""
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
