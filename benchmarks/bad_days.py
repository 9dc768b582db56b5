"""What becomes of a run on a bad day: damaged files, full disks, kills, folders that are gone?

`python -m benchmarks.bad_days` damages every file of a run in every way, names outputs that cannot
be written, and lets things go wrong in runs of a few steps: in processes of their own, which it
kills (three minutes on two cores). A refused command has to say why in one sentence, before
anything is compiled, and may change nothing. After all else the same command again has to end with
the bytes of a run that nobody disturbed, without a file too many.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.campaign import run_campaign
from benchmarks.script import RESULTS
from benchmarks.watched import FAULTS, Case, Outcome, Tally, peak_mb, run_watched
from unet_spec.environment import environment, usable_cores

COMMAND = "python -m benchmarks.bad_days"
RESULT = RESULTS / "bad_days.json"
KILLS, QUICK_KILLS = 20, 2
QUICK_CASES, QUICK_DAYS = 24, 5
HANG_SECONDS = 60.0
RUN_SECONDS = 2.0  # about what a run takes
START_SECONDS = 0.3  # of a process, until its command begins
NOBODY = 65534
STEPS, HALF = 4, 2
WORDS = (
    "train", "cells", "--net.widths", "4", "6", "--net.norm", "batch", "--data.synthetic", "3",
    "--data.batch", "2", "--data.crop-px", "32", "--steps", f"{STEPS}", "--validate-every", "2",
    "--checkpoint-every", "1", "--keep", "3", "--ema", "0.9", "--out", "RUN",
)  # fmt: skip
# that hold no times, and no words of this machine
ENDS = (
    "weights.safetensors", "best.safetensors", f"checkpoints/{STEPS}.safetensors", "config.json",
    "data.json", "start.json", "augmented.png", "pictures/0_synthetic_2.png",
)  # fmt: skip
TIMED = ("images_per_s", "waiting_share", "peak_memory_bytes")
TEMPORARY = re.compile(r"/\.[^/\s]+\.[a-z0-9_]{8}\b")
HUGE_BYTES = 3 * 2**30


def bad_days(
    *, seed: int = 0, quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run all cases, and return the counts as they go to the file."""
    began, tally = time.monotonic(), Tally()
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = draw_cases(seed, quick=quick)
        say(f"files and places: {len(cases)} cases")
        run_watched(cases, prepare, folder / "watched", tally, children=cores, say=say)
        days = draw_days(seed, quick=quick)
        say(f"days: {len(days)} cases")
        run_days(days, folder / "days", tally, children=cores)
    ends = {end: sum(fault["end"] == end for fault in tally.faults) for end in FAULTS}
    return {
        "command": COMMAND,
        "seed": seed,
        "cases": {"files and places": len(cases), "days": len(days)},
        "counts": {group: tally.counts[group] for group in sorted(tally.counts)},
        "faults": ends,
        "details": tally.faults,
        "largest_growth_mb": round(tally.peak_mb),
        "seconds": round(time.monotonic() - began),
        "environment": environment(),
    }


# --- files of a run, and places for its output: many cases in one process ---

