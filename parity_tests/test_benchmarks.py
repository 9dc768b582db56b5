"""The scripts that make the figures explain themselves, and one table names them all."""

import os
import re
import runpy
import sys

import pytest

from parity_tests.shown import ROOT, inline_code

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
