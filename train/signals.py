"""Signals that ask a run to stop: it saves, and leaves."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from train import mesh
from train.data import Sample


class StoppedError(Exception):
    """Somebody asked to stop."""


@contextmanager
def heard() -> Iterator[list[str]]:
    """The names of the signals that ask to stop; the second one of a kind kills as usual."""
    asked: list[str] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    # of several processes JAX itself hears SIGTERM, to tell the others
    for wanted in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
        before[wanted] = signal.signal(wanted, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until(asked: Sequence[str], samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples, as long as nobody asks to stop.

    Raises:
        StoppedError: somebody did, before the next one.
    """
    for sample in samples:
        if asked:
            raise StoppedError
        yield sample


def stops(asked: list[str], step: int) -> bool:
    """Whether to stop after this step; all processes of a run agree on it."""
    if jax.process_count() > 1 and mesh.preempted(step):
        asked.append("SIGTERM")
    return bool(asked)
