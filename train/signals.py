"""Signals that ask a run to stop: it saves, and leaves."""

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from train import mesh
from train.data import Sample

AGAIN_S = 1.0  # a terminal and a wrapper may both pass on the same Ctrl-C


class StoppedError(Exception):
    """Somebody asked to stop."""


@contextmanager
def heard() -> Iterator[list[str]]:
    """The names of the signals that ask to stop; who asks again, later, is not kept waiting."""
    asked: list[str] = []
    before: dict[int, Any] = {}
    since = math.inf

    def ask(number: int, _: Any) -> None:
        nonlocal since
        name, now = signal.Signals(number).name, time.monotonic()
        if not asked:
            asked.append(name)
            since = now
            # not print, in which it may have come
            os.write(
                2, f"{name}: saving, then it stops; once more, and it stops at once\n".encode()
            )
        elif now - since > AGAIN_S:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

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
