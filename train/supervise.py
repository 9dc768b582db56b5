"""One process of several, watched: JAX ends it without a word where another one died."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_WATCHED = "UNET_TRAIN_WATCHED"

DIED = (
    "another process of the run died or fell silent, so this one ended too; nothing but the steps "
    "since the last checkpoint is lost: start all processes again with the same commands"
)


def is_watched() -> bool:
    """Whether this process runs under `watched`."""
    return os.environ.get(_WATCHED) == "1"


def watched(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Run the command `unet` again as a child: its exit status, and a sentence if JAX ended it.

    Signals are passed on.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "unet_cli", *arguments], env={**os.environ, _WATCHED: "1"}
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: child.send_signal(n))
    status = child.wait()
    return (1, DIED) if status in (-signal.SIGABRT, -signal.SIGSEGV) else (status, None)
