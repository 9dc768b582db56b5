"""The command as a person types it: status, sentence, files."""

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import unet_cli
import unet_image
import unet_torch
from parity_tests import shown
from parity_tests.shown import run_unet
from unet_command import training
from unet_command.wording import list_flags, word_error
from unet_spec import InputError, UNetConfig, weight_file
from unet_spec.errors import ConfigError
from unet_spec.recipe import Optimizer, Schedule
from unet_train.config import PRESETS, list_presets

SMALL = UNetConfig(widths=(4, 6))


def unet(*arguments, cwd):
    """Run the command in this process."""
    return run_unet(shlex.join(["unet", *map(str, arguments)]), cwd)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "cells.safetensors"
    unet_torch.save(unet_torch.UNet(SMALL), path)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (13, 21)), ("b.png", (13, 21, 3)), ("c.jpg", (32, 17, 3))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    return folder


def test_a_reader_who_leaves_ends_the_command_as_a_signal_does(tmp_path):
    words = "train cells --out run --steps 3 --net.widths 4 8 --data.synthetic 4 --data.crop-px 32"
    command = [sys.executable, "-m", "unet_cli", *words.split()]
    theirs, ours = os.pipe()
    os.close(theirs)  # as `head` does after its lines
    with open(ours, "w") as stream:
        done = subprocess.run(
            command, cwd=tmp_path, text=True, stdout=stream, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert not (tmp_path / "run").exists()


def test_help_is_quick(tmp_path):
    times = []
    for _ in range(4):
        began = time.monotonic()
        command = [sys.executable, "-m", "unet_cli", "--help"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        times.append(time.monotonic() - began)
    # half a second on an idle machine; tests share theirs
    assert min(times) < 1.5


def test_help_imports_no_framework(tmp_path):
    code = "import sys, unet_cli; assert not {'jax', 'torch', 'flax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_verify_of_a_file_is_equivalent_and_says_so_in_json(tmp_path, weights):
    done = unet("verify", weights, "--steps", 2, "--json", "out.json", cwd=tmp_path)
    assert done.status == 0, done.text
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["verdict"] == "equivalent"
    assert {row["rung"] for row in report["exact"]} == {"fp32", "tf32", "bf16"}
    assert {row["padding"] for row in report["exact"]} == {"same"}
    assert report["environment"]["torch"] == torch.__version__


def test_verify_of_an_architecture_is_identical(tmp_path):
    done = unet("verify", "--config.widths", 6, 9, "--steps", 2, "--json", "out.json", cwd=tmp_path)
    assert done.status == 0, done.text
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["verdict"] == "identical"
    assert len(report["exact"]) == 6


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_predict_writes_mask_and_overlay_of_every_image(tmp_path, weights, images, framework):
    done = unet("predict", weights, images, "--out", "out", "--framework", framework, cwd=tmp_path)
    assert done.status == 0, done.text
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    pictures = [f"{n}_{kind}.png" for n in "abc" for kind in ("mask", "overlay")]
    assert written == sorted([*pictures, "prediction.json"])
    (mask,) = unet_image.read_pages(tmp_path / "out" / "c_mask.png", indices=True)
    assert mask.shape == (32, 17)


def test_convert_there_and_back_keeps_every_bit(tmp_path, weights):
    assert unet("convert", weights, "a.pt", cwd=tmp_path).status == 0
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(state) == list(unet_torch.UNet(SMALL).state_dict())
    assert unet("convert", "a.pt", "b.safetensors", cwd=tmp_path).status == 0
    assert (tmp_path / "b.safetensors").read_bytes() == weights.read_bytes()


def test_convert_takes_wrappers_and_prefixes_off(tmp_path, weights):
    state = unet_torch.load(weights).state_dict()
    wrapped = {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "a.pth")
    done = unet("convert", "a.pth", "b.safetensors", "--config.padding", "valid", cwd=tmp_path)
    assert done.status == 0, done.text
    assert weight_file.read(tmp_path / "b.safetensors").config.padding == "valid"
    assert "padding=valid" in done.text


def _lfs_pointer(tmp_path, weights):
    (tmp_path / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return "convert", "a.pth", "b.safetensors"


def _empty(tmp_path, weights):
    (tmp_path / "a.pt").touch()
    return "convert", "a.pt", "b.safetensors"


def _pickled_module(tmp_path, weights):
    torch.save(unet_torch.load(weights), tmp_path / "a.pt")
    return "convert", "a.pt", "b.safetensors"


def _truncated_checkpoint(tmp_path, weights):
    torch.save(unet_torch.load(weights).state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:2000])
    return "convert", "a.pt", "b.safetensors"


def _other_names(tmp_path, weights):
    torch.save({"encoder1.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "a.pt")
    return "convert", "a.pt", "b.safetensors"


def _extra_tensor(tmp_path, weights):
    state = unet_torch.load(weights).state_dict()
    torch.save({**state, "head.weight": torch.zeros(3)}, tmp_path / "a.pt")
    return "convert", "a.pt", "b.safetensors"


def _contradicting_config(tmp_path, weights):
    return "verify", weights, "--config.padding", "valid"


def _truncated_weights(tmp_path, weights):
    weights.write_bytes(weights.read_bytes()[:-7])
    return "verify", weights


def _nan_weights(tmp_path, weights):
    tensors = load_file(weights)
    tensors["out.bias"] = np.array([np.nan, 0], np.float32)
    save_file(tensors, weights)
    return "convert", weights, "new.safetensors"


def _missing_file(tmp_path, weights):
    return "predict", weights, "nowhere.png", "--out", "out"


def _no_image(tmp_path, weights):
    return "predict", weights, "--out", "out"


def _truncated_image(tmp_path, weights):
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    return "predict", weights, "images", "--out", "out"


def _existing_output(tmp_path, weights):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_mask.png").write_text("mine")
    return "predict", weights, "images", "--out", "out"


def _existing_target(tmp_path, weights):
    (tmp_path / "b.safetensors").write_text("mine")
    return "convert", weights, "b.safetensors"


def _json_elsewhere(tmp_path, weights):
    return "verify", weights, "--json", "no/such/out.json"


def _illegal_widths(tmp_path, weights):
    return "verify", "--config.widths", 8


def _illegal_widths_of_training(tmp_path, weights):
    return "train", "cells", "--net.widths", 8, "--out", "run"


def _illegal_rate(tmp_path, weights):
    return "train", "cells", "--optimizer.momentum", 0.9, "--out", "run"


def _empty_folder(tmp_path, weights):
    (tmp_path / "none").mkdir()
    return "train", "nuclei", "--data.images", "none", "--data.masks", "none", "--out", "run"


def _image_without_mask(tmp_path, weights):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((13, 21), np.uint8)).save(tmp_path / "masks" / "a.png")
    return "train", "nuclei", "--data.images", "images", "--data.masks", "masks", "--out", "run"


def _no_preset(tmp_path, weights):
    return "train", "nucleus", "--out", "run"


def _illegal_part(tmp_path, weights):
    return "train", "cells", "--loss.ignore-index", 300, "--out", "run"


def _lr_of_one_cycle(tmp_path, weights):
    return "train", "cells", "--optimizer.lr", 1e-3, "--out", "run"


def _torch_start(tmp_path, weights):
    torch.save(unet_torch.load(weights).state_dict(), tmp_path / "a.pth")
    return "train", "cells", "--start", "a.pth", "--out", "run"


def _run_as_weights(tmp_path, weights):
    (tmp_path / "run").mkdir()
    weights.rename(tmp_path / "run" / "weights.safetensors")
    return "predict", "run", "images", "--out", "out"


def _illegal_crop(tmp_path, weights):
    return "train", "cells", "--data.crop-px", 50, "--out", "run"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_lfs_pointer, "git lfs pull"),
        (_empty, "empty"),
        (_pickled_module, "state_dict"),
        (_truncated_checkpoint, "not a whole"),
        (_other_names, "it has no 1x1 convolution"),
        (_extra_tensor, "head.weight"),
        (_contradicting_config, "padding"),
        (_truncated_weights, "not a whole"),
        (_nan_weights, "NaN"),
        (_missing_file, "nowhere.png"),
        (_no_image, "no image given"),
        (_truncated_image, "b.png"),
        (_existing_output, "exists already"),
        (_existing_target, "exists already"),
        (_json_elsewhere, "does not exist"),
        (_illegal_widths, "unet: --config.widths needs at least 2 levels, got 8"),
        (_illegal_widths_of_training, "unet: --net.widths needs at least 2 levels, got 8"),
        (
            _illegal_rate,
            "unet: --optimizer.name adamw does not use --optimizer.momentum 0.9",
        ),
        (_empty_folder, "holds no image"),
        (_image_without_mask, "no mask named"),
        (_illegal_crop, "unet: --data.crop-px 50 is not legal"),
        (_no_preset, "train needs a preset, one of nuclei, cells, paper, modern"),
        (_illegal_part, "unet: --loss.ignore-index is a mask value from 0 to 255, got 300"),
        (_lr_of_one_cycle, "whose peak is --schedule.max-lr; give that"),
        (_torch_start, "make one: unet convert a.pth a.safetensors"),
        (_run_as_weights, "a folder, and a file is needed; it holds weights.safetensors"),
    ],
)
def test_wrong_input_is_one_sentence_status_2_and_no_file(
    tmp_path, weights, images, make, says, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unet", *map(str, make(tmp_path, weights))])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as ended:
        unet_cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert says in " ".join(printed.split())
    assert "Traceback" not in printed
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize("target", ["b.safetensors", "b.pt"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, weights, target):
    """A limit on file sizes stands for the disk: the write fails in the middle."""
    before = sorted(p.name for p in tmp_path.iterdir())
    command = f"ulimit -f 2; exec {sys.executable} -m unet_cli convert {weights} {target}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("given", [("--schedule.name", "cosine"), ("--schedule.name=cosine",)])
def test_another_schedule_takes_nothing_of_the_presets(tmp_path, monkeypatch, given):
    configs = []

    def train(config, **_):
        configs.append(config)
        return 0

    monkeypatch.setattr(training, "train", train)
    command = ["unet", "train", "nuclei", *given, "--schedule.eta-min", "1e-5", "--out", "run"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        unet_cli.main()
    assert ended.value.code == 0
    assert configs == [replace(PRESETS["nuclei"], schedule=Schedule("cosine", eta_min=1e-5))]


def test_another_optimizer_keeps_of_the_presets_what_it_uses():
    (named, given) = list_presets(optimizer="adam")["paper"].optimizer, PRESETS["paper"].optimizer
    assert named == Optimizer("adam", lr=given.lr)
    assert list_presets(optimizer="none of them") == list_presets() == PRESETS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_one_sentence(tmp_path, number):
    """It comes where the run would begin to import JAX."""
    program = f"""
import os, sys, unet_cli
from unet_command import training
training._train_here = lambda *_, **__: os.kill(os.getpid(), {int(number)}) or 0
sys.argv = ["unet", "train", "cells", "--out", "run"]
unet_cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + number
    assert done.stderr == f"unet: {number.name}; what was written before is whole\n"
    assert not list(tmp_path.iterdir())


# what each verb calls a field that is not legal, and what a verb without flags for it says
WORDED = {
    "train": ("--net.widths needs multiples of --net.groups 4 with --net.norm group, got 4 6",
              "w.json: --data.batch 3, --data.palette nothing, --net.no-bias and --remat"),
    "verify": ("--config.widths needs multiples of --config.groups 4 with --config.norm group, "
               "got 4 6", "w.json: data.batch=3, data.palette=(), --config.no-bias and remat=True"),
    "predict": ("widths needs multiples of groups=4 with norm=group, got 4 6",
                "w.json: data.batch=3, data.palette=(), net.bias=False and remat=True"),
}  # fmt: skip
WORDED["convert"] = WORDED["verify"]


@pytest.mark.parametrize("verb", WORDED)
def test_a_field_is_named_as_the_flag_of_the_verb_where_it_has_one(verb):
    flags = list_flags(unet_cli.VERBS[verb])
    with pytest.raises(InputError) as refusal:
        UNetConfig(norm="group", groups=4, widths=(4, 6))
    of_a_field, of_several = WORDED[verb]
    assert word_error(refusal.value, flags) == f"{of_a_field}; change either"
    config = replace(PRESETS["cells"], remat=True, net=UNetConfig(bias=False))
    template = "{file}: {data.batch=3}, {data.palette=}, {net.bias=} and {remat=}"
    assert word_error(ConfigError(config, template, file="w.json"), flags) == of_several


def test_words_of_a_file_are_no_flags():
    """What looks like a template in a name or in somebody's text stays as it is."""
    flags = list_flags(unet_cli.train)
    for error in (
        InputError("a {data.batch=3} data.batch=3 b"),
        ConfigError(PRESETS["cells"], "a {file} b", file="{data.batch=3} data.batch=3"),
    ):
        assert word_error(error, flags) == "a {data.batch=3} data.batch=3 b"
    text = UNetConfig().to_json().replace("[64, 128, 256, 512, 1024]", "[8]")
    with pytest.raises(InputError) as refusal:
        UNetConfig.from_json(text)
    sentence = "UNetConfig: widths needs at least 2 levels, got (8,)"
    assert word_error(refusal.value, flags) == sentence


def test_every_type_of_config_stands_once_in_a_verb_so_a_field_has_one_flag():
    for name, verb in unet_cli.VERBS.items():
        flags = list_flags(verb)
        assert len(set(flags.values())) == len(flags), name
        for (_, field), flag in flags.items():
            assert flag in shown.flags() or field == "preset", flag


def test_what_was_typed_is_read_once():
    """All else gets it as an argument, so that a verb can be called from anywhere."""
    readers = [
        f"{path.name}: {function.name}"
        for path in shown.SOURCES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "argv"
    ]
    assert readers == ["unet_cli.py: main"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "cells", "-h"]])
@pytest.mark.parametrize("place", ["folder", "installed"])
def test_somebody_elses_train_harms_nothing(tmp_path, arguments, place):
    """It is found first, in the folder where somebody works or among what is installed."""
    for name in ("train.py", "benchmarks.py", "train/__init__.py"):
        path = tmp_path / "foreign" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('not ours')")
    (tmp_path / "empty").mkdir()
    environment, folder = dict(os.environ), tmp_path / "foreign"
    if place == "installed":
        folder = tmp_path / "empty"
        paths = [str(tmp_path / "foreign"), str(shown.ROOT)]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, "-m", "unet_cli", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_told_nothing():
    command = f"{sys.executable} -m unet_cli predict --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")