FILES = (
    "config.json", "data.json", "start.json", "metrics.jsonl", "weights.safetensors",
    "best.safetensors", "checkpoints/2.safetensors", "checkpoints/1.safetensors", "augmented.png",
    "report.html", "checkpoints", "tensorboard", "pictures", ".lock",
)  # fmt: skip
JSONS = ("config.json", "data.json", "start.json")
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**6, 10**400, 0.5, 1e308, "NaN", "", "x", "\ud800", "a" * 10**5, [],
    [0], ["a"], [None], [[]], {}, {"x": 1}, [{}],
)  # fmt: skip
LINES = (
    "{}", "[]", "3", "null", "x", "", " ", "[" * 10**5, '{"step": 1}', '{"kind": "train"}',
    '{"step": "1", "kind": "train"}', '{"step": 1, "kind": 3}', '{"step": true, "kind": "train"}',
    '{"step": -1, "kind": "train"}', '{"step": 1e400, "kind": "train"}',
    '{"step": 1, "kind": "train", "loss": "x"}', '{"step": 1, "kind": "train", "lr": [1]}',
    '{"step": 1, "kind": "train", "loss": NaN}', '{"step": 1, "kind": "train", "loss": 1e999}',
    '{"step": 1, "kind": "train", "loss": true}', '{"step": 1, "kind": "train", "iou": 1e308}',
    '{"step": 1, "kind": "train", "loss": ' + "9" * 400 + "}",
    '{"step": ' + "9" * 400 + ', "kind": "train"}', '{"step": 1, "kind": "train", "loss": 1e308}',
    '{"step": 2, "kind": "validation", "mean_image_iou": "x"}',
    '{"step": 2, "kind": "validation", "mean_image_iou": 1e308}',
    '{"step": 2, "kind": "validation", "mean_image_iou": -5}',
    '{"step": 1, "kind": "train", "images_per_s": -1e308, "waiting_share": 1e308}',
    '{"step": 1, "step": 2, "kind": "train"}', '{"step": 1, "kind": "train"', "\0" * 100,
    '{"step": 1, "kind": "' + "k" * 10**6 + '"}',
)  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_missing(path: Path) -> None:
    """Take it away."""
    _remove(path)


def make_empty(path: Path) -> None:
    """Leave nothing in it."""
    _remove(path)
    path.touch()


def make_folder(path: Path) -> None:
    """Put a folder with a file in its place."""
    _remove(path)
    path.mkdir()
    (path / "mine").write_text("mine")


def make_fifo(path: Path) -> None:
    """Put a pipe in its place, which nobody writes to."""
    _remove(path)
    os.mkfifo(path)


def make_link(path: Path) -> None:
    """Put a link to a file or a folder elsewhere in its place, with the same content."""
    elsewhere = _run_of(path).with_name("elsewhere")
    elsewhere.mkdir()
    if path.exists():
        shutil.move(path, elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def make_dangling(path: Path) -> None:
    """Put a link to nothing in its place."""
    _remove(path)
    _run_of(path).with_name("elsewhere").mkdir()
    path.symlink_to(_run_of(path).with_name("elsewhere") / "nothing")


def make_cycle(path: Path) -> None:
    """Put a link to itself in its place."""
    _remove(path)
    path.symlink_to(path.name)


def make_huge(path: Path) -> None:
    """Make it as long as a film."""
    if path.is_dir():
        _remove(path)
    with path.open("ab") as stream:
        stream.truncate(HUGE_BYTES)


def make_noise(path: Path) -> None:
    """Put other bytes in its place."""
    _remove(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def make_unreadable(path: Path) -> None:
    """Let nobody read it."""
    if not path.exists():
        path.touch()
    path.chmod(0)


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__.removeprefix("make_"): way
    for way in (
        make_missing, make_empty, make_folder, make_fifo, make_link, make_dangling, make_cycle,
        make_huge, make_noise, make_unreadable,
    )
}  # fmt: skip


def _run_of(path: Path) -> Path:
    """Return the RUN that a file is in."""
    return next(parent for parent in path.parents if parent.name == "RUN")


def draw_cases(seed: int, *, quick: bool) -> list[Case]:
    """List the cases of files and places, in a drawn order; a quick campaign has a part of them."""
    cases = []
    for file in FILES:
        cases += [Case(f"RUN/{file}", way, 0, ("way", file, way)) for way in WAYS]
    for number, line in enumerate(LINES):
        for place in ("first", "last", "half"):
            what = f"{place} line {line[:60]}"
            cases.append(Case("RUN/metrics.jsonl", what, number, ("line", place, line)))
    for lines in (10**4, 10**5):
        cases.append(Case("RUN/metrics.jsonl", f"{lines} lines", 0, ("lines", lines)))
    for file in JSONS:
        for number in range(30):
            cases.append(Case(f"RUN/{file}", "a value", number, ("value", file, seed)))
        for number in range(4):
            cases.append(Case(f"RUN/{file}", "cut", number, ("cut", file, seed)))
    for number, (what, words) in enumerate(PLACES.items()):
        cases.append(Case("outputs", what, number, ("place", words)))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(cases))[: QUICK_CASES if quick else None]
    return [cases[index] for index in chosen]


