"""What a terminal shows of a run, and what its windows of steps are."""

import io
import math
import os
import re
from concurrent.futures import Future
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from unet_train.metrics import foreground_iou
from unet_train.report import progress
from unet_train.report.progress import (
    IN_FLIGHT,
    LINE_EVERY_S,
    WINDOW,
    Progress,
    format_status,
    peak_memory_bytes,
)
from unet_train.step import Metrics


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("unet_train.report.progress.time.monotonic", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


class Made(Future):
    """A batch that is there in so many seconds."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.at = clock, clock.now + seconds

    def done(self):
        return self.clock.now >= self.at

    def result(self, timeout=None):
        self.clock.now = max(self.clock.now, self.at)


class Busy:
    """What a device has computed in so many seconds."""

    def __init__(self, clock, seconds):
        self.clock, self.at = clock, clock.now + seconds

    def block_until_ready(self):
        self.clock.now = max(self.clock.now, self.at)

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.asarray(0.5, dtype)


class Counted:
    """An array of which it is known how often its numbers were asked for."""

    asked = 0

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        Counted.asked += 1
        return np.asarray(self.value, dtype)


def _metrics(step=1):
    matrix = np.random.default_rng(step).integers(0, 100, (3, 3)).astype(np.float32)
    return Metrics(*map(jnp.asarray, (0.5 / step, matrix, 1e-3 * step, 2.0)))


def _steps(count, *, terminal=False, width=80, **options):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    return file, Progress(console).steps(count, **options)


def test_means_of_a_window_equal_those_of_its_steps():
    _, steps = _steps(50)
    with steps as bar:
        ended = {
            step: bar.advance(_metrics(step), images=8, settle=step == 45) for step in range(1, 46)
        }
    windows = {step: means for step, means in ended.items() if means is not None}
    assert list(windows) == [1, 1 + WINDOW, 1 + 2 * WINDOW, 45]
    seen = [_metrics(step) for step in range(22, 42)]
    found = windows[41]
    assert found["loss"] == np.mean([m.loss for m in seen], dtype=np.float64)
    assert found["iou"] == foreground_iou(np.sum([m.confusion for m in seen], axis=0))
    assert (found["lr"], found["grad_norm"]) == (float(seen[-1].lr), 2.0)


def test_a_window_without_a_class_to_score_has_no_iou():
    _, steps = _steps(1)
    background = jnp.asarray([[7, 0], [0, 0]])
    with steps as bar:
        means = bar.advance(_metrics()._replace(confusion=background), images=8)
    assert math.isnan(means["iou"])
    assert "IoU n/a  lr" in format_status(means)


def test_steps_run_ahead_of_their_numbers():
    Counted.asked = 0
    _, steps = _steps(100)
    with steps as bar:
        asked = []
        for step in range(1, 2 * WINDOW + 2):
            bar.advance(_metrics(step)._replace(loss=Counted(0.5)), images=8)
            asked.append(Counted.asked)
    assert asked == [1] * WINDOW + [1 + WINDOW] * WINDOW + [1 + 2 * WINDOW]


@pytest.mark.parametrize(("made_s", "share"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.6), (1.6, 0.75)])
def test_devices_wait_for_a_batch_only_when_they_have_nothing_to_do(monkeypatch, made_s, share):
    """A step takes 0.4 s: it is dispatched at once, and runs while the next batch is made."""
    clock = Clock(monkeypatch)
    _, steps = _steps(1 + WINDOW)
    with steps as bar:
        for step in range(1, 2 + WINDOW):
            bar.wait_for(Made(clock, made_s))
            means = bar.advance(_metrics(step)._replace(loss=Busy(clock, 0.4)), images=8)
    # the first batch of a window finds no step under way: it is settled then
    assert means["waiting_share"] == pytest.approx(share, abs=0.05)


def test_few_steps_are_under_way_at_once(monkeypatch):
    clock = Clock(monkeypatch)
    _, steps = _steps(1 + WINDOW)
    with steps as bar:
        given: list[Busy] = []
        for step in range(1, WINDOW):
            free_s = max(0, given[-1].at - clock.now) if given else 0
            given.append(Busy(clock, free_s + 0.4))
            bar.advance(_metrics(step)._replace(loss=given[-1]), images=8)
            assert sum(loss.at > clock.now for loss in given) <= IN_FLIGHT


def test_images_per_second_leave_out_the_first_step_and_pauses(monkeypatch):
    clock = Clock(monkeypatch)
    windows: dict[int, dict[str, float]] = {}
    _, steps = _steps(1 + 2 * WINDOW)
    with steps as bar:
        for step in range(1, 2 + 2 * WINDOW):
            clock.passes(100 if step == 1 else 0.20)
            bar.wait_for(Made(clock, 0.05))
            means = bar.advance(_metrics(step), images=8)
            if means is not None:
                windows[step] = means
            if step == 1 + WINDOW:
                clock.passes(1000)
                bar.restart_clock()
    assert {"images_per_s", "waiting_share"}.isdisjoint(windows[1])
    for step in (1 + WINDOW, 1 + 2 * WINDOW):
        assert windows[step]["images_per_s"] == pytest.approx(8 / 0.25)
        assert windows[step]["waiting_share"] == pytest.approx(0.05 / 0.25)


@pytest.mark.parametrize(("every", "start"), [(25, 25), (25, 75), (33, 33), (33, 99), (1, 3)])
def test_a_resumed_run_has_the_windows_of_one_that_was_never_stopped(every, start):
    """A run resumes at a step that was saved, where a window ends."""
    windows: list[dict[int, dict[str, float]]] = []
    for first in (0, start):
        _, steps = _steps(100, start=first)
        windows.append({})
        with steps as bar:
            for step in range(first + 1, 101):
                means = bar.advance(_metrics(step), images=8, settle=step % every == 0)
                if means is not None:
                    windows[-1][step] = means
    whole, resumed = windows
    assert list(resumed) == [step for step in whole if step > start]
    for step, means in resumed.items():
        for name in ("loss", "iou", "lr", "grad_norm"):
            assert means[name] == whole[step][name], (step, name)


def test_a_window_of_the_first_step_of_a_command_alone_has_no_speeds():
    _, steps = _steps(9, start=4)
    with steps as bar:
        alone = bar.advance(_metrics(5), images=8, settle=True)
        after = bar.advance(_metrics(6), images=8, settle=True)
    assert {"images_per_s", "waiting_share"}.isdisjoint(alone)
    assert {"images_per_s", "waiting_share"} <= after.keys()


@pytest.mark.parametrize("start", [0, 30])
def test_images_per_second_leave_out_the_first_step_of_a_command(monkeypatch, start):
    clock = Clock(monkeypatch)
    _, steps = _steps(start + WINDOW + 1, start=start)
    with steps as bar:
        for step in range(start + 1, start + WINDOW + 2):
            clock.passes(100 if step == start + 1 else 0.20)
            bar.wait_for(Made(clock, 0.05))
            means = bar.advance(_metrics(step), images=8, settle=step == start + WINDOW + 1)
            if means is not None and step > start + 1:
                assert means["images_per_s"] == pytest.approx(8 / 0.25)
                assert means["waiting_share"] == pytest.approx(0.05 / 0.25)


@pytest.mark.parametrize("start", [0, 30])
def test_a_file_gets_the_first_line_the_last_and_one_in_15_s(monkeypatch, start):
    clock = Clock(monkeypatch)
    first = 1 if start == 0 else start + WINDOW
    count = first + 6 * WINDOW
    file, steps = _steps(count, start=start)
    with steps as bar:
        for step in range(start + 1, count + 1):
            clock.passes(0.55 * LINE_EVERY_S / WINDOW)
            bar.advance(_metrics(step), images=8)
    lines = file.getvalue().splitlines()
    told = re.findall(r"^step (\d+) of", file.getvalue(), re.MULTILINE)
    assert len(lines) == len(told)
    assert list(map(int, told)) == [first + n * WINDOW for n in (0, 2, 4, 6)]
    assert f"of {count}: loss 0." in lines[-1]


def test_a_terminal_gets_a_bar_with_the_numbers_in_80_columns(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(progress, "peak_memory_bytes", lambda: 12_340_000_000)
    file, steps = _steps(100_000, terminal=True, start=99_980)
    with steps as bar:
        for step in range(WINDOW):
            bar.wait_for(Made(clock, 0.01))
            means = bar.advance(_metrics(step + 1), images=100)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", file.getvalue())
    last = shown.strip().splitlines()[-2:]
    assert "100000/100000" in last[0]
    assert last[1].strip() == format_status(means)
    assert last[1].strip().endswith("10000.0 images/s  input wait 100 %  12.3 GB")
    assert len(last[1].rstrip()) < 80


def test_time_left_is_that_of_the_steps_not_done_before(monkeypatch):
    clock = Clock(monkeypatch)
    _, steps = _steps(1000, terminal=True, start=500)
    with steps as bar:
        task = bar._view.tasks[0]
        assert (task.completed, task.total) == (500, 1000)
        task.get_time = lambda: clock.now
        bar._view.get_time = lambda: clock.now
        for step in range(2 * WINDOW):
            clock.passes(3)  # a window takes a minute
            bar.advance(_metrics(step + 1), images=8)
        assert task.time_remaining == pytest.approx(3 * (500 - 2 * WINDOW), abs=1)


def test_what_is_said_keeps_its_brackets():
    file = io.StringIO()
    Progress(Console(file=file)).say("volume.tif[a] and [bold]")
    assert file.getvalue() == "volume.tif[a] and [bold]\n"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_lies_between_what_is_in_use_and_what_the_machine_has():
    page = os.sysconf("SC_PAGE_SIZE")
    now = page * int(Path("/proc/self/statm").read_text().split()[1])
    assert 0.9 * now < peak_memory_bytes() < page * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("stats", [[{"peak_bytes_in_use": 7}, {"peak_bytes_in_use": 9}, None, {}]])
def test_memory_is_that_of_the_fullest_device(monkeypatch, stats):
    class Device:
        def __init__(self, told):
            self.memory_stats = lambda: told

    monkeypatch.setattr(
        "unet_train.report.progress.jax.local_devices", lambda: [Device(told) for told in stats]
    )
    assert peak_memory_bytes() == 9


def test_a_name_with_an_escape_sequence_steers_no_terminal():
    stream = io.StringIO()
    Progress(Console(file=stream)).say("a\x1b[2J.png is read\nand a line")
    assert stream.getvalue() == "a\\x1b[2J.png is read\nand a line\n"
