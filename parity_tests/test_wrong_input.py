"""The campaign of wrong input sees every kind of fault that it counts; a short one finds none."""

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import (
    bad_days,
    damage,
    hostile,
    hostile_images,
    watched,
    whole_files,
    wrong_flags,
    wrong_input,
)
from benchmarks.watched import Case, FaultError, Limits, Outcome, Tally, Work
from unet_spec import InputError

LIBC = ctypes.CDLL(None)
ENDS = {
    "refuse": "refused",
    "refuse without the name": "unclear",
    "leave": "left behind",
    "change": "left behind",
    "raise": "traceback",
    "die": "traceback",
    "fail in the check": "traceback",
    "warn": "noise",
    "print": "noise",
    "print from C": "noise",
    "grow": "memory",
    "ask": "memory",
    "compute": "slow",
    "sleep": "slow",
    "begin": "begun",
    "read": "read",
    "read wrongly": "wrong accept",
    "differ": "not the same",
    "write here": "read",
    "write into the cache": "read",
    "write elsewhere": "elsewhere",
    "make a folder": "elsewhere",
    "make a folder from C": "elsewhere",
    "make a temporary file from C": "elsewhere",
    "rename": "elsewhere",
    "remove": "elsewhere",
    "remove through a link": "elsewhere",
    "link": "elsewhere",
    "connect": "elsewhere",
    "start": "program",
    "start by a shell": "program",
    "start from C": "program",
    "fork": "program",
    "run a file": "program",
    "load a library": "program",
}


LIMITS = Limits(seconds=1.0, hang_seconds=12.0, megabytes=128.0, kept_megabytes=32.0)


def prepare(ready):
    """What runs cases that behave as their group says; in a child process."""
    return Work(make_input, misbehave, judge)


def make_input(case, folder):
    path = folder / f"{case.group}.input"
    path.write_text("raise SystemExit")
    return path


def judge(path, content):
    if path.stem == "fail in the check":
        raise KeyError("x")
    return Outcome("wrong accept" if path.stem == "read wrongly" else "read")


def misbehave(path, folder):
    outside = folder.parent / "outside"
    match path.stem:
        case "refuse":
            raise InputError(f"{path}: no")
        case "refuse without the name":
            raise InputError("no")
        case "leave":
            (folder / "half").touch()
            raise InputError(f"{path}: no")
        case "change":
            path.write_text("other")
            raise InputError(f"{path}: no")
        case "raise":
            raise KeyError("x")
        case "die":
            os._exit(3)
        case "warn":
            warnings.warn("noise", stacklevel=2)
        case "print":
            print("noise")
        case "print from C":
            LIBC.puts(b"noise")
        case "grow":
            np.ones(24 * 2**20)  # 192 MiB
        case "ask":
            try:
                np.ones(2**36)
            except MemoryError as error:
                raise InputError(f"{path}: no") from error
        case "compute":
            began = time.process_time()
            while time.process_time() < began + LIMITS.seconds + 0.1:
                pass
        case "sleep":
            time.sleep(100)
        case "begin":
            raise watched.WorkBegins
        case "differ":
            raise FaultError("not the same", "two readings differ")
        case "write here":
            (folder / "new").mkdir()
            (folder / "new/x").write_text("x")
            shutil.rmtree(folder / "new")
            Path(os.devnull).write_text("x")
        case "write into the cache":
            (Path(os.environ["XDG_CACHE_HOME"]) / "x").write_text("x")
        case "write elsewhere":
            outside.write_text("x")
        case "make a folder":
            outside.with_name("folder").mkdir()
        case "make a folder from C":
            LIBC.mkdir(os.fsencode(Path.home() / "x"), 0o700)
        case "make a temporary file from C":
            LIBC.creat(os.path.join(os.environ["TMPDIR"], "x").encode(), 0o600)
        case "rename":
            path.rename(outside)
        case "remove":
            outside.unlink(missing_ok=True)
        case "remove through a link":
            (folder / "link").symlink_to("..")
            (folder / "link" / "outside").unlink(missing_ok=True)
        case "link":
            outside.with_name("link").symlink_to("x")
        case "connect":
            with socket.socket() as client:
                client.connect_ex(("127.0.0.1", 9))
        case "start":
            subprocess.run([sys.executable, "-c", ""], check=True)
        case "start by a shell":
            os.system("true")
        case "start from C":
            LIBC.system(b"gs -q")
        case "fork":
            if not (child := os.fork()):
                os._exit(0)
            os.waitpid(child, 0)
        case "run a file":
            compile(path.read_text(), str(path), "exec")
        case "load a library":
            try:
                ctypes.CDLL(str(path))
            except OSError:
                return