NEAR, TOO_LONG = "n" * 250, "n" * 300
PLACES: dict[str, tuple[str, ...]] = {
    "below a file": ("--out", "a_file/RUN"),
    "a file": ("--out", "a_file"),
    "no name": ("--out", ""),
    "a name that is too long": ("--out", TOO_LONG),
    "below a name that is too long": ("--out", f"{TOO_LONG}/RUN"),
    "a name that just fits": ("--out", NEAR),
    "a path that is too long": ("--out", "/".join(["d" * 200] * 30)),
    "a folder that is not ours to write": ("--out", "closed/RUN"),
    "a folder that is ours, and closed": ("--out", "closed"),
    "images": ("--out", "images"),
    "a folder with a config of another program": ("--out", "other_program"),
    "a link to nothing": ("--out", "dangling"),
    "a cycle": ("--out", "cycle"),
    "a folder of the system": ("--out", "/proc/RUN"),
    "a device": ("--out", "/dev/null"),
    "below a device": ("--out", "/dev/null/RUN"),
    "deep, with all to be made": ("--out", "new/new/new/RUN"),
    "a report that is a folder": ("--json", "folder.json"),
    "a report below a file": ("--json", "a_file/report.json"),
    "a report whose name is too long": ("--json", f"{TOO_LONG}.json"),
    "a report whose name just fits": ("--json", f"{NEAR}.json"),
    "a report in a closed folder": ("--json", "closed/report.json"),
    "a report that is a link to nothing": ("--json", "dangling.json"),
}


def prepare(folder: Path) -> Callable[[Case, Path], Outcome]:
    """Train a run in peace, half and whole, and return what runs a case on a copy of it."""
    cache = folder / "compiled"  # so that no case compiles what another one has compiled
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o777)
    os.environ |= _list_cache_settings(cache)
    from unet_train import loop

    shutil.rmtree(folder / "ready", ignore_errors=True)
    shutil.rmtree(folder / "half", ignore_errors=True)
    for name in ("half", "ready"):
        (folder / name).mkdir(parents=True)

    def stop(requests: list[str], step: int) -> bool:
        if step == HALF + 1:  # after the validation
            requests.append("SIGTERM")
        return bool(requests)

    with _quiet(), _here(folder / "half"), mock.patch.object(loop, "is_stop_asked", stop):
        _type(WORDS)
    (folder / "half/RUN/checkpoints/3.safetensors").unlink()
    with _quiet(), _here(folder / "ready"):
        _type(WORDS)
    return run_case_of_files


def run_case_of_files(case: Case, folder: Path) -> Outcome:
    """Run one case on a copy of a run that has done half of its steps."""
    here = folder / "here"
    _open_again(here)
    shutil.rmtree(here, ignore_errors=True)
    kind, *rest = case.arguments
    names = ""
    if kind == "place":
        here.mkdir()
        _make_places(here)
        words = (*WORDS, *rest[0])
        with _as_nobody(here):
            return _run_and_compare(here, words, folder / "ready", names=rest[0][1][:100])
    shutil.copytree(folder / "half", here)
    name = "metrics.jsonl"
    if kind == "way":
        name = rest[0]
        WAYS[rest[1]](here / "RUN" / name)
    elif kind == "line":
        _add_line(here / "RUN" / name, *rest)
    elif kind == "lines":
        text = (here / "RUN" / name).read_text()
        (here / "RUN" / name).write_text(text.splitlines(True)[0] * rest[0] + text)
    elif kind == "value":
        name = rest[0]
        names = "RUN"
        _change_value(here / "RUN" / name, np.random.default_rng([rest[1], case.number]))
    elif kind == "cut":
        name = rest[0]
        path = here / "RUN" / name
        content = path.read_bytes()
        length = int(np.random.default_rng([rest[1], case.number]).integers(len(content) - 2))
        path.write_bytes(content[:length])
    with _as_nobody(here):
        # without checkpoints there is no file to name
        place = names or ("RUN" if name == "checkpoints" else name)
        return _run_and_compare(here, WORDS, folder / "ready", names=place, changed=name)


