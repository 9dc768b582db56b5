"""Cases run one after another in child processes that are watched: for their memory and time, what
they print, the programs they start and the files they write."""

import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.guard import ELSEWHERE, PROGRAM, Guard, stand_guard, write_stubs
from unet_command.wording import word_error
from unet_spec import InputError

_PRINTED = "printed.txt"
ADDRESS_SPACE = 8 * 2**30  # bytes above the start: what asks for more fails, and the machine lives
FAULTS = (
    "traceback", "slow", "memory", "left behind", "wrong accept", "not the same", "not finite",
    "noise", "unclear", "lost", "late", PROGRAM, ELSEWHERE,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """A `Limits` says what a case may take.

    Attributes:
        seconds: of processor time.
        hang_seconds: by the clock, after which a case is ended; a busy machine is slow.
        megabytes: above what its process has when the case begins.
        kept_megabytes: that a process keeps of earlier cases. The next would fill them unseen, so
            another process takes over.
    """

    seconds: float = 5.0
    hang_seconds: float = 30.0
    megabytes: float = 1024.0
    kept_megabytes: float = 256.0


class WorkBegins(BaseException):
    """The case got to the point at which real work would begin."""


class FaultError(Exception):
    """A case has ended in a fault; its arguments are the kind and the detail."""


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
        end: `refused`, `begun`, `read` where another reader gives the same, `unchecked` where there
            is none for it; or one of `FAULTS`.
        detail: of a fault, what it is.
    """

    end: str
    detail: str = ""


@dataclass
class Tally:
    """A `Tally` counts outcomes.

    Attributes:
        counts: how many of each end, by group.
        kinds: how many cases of each kind, by group.
        faults: the cases that are faults, with their details.
        peak_mb: the most memory that a case took, above what its process had at its start.
        seconds: of processor time, the most that a case took.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    peak_mb: float = 0.0
    seconds: float = 0.0

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count one case."""
        ends = self.counts.setdefault(case.group, {})
        ends[outcome.end] = ends.get(outcome.end, 0) + 1
        kinds = self.kinds.setdefault(case.group, {})
        kinds[case.what] = kinds.get(case.what, 0) + 1
        if outcome.end in FAULTS:
            place = {"group": case.group, "what": case.what, "number": case.number}
            self.faults.append({**place, **asdict(outcome)})


@dataclass(frozen=True)
class Work:
    """A `Work` is what is done with the cases of one kind.

    Attributes:
        make: writes the input of a case into its empty folder, and returns what it is; a path where
            it is a file, which a refusal then has to name.
        run: lets the project read that, and returns what `check` needs. Only this is watched.
        check: judges what was accepted.
        only_programs: a file that is written elsewhere is no fault; for what also makes its input
            in `run`.
    """

    make: Callable[[Case, Path], Any]
    run: Callable[[Any, Path], Any]
    check: Callable[[Any, Any], Outcome]
    only_programs: bool = False


def run_watched(
    cases: Sequence[Case],
    prepare: Callable[[Path], Work | Callable[[Case, Path], Outcome]],
    folder: Path,
    tally: Tally,
    *,
    children: int,
    say: Callable[[str], None],
    limits: Limits = Limits(),
) -> None:
    """Run every case in one of several children, and count what became of it.

    A child that takes too long, dies, or keeps too much memory is replaced.

    Args:
        prepare: is called in each child with a folder of its own, and returns the work of its
            cases, or what does and judges one in that folder; it is a function of a module.
        folder: in which the children's folders are made.
    """
    write_stubs(folder / "stubs")
    context = multiprocessing.get_context("spawn")
    parts = [list(cases[start::children]) for start in range(children)]
    running: dict[Connection, _Child] = {}
    for number, part in enumerate(parts):
        if part:
            child = _Child(context, prepare, folder / str(number), part, limits)
            running[child.pipe] = child
    done, began = 0, time.monotonic()
    while running:
        ready = wait(list(running), timeout=1.0)
        for pipe in [pipe for pipe in running if pipe in ready or running[pipe].is_late]:
            child = running.pop(pipe)
            before = len(tally.faults)
            try:
                finished, again = child.take(pipe in ready, tally)
            except RuntimeError:
                for other in running.values():
                    other.end()
                raise
            done += finished
            for fault in tally.faults[before:]:
                say(describe_fault(fault))
            if finished and done % 500 == 0:
                seconds = time.monotonic() - began
                say(f"{done} of {len(cases)} cases, {len(tally.faults)} faults, {seconds:.0f} s")
            if again is not None:
                running[again.pipe] = again


def describe_fault(fault: Mapping[str, Any]) -> str:
    """Return a line about a fault, with the number by which its case is made again."""
    place = f"{fault['group']}, {fault['what']}, case {fault['number']}"
    return f"{fault['end']}: {place}: {fault['detail']}"


class _Child:
    """A `_Child` is a process that works through a list of cases, as its parent sees it."""

    def __init__(self, context: Any, prepare: Any, folder: Path, cases: list[Case], limits: Limits):
        self._context, self._prepare, self._folder = context, prepare, folder
        self._cases, self._limits = cases, limits
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(theirs, prepare, folder, cases, limits), daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard = time.monotonic() + 60  # it has to import everything first
        self._is_ready = False

    @property
    def is_late(self) -> bool:
        """Whether nothing was heard of it for too long."""
        return time.monotonic() > self._heard + self._limits.hang_seconds

    def take(self, has_message: bool, tally: Tally) -> tuple[int, "_Child | None"]:
        """Count the next outcome; return how many cases ended, and the child that goes on."""
        if not has_message:
            self._process.kill()
            return self._replace(
                Outcome("slow", f"no end in {self._limits.hang_seconds:.0f} s"), tally
            )
        try:
            message = self.pipe.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            if not self._cases:
                return 0, None
            if status == 0:  # it keeps too much memory
                return 0, self._begin_again()
            printed = self._folder / _PRINTED
            if not self._is_ready:
                raise RuntimeError(f"a child did not start; {printed} says why") from None
            last = printed.read_text(errors="replace")[-200:] if printed.is_file() else ""
            detail = f"the process died ({status}) {' '.join(last.split())}".strip()
            return self._replace(Outcome("traceback", detail), tally)
        self._heard = time.monotonic()
        if message is None:
            self._is_ready = True
            return 0, self
        outcome, growth_mb, seconds = message
        tally.peak_mb = max(tally.peak_mb, growth_mb)
        tally.seconds = max(tally.seconds, seconds)
        tally.add(self._cases.pop(0), outcome)
        return 1, self

    def end(self) -> None:
        """End it in the midst of its cases."""
        self._process.kill()
        self._process.join()

    def _begin_again(self) -> "_Child":
        return _Child(self._context, self._prepare, self._folder, self._cases, self._limits)

    def _replace(self, outcome: Outcome, tally: Tally) -> tuple[int, "_Child | None"]:
        tally.add(self._cases.pop(0), outcome)
        self._process.join()
        if not self._cases:
            return 1, None
        return 1, self._begin_again()


def _work(pipe: Connection, prepare: Any, folder: Path, cases: list[Case], limits: Limits) -> None:
    """Run the cases, and send each outcome with the memory and the seconds that it took."""
    own, ready = folder / "case", folder / "ready"
    folder.mkdir(parents=True, exist_ok=True)
    printed = _Printed(folder / _PRINTED)
    guard = stand_guard(folder, (own, ready), stubs=folder.parent / "stubs")
    work = prepare(ready)
    if not isinstance(work, Work):
        work = _wrap(work, ready)
    start_mb = memory_mb()
    space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE,) * 2)
    pipe.send(None)  # what goes wrong before is no case's fault
    for case in cases:
        pipe.send(watch_case(case, work, own, guard, printed, limits))
        if memory_mb() > start_mb + limits.kept_megabytes:
            break
    pipe.close()


def _wrap(judge: Callable[[Case, Path], Outcome], ready: Path) -> Work:
    """Return the work of cases that make their input and judge themselves in a folder."""
    return Work(
        make=lambda case, own: case,
        run=lambda case, own: judge(case, ready),
        check=lambda case, outcome: outcome,
        only_programs=True,
    )


def watch_case(
    case: Case, work: Work, own: Path, guard: Guard, printed: "_Printed", limits: Limits
) -> tuple[Outcome, float, float]:
    """Run one case in its own folder; return what became of it, and its megabytes and seconds."""
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    made = work.make(case, own)
    files = _list_files(own)
    printed.take()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process begins anew
    before_mb, before = memory_mb(), time.process_time()
    with guard.watch():
        outcome, content = _run_unguarded(work, made, own)
    seconds, growth_mb = time.process_time() - before, peak_mb() - before_mb
    noise = printed.take()
    if outcome.end == "refused" and (changed := files ^ _list_files(own)):
        outcome = Outcome("left behind", str(sorted(changed)[:2])[:200])
    elif outcome.end not in FAULTS and noise:
        outcome = Outcome("noise", noise[:200])
    elif outcome.end == "read":
        outcome = _check_guarded(work, made, content)
    deeds = [deed for deed in guard.deeds if deed[0] == PROGRAM or not work.only_programs]
    if outcome.end not in FAULTS and deeds:
        outcome = Outcome(*deeds[0])
    elif outcome.end not in FAULTS and growth_mb > limits.megabytes:
        outcome = Outcome("memory", f"{growth_mb:.0f} MB")
    elif outcome.end not in FAULTS and seconds > limits.seconds:
        outcome = Outcome("slow", f"{seconds:.1f} s of processor time")
    return outcome, growth_mb, seconds


class _Printed:
    """A `_Printed` takes what this process and its C libraries print."""

    def __init__(self, path: Path):
        self._stream = path.open("w+", errors="replace")
        for descriptor in (1, 2):
            os.dup2(self._stream.fileno(), descriptor)
        self._flush = ctypes.CDLL(None).fflush

    def take(self) -> str:
        """Return what was printed since the last time."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._flush(None)
        if not os.fstat(self._stream.fileno()).st_size:
            return ""
        self._stream.seek(0)
        text = self._stream.read().strip()
        self._stream.seek(0)
        self._stream.truncate()
        return text


def _run_unguarded(work: Work, made: Any, own: Path) -> tuple[Outcome, Any]:
    """Let the project read an input; return how that ended, and what it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            content = work.run(made, own)
        except WorkBegins:
            return Outcome("begun"), None
        except FaultError as fault:
            return Outcome(*fault.args), None
        except (InputError, OSError) as error:
            return _judge_refusal(error, made), None
        except BaseException as error:
            return Outcome("traceback", _describe(error)), None
    if caught:
        return Outcome("noise", str(caught[0].message)[:200]), None
    return Outcome("read"), content


def _judge_refusal(error: Exception, made: Any) -> Outcome:
    """Say whether a refusal is one sentence that names the file."""
    if starved := [e for e in _list_causes(error) if _wants_memory(e)]:
        return Outcome("memory", f"refused after asking for too much: {starved[0]}"[:200])
    sentence = word_error(error, {})
    if not sentence.isprintable() or (isinstance(made, Path) and made.name not in sentence):
        return Outcome("unclear", repr(sentence)[:200])
    return Outcome("refused")


def _check_guarded(work: Work, made: Any, content: Any) -> Outcome:
    try:
        return work.check(made, content)
    except Exception as error:
        return Outcome("traceback", f"in the check: {_describe(error)}")


def _describe(error: BaseException) -> str:
    places = traceback.extract_tb(error.__traceback__)
    ours = [place for place in places if "site-packages" not in place.filename]
    names = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (places[-1], *ours[:-4:-1]))
    return f"{type(error).__name__}: {error}"[:200] + f" ({names})"


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wants_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python or in torch."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def _list_files(folder: Path) -> set[tuple[str, int, int]]:
    """List what is in a folder, with sizes and times of the last change."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {(name, s.st_size, 0 if stat.S_ISDIR(s.st_mode) else s.st_mtime_ns)
            for name, s in stats.items()}  # fmt: skip


def memory_mb() -> float:
    """Return the memory that this process has."""
    return _read_status("VmRSS")


def peak_mb() -> float:
    """Return the most memory that this process has had at once.

    `ru_maxrss` would begin at the memory of the process that started this one, and growth below
    that would not be seen.
    """
    return _read_status("VmHWM")


def _read_status(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) / 1024
