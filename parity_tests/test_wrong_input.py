"""The campaign of wrong input sees every kind of fault that it counts; a short one finds none."""

import os
import time
import warnings

import numpy as np
import pytest

from benchmarks import damage, watched, wrong_flags, wrong_input
from benchmarks.watched import Case, Outcome, Tally
from unet_spec import InputError

BAD_RUNS = {
    "refuse": "refused",
    "raise": "traceback",
    "die": "traceback",
    "warn": "noise",
    "grow": "memory",
    "ask": "memory",
    "compute": "slow",
    "sleep": "slow",
    "begin": "begun",
    "read": "read",
}


def prepare(folder):
    """What runs cases that behave as their group says; in a child process."""
    return misbehave


def misbehave(case, folder):
    match case.group:
        case "refuse":
            raise InputError("no")
        case "raise":
            raise KeyError("x")
        case "die":
            os._exit(3)
        case "warn":
            warnings.warn("noise", stacklevel=2)
        case "grow":
            np.ones(220 * 2**20)  # 1.7 GiB
        case "ask":
            try:
                np.ones(2**36)
            except MemoryError as error:
                raise InputError("no") from error
        case "compute":
            began = time.process_time()
            while time.process_time() < began + watched.SECONDS + 0.5:
                pass
        case "sleep":
            time.sleep(100)
        case "begin":
            raise watched.WorkBegins
    return Outcome("read")


def test_every_kind_of_fault_is_counted_and_the_cases_behind_it_run(tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "HANG_SECONDS", 12.0)
    cases = [Case(group, "", number) for number, group in enumerate(BAD_RUNS)]
    tally = Tally()
    watched.run_watched(cases, prepare, tmp_path, tally, children=1, say=lambda text: None)
    assert tally.counts == {group: {end: 1} for group, end in BAD_RUNS.items()}
    assert {fault["group"] for fault in tally.faults} == {
        group for group, end in BAD_RUNS.items() if end in watched.FAULTS
    }
    assert watched.MEGABYTES < tally.peak_mb < 2 * watched.MEGABYTES


def test_readings_that_differ_or_are_not_finite_are_faults():
    whole = [np.array([1, 2], np.float32)]
    assert wrong_input._compare(whole, [np.array([1, 2], np.float32)]).end == "read"
    assert wrong_input._compare(whole, [np.array([1, 3], np.float32)]).end == "not the same"
    assert wrong_input._compare(whole, [np.array([1, 2], np.float64)]).end == "not the same"
    broken = [np.array([1, np.inf], np.float32)]
    assert wrong_input._compare(broken, broken).end == "not finite"


def test_what_a_refused_file_leaves_behind_is_a_fault(tmp_path, monkeypatch):
    from unet_convert import conversion

    def convert(source, target):
        target.write_bytes(b"half")
        raise InputError("no")

    (case, *_) = wrong_input.draw_cases("weights", 1, tmp_path / "whole", seed=0)
    monkeypatch.setattr(conversion, "convert", convert)
    assert wrong_input._convert_weights(case, tmp_path).end == "left behind"


@pytest.mark.parametrize("kind", ["images", "weights"])
def test_the_same_seed_damages_the_same_bytes_and_every_way_damages(tmp_path, kind):
    cases = wrong_input.draw_cases(kind, 150, tmp_path / "whole", seed=3)
    assert {case.what for case in cases} == set(damage.DAMAGES)
    changed = 0
    for case in cases:
        contents = [wrong_input._damage(case, tmp_path).read_bytes() for _ in range(2)]
        assert contents[0] == contents[1]
        changed += contents[0] != case.arguments[0].read_bytes()
    assert changed > 0.9 * len(cases)


def test_flags_are_the_real_ones_of_every_verb():
    import unet_cli

    flags = {name for verb in unet_cli.VERBS.values() for name, _ in wrong_flags.list_flags(verb)}
    assert {"--net.widths", "--config.norm", "--data.crop-px", "--out", "--dtype", "--quick",
            "--preprocessing.window-px", "--json", "--mesh.data"} <= flags  # fmt: skip
    assert not {flag for flag in flags if "command" in flag or "preset" in flag}


def test_a_short_campaign_finds_nothing(monkeypatch):
    counts = {**wrong_input.QUICK_COUNTS, "images": 60, "commands": 20}
    monkeypatch.setattr(wrong_input, "QUICK_COUNTS", counts)
    result = wrong_input.wrong_input(seed=1, quick=True, say=lambda text: None)
    assert not result["details"]
    assert sum(sum(c.values()) for c in result["counts"].values()) == sum(counts.values())
    assert sum(result["counts"]["weights.pt"].values()) > 10
