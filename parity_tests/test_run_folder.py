import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from parity_tests.tiny import SHOWN, TINY, begin, quiet
from unet_spec import InputError
from unet_train import loop
from unet_train.config import MeshConfig
from unet_train.input.identity import Identity
from unet_train.run import folder as run_folder


def test_a_kill_while_a_run_begins_leaves_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "to_plain", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begin(tmp_path / "run", TINY)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_half_written_is_removed(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    killed = """
import os
from pathlib import Path
from unet_spec.files import atomic_write, atomic_write_folder
with (
    atomic_write_folder(Path("new")) as new,
    atomic_write(new / "a"),
    atomic_write(Path("checkpoints/b")),
    atomic_write(Path("weights.safetensors")),
):
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed], cwd=out).returncode == 9
    assert len(list(out.rglob(".*"))) == 4
    run_folder.remove_leftovers(out)
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"net": replace(TINY.net, widths=(4, 8))}, "net.widths was"),
        ({"optimizer": replace(TINY.optimizer, lr=1.0)}, "optimizer.lr was 0.002, now 1.0"),
        ({"steps": 12}, "steps was 6, now 12"),  # the schedule ends at the last step
    ],
    ids=["seed", "net", "optimizer", "steps"],
)
def test_another_config_is_refused_by_name(run, change, names):
    with pytest.raises(InputError, match=names):
        run_folder.compare_with_beginning(run[0], replace(TINY, **change), SHOWN)


def test_what_the_weights_do_not_depend_on_may_change(run):
    changed = replace(TINY, mesh=MeshConfig(data=2), validate_every=2)
    assert run_folder.compare_with_beginning(run[0], changed, SHOWN) == [
        "mesh.data was 1, now 2",
        "validate_every was 3, now 2",
    ]


def test_what_an_older_version_did_not_know_it_did_as_by_default(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    plain = run_folder.read_config(run[0])
    del plain["augment"]["illumination"], plain["accumulate"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(plain))
    assert run_folder.compare_with_beginning(tmp_path / "run", TINY, SHOWN) == []
    lit = replace(TINY, augment=replace(TINY.augment, illumination=0.5))
    with pytest.raises(InputError, match=r"augment\.illumination was 0\.0, now 0\.5"):
        run_folder.compare_with_beginning(tmp_path / "run", lit, SHOWN)


def test_files_that_are_gone_new_or_changed_are_refused_by_name(tmp_path):
    before = {f"images/{name}.png": Identity(5, 1, name) for name in "abcd"}
    began = replace(SHOWN, identities=before)
    begin(tmp_path / "run", TINY, dataset=began)
    copied = {name: replace(one, modified_ns=2) for name, one in before.items()}
    same = replace(SHOWN, identities=copied)
    assert run_folder.compare_with_beginning(tmp_path / "run", TINY, same) == []
    del copied["images/a.png"]
    copied["images/e.png"] = copied["images/d.png"]
    copied["images/b.png"] = replace(before["images/b.png"], sha256="other")
    copied["images/c.png"] = replace(before["images/c.png"], bytes=6)
    now = replace(SHOWN, identities=copied)
    named = "gone: images/a.png; new: images/e.png; changed: images/b.png, images/c.png"
    with pytest.raises(InputError, match=rf"are not those .* \({named}\); bring them back"):
        run_folder.compare_with_beginning(tmp_path / "run", TINY, now)


def test_a_run_says_which_images_it_held_out(run):
    data = json.loads((run[0] / "data.json").read_text())
    assert sorted(data["training"] + data["validation"]) == [f"synthetic {i}" for i in range(4)]
    assert data["validation"] == SHOWN.validation.names
    assert len(data["validation"]) == 1


def test_a_run_that_is_under_way_is_left_alone(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    with (
        run_folder.lock_run(tmp_path / "run"),
        pytest.raises(InputError, match="another command is training there"),
    ):
        loop.run(TINY, tmp_path / "run", progress=quiet())
    with run_folder.lock_run(tmp_path / "run"):
        pass


def test_a_run_may_begin_in_an_empty_folder(tmp_path):
    before = tmp_path.stat().st_ino
    begin(tmp_path, TINY)
    assert tmp_path.stat().st_ino == before
    assert run_folder.read_config(tmp_path)["steps"] == TINY.steps


def test_an_existing_folder_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists, and holds no run"):
        loop.run(TINY, tmp_path / "run", progress=quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
