"""What would fail after the work is refused before it, and what is refused leaves nothing."""

import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from PIL import Image

import unet_cli
from unet_command import reports
from unet_spec import UNetConfig, weight_file
from unet_spec.parameters import parameters

LONG = "n" * 251
VERIFY, CONVERT = "verify w.safetensors --steps 0", "convert w.safetensors"
PREDICT, TRAIN = "predict w.safetensors i.png --out", "train cells --steps 1 --out"
A_FOLDER = "it is a folder, and a file is written; name another"
IN_A_FILE = "file is no folder; name another output"
NO_FOLDER = "it is a file, and a folder is needed; name another"
IN_PLACE = "the report would take the place of this file; name another"
NO_PLACE = (
    "nothing can be written into /proc (No such file or directory); mend that, or name another "
    "output"
)
TOO_LONG = "the name is too long for a file; name another output"
NOT_MADE = "the folder nothing does not exist; make it first"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Weights, an image, a file and folders, and nothing that works."""
    config, rng = UNetConfig(widths=(4, 8)), np.random.default_rng(0)
    tensors = {p.name: rng.normal(size=p.shape).astype(np.float32) for p in parameters(config)}
    content = weight_file.WeightFile(config, tensors, class_names=("a", "b"))
    weight_file.write(tmp_path / "w.safetensors", content)
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "w.json")
    Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / "i.png")
    (tmp_path / "file").write_text("x")
    (tmp_path / "d.json").mkdir()
    (tmp_path / "d.html").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in ("unet_parity.verify.verify", "unet_bench.bench.bench", "unet_demo.run.run",
                  "unet_convert.conversion.convert", "unet_command.predicting.predict",
                  "unet_command.training.train"):  # fmt: skip
        monkeypatch.setattr(place, None)
    return tmp_path


CASES = [
    (f"{VERIFY} --json d.json", f"d.json: {A_FOLDER}"),
    (f"{VERIFY} --report d.html", f"d.html: {A_FOLDER}"),
    (f"{VERIFY} --json file/a.json", f"file/a.json: {IN_A_FILE}"),
    (f"{VERIFY} --json nothing/a.json", f"nothing/a.json: {NOT_MADE}"),
    (f"{VERIFY} --json {LONG}.json", f"{LONG}.json: {TOO_LONG}"),
    (f"{VERIFY} --json /proc/a.json", f"/proc/a.json: {NO_PLACE}"),
    (f"{VERIFY} --json a.txt", "a.txt: the report's name ends in .json"),
    ("verify w.json --json ./w.json", f"w.json: {IN_PLACE}"),
    ("bench --json d.json", f"d.json: {A_FOLDER}"),
    (f"bench --json {LONG}.json", f"{LONG}.json: {TOO_LONG}"),
    ("bench --report d.html", f"d.html: {A_FOLDER}"),
    ("bench --report a.json", "a.json: the report's name ends in .html"),
    (f"{CONVERT} file/a.pt", f"file/a.pt: {IN_A_FILE}"),
    (f"{CONVERT} nothing/a.pt", f"nothing/a.pt: {NOT_MADE}"),
    (f"{CONVERT} {LONG}nn.pt", f"{LONG}nn.pt: {TOO_LONG}"),
    (f"{CONVERT} /proc/a.pt", f"/proc/a.pt: {NO_PLACE}"),
    (f"{CONVERT} a.json --json a.json", f"a.json: {IN_PLACE}"),
    ("convert w.json a.pt --json w.json", f"w.json: {IN_PLACE}"),
    (f"{CONVERT} a.pt --json d.json", f"d.json: {A_FOLDER}"),
    (f"{PREDICT} file", f"file: {NO_FOLDER}"),
    (f"{PREDICT} file/a", f"file/a: {IN_A_FILE}"),
    (f"{PREDICT} {LONG}nnnnn", f"{LONG}nnnnn: {TOO_LONG}"),
    (f"{PREDICT} a/{LONG}nnnnn", f"a/{LONG}nnnnn: {TOO_LONG}"),
    (f"{PREDICT} /proc/a", f"/proc/a: {NO_PLACE}"),
    (f"{PREDICT} . --json prediction.json", f"prediction.json: {IN_PLACE}"),
    (f"{PREDICT} a --json d.json", f"d.json: {A_FOLDER}"),
    (f"{TRAIN} file/a", f"file/a: {IN_A_FILE}"),
    (f"{TRAIN} /proc/a", f"/proc/a: {NO_PLACE}"),
    (f"{TRAIN} . --json config.json", f"config.json: {IN_PLACE}"),
    (f"{TRAIN} a --start w.json --json w.json", f"w.json: {IN_PLACE}"),
    (f"{TRAIN} a --json d.json", f"d.json: {A_FOLDER}"),
    ("demo --out file", "file: exists already; name another output, or remove it first"),
    ("demo --out file/a", f"file/a: {IN_A_FILE}"),
    ("demo --out /proc/a", f"/proc/a: {NO_PLACE}"),
    ("demo --out a --json d.json", f"d.json: {A_FOLDER}"),
]


def run(words, monkeypatch):
    """How a command ends, and what it says."""
    monkeypatch.setattr(sys, "argv", ["unet", *words.split()])
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said), pytest.raises(SystemExit) as ended:
        unet_cli.main()
    return ended.value.code, said.getvalue()


@pytest.mark.parametrize(("words", "sentence"), CASES, ids=[case[0][:60] for case in CASES])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    folder, monkeypatch, words, sentence
):
    before = sorted(folder.rglob("*"))
    assert run(words, monkeypatch) == (2, f"unet: {sentence}\n")
    assert sorted(folder.rglob("*")) == before


def test_a_place_where_nothing_can_be_written_is_refused(folder, monkeypatch):
    """Root may write everywhere, so the system's refusal is made."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "a temporary name")

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    for words, name in ((f"{VERIFY} --json a.json", "a.json"), (f"{CONVERT} a.pt", "a.pt"),
                        (f"{PREDICT} a/b", "a/b"), (f"{TRAIN} c", "c")):  # fmt: skip
        sentence = (
            f"{name}: nothing can be written into . (Permission denied); mend that, or name "
            "another output"
        )
        assert run(words, monkeypatch) == (2, f"unet: {sentence}\n")


@pytest.mark.parametrize("command", [VERIFY, f"{CONVERT} a.pt"])
def test_arguments_without_their_reference_are_refused(folder, monkeypatch, command):
    status, text = run(f"{command} --reference-arguments 3", monkeypatch)
    assert (status, text) == (
        2, "unet: --reference-arguments is for --reference, which is not given\n"
    )  # fmt: skip


def test_a_trial_leaves_nothing_and_refuses_nothing_that_can_be_written(folder):
    before = sorted(folder.rglob("*"))
    reports.check_file(folder / "a.json")
    reports.check_file(folder / "w.json")
    reports.check_folder(folder / "a/b/c")
    reports.check_folder(folder / "d.json")
    reports.check_target(folder / "a.json", others=(folder / "b.json", None))
    assert sorted(folder.rglob("*")) == before
