import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from parity_tests.tiny import SHOWN, TINY, begin, quiet
from unet_spec import InputError, training_state
from unet_train import loop, setup
from unet_train.check import data_doctor
from unet_train.config import MeshConfig
from unet_train.devices import processes
from unet_train.input.identity import Identity
from unet_train.report.metrics_log import read_metrics
from unet_train.run import folder as run_folder

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_what_a_kill_left_half_written_is_removed(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    killed = """
import os
from pathlib import Path
from unet_spec.files import atomic_write
with (
    atomic_write(Path("checkpoints/7.safetensors")),
    atomic_write(Path("pictures/0_" + 200 * "a" + ".png")),
    atomic_write(Path("weights.safetensors")),
):
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed], cwd=out).returncode == 9
    assert len(list(out.rglob(".*"))) == 3
    (out / ".notes.20260101").write_text("somebody's own")
    run_folder.remove_leftovers(out)
    assert [path.name for path in out.rglob(".*")] == [".notes.20260101"]


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
    data = replace(TINY.data, largest_gb=2.0)
    changed = replace(TINY, data=data, mesh=MeshConfig(data=2), validate_every=2)
    assert run_folder.compare_with_beginning(run[0], changed, SHOWN) == [
        "data.largest_gb was 0.3, now 2.0",
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


def test_another_split_of_the_same_images_is_refused(run):
    other = replace(SHOWN, training=SHOWN.validation, validation=SHOWN.training)
    with pytest.raises(InputError, match="other images are held out, or to train on"):
        run_folder.compare_with_beginning(run[0], TINY, other)


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


def test_a_lock_leaves_nothing_of_itself(tmp_path):
    with run_folder.lock_run(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with run_folder.lock_run(tmp_path / "new"):  # empty, and perhaps a mount point
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    with run_folder.lock_run(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


# takes the lock so many times, says so, holds it for a moment
LOCKS = """
import sys, time
from pathlib import Path
from unet_spec import InputError
from unet_train.run.folder import lock_run
taken = 0
while taken < int(sys.argv[1]):
    try:
        with lock_run(Path("run")):
            Path("holders").open("a").write("+")
            time.sleep(0.001)
            Path("holders").open("a").write("-")
        taken += 1
    except InputError as error:
        assert "another command is training there" in str(error)
print("done")
"""


def test_no_two_processes_hold_a_lock_whose_file_comes_and_goes(tmp_path):
    """Each makes the folder and the file, and removes both: nobody may lock a removed file."""
    words = [sys.executable, "-c", LOCKS, "50"]
    racing = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=120)[0] for process in racing] == 3 * [b"done\n"]
    taken = (tmp_path / "holders").read_text()
    assert taken == 150 * "+-", "two held it at once"


def test_a_lock_of_a_process_that_was_killed_is_free(tmp_path):
    killed = (
        "import os; from pathlib import Path; from unet_train.run.folder import lock_run\n"
        "with lock_run(Path('run')): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", killed], cwd=tmp_path).returncode == 9
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert not run_folder.may_resume(tmp_path / "run")
    with run_folder.lock_run(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


OTHER = replace(TINY, net=replace(TINY.net, widths=(4, 8)), seed=5, steps=2, validate_every=2)


def _say_into(sentences):
    progress = quiet()
    progress.say = sentences.append
    return progress


def test_a_run_without_a_checkpoint_begins_again_with_the_config_of_the_command(tmp_path):
    out = tmp_path / "run"
    begin(out, TINY)
    (out / "augmented.png").write_bytes(b"of the other config")
    (out / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 9.0}\n')
    sentences: list[str] = []
    result = loop.run(OTHER, out, progress=_say_into(sentences))
    assert result.step == 2
    again = [text for text in sentences if "has no checkpoint yet, and begins again" in text]
    assert again == [f"{out}: the run there has no checkpoint yet, and begins again"]
    whole = tmp_path / "whole"
    loop.run(OTHER, whole, progress=quiet())
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    events = {name for name in names if "tensorboard" in name.parts}
    assert names - events == {
        path.relative_to(out) for path in out.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }  # fmt: skip
    for name in ("config.json", "data.json", "start.json", "augmented.png", "weights.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert all(line.get("loss") != 9.0 for line in read_metrics(out))


@pytest.mark.parametrize("place", ["to_plain", "compile_steps", "write_preview"])
def test_a_beginning_that_fails_anywhere_leaves_nothing_that_refuses_the_next(
    tmp_path, monkeypatch, place
):
    owner = {"to_plain": run_folder, "compile_steps": loop, "write_preview": setup}[place]

    def fail(*_, **__):
        raise InputError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, fail)
        if place == "to_plain":  # the identity of processes needs it before
            patch.setattr(run_folder, "describe_identity", lambda *_: "")
        with pytest.raises(InputError, match="planted"):
            loop.run(TINY, tmp_path / "run", progress=quiet())
    assert (tmp_path / "run").exists() == (place == "write_preview")
    assert loop.run(OTHER, tmp_path / "run", progress=quiet()).step == 2


# one process; dies at the n-th time that a file gets its name
KILLED = """
import os, sys
from pathlib import Path
from parity_tests.tiny import TINY, begin
place, done = os.replace, [0]
def replace(*names):
    if done[0] == int(sys.argv[1]):
        os._exit(9)
    done[0] += 1
    place(*names)
os.replace = replace
from unet_train.run.folder import lock_run
with lock_run(Path("run")):
    begin(Path("run"), TINY)
"""


@pytest.mark.parametrize("names", [0, 1, 2])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_kill_while_a_run_begins_lets_any_command_begin_there(tmp_path, names, earlier):
    out = tmp_path / "run"
    if earlier:
        begin(out, OTHER)
    words = [sys.executable, "-c", KILLED, str(names)]
    assert subprocess.run(words, cwd=tmp_path).returncode == 9
    assert ".lock" in {path.name for path in out.iterdir()}
    assert not run_folder.may_resume(out)
    with run_folder.lock_run(out):
        begin(out, OTHER)
        run_folder.remove_leftovers(out)
    assert run_folder.compare_with_beginning(out, OTHER, SHOWN) == []
    assert {path.name for path in out.iterdir()} == {"config.json", "data.json", "start.json"}


def test_weights_without_a_checkpoint_are_not_lost_to_another_run(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    shutil.rmtree(out / "checkpoints")
    before = (out / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"holds weights, and no checkpoint .* name another --out"):
        loop.run(OTHER, out, progress=quiet())
    assert (out / "weights.safetensors").read_bytes() == before


def test_no_weights_are_written_before_the_checkpoint_of_their_step(tmp_path, monkeypatch):
    seen = []
    write_weights = loop.write_weights

    def look(out, weights, **named):
        seen.append(sorted(path.name for path in (out / "checkpoints").glob("[0-9]*")))
        write_weights(out, weights, **named)

    write, is_scored = training_state.write, threading.Event()
    broadcast = processes.broadcast_from_first

    def note(*arguments):
        if arguments[0].startswith("score"):
            is_scored.set()
        return broadcast(*arguments)

    monkeypatch.setattr(loop, "broadcast_from_first", note)

    def be_slow(*arguments):
        is_scored.wait(60)
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(loop, "write_weights", look)
    monkeypatch.setattr(training_state, "write", be_slow)
    loop.run(replace(OTHER, steps=1, validate_every=1), tmp_path / "run", progress=quiet())
    assert seen == [["1.safetensors"]]


def test_a_run_that_another_command_has_begun_since_is_left_alone(run, tmp_path, monkeypatch):
    """The other one starts and ends while this one reads its images."""
    report_data = data_doctor.report_data

    def be_slow(*arguments, **named):
        shutil.copytree(run[0], tmp_path / "run")
        return report_data(*arguments, **named)

    monkeypatch.setattr(data_doctor, "report_data", be_slow)
    with pytest.raises(InputError, match="another command has just trained there"):
        loop.run(OTHER, tmp_path / "run", progress=quiet())
    assert run_folder.read_config(tmp_path / "run")["steps"] == TINY.steps


def test_a_run_may_begin_in_an_empty_folder(tmp_path):
    before = tmp_path.stat().st_ino
    assert not run_folder.may_resume(tmp_path)
    loop.run(OTHER, tmp_path, progress=quiet())
    assert tmp_path.stat().st_ino == before
    assert run_folder.read_config(tmp_path)["steps"] == OTHER.steps


def test_an_existing_folder_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists, and holds no run"):
        loop.run(TINY, tmp_path / "run", progress=quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def _hash_folder(folder):
    """Every entry with its kind, and the content of the files that are not too long."""
    return {
        path.relative_to(folder): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and path.stat().st_size < 10**6 else None,
        )
        for path in folder.rglob("*")
    }


def _put_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def _put_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _put_file(path):
    shutil.rmtree(path)
    path.write_text("")


def _make_long(path):
    with path.open("ab") as stream:
        stream.truncate(3 * 2**30)


def _put_link(path):
    if path.exists():
        path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


HARMS = {
    "folder": (_put_folder, ("config.json", "data.json", "start.json", "metrics.jsonl", ".lock",
               "report.html", "best.safetensors", "checkpoints/6.safetensors")),
    "pipe": (_put_pipe, ("config.json", "data.json", "start.json", "metrics.jsonl", ".lock",
                         "report.html", "checkpoints/6.safetensors")),
    "long": (_make_long, ("config.json", "data.json", "start.json", "metrics.jsonl")),
    "link": (_put_link, ("metrics.jsonl", ".lock", "pictures", "tensorboard", "checkpoints")),
    "empty": (lambda path: path.write_text(""), ("config.json", "data.json", "start.json",
                                                 "metrics.jsonl")),
    "list": (lambda path: path.write_text("[]\n"), ("config.json", "data.json", "start.json",
                                                    "metrics.jsonl")),
    "file": (_put_file, ("tensorboard", "pictures")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "name"), [(harm, name) for harm, (_, names) in HARMS.items() for name in names]
)
def test_a_damaged_file_is_refused_before_the_compilation_and_nothing_is_changed(
    run, tmp_path, monkeypatch, harm, name
):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    HARMS[harm][0](out / name)
    before = _hash_folder(tmp_path)
    monkeypatch.setattr(loop, "compile_steps", lambda *_: pytest.fail("it is compiled"))
    with pytest.raises(InputError, match=re.escape(f"{out / name}: ")) as refused:
        loop.run(TINY, out, progress=quiet())
    assert re.search("; (bring|move|remove|take)|, and .*; remove", str(refused.value))
    assert _hash_folder(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("start.json", '{"settings": ["zzz"], "origin": null}', "settings are names of settings"),
        ("start.json", '{"settings": null, "origin": null}', "settings are names of settings"),
        ("start.json", '{"settings": [], "origin": {}}', "origin in its metadata is damaged"),
        ("data.json", '{"training": 5, "validation": [], "files": {}}', "training are names"),
        ("data.json", '{"training": [], "validation": [1], "files": {}}', "validation are names"),
        ("config.json", '{"model": "of another program"}', "net, data, steps is missing"),
    ],
)
def test_json_of_another_kind_is_refused_by_the_file_that_holds_it(
    run, tmp_path, name, content, says
):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    (out / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: .*{says}"):
        loop.run(TINY, out, progress=quiet())


@pytest.mark.parametrize("value", ["8", [1.5], {}], ids=repr)
@pytest.mark.parametrize("field", ["steps", "net.widths", "data.batch", "loss.dice", "mesh.data"])
def test_a_value_of_another_type_is_refused_by_the_name_of_the_config(run, tmp_path, field, value):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    plain = json.loads((out / "config.json").read_text())
    part, _, name = field.rpartition(".")
    (plain[part] if part else plain)[name] = value
    (out / "config.json").write_text(json.dumps(plain))
    with pytest.raises(InputError) as refused:
        run_folder.read_config(out)
    assert str(refused.value).startswith(f"{out / 'config.json'}: it should say how the run began")
    assert len(str(refused.value)) < 600


def test_the_config_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "mine"}')
    with pytest.raises(InputError, match=r"config\.json: .* cannot be read"):
        loop.run(TINY, tmp_path, progress=quiet())
    assert (tmp_path / "config.json").read_text() == '{"model": "mine"}'


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("file/run", "is no folder"),
        ("n" * 256, "the name is too long"),
        ("new/" + "n" * 256 + "/run", "the name is too long"),
        ("/".join(["d" * 200] * 21), "the name is too long"),
        ("nothing", "a link to nothing"),
        ("a\0b", "zero byte"),
    ],
    ids=["below a file", "long", "below long", "deep", "dangling", "zero byte"],
)
def test_a_place_that_cannot_be_is_refused_before_any_image_is_read(
    tmp_path, monkeypatch, out, says
):
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").symlink_to("nowhere/at/all")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(setup, "open_dataset", lambda *_, **__: pytest.fail("images are read"))
    with pytest.raises(InputError, match=says):
        loop.run(TINY, tmp_path / out, progress=quiet())
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_that_somebody_put_there_stay(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    (out / "pictures" / "figure.png").write_bytes(b"mine")
    loop.run(TINY, out, progress=quiet())
    assert (out / "pictures" / "figure.png").read_bytes() == b"mine"


def test_a_picture_that_was_cut_is_drawn_again(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    whole = (out / "augmented.png").read_bytes()
    (out / "augmented.png").write_bytes(whole[:-9])
    loop.run(TINY, out, progress=quiet())
    assert (out / "augmented.png").read_bytes() == whole


def test_a_checkpoint_of_another_run_is_refused_before_the_compilation(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    path = out / "checkpoints" / "6.safetensors"
    state = training_state.read(path)
    recipe = replace(state.recipe, optimizer=replace(state.recipe.optimizer, lr=0.5))
    training_state.write(path, replace(state, recipe=recipe))
    monkeypatch.setattr(loop, "compile_steps", lambda *_: pytest.fail("it is compiled"))
    with pytest.raises(InputError, match="the checkpoint of step 6 is of another run"):
        loop.run(TINY, out, progress=quiet())


def test_best_weights_that_are_lost_are_written_again_from_their_checkpoint(tmp_path):
    out, config = tmp_path / "run", replace(TINY, patience=1, steps=60, validate_every=1)
    result = loop.run(config, out, progress=quiet())
    assert result.best_step is not None
    assert result.best_step < result.step < 60
    path = out / "best.safetensors"
    whole = path.read_bytes()
    for length in (0, len(whole) - 1):
        path.write_bytes(whole[:length])
        loop.run(config, out, progress=quiet())
        assert path.read_bytes() == whole