def _add_line(path: Path, place: str, line: str) -> None:
    """Put a line into a file of lines; half a line is what a kill leaves at the end."""
    text = path.read_text()
    ends = {"first": f"{line}\n{text}", "last": f"{text}{line}\n", "half": f"{text}{line}"}
    path.write_bytes(ends[place].encode())


def _change_value(path: Path, rng: np.random.Generator) -> None:
    """Put another value in the place of any value of a JSON, or of all of it."""
    content = {"": json.loads(path.read_text())}
    places = list(_list_places(content))
    holder, key = places[int(rng.integers(len(places)))]
    holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    text = json.dumps(content[""])
    path.write_text(text.replace('"NaN"', "NaN"))


def _list_places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _list_places(content[key])


def _make_places(here: Path) -> None:
    """Make what the names in `PLACES` name."""
    (here / "a_file").write_text("mine")
    for name in ("closed", "images", "folder.json", "other_program"):
        (here / name).mkdir()
    (here / "images/0.png").write_bytes(b"mine")
    (here / "other_program/config.json").write_text('{"model": "mine"}')
    (here / "closed").chmod(0o555)
    (here / "dangling").symlink_to("nothing/there")
    (here / "dangling.json").symlink_to("nothing/there.json")
    (here / "cycle").symlink_to("cycle")


def _run_and_compare(
    here: Path, words: tuple[str, ...], ready: Path, *, names: str, changed: str = ""
) -> Outcome:
    """Type a command, and say whether it is refused well, or ends as an undisturbed run."""
    from unet_command.wording import list_flags, word_error
    from unet_spec import InputError
    from unet_train import loop
    from unet_train.step import compile_steps

    before = _hash_all(here)
    began: list[bool] = []

    def compile_and_note(*arguments: Any, **named: Any) -> Any:
        began.append(True)
        if _list_changed_files(before, _hash_all(here)):
            raise AssertionError("something was written before the compilation")
        return compile_steps(*arguments, **named)

    import unet_cli

    try:
        with _quiet(), _here(here), mock.patch.object(loop, "compile_steps", compile_and_note):
            _type(words)
    except (InputError, OSError) as error:
        sentence = word_error(error, list_flags(unet_cli.train))
        if began:
            return Outcome("late", sentence[:300])
        after = _hash_all(here)
        if after != before:
            return Outcome(
                "left behind", f"{_list_differences(before, after)[:5]}: {sentence[:200]}"
            )
        return _judge_sentence(sentence, names)
    return compare_ends(here / _find_out(words), ready / "RUN", but=changed)


def _find_out(words: tuple[str, ...]) -> str:
    """Return the last output that a command names."""
    return words[len(words) - words[::-1].index("--out")]


