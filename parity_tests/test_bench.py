"""`unet bench` times one computation in both frameworks; its page says what was measured."""

import dataclasses
import json
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rich.console import Console

import unet_cli
import unet_torch
from parity_tests.browser import needs_browser, render
from parity_tests.test_page import Seen
from unet_bench import bench, layer_times, net_times, page, preset_step, slopes, steps, tables
from unet_bench.bench import Plan, scale
from unet_bench.net_times import Case, NetRow, check_equal, time_case
from unet_bench.prediction_times import TiledImage, jax_prediction, torch_prediction
from unet_bench.preset_step import PresetStep, jax_preset_step, torch_preset_step
from unet_bench.steps import CompiledRun
from unet_bench.timing import Timings
from unet_command.parsing import Command
from unet_spec import UNetConfig
from unet_train.config import NUCLEI, PRESETS
from unet_train.step import _update_average

CPU = torch.device("cpu")
SMALL_STEP = dataclasses.replace(
    NUCLEI,
    net=UNetConfig(in_channels=3, widths=(8, 16), norm="group"),
    data=dataclasses.replace(NUCLEI.data, batch=3, crop_px=32),
)
SMALL = Plan(
    nets=((scale(2), 32, 2),), sizes_px=(16, 32), bases=(1, 2), image=(scale(1), 16, 2304),
    step=SMALL_STEP, layer_s=0, net_s=0, slope_s=0, is_compiled=False, size_px=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def result():
    """What a bench of tiny nets gives, and the lines that it says."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "QUICK", SMALL)
        patch.setattr(bench, "NARROW", scale(1))
        patch.setattr(layer_times, "UP_SIZES", ((8, 8, 4),))
        patch.setattr(layer_times, "POOL_SIZES", ((16, 4),))
        return bench.bench(quick=True, say=lines.append), lines


def losses(run, count=4):
    return [float(run()) for _ in range(count)]


def step_of(config=SMALL_STEP):
    return PresetStep(config, steps.devices()[0], CPU)


@pytest.fixture(scope="module")
def jax_losses():
    """The losses of the first steps in JAX."""
    return losses(jax_preset_step(step_of()).run)


@pytest.mark.parametrize("variant", steps.VARIANTS)
def test_a_presets_step_in_torch_equals_that_of_unet_train(variant, jax_losses):
    theirs = losses(torch_preset_step(step_of(), variant))
    assert jax_losses[0] > jax_losses[-1]
    np.testing.assert_allclose(theirs, jax_losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("loss", {"dice": 0.0}), ("loss", {"cross_entropy": 0.5}),
        ("schedule", {"max_lr": 4e-3}), ("optimizer", {"name": "sgd"}),
    ],
    ids=["without Dice", "half the cross-entropy", "twice the rate", "another optimizer"],
)  # fmt: skip
def test_a_step_of_another_loss_or_optimizer_is_noticed(part, change, jax_losses):
    other = dataclasses.replace(getattr(SMALL_STEP, part), **change)
    planted = dataclasses.replace(SMALL_STEP, **{part: other})
    theirs = losses(torch_preset_step(step_of(planted), "eager"))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(theirs, jax_losses, rtol=1e-4)


@pytest.mark.parametrize("done", [0, 7, 900, 5000])
def test_the_running_average_of_torch_has_the_rate_of_unet_train(done):
    begun: Any = SimpleNamespace(ema={"a": jnp.zeros(())}, step=jnp.asarray(done))
    (ours,) = _update_average(SMALL_STEP.ema, begun, {"a": jnp.ones(())}).values()
    assert preset_step.average_rate(SMALL_STEP.ema, done) == pytest.approx(float(ours))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name in ("paper", "modern")])
def test_a_preset_without_a_step_in_torch_is_refused(preset):
    with pytest.raises(AssertionError, match=preset):
        PresetStep(PRESETS[preset], steps.devices()[0], CPU)


def test_both_predictions_are_cut_into_the_tiles_that_the_case_counts(monkeypatch):
    image = TiledImage(scale(1), 16, 2304, CPU)
    assert len(image.tiles()) == 2
    seen = []
    forward = unet_torch.UNet.forward

    def watch(self, x, *rest):
        seen.append(tuple(x.shape[2:]))
        return forward(self, x, *rest)

    monkeypatch.setattr(unet_torch.UNet, "forward", watch)
    ours, theirs = jax_prediction(image), torch_prediction(image, "eager")
    assert seen == image.tiles()
    apart = check_equal({"jax": ours.run(), "eager": theirs()}, rounding=1e-4)
    assert apart["eager"] > 0
    for mask in (ours.run(), theirs()):
        assert mask.shape == (16, 2304)
        assert mask.dtype == np.uint8


def test_another_net_is_not_timed_as_a_prediction():
    ours = jax_prediction(TiledImage(scale(1), 16, 2304, CPU))
    theirs = partial(torch_prediction, TiledImage(scale(2), 16, 2304, CPU), "eager")
    with pytest.raises(AssertionError, match="differ by"):
        list(time_case(Case("a", 1, 1, 1e-4), ours, {"eager": theirs}, peak_gflops=1, budget_s=0))


def test_the_best_variant_of_torch_is_the_quickest(monkeypatch):
    rounds = {"jax": (2.0,), "slow": (12.0,), "quick": (4.0, 90.0, 3.0), "slower": (20.0,)}
    turns = []

    def alternate(runs, budget_s):
        turns.append((tuple(runs), budget_s))
        return Timings(rounds)

    monkeypatch.setattr(net_times, "alternate", alternate)
    ours = CompiledRun(lambda: torch.ones(1), 0.5, None)
    theirs = {name: (lambda: ours.run) for name in rounds if name != "jax"}
    case = Case("a", gflop=3.0, megapixels=2.0, rounding=0.0)
    rows = list(time_case(case, ours, theirs, peak_gflops=9000, budget_s=6))
    assert turns == [(("jax", name), 2) for name in theirs]
    assert [(row.torch_variant, row.best) for row in rows] == [
        ("slow", False), ("quick", True), ("slower", False),
    ]  # fmt: skip
    assert (rows[1].ratio, rows[1].gflops, rows[1].share_of_peak) == (0.5, 1500, 1500 / 9000)
    (alone,) = time_case(case, ours, {}, peak_gflops=9000, budget_s=0)
    assert (alone.torch_variant, alone.torch_ms, alone.ratio) == ("none", None, None)


def test_a_constant_is_seen_apart_from_the_slope():
    work = [0.004, 0.016, 0.066, 0.262]
    line = slopes.fit_line(work, [7 + 300 * w for w in work])
    assert line.constant_ms == pytest.approx(7)
    assert line.slope_ms == pytest.approx(300)
    # a long time that is off by a tenth must not move the constant by more than a tenth
    bent = slopes.fit_line(work, [7 + 300 * w * (1.1 if w == work[-1] else 1) for w in work])
    assert bent.constant_ms == pytest.approx(7, rel=0.1)
    assert 0 < bent.miss < 0.1


def test_torch_compile_that_does_not_work_is_named_in_one_line(monkeypatch):
    assert steps.explain_no_compiler(None) == "torch cannot use this device"

    def fail(function):
        raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler\n\nSet a variable\n")

    monkeypatch.setattr(torch, "compile", fail)
    assert steps.explain_no_compiler(CPU) == (
        "it does not work here: InvalidCxxCompiler: No working C++ compiler"
    )


def test_a_bench_has_a_row_for_every_case_and_variant(result):
    found, lines = result
    nets = tables.net_rows(found)
    names = [case["name"] for case in page.group_variants(nets)]
    assert names == [
        "base 2, 32x32, batch 2, forward", "base 2, 32x32, batch 2, training step",
        "nuclei, 32x32, batch 3, training step", "base 1, 16x2304 in 2 tiles, predict",
        *(f"base 1, {s}x{s}, batch 1, {w}" for s in (16, 32) for w in bench.DIRECTIONS),
        *(f"base 2, 32x32, batch 1, {w}" for w in bench.DIRECTIONS),
    ]  # fmt: skip
    assert {row["torch_variant"] for row in nets} == set(steps.VARIANTS)
    assert len(tables.layer_rows(found)) == 4
    for row in nets:
        assert row["ratio"] == row["jax_ms"] / row["torch_ms"]
        assert any(line.startswith(f"{row['case']}: ") for line in lines)
    assert [slope["per"] for slope in found["slopes"]] == 2 * ["megapixel"] + 2 * ["GFLOP"]
    for slope in found["slopes"]:
        best = {row["case"]: row["torch_ms"] for row in nets if row["best"]}
        assert slope["torch_ms"] == tuple(best[case] for case in slope["cases"])
    assert found["only_for_slopes"] == names[4:]
    (note,) = found["notes"]
    assert note in lines
    assert found["allocator"] in lines


def test_a_bench_is_printed_with_torchs_best(result, capsys):
    tables.show(result[0], Console(width=200))
    printed = capsys.readouterr().out
    assert printed.count("(best)") == len(page.group_variants(tables.net_rows(result[0])))
    assert all(slope["name"] in printed for slope in result[0]["slopes"])


def _made_up(**changes):
    """A result with numbers that are not alike, of a machine that is not here."""
    nets = [
        NetRow("base 7, 32x32, forward", "eager", False, 21.7, 13.9, 1.561, 431.3, 0.713,
               9.359, 0.001, 1.0, 2.0, None, 0.0, None, 0.0),
        NetRow("base 7, 32x32, forward", "channels_last", True, 21.7, 11.3, 1.920, 431.3, 0.713,
               9.359, 0.001, 1.0, 2.0, None, 0.0, None, 0.0),
        NetRow("base 7, 64x64, forward", "eager", True, 71.9, 83.3, 0.863, 520.7, 0.861,
               37.43, 0.004, 1.0, 2.0, None, 0.4, None, 0.0),
    ]  # fmt: skip
    best = [row for row in nets if row.best]
    layer = layer_times.LayerRow("pool, 8x8", 1.37, 5.81, 0.236, 0.0)
    slope = slopes.fit_slope("base 7, forward", per="megapixel", axis=(32, 64), rows=best)
    usual = {
        "device": "cpu (a processor)", "precision": "float32", "allocator": "memory is kept",
        "matmul_gflops": 604.7, "versions": {}, "environment": {"jax": "0.10.2"},
        "notes": ["torch.compile is left out"],
        "rows": [dataclasses.asdict(layer), *map(dataclasses.asdict, nets)],
        "slopes": [dataclasses.asdict(slope)], "only_for_slopes": [],
    }  # fmt: skip
    return {**usual, **changes}


def test_the_page_says_what_was_measured():
    found = Seen(page.make_page(_made_up(), command="unet bench --report 'a b.html'"))
    for expected in (
        "JAX takes 0.86 to 1.92 times as long as torch's best variant; it is the quicker one in 1 "
        "of 2 computations.",
        "reaches 605 GFLOP/s", "Memory is kept. This holds for both frameworks.",
        "torch.compile is left out.", "unet bench --report 'a b.html'", "0.10.2",
        "base 7, 32x32, forward, against torch channels_last: 1.92",
        "base 7, 32x32, forward, against torch eager: 1.56", "pool, 8x8: 0.24",
        "0.86*", tables.BUSY, "peak 605", "base 7, 64x64, forward, torch's best: 83.3 ms",
        f"base 7, 64x64, forward, JAX: {1e3 * 37.43 / 71.9:,.3g} GFLOP/s",
    ):  # fmt: skip
        assert expected in found.text, expected
    (row,) = [r for r in page.group_variants(tables.net_rows(_made_up())) if "32x32" in r["name"]]
    assert row["best"]["torch_variant"] == "channels_last"


def test_marks_stand_where_their_ratios_are():
    text = page.make_page(_made_up())
    nets, layers = page.make_ratio_axis([0.863, 1.920]), page.make_ratio_axis([0.236])
    for axis, ratio, style in (
        (nets, 1.920, "channels_last"), (nets, 1.561, "eager"), (nets, 0.863, "eager"),
        (layers, 0.236, "flax"),
    ):  # fmt: skip
        assert f'<b class="{style}" style="left:{axis.at(ratio):.1f}%"' in text
        assert f'<i class="one" style="left:{axis.at(1):.1f}%"' in text
    assert nets.at(1) < nets.at(1.920)


def test_a_page_without_torch_says_so():
    rows = [dataclasses.asdict(row) for row in (
        NetRow("base 7, 32x32, forward", "none", True, 21.7, None, None, 431.3, 0.713, 9.359, 0.001,
               1.0, None, None, None, None, None),
    )]  # fmt: skip
    text = Seen(page.make_page(_made_up(rows=rows, slopes=[]))).text
    assert "JAX alone was timed, because torch cannot use this device." in text


def test_the_page_stands_alone_and_names_cannot_become_markup():
    hostile = "\"'><script>alert(1)</script>"
    text = page.make_page(_made_up(device=hostile, notes=[hostile]), command=hostile)
    found = Seen(text)
    assert found.text.count(hostile) == 3
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"url\(|@import|https?:", text)


def test_the_verb_writes_the_page_and_the_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "bench", lambda quick, say: _made_up())
    files = {"report": tmp_path / "page.html", "json": tmp_path / "rows.json"}
    assert unet_cli.bench(**files, command=Command(("bench",))) == 0
    assert "JAX takes 0.86 to 1.92" in files["report"].read_text()
    assert json.loads(files["json"].read_text()) == json.loads(
        json.dumps({"command": "unet bench", **_made_up()})
    )
    assert "channels_last (best)" in capsys.readouterr().out


@needs_browser
@pytest.mark.parametrize("width_px", [400, 1200])
def test_nothing_of_the_page_sticks_out_or_overlaps(width_px, tmp_path):
    text = page.make_page(_made_up(environment={"cpu": 200 * "x"}), command=300 * "y")
    shown = render(text, tmp_path, width_px=width_px)
    assert (shown.width, shown.clipped, shown.overlapping, shown.console) == (width_px, [], [], [])
    assert shown.labels > 10