def run(cases, prepare, folder):
    tally = Tally()
    watched.run_watched(
        cases, prepare, folder, tally, children=1, say=lambda text: None, limits=LIMITS
    )
    return tally


def test_every_kind_of_fault_is_counted_and_the_cases_behind_it_run(tmp_path):
    tally = run([Case(group, "", number) for number, group in enumerate(ENDS)], prepare, tmp_path)
    assert tally.counts == {group: {end: 1} for group, end in ENDS.items()}
    assert {fault["group"] for fault in tally.faults} == {
        group for group, end in ENDS.items() if end in watched.FAULTS
    }
    assert 190 < tally.peak_mb < 220
    assert tally.seconds > LIMITS.seconds


def prepare_memory(ready):
    """What takes 96 MiB in each case, where 128 are allowed, and keeps them or not."""
    kept = []

    def take(group, folder):
        values = np.ones(12 * 2**20)
        if group == "keep":
            kept.append(values)

    return Work(lambda case, folder: case.group, take, lambda group, content: Outcome("read"))


def test_memory_is_that_of_the_case_and_not_of_those_before(tmp_path):
    cases = [Case(group, "", 0) for group in ("keep", "again", "again")]
    tally = run(cases, prepare_memory, tmp_path)
    assert tally.counts == {"keep": {"read": 1}, "again": {"read": 2}}
    assert 95 < tally.peak_mb < 110


def prepare_judge(ready):
    """What makes its input and judges itself."""

    def do(case, folder):
        assert folder == ready
        if case.group == "start":
            os.system("true")
        folder.with_name("outside").touch()
        return Outcome("late" if case.group == "late" else "read")

    return do


def test_cases_may_judge_themselves(tmp_path):
    cases = [Case(group, "", 0) for group in ("read", "late", "start")]
    tally = run(cases, prepare_judge, tmp_path)
    assert tally.counts == {"read": {"read": 1}, "late": {"late": 1}, "start": {"program": 1}}


def die(ready):
    raise KeyError("x")


def test_a_child_that_does_not_start_ends_the_campaign(tmp_path):
    with pytest.raises(RuntimeError, match="a child did not start"):
        run([Case("read", "", 0)], die, tmp_path)


def test_readings_that_differ_or_are_not_finite_are_faults():
    whole = [np.array([1, 2], np.float32)]
    wrong_input.compare_readings(whole, [np.array([1, 2], np.float32)])
    for other in (np.array([1, 3], np.float32), np.array([1, 2], np.float64)):
        with pytest.raises(FaultError, match="not the same"):
            wrong_input.compare_readings(whole, [other])
    broken = [np.array([1, np.inf], np.float32)]
    with pytest.raises(FaultError, match="not finite"):
        wrong_input.compare_readings(broken, broken)


@pytest.fixture
def passing_minutes(monkeypatch):
    """Lets a minute pass whenever the time is read, because an archive may hold it."""
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(minutes))


