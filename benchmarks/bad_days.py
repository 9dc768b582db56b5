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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.script import RESULTS, make_parser, write_result
from benchmarks.watched import FAULTS, Case, Outcome, Tally, WorkBegins, peak_mb, run_watched
from unet_spec.environment import environment, usable_cores

COMMAND = "python -m benchmarks.bad_days"
RESULT = RESULTS / "bad_days.json"
KILLS, QUICK_KILLS = 20, 2
QUICK_CASES = 40
HANG_SECONDS = 60.0
STEPS, HALF = 4, 2
WORDS = (
    "train", "cells", "--net.widths", "4", "6", "--net.norm", "batch", "--data.synthetic", "3",
    "--data.batch", "2", "--data.crop-px", "32", "--steps", f"{STEPS}", "--validate-every", "2",
    "--checkpoint-every", "1", "--ema", "0.9", "--out", "RUN",
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
    elsewhere = path.parents[len(path.parts) - 2 - path.parts[::-1].index("RUN")] / "elsewhere"
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
    for lines in (10**4, 10**6):
        cases.append(Case("RUN/metrics.jsonl", f"{lines} lines", 0, ("lines", lines)))
    for file in JSONS:
        for number in range(60):
            cases.append(Case(f"RUN/{file}", "a value", number, ("value", file, seed)))
        for number in range(10):
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
    if kind == "place":
        here.mkdir()
        _make_places(here)
        words = (*WORDS, *rest[0])
        with _as_nobody(here):
            return _run_and_compare(here, words, folder / "ready", names=rest[0][1][:200])
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
        _change_value(here / "RUN" / name, np.random.default_rng([rest[1], case.number]))
    elif kind == "cut":
        name = rest[0]
        path = here / "RUN" / name
        content = path.read_bytes()
        length = int(np.random.default_rng([rest[1], case.number]).integers(len(content) - 2))
        path.write_bytes(content[:length])
    with _as_nobody(here):
        return _run_and_compare(here, WORDS, folder / "ready", names=name)


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


def _run_and_compare(here: Path, words: tuple[str, ...], ready: Path, *, names: str) -> Outcome:
    """Type a command, and say whether it is refused well, or ends as an undisturbed run."""
    from unet_command.wording import list_flags, word_error
    from unet_spec import InputError
    from unet_train import loop

    before, compile_steps, began = _hash_all(here), loop.compile_steps, []

    def compile_and_note(*arguments: Any, **named: Any) -> Any:
        began.append(True)
        if _hash_all(here, but=".lock") != {n: h for n, h in before.items() if ".lock" not in n}:
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
            return Outcome("left behind", f"{_list_differences(before, after)}: {sentence[:200]}")
        return _judge_sentence(sentence, names)
    return _compare_ends(here / words[-1 - words[::-1].index("--out") + 1], ready / "RUN")


def _judge_sentence(sentence: str, names: str) -> Outcome:
    """Say whether a sentence names what is wrong as it was typed, and says what to do."""
    if TEMPORARY.search(sentence):
        return Outcome("unclear", f"a temporary name: {sentence[:300]}")
    if names not in sentence:
        return Outcome("unclear", f"without {names}: {sentence[:300]}")
    if len(sentence) > 1500 or "; " not in sentence or "Errno" in sentence:
        return Outcome("unclear", sentence[:300])
    return Outcome("refused")


def _compare_ends(run: Path, ready: Path) -> Outcome:
    """Say whether a run ended as the undisturbed one, and whether anything is left over."""
    for name in ENDS:
        if not (run / name).is_file():
            return Outcome("lost", f"{name} is missing")
        if (run / name).read_bytes() != (ready / name).read_bytes():
            return Outcome("not the same", name)
    if _read_lines(run) != _read_lines(ready):
        return Outcome("not the same", f"metrics.jsonl: {_read_lines(run)}"[:300])
    if len((run / "report.html").read_bytes()) < 10**4:
        return Outcome("lost", "report.html")
    if left := _list_files(run) ^ _list_files(ready):
        return Outcome("left behind", f"{sorted(left)[:5]}")
    return Outcome("read")


def _list_files(run: Path) -> set[str]:
    """Return the names of the files of a run, without those of TensorBoard."""
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("tensorboard/")}


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
        entry = f"{facts.st_mode} {facts.st_ino}"
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
    return sorted(name for name in names if before.get(name) != after.get(name))[:5]


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
    nobody = 65534
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody, nobody, follow_symlinks=False)
    parents = [parent for parent in folder.parents if parent.stat().st_uid == 0]
    for parent in parents:
        if parent.stat().st_mode & 0o077 == 0:  # of a temporary folder
            parent.chmod(0o755)
    os.setegid(nobody)
    os.seteuid(nobody)
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


def draw_days(seed: int, *, quick: bool) -> list[Case]:
    """List what goes wrong in runs under way."""
    days = [Case("killed", f"at random moment {n}", n) for n in range(KILLS)]
    days += [Case("killed", f"at file {n}", n, (n,)) for n in range(0, 60, 3)]
    if quick:
        rng = np.random.default_rng(seed)
        days = [days[index] for index in rng.permutation(len(days))[: 2 * QUICK_KILLS]]
    return days


def run_days(days: list[Case], folder: Path, tally: Tally, *, children: int) -> None:
    """Run every day, some at a time, and count what became of it."""


def print_table(result: dict[str, Any]) -> None:
    """Print how the cases of every group ended, and the faults."""
    ends = ("refused", "read", *FAULTS)
    print(f"{'':28}" + "".join(f"{end:>13}" for end in ends))
    for group, counts in result["counts"].items():
        print(f"{group:28}" + "".join(f"{counts.get(end, 0):>13}" for end in ends))
    for fault in result["details"]:
        print(f"{fault['end']}: {fault['group']}, {fault['what']}, case {fault['number']}: "
              f"{fault['detail']}")  # fmt: skip
    print(f"{sum(result['faults'].values())} faults, {result['seconds']} s, at most "
          f"{result['largest_growth_mb']} MB above the start of a process")  # fmt: skip


if __name__ == "__main__":
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; by default 0")
    parser.add_argument("--quick", action="store_true", help="a part of the cases")
    arguments = parser.parse_args()
    result = bad_days(seed=arguments.seed, quick=arguments.quick)
    print_table(result)
    write_result(arguments.out, result)
    sys.exit(any(result["faults"].values()))
