"""Cases run one after another in child processes that are watched: for their memory and time."""

import contextlib
import io
import multiprocessing
import os
import re
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from unet_spec import InputError

SECONDS = 5.0  # of processor time that a case may take
HANG_SECONDS = 60.0  # by the clock, after which a case is ended; a busy machine is slow
MEGABYTES = 1024.0  # above what the child has at its start
ADDRESS_SPACE = 8 * 2**30  # bytes above the start: what asks for more fails, and the machine lives
FAULTS = (
    "traceback", "slow", "memory", "left behind", "not the same", "not finite", "noise", "lost",
    "late", "unclear",
)  # fmt: skip


class WorkBegins(BaseException):
    """The case got to the point at which real work would begin."""


@dataclass(frozen=True)
class Case:
    """A `Case` is one wrong input.

    Attributes:
        group: what the table counts it under, such as a kind of file.
        what: how it was made, in words.
        number: of the seed that makes it.
    """

    group: str
    what: str
    number: int
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """An `Outcome` is what became of a case.

    Attributes:
        end: `refused`, `read` or `begun`; or one of `FAULTS`.
        detail: of a fault, what it is.
    """

    end: str
    detail: str = ""


@dataclass
class Tally:
    """A `Tally` counts outcomes.

    Attributes:
        counts: how many of each end, by group.
        faults: the cases that are faults, with their details.
        peak_mb: the largest memory of a child above its start.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    peak_mb: float = 0.0

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count one case."""
        ends = self.counts.setdefault(case.group, {})
        ends[outcome.end] = ends.get(outcome.end, 0) + 1
        if outcome.end in FAULTS:
            place = {"group": case.group, "what": case.what, "number": case.number}
            self.faults.append({**place, **asdict(outcome)})


Runner = Callable[[Case, Path], Outcome]


def run_watched(
    cases: Sequence[Case],
    prepare: Callable[[Path], Runner],
    folder: Path,
    tally: Tally,
    *,
    children: int,
    say: Callable[[str], None],
) -> None:
    """Run every case in one of several children, and count what became of it.

    A child that takes too long, dies, or has grown too large is replaced.

    Args:
        prepare: is called in each child with a folder of its own, and returns what runs a case
            there; it is a function of a module.
        folder: in which the children's folders are made.
    """
    context = multiprocessing.get_context("spawn")
    parts = [list(cases[start::children]) for start in range(children)]
    running: dict[Connection, _Child] = {}
    for number, part in enumerate(parts):
        if part:
            child = _Child(context, prepare, folder / str(number), part)
            running[child.pipe] = child
    done, began = 0, time.monotonic()
    while running:
        ready = wait(list(running), timeout=1.0)
        for pipe in [pipe for pipe in running if pipe in ready or running[pipe].is_late]:
            child = running.pop(pipe)
            finished, again = child.take(pipe in ready, tally)
            done += finished
            if finished and done % 500 == 0:
                seconds = time.monotonic() - began
                say(f"{done} of {len(cases)} cases, {len(tally.faults)} faults, {seconds:.0f} s")
            if again is not None:
                running[again.pipe] = again


class _Child:
    """A `_Child` is a process that works through a list of cases, as its parent sees it."""

    def __init__(self, context: Any, prepare: Any, folder: Path, cases: list[Case]):
        self._context, self._prepare, self._folder, self._cases = context, prepare, folder, cases
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(theirs, prepare, folder, cases), daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard = time.monotonic() + HANG_SECONDS  # it has to import everything first

    @property
    def is_late(self) -> bool:
        """Whether nothing was heard of it for too long."""
        return time.monotonic() > self._heard + HANG_SECONDS

    def take(self, has_message: bool, tally: Tally) -> tuple[int, "_Child | None"]:
        """Count the next outcome; return how many cases ended, and the child that goes on."""
        if not has_message:
            self._process.kill()
            return self._replace(Outcome("slow", f"no end in {HANG_SECONDS:.0f} s"), tally)
        try:
            message = self.pipe.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            if not self._cases:
                return 0, None
            if status == 0:  # it has grown too large, and has said so
                return 0, _Child(self._context, self._prepare, self._folder, self._cases)
            return self._replace(Outcome("traceback", f"the process died ({status})"), tally)
        self._heard = time.monotonic()
        outcome, grown_mb = message
        tally.peak_mb = max(tally.peak_mb, grown_mb)
        tally.add(self._cases.pop(0), outcome)
        return 1, self

    def _replace(self, outcome: Outcome, tally: Tally) -> tuple[int, "_Child | None"]:
        tally.add(self._cases.pop(0), outcome)
        self._process.join()
        if not self._cases:
            return 1, None
        return 1, _Child(self._context, self._prepare, self._folder, self._cases)


def _work(pipe: Connection, prepare: Any, folder: Path, cases: list[Case]) -> None:
    """Run the cases, and send each outcome with the memory that this process has grown by."""
    folder.mkdir(parents=True, exist_ok=True)
    run = prepare(folder)
    start_mb = peak_mb()
    space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE,) * 2)
    for case in cases:
        before = time.process_time()
        outcome = run_case(run, case, folder)
        seconds, grown_mb = time.process_time() - before, peak_mb() - start_mb
        if outcome.end not in FAULTS and grown_mb > MEGABYTES:
            outcome = Outcome("memory", f"{grown_mb:.0f} MB above the start")
        if outcome.end not in FAULTS and seconds > SECONDS:
            outcome = Outcome("slow", f"{seconds:.1f} s of processor time")
        pipe.send((outcome, grown_mb))
        if grown_mb > MEGABYTES:
            return  # the peak of a process never falls: the next cases go to another one
    pipe.close()


def run_case(run: Runner, case: Case, folder: Path) -> Outcome:
    """Run one case, and say what became of it."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(printed):
        warnings.simplefilter("always")
        outcome = _run_unguarded(run, case, folder)
    noise = [str(warning.message) for warning in caught] or printed.getvalue().splitlines()
    if noise and outcome.end not in FAULTS:
        return Outcome("noise", noise[0][:200])
    return outcome


def _run_unguarded(run: Runner, case: Case, folder: Path) -> Outcome:
    try:
        return run(case, folder)
    except WorkBegins:
        return Outcome("begun")
    except (InputError, OSError) as error:
        if starved := [e for e in _list_causes(error) if _wants_memory(e)]:
            return Outcome("memory", f"refused after asking for too much: {starved[0]}"[:200])
        return Outcome("refused")
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f[0]]
        names = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (place, *ours[:-4:-1]))
        return Outcome("traceback", f"{type(error).__name__}: {error}"[:200] + f" ({names})")


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wants_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python or in torch."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def peak_mb() -> float:
    """Return the most memory that this process has had at once.

    `ru_maxrss` would begin at the memory of the process that started this one, and growth below
    that would not be seen.
    """
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) / 1024
