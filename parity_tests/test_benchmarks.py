"""The scripts that make the figures explain themselves, and one table names them all."""

import os
import re
import runpy
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    accelerator,
    allocator,
    continued,
    killed,
    more_than_memory,
    own_net,
    pipeline,
)
from parity_tests.compiling import CHEAP_FLAGS
from parity_tests.shown import ROOT, inline_code, run_unet
from parity_tests.tiny import TINY
from unet_spec import UNetConfig

TABLE = ROOT / "benchmarks" / "README.md"
SCRIPTS = sorted(
    path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_says_what_a_script_does_and_takes(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # one of them sets it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    text = script.read_text()
    assert text.splitlines()[0].removeprefix('"""') in shown
    assert ("IMAGES MASKS" in shown.splitlines()[0]) == ("IMAGES MASKS" in text)


def test_the_table_names_every_script_and_every_result():
    text = TABLE.read_text()
    assert set(re.findall(r"python -m benchmarks\.(\w+)", text)) == {p.stem for p in SCRIPTS}
    results = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert set(re.findall(r"\(results/(\w+\.json)\)", text)) == results
    assert any(span.startswith("python -m benchmarks.killed ") for span in inline_code(TABLE))


def test_scripts_that_kill_a_run_see_its_newest_checkpoint(run):
    assert killed._saved(run[0]) == accelerator._newest_checkpoint(run[0]) == TINY.steps


@pytest.fixture
def pictures(tmp_path):
    """A folder with four images and their masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for index in range(4):
        image = rng.integers(0, 255, (96, 96), np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        mask = (255 * (image > 127)).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    return tmp_path


def run_here(words, *, cwd, check):
    """Run a command of `unet` that a script would start as a process, in this one."""
    assert words[:3] == [sys.executable, "-m", "unet_cli"]
    assert check
    done = run_unet(shlex.join(["unet", *words[3:]]), cwd)
    assert done.status == 0, done.text


def test_a_small_net_of_ones_own_goes_there_and_back_as_the_figures_do(pictures, monkeypatch):
    flags = [*own_net.FLAGS[:-3], "2", "--steps", "2", "--mesh.data", "1"]
    sizes = {"LEG": 1, "STEPS": 3, "WIDTH": 2, "BATCH": 2, "CROP_PX": 32, "FLAGS": flags}
    flags[flags.index("--data.crop-px") + 1], flags[flags.index("--data.batch") + 1] = "32", "2"
    for name, value in sizes.items():
        monkeypatch.setattr(own_net, name, value)
    monkeypatch.setattr(own_net, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.delitem(sys.modules, "my_unet", raising=False)
    result = own_net.own_net(pictures / "images", pictures / "masks", pictures)
    monkeypatch.delitem(sys.modules, "my_unet", raising=False)
    assert all(0 < distance < 0.1 for distance in result["distance"].values())


def test_a_small_run_moves_from_torch_to_jax_as_the_figures_do(pictures, monkeypatch):
    flags = continued.FLAGS[:-1]
    sizes = {
        "STEPS": 3, "HANDOVER": 1, "EVERY": 1, "NET": UNetConfig(widths=(4, 6), norm="batch"),
        "FLAGS": [*flags, "1", "--mesh.data", "1"],
    }  # fmt: skip
    for name, value in sizes.items():
        monkeypatch.setattr(continued, name, value)
    monkeypatch.setattr(continued, "subprocess", SimpleNamespace(run=run_here))
    result = continued.continued(pictures / "images", pictures / "masks", pictures)
    assert {tuple(curve) for curve in result["iou"].values()} == {(2, 3)}
    assert result["furthest_iou"]["torch"] == 0.0


def test_allocators_are_compared_in_turns():
    """Of made-up processes: medians, and the ratio of kept over given back."""
    runs = [
        {"framework": "jax", "what": "forward", "keeps": keeps, "ms": ms, "page_faults": faults,
         "peak_mb": 9.0}
        for keeps, ms, faults in (
            (True, 4.0, 0), (False, 5.0, 70), (True, 6.0, 2), (False, 9.0, 90), (True, 90.0, 1),
            (False, 8.0, 80),
        )
    ]  # fmt: skip
    (row,) = allocator.summarize(runs)
    assert row["ratio"] == 6 / 8
    assert row["page_faults"] == {"kept": 1, "given_back": 80}


def test_a_process_of_the_comparison_says_whether_it_keeps_memory(monkeypatch):
    monkeypatch.setattr("unet_spec.SLIDES", UNetConfig(widths=(2, 4)))
    measured = allocator._measure("torch", "training step", 2)
    assert measured["keeps"] is False  # as all tests
    assert measured["ms"] > 0


def test_a_small_pipeline_is_timed_with_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PRESETS", {"nuclei": TINY})
    for name, value in {"ROUNDS": 1, "STEPS": 2, "TURN": 1, "TURNS": 2}.items():
        monkeypatch.setattr(pipeline, name, value)
    result = pipeline.pipeline(tmp_path)
    assert result["steps_per_s"].keys() == {"bare", "whole"}
    assert list(tmp_path.glob("*.safetensors"))


def test_a_run_on_more_images_than_its_cache_holds_is_killed_and_compared(tmp_path, monkeypatch):
    written = more_than_memory.draw_images(tmp_path, 2, (40, 56))
    files = [path for part in ("images", "masks") for path in (tmp_path / part).iterdir()]
    assert len(files) == 40
    assert written == sum(path.stat().st_size for path in files)
    flags = [
        "cells", "--net.widths", "4", "6", "--data.crop-px", "32", "--data.batch", "2", "--steps",
        "12", "--validate-every", "12", "--checkpoint-every", "2", "--keep", "9",
        "--data.cache-gb", "0", "--net.in-channels", "3",
    ]  # fmt: skip
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {CHEAP_FLAGS}")
    run = more_than_memory.run_and_kill(tmp_path, flags, kill_at=2)
    assert run["equal"]
    assert run["start_s"] > 0
    assert run["peak_memory_bytes"] > 1e8
    monkeypatch.setattr(more_than_memory, "IN_MEMORY", 6)
    config = replace(TINY, net=UNetConfig(in_channels=3, widths=(4, 6)))
    speeds = more_than_memory.compare_speeds(tmp_path, config, rounds=1, turn=2)
    assert speeds["share_of_memory"].keys() == {"warm", "cold"}