def _list_changed_files(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return which files differ; a lock, and the folder that it needs, may come and go."""
    names = _list_differences(before, after)
    return [name for name in names if not name.endswith(".lock") and not (
        name not in before and after[name].startswith("folder"))]  # fmt: skip


def _judge_sentence(sentence: str, names: str) -> Outcome:
    """Say whether a sentence names what is wrong as it was typed, and says what to do."""
    if TEMPORARY.search(sentence):
        return Outcome("unclear", f"a temporary name: {sentence[:300]}")
    if names not in sentence:
        return Outcome("unclear", f"without {names}: {sentence[:300]}")
    if len(sentence) > 10**4 or "; " not in sentence or "Errno" in sentence:
        return Outcome("unclear", sentence[:300])
    return Outcome("refused")


def compare_ends(run: Path, ready: Path, *, but: str = "") -> Outcome:
    """Say whether a run ended as the undisturbed one, and whether anything is left over.

    Args:
        but: a file in which something else was put that a run may hold.
    """
    for name in ENDS:
        if name == but and name in JSONS:
            continue
        if not (run / name).is_file():
            return Outcome("lost", f"{name} is missing")
        if (run / name).read_bytes() != (ready / name).read_bytes():
            return Outcome("not the same", name)
    if but != "metrics.jsonl" and _read_lines(run) != _read_lines(ready):
        return Outcome("not the same", f"metrics.jsonl: {_read_lines(run)}"[:300])
    if len((run / "report.html").read_bytes()) < 10**4:
        return Outcome("lost", "report.html")
    if left := _list_files(run) ^ _list_files(ready):
        return Outcome("left behind", f"{sorted(left)[:5]}")
    return Outcome("read")


def _list_files(run: Path) -> set[str]:
    """Return the names of the files of a run, without those of TensorBoard."""
    places = [(Path(place), names) for place, _, names in os.walk(run, followlinks=True)]
    files = {str((place / name).relative_to(run)) for place, names in places for name in names}
    return {name for name in files if not name.startswith("tensorboard/") and "mine" not in name}


def _read_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what another run of the same may differ in."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in TIMED} for line in lines]


def _hash_all(folder: Path, *, but: str | None = None) -> dict[str, str]:
    """Return what is in a folder: kinds, modes, and the content of files of a usual length."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.name == but:
            continue
        facts = path.lstat()
        kind = "folder" if stat.S_ISDIR(facts.st_mode) else "entry"
        entry = f"{kind} {facts.st_mode} {facts.st_ino}"
        if path.is_symlink():
            entry += f" {os.readlink(path)}"
        elif path.is_file():
            entry += f" {facts.st_size}"
            if facts.st_size < 2**20 and os.access(path, os.R_OK, effective_ids=True):
                entry += hashlib.sha256(path.read_bytes()).hexdigest()
        entries[str(path.relative_to(folder))] = entry
    return entries


def _list_differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


def _type(words: tuple[str, ...]) -> int:
    """Run a command in this process; errors come out as they are."""
    import unet_cli
    from unet_command.parsing import Command, parse

    return parse(Command(words), unet_cli.VERBS)()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    back = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(back)


@contextlib.contextmanager
def _as_nobody(folder: Path) -> Iterator[None]:
    """Let go of the rights of root, for whom no file is closed, and give the folder away."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    parents = [parent for parent in folder.parents if parent.stat().st_uid == 0]
    for parent in parents:
        if parent.stat().st_mode & 0o077 == 0:  # of a temporary folder
            parent.chmod(0o755)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _open_again(folder: Path) -> None:
    """Let everything in a folder be removed."""
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)


# --- days: each in processes of its own ---


@dataclass
class Ended:
    """An `Ended` is how a process ended: its status, and what it said to stdout and stderr."""

    status: int | None
    out: str
    err: str
    seconds: float = 0.0
    peak_mb: float = 0.0


def kill_at(number: int, folder: Path) -> None:
    """End this process at once before a file gets to the disk, gets its name, or is removed."""
    _at_file(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fill_disk(length: int, folder: Path) -> None:
    """Let no file grow beyond a length."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))


def take_folder(number: int, folder: Path) -> None:
    """Move the folder of the run away."""
    _at_file(number, lambda: (folder / "RUN").rename(folder / "gone"))


def close_folder(number: int, folder: Path) -> None:
    """Let nobody write into the folder of the run and those in it."""

    def close() -> None:
        for place in (folder / "RUN", *(folder / "RUN").glob("*/")):
            place.chmod(0o555)

    _become_nobody()
    _at_file(number, close)


def set_clock_back(seconds: int, folder: Path) -> None:
    """Let it be 2001."""
    now = time.time
    time.time = lambda: now() - seconds
    time.time_ns = lambda: int(1e9 * time.time())


def close_home(number: int, folder: Path) -> None:
    """Let this process write into no home, no cache and no folder for temporary files."""
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    (folder / "closed").mkdir(exist_ok=True)
    (folder / "file").touch()
    caches = {0: "closed", 1: "file", 2: "closed/none", 3: "file/none"}
    os.environ |= {"HOME": str(folder / "closed"), "TMPDIR": str(folder / "closed")}
    os.environ["XDG_CACHE_HOME"] = str(folder / caches[number])
    (folder / "closed").chmod(0o555)
    _become_nobody()


def damage_cache(number: int, folder: Path) -> None:
    """Put other bytes into what was compiled before."""
    cache = folder / "cache"
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], cache)
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(b"" if number == 0 else path.read_bytes()[: -10 * number])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)