@pytest.mark.parametrize("kind", ["images", "weights"])
@pytest.mark.usefixtures("passing_minutes")
def test_the_same_seed_damages_the_same_bytes_and_every_way_damages(tmp_path, kind):
    cases = wrong_input.draw_cases(kind, 375, tmp_path / "whole", seed=3)[:150]
    assert {way for _, way in (case.arguments for case in cases)} == set(damage.DAMAGES)
    changed = 0
    for case in cases:
        contents = [wrong_input.make_file(case, tmp_path).read_bytes() for _ in range(2)]
        assert contents[0] == contents[1]
        changed += contents[0] != case.arguments[0].read_bytes()
    assert changed > 0.9 * len(cases)


@pytest.mark.parametrize("kind", ["images", "weights", "pairs"])
@pytest.mark.usefixtures("passing_minutes")
def test_the_same_seed_makes_the_same_hostile_files(tmp_path, kind):
    makers = wrong_input.KINDS[kind]
    cases = wrong_input.draw_cases(kind, 3 * len(makers), tmp_path / "whole", seed=3)
    cases = [case for case in cases if len(case.arguments) == 1][: len(makers)]
    assert {case.arguments[0] for case in cases} == {*makers}
    for case in cases:
        contents = []
        for name in ("first", "second"):
            folder = tmp_path / f"{case.number}_{name}"
            folder.mkdir()
            wrong_input.make_file(case, folder)
            contents.append(list_content(folder))
        assert contents[0] == contents[1], case.what


@pytest.mark.usefixtures("passing_minutes")
def test_a_file_of_another_kind_holds_no_time(tmp_path):
    written = set()
    for seed in range(40):
        first, again = (
            hostile.another_kind(tmp_path, np.random.default_rng(seed)).read_bytes()
            for _ in range(2)
        )
        assert first == again
        written.add(first[:4])
    assert b"PK\3\4" in written


def list_content(folder):
    """What is in a folder: bytes of files, and where links lead."""
    paths = sorted(folder.rglob("*"))
    links = [os.readlink(path) for path in paths if path.is_symlink()]
    contents = [p.read_bytes() for p in paths if p.is_file() and not p.is_symlink()]
    # in the old format of torch the names of storages are their places in memory
    return links, [len(c) if c.startswith(b"\x80\x02\x8a\nl\xfc") else c for c in contents]


def test_flags_are_the_real_ones_of_every_verb():
    import unet_cli

    flags = {name for verb in unet_cli.VERBS.values() for name, _ in wrong_flags.list_flags(verb)}
    assert {"--net.widths", "--config.norm", "--data.crop-px", "--out", "--dtype", "--quick",
            "--preprocessing.window-px", "--json", "--mesh.data"} <= flags  # fmt: skip
    assert not {flag for flag in flags if "command" in flag or "preset" in flag}


