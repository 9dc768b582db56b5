"""A process of several runs in a child that this one watches.

JAX ends a process with a page of C++ when another one died; here it ends with a sentence.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence

_WATCHED_VARIABLE = "UNET_TRAIN_WATCHED"

LOST = 75  # exit status of a child that was left alone
DIED = (
    "another process of the run died or fell silent, so this one ended too; nothing but the steps "
    "since the last checkpoint is lost: start all processes again with the same commands"
)

ENDED = (
    "{} ended this process (SIGKILL is often for lack of memory); nothing but the steps since the "
    "last checkpoint is lost: start all processes again with the same commands"
)


def is_watched() -> bool:
    """Return whether this process is a child of `run_watched`."""
    return os.environ.get(_WATCHED_VARIABLE) == "1"


def run_watched(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Run the command `unet` in a child; return its status, and a sentence if it was ended.

    Signals are passed on as SIGTERM, and its own sentences; all else that it says of errors, only
    where it has no sentence for them.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "unet_cli", *arguments],
        env={**os.environ, _WATCHED_VARIABLE: "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C comes by way of this process alone
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: child.terminate())
    assert child.stderr is not None
    has_spoken, rest = False, deque[str](maxlen=500)
    for line in child.stderr:
        if line.startswith(("unet: ", "SIG")):
            has_spoken = True
            print(line, end="", file=sys.stderr, flush=True)
        else:
            rest.append(line)
    status = child.wait()
    ended_by_jax = status < 0 and any("coordination_service" in line for line in rest)
    if status == LOST or ended_by_jax:
        return (1, None) if has_spoken else (1, DIED)
    asked_from_outside = -status in (signal.SIGTERM, signal.SIGKILL)
    if status and not has_spoken and not asked_from_outside:
        sys.stderr.writelines(rest)
    if status < 0:
        reason = None if has_spoken else ENDED.format(signal.Signals(-status).name)
        return 128 - status, reason
    return status, None


def die_with_the_parent() -> None:
    """End this child at once when the process that watches it is killed."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock Python would wait for at its end
            pass
        os._exit(LOST)

    threading.Thread(target=wait, daemon=True).start()


def exit_now(status: int) -> None:
    """End this process at once after an error.

    An orderly end would wait for the other processes, and they wait for this one.
    """
    if is_watched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