def close_stdout(number: int, folder: Path) -> None:
    """Let nobody read what the command says."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def fill_stdout(number: int, folder: Path) -> None:
    """Let what the command says go onto a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def narrow_terminal(number: int, folder: Path) -> None:
    """Give the command a terminal of one column that can do nothing."""
    main, side = os.openpty()
    os.environ |= {"TERM": ("dumb", "xterm")[number], "COLUMNS": "1", "LINES": "1"}
    os.dup2(side, 1)
    threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(main, 999), b"")],
                     daemon=True).start()  # fmt: skip


def _at_file(number: int, act: Callable[[], object]) -> None:
    """Do something before the n-th call that gets a file to the disk, names or removes it."""
    calls, lock = [0], threading.RLock()  # the act may be such a call

    def wrap(place: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with lock:
                calls[0] += 1
                if calls[0] == number + 1:
                    act()
            return place(*arguments, **named)

        return call

    for name in ("replace", "fsync", "unlink", "rmdir", "chmod"):
        setattr(os, name, wrap(getattr(os, name)))


def _become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


HARMS: dict[str, tuple[Callable[[int, Path], None], tuple[int, ...]]] = {
    "killed at file": (kill_at, (0, 5, 12, 20, 28, 36, 44, 52)),
    "disk full at": (fill_disk, (1000, 3000, 23000, 26000, 10**5)),
    "folder gone at file": (take_folder, (1, 20, 45)),
    "folder closed at file": (close_folder, (1, 20, 45)),
    "clock back by": (set_clock_back, (10**9,)),
    "home closed": (close_home, (0, 1, 2, 3)),
    "cache damaged": (damage_cache, (0, 1)),
    "stdout closed": (close_stdout, (0,)),
    "stdout full": (fill_stdout, (0,)),
    "terminal narrow": (narrow_terminal, (0, 1)),
}
WORKS = ("clock back by", "home closed", "cache damaged", "terminal narrow")  # all is well


def draw_days(seed: int, *, quick: bool) -> list[Case]:
    """List what goes wrong in runs under way; a quick campaign has a few days."""
    rng = np.random.default_rng(seed)
    days = []
    for harm, (_, arguments) in HARMS.items():
        chosen = rng.permutation(arguments)[:1] if quick else arguments
        days += [Case(f"day: {harm}", f"{n}", n, ("harm", harm, int(n))) for n in chosen]
    moments = rng.uniform(0.0, 1.2, QUICK_KILLS if quick else KILLS)
    for kind in ("killed", "SIGTERM twice", "SIGINT twice", "two at once"):
        few = moments if kind == "killed" else moments[: 1 if quick else 2]
        days += [Case(f"day: {kind}", f"{m:.2f} of a run", n, (kind, float(m)))
                 for n, m in enumerate(few)]  # fmt: skip
    return [days[n] for n in rng.permutation(len(days))[: QUICK_DAYS if quick else None]]


def run_days(days: list[Case], folder: Path, tally: Tally, *, children: int) -> None:
    """Run every day, some at a time, and count what became of it."""
    cache = folder / "compiled"
    cache.mkdir(parents=True)
    folder.parent.chmod(0o755)
    with mock.patch.dict(os.environ, _list_cache_settings(cache)):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["unet_cli", "unet_train.loop", "unet_train.overfit"])
        first = _run(context, folder / "first")  # it compiles
        whole = _run(context, folder / "whole")
        whole.seconds = first.seconds  # who has no cache compiles as well
        if whole.status != 0:
            raise RuntimeError(f"a run without harm failed: {whole.err[-2000:]}")
        with ThreadPoolExecutor(children) as threads:
            outcomes = threads.map(
                lambda number: _live(context, days[number], folder / f"{number}", whole),
                range(len(days)),
            )
            for case, outcome in zip(days, outcomes, strict=True):
                tally.add(case, outcome)