class Overlooked(int):
    """A checksum that is right whatever stands in the file."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return 0


def damage_whole(tmp_path, content, part):
    """Write a whole file with one flipped bit in the middle of a part of it."""
    path = tmp_path / ("x.pt" if part != b"IEND" else "x.png")
    at = content.find(part) + (-6 if part == b"IEND" else len(part) // 2)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    return path


def run_work(work, path, folder):
    return work.check(path, work.run(path, folder))


def overlook(monkeypatch, module):
    others = {name: getattr(zlib, name) for name in dir(zlib)}
    others["crc32"] = lambda *content: Overlooked(zlib.crc32(*content))
    monkeypatch.setattr(module, "zlib", SimpleNamespace(**others))


def test_a_checkpoint_whose_checksum_is_overlooked_is_a_wrong_accept(tmp_path, monkeypatch):
    from unet_torch import container

    weight = whole_files.draw_weights().tensors["out.weight"].tobytes()
    path = damage_whole(tmp_path, hostile.read_whole()["weights.pt"], weight)
    work = wrong_input.prepare_weights(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="CRC"):
        work.run(path, tmp_path)
    overlook(monkeypatch, container)
    outcome = run_work(work, path, tmp_path)
    assert (outcome.end, "CRC" in outcome.detail) == ("wrong accept", True)


def test_an_image_whose_checksum_is_overlooked_is_a_wrong_accept(tmp_path, monkeypatch):
    from unet_image import png_file

    path = damage_whole(tmp_path, hostile_images.read_whole()["gray.png"], b"IEND")
    work = wrong_input.prepare_images(tmp_path)
    with pytest.raises(InputError, match="checksum"):
        work.run(path, tmp_path)
    overlook(monkeypatch, png_file)
    assert run_work(work, path, tmp_path).end == "wrong accept"


def test_weights_whose_hash_is_overlooked_are_a_wrong_accept(tmp_path, monkeypatch):
    from unet_spec import safetensors_file

    content = hostile.read_whole()["weights.safetensors"]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    work = wrong_input.prepare_weights(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="sha256"):
        work.run(path, tmp_path)
    monkeypatch.setattr(safetensors_file, "_check_hash", lambda path, expected: None)
    outcome = run_work(work, path, tmp_path)
    assert outcome == Outcome("wrong accept", "x.safetensors: its sha256 differs")


def test_tensors_that_differ_or_are_dropped_are_differences():
    one, two = np.array([1, 2], np.float32), np.array([3], np.float32)
    find = wrong_input.find_difference
    assert find({"a": one, "b": two}, {"model.a": one.astype(float), "model.b": two}, None) is None
    assert find({"ours": one}, {"theirs": one}, None) is None
    assert find({"a": one}, {"a": one + 1}, None) == "a has other values in another reader"
    assert find({"a": one}, {"a": one[None]}, None) == "a has other values in another reader"
    assert find({"a": one}, {"a": one + 1, "b": one}, None) is not None
    assert find({"a": one}, {"a": one, "b": two}, None) == "b is dropped"
    assert find({"a": one}, {"a": one, "b": two}, None, text="beside the net: b") is None
    assert find({"a": one}, {"a": one, "0.step": np.array(4.0)}, 4) is None
    assert find({"a": one}, {"a": one, "0.step": np.array(4.0)}, 3) == "0.step is dropped"


@pytest.mark.parametrize("words", [["--zzz"], ["train", "cells", "--out", "x", "--steps", "x"]])
def test_more_than_one_line_for_a_usage_error_is_noise(tmp_path, monkeypatch, words):
    import unet_cli

    def print_box():
        print("\u256d box", "\u2502 line", sep="\n", file=sys.stderr)
        sys.exit(2)

    monkeypatch.setattr(unet_cli, "main", print_box)
    (tmp_path / "here").mkdir()
    with pytest.raises(FaultError, match="noise"):
        wrong_flags.run_command(words, tmp_path)


def test_a_short_campaign_finds_nothing():
    result = wrong_input.wrong_input(seed=1, quick=True, say=lambda text: None)
    assert not result["details"]
    assert result["cases"] == {**wrong_input.QUICK_COUNTS, "bad days": 0}
    assert result["counts"]["weights"]["read"] > 5
    assert result["counts"]["images"]["read"] > 5


@pytest.mark.parametrize(
    ("name", "harm", "end"),
    [
        ("", None, "read"),
        ("weights.safetensors", Path.unlink, "lost"),
        ("best.safetensors", lambda path: path.write_bytes(b"other"), "not the same"),
        ("report.html", lambda path: path.write_bytes(b""), "lost"),
        (".weights.safetensors.abcdefgh", Path.touch, "left behind"),
    ],
)
def test_a_run_that_ends_otherwise_than_the_undisturbed_one_is_a_fault(tmp_path, name, harm, end):
    for folder in ("run", "ready"):
        for file in (*bad_days.ENDS, "report.html"):
            path = tmp_path / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 20_000)
        (tmp_path / folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    if harm is not None:
        harm(tmp_path / "run" / name)
    assert bad_days.compare_ends(tmp_path / "run", tmp_path / "ready").end == end
