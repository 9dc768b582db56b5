"""Whatever becomes of a section of `benchmarks.accelerator`, its record says so, and all run."""

import json
import sys
from pathlib import Path

from benchmarks import accelerator
from benchmarks.accelerator import Section

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