def _list_cache_settings(cache: Path) -> dict[str, str]:
    """Return the variables with which JAX keeps all that it compiles in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _live(context: Any, case: Case, here: Path, whole: Ended) -> Outcome:
    """Let one thing go wrong, then give the same command again in peace."""
    here.mkdir()
    kind, *rest = case.arguments
    if kind == "harm":
        ended = [_run(context, here, *rest)]
    else:
        ended = _run_with_signals(context, here, kind, rest[0] * RUN_SECONDS)
    for one in ended:
        if (fault := _judge_end(one, whole)) is not None:
            return fault
    if case.group.removeprefix("day: ") in WORKS and ended[0].status != 0:
        return Outcome("lost", f"status {ended[0].status}: {ended[0].err[:300]}")
    shutil.rmtree(here / "gone", ignore_errors=True)
    _open_again(here)
    again = _run(context, here)
    if again.status != 0:
        return Outcome("lost", f"the same command again: {again.err[-300:]}")
    outcome = _judge_end(again, whole) or compare_ends(
        here / "RUN", here.with_name("whole") / "RUN"
    )
    shutil.rmtree(here)
    return outcome


def _judge_end(ended: Ended, whole: Ended) -> Outcome | None:
    """Return what is wrong with the way in which a process ended, if anything is."""
    if ended.status is None:
        return Outcome("slow", f"no end in {HANG_SECONDS:.0f} s")
    if "Traceback" in ended.err or ended.status == 1:
        return Outcome("traceback", ended.err[-300:])
    lines = [line for line in ended.err.splitlines() if not line.startswith("SIG")]
    if TEMPORARY.search(ended.err) or (ended.status == 2 and "; " not in ended.err):
        return Outcome("unclear", ended.err[:300])
    if len(lines) > 1:
        return Outcome("noise", ended.err[:300])
    if ended.seconds > whole.seconds + 5:
        return Outcome("slow", f"{ended.seconds:.1f} s of processor time")
    if ended.peak_mb > whole.peak_mb + 1024:
        return Outcome("memory", f"{ended.peak_mb:.0f} MB")
    return None


def _run_with_signals(context: Any, here: Path, kind: str, seconds: float) -> list[Ended]:
    """Run a command and kill it, ask it twice to stop, or give it twice at once."""
    first = _start(context, here)
    if kind == "two at once":
        second = _start(context, here, log="second")
        return [_wait(here, first), _wait(here, second, log="second")]
    first.join(START_SECONDS + seconds)
    if kind == "killed":
        first.kill()
        return [_wait(here, first)]
    number = getattr(signal, kind.split()[0])
    for _ in range(2):
        if first.is_alive():
            os.kill(first.pid, number)
        first.join(1.2)
    return [_wait(here, first)]


def _run(context: Any, here: Path, harm: str | None = None, argument: int = 0) -> Ended:
    """Give the command in a process of its own, in which something goes wrong."""
    here.mkdir(exist_ok=True)
    return _wait(here, _start(context, here, harm, argument))


def _start(
    context: Any, here: Path, harm: str | None = None, argument: int = 0, log: str = "log"
) -> Any:
    if harm is not None and os.geteuid() == 0:
        for path in (here, *here.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    process = context.Process(target=_command, args=(here, harm, argument, log))
    process.start()
    return process


def _wait(here: Path, process: Any, log: str = "log") -> Ended:
    process.join(HANG_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return Ended(None, "", "")
    parts = [here.with_name(f"{here.name}_{log}.{part}") for part in ("out", "err", "used")]
    out, err, used = (part.read_text() if part.exists() else "" for part in parts)
    return Ended(process.exitcode, out, err, *map(float, used.split()))


def _command(here: Path, harm: str | None, argument: int, log: str) -> None:
    """Give the command in this process, after harm was done."""
    paths = [here.with_name(f"{here.name}_{log}.{part}") for part in ("out", "err", "used")]
    for number, path in enumerate(paths[:2], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    used = os.open(paths[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.chdir(here)
    import unet_cli

    if harm is not None:
        HARMS[harm][0](argument, here)
    sys.argv = ["unet", *WORDS]
    try:
        unet_cli.main()
    finally:
        with contextlib.suppress(OSError):
            os.write(used, f"{time.process_time()} {peak_mb()}".encode())


if __name__ == "__main__":
    run_campaign(__doc__, bad_days, result=RESULT, quick="a part of the cases")
