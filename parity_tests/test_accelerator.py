"""Whatever becomes of a section of `benchmarks.accelerator`, its record says so, and all run."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import Section
from parity_tests.compiling import CHEAP_FLAGS
from unet_bench import steps
from unet_spec import UNetConfig

ENDS_WELL = "import sys; open(sys.argv[1], 'w').write('{\"figure\": 2}')"
BREAKS_OFF = ENDS_WELL + "; import os; os.abort()"
LASTS = ENDS_WELL + "; import time; time.sleep(60)"


def section(program: str, limit_s: float = 30) -> Section:
    return Section((sys.executable, "-c", program), limit_s)


def records_of(seconds: float, **sections: Section):
    """What `measure` gives, and what it had written after each section."""
    written: list[dict] = []
    records = accelerator.measure(
        sections, seconds=seconds, write=lambda all_: written.append(json.loads(json.dumps(all_)))
    )
    return records, written


def test_each_section_is_recorded_whatever_became_of_the_ones_before():
    records, written = records_of(
        60, crashed=section(BREAKS_OFF), slow=section(LASTS, limit_s=2), well=section(ENDS_WELL)
    )
    assert {name: record["figure"] for name, record in records.items()} == {
        "crashed": 2, "slow": 2, "well": 2,
    }  # fmt: skip
    assert [accelerator.has_failed(record) for record in records.values()] == [True, True, False]
    assert records["crashed"]["error"] == "it ended with status -6"
    assert records["slow"]["error"] == "it was ended after 2 s"
    assert [list(each) for each in written] == [
        ["crashed"], ["crashed", "slow"], ["crashed", "slow", "well"],
    ]  # fmt: skip


def test_no_section_begins_without_time():
    records, _ = records_of(accelerator.LEAST_S - 1, late=section(ENDS_WELL))
    assert records == {"late": {"skipped": "9 s were left"}}
    assert not accelerator.has_failed(records["late"])


def test_an_error_is_recorded_beside_what_was_measured_before_it(tmp_path: Path):
    def parts():
        yield {"first": 1}
        yield {"second": 2}
        raise ValueError("no third")

    path = tmp_path / "part.json"
    assert accelerator.record_section(parts(), path) == 1
    record = json.loads(path.read_text())
    assert (record["first"], record["second"]) == (1, 2)
    assert record["error"] == "ValueError: no third"


def test_a_real_section_is_recorded_and_shown():
    """The quickest one, in a process as `main` starts it."""
    name = "environment"
    command = (sys.executable, "-m", "benchmarks.accelerator", "--small", "--section", name)
    records, _ = records_of(60, **{name: Section(command, 60)})
    assert not accelerator.has_failed(records[name]), records
    assert records[name]["installed"]["jax_device"].startswith("cpu")
    assert any(line.startswith(name) and line.endswith("ok") for line in accelerator.show(records))


TINY = dataclasses.replace(
    accelerator.small(), net=UNetConfig(widths=(2, 4)), size_px=16, budget_s=0, copied_bytes=2**16
)


def record_of(section, sizes=TINY):
    """What a section records, in this process; all but the last part is written on the way."""
    record: dict = {}
    for part in accelerator.RUNS[section][0](sizes):
        record.update(json.loads(json.dumps(part)))
    return record


def test_every_section_is_one_that_runs_or_is_tried_here():
    """Those of processes of their own are `environment` above, and `train` and `resume` below."""
    assert set(accelerator.RUNS) == {
        "environment", "ceilings", "speed", "memory", "train", "resume", "exact", "ordinary",
        "float32",
    }  # fmt: skip
    # what is ended late must leave time for what comes after it
    assert sum(limit for _, limit in list(accelerator.RUNS.values())[:3]) < 300


def test_ceilings_are_measured_in_each_arithmetic():
    record = record_of("ceilings")
    assert record.keys() == {"bfloat16_tflops", "TF32_tflops", "float32_tflops", "copy_gb_s"}
    assert min(record.values()) > 0


def test_speed_has_each_variant_and_says_why_torch_compile_has_none(monkeypatch):
    monkeypatch.setattr(steps, "explain_no_compiler", lambda device: "no compiler")
    record = record_of("speed")
    rows = [
        (r["arithmetic"], r["case"].split(", ")[-1], r["torch_variant"]) for r in record["rows"]
    ]
    assert rows == [
        (arithmetic, what, variant)
        for arithmetic in ("bfloat16", "TF32")
        for what in ("forward", "training step")
        for variant in steps.VARIANTS
    ]
    assert record["torch_compile"] == "not measured: no compiler"
    for row in record["rows"]:
        assert row["jax_images_per_s"] == pytest.approx(1e3 * TINY.batch / row["jax_ms"])
    lines = list(accelerator.show({"speed": record}))
    assert sum("images/s" in line for line in lines) == len(rows)
    assert "torch.compile: not measured: no compiler" in lines


def test_a_compiler_that_fails_or_lasts_is_recorded(monkeypatch):
    def fail(sizes, arithmetic, variants, rows):
        if steps.COMPILED in variants:
            raise ValueError("no such thing")
        rows.append({"arithmetic": arithmetic.name})
        yield {"rows": rows}

    monkeypatch.setattr(steps, "explain_no_compiler", lambda device: None)
    monkeypatch.setattr(accelerator, "_time_arithmetic", fail)
    record = record_of("speed")
    assert record["torch_compile"] == "not measured: ValueError: no such thing"
    assert [row["arithmetic"] for row in record["rows"]] == ["bfloat16", "TF32"]


def test_float32_is_timed_by_itself():
    record = record_of("float32")
    assert {row["arithmetic"] for row in record["rows"]} == {"float32"}
    assert len(record["rows"]) == 4


def test_memory_stands_beside_its_plan():
    rows = record_of("memory")["rows"]
    assert [row["case"].split(", ")[-1] for row in rows] == ["forward", "training step"]
    for row in rows:
        assert row["planned_mb"] > 0
        assert row["measured_mb"] is None  # a CPU does not tell
        assert "at most in use -" in accelerator._describe_memory(row)
    assert accelerator._most_in_use_mb(FakeDevice()) == 3.5


class FakeDevice:
    """A device that tells how much of its memory is in use, as a GPU does."""

    def memory_stats(self):
        return {"bytes_in_use": 1, "peak_bytes_in_use": 3_500_000}


def test_the_exact_proof_holds_in_every_precision_and_states_both():
    record = record_of("exact")
    for name in ("highest", "default"):
        assert record["precisions"][name]["jax_precision"].startswith(name)
        assert "TF32 off" in record["precisions"][name]["torch_precision"]
    proven = {(r["rung"], r["jax_precision"], r["padding"]): r["outcome"] for r in record["exact"]}
    assert set(proven.values()) == {"holds"}
    assert len(proven) == 10  # on a CPU both precisions keep all bits; bf16 has one


def test_ordinary_weights_end_in_a_verdict():
    record = record_of("ordinary")
    assert record["verdict"] == "equivalent"
    assert record["steps_in"] == ["float32", "float64"]


@pytest.fixture
def compiles_cheaply(monkeypatch):
    """Runs that a section starts as processes compile as the tests do."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {CHEAP_FLAGS}")


@pytest.mark.usefixtures("compiles_cheaply")
def test_a_preset_trains_and_its_loss_falls():
    summary = record_of("train")["modern"]
    assert summary["step"] == TINY.presets["modern"]
    assert summary["loss_fell"]
    assert summary["images_per_s"] > 0


@pytest.mark.usefixtures("compiles_cheaply")
def test_a_run_that_is_killed_ends_in_the_same_bytes():
    record = record_of("resume", dataclasses.replace(TINY, kill_steps=12, kill_every=2))
    assert record["equal"]
    assert record["sha256_resumed"] == record["sha256_undisturbed"]
    assert 4 <= record["resumed_at"] < 12
