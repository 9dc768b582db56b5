"""`unet predict`: what it writes, and how it goes on in a folder where it was stopped."""

import fcntl
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
import tifffile
from PIL import Image

import unet_image
import unet_jax
import unet_torch
from parity_tests.shown import run_unet
from unet_command import predicting, prediction_folder
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig, weight_file
from unet_spec.weight_file import WeightFile

NET = UNetConfig(widths=(4, 6))
FRAMEWORKS = {"jax": unet_jax, "torch": unet_torch}
NAMES = ("sky", "Zelle ä", "border", "none")


@pytest.fixture
def here(tmp_path):
    """A folder with weights of 2, 4 and 1 channels, and three images."""
    nets = {"cells": NET, "four": replace(NET, classes=4), "one": replace(NET, classes=1),
            "sigmoid": replace(NET, classes=4, output="sigmoid")}  # fmt: skip
    for name, config in nets.items():
        names = NAMES[: config.mask_classes]
        content = WeightFile(config, random_tensors(config, seed=1), class_names=names)
        weight_file.write(tmp_path / f"{name}.safetensors", content)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (13, 21)), ("b.png", (24, 16, 3)), ("c.tif", (2, 11, 18))):
        pixels = rng.integers(0, 255, shape, np.uint8)
        if name == "c.tif":
            tifffile.imwrite(tmp_path / "images" / name, pixels, photometric="minisblack")
        else:
            Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


OUTPUTS = ("a", "b", "c_0000", "c_0001")
PREDICT = "unet predict cells.safetensors images --out out --framework torch"


def read_files(folder):
    """Return (content, time of writing) of every file, by name."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def read_planes(path):
    return np.load(path) if path.suffix == ".npy" else tifffile.imread(path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("weights", ["cells", "four", "one", "sigmoid"])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_probabilities_in_a_file_are_those_of_the_api(here, suffix, weights, framework):
    package = FRAMEWORKS[framework]
    done = run_unet(
        f"unet predict {weights}.safetensors images/b.png images/c.tif --out out --probabilities "
        f"{suffix} --framework {framework} --json report.json", here,
    )  # fmt: skip
    assert done.status == 0, done.text
    model = package.load(here / f"{weights}.safetensors")
    rows = json.loads((here / "report.json").read_text())["images"]
    pixels = [p for n in "bc" for p in unet_image.read_pages(next(here.glob(f"images/{n}.*")))]
    assert len(rows) == len(pixels) == 3
    for row, image in zip(rows, pixels, strict=True):
        planes = read_planes(here / "out" / row["probabilities"])
        expected = np.moveaxis(package.predict_probabilities(model, image), -1, 0)
        assert planes.dtype == np.float32
        np.testing.assert_array_equal(planes.reshape(expected.shape), expected)
        (mask,) = unet_image.read_pages(here / "out" / row["mask"], indices=True)
        np.testing.assert_array_equal(mask, package.predict(model, image))
        shares = [np.mean(mask == c) for c in range(model.config.mask_classes)]
        np.testing.assert_allclose(row["class_shares"], shares, rtol=1e-15)


@pytest.mark.parametrize(("weights", "names"), [("four", NAMES), ("one", NAMES[1:2])])
def test_a_tiff_of_probabilities_names_its_axes_and_classes(here, weights, names):
    command = f"unet predict {weights}.safetensors images/a.png --out out --probabilities tif"
    assert run_unet(command, here).status == 0
    with tifffile.TiffFile(here / "out" / "a_probabilities.tif") as file:
        (series,) = file.series
        assert series.get_axes(squeeze=False) == "CYX"
        assert series.get_shape(squeeze=False) == (len(names), 13, 21)
        assert len(file.pages) == len(names)
        (described,) = file.shaped_metadata or ()
    assert described["class_names"] == list(names)


@pytest.mark.parametrize("weights", ["cells", "one"])
def test_a_threshold_is_that_of_the_api(here, weights):
    model = unet_torch.load(here / f"{weights}.safetensors")
    (image,) = unet_image.read_pages(here / "images" / "b.png")
    of_class_1 = unet_torch.predict_probabilities(model, image)[..., -1]
    threshold = float(np.quantile(of_class_1, 0.8))
    for extra in ("", "--probabilities npy"):
        out = f"out{len(extra)}"
        done = run_unet(
            f"unet predict {weights}.safetensors images/b.png --out {out} --framework torch "
            f"--threshold {threshold} {extra}", here,
        )  # fmt: skip
        assert done.status == 0, done.text
        (mask,) = unet_image.read_pages(here / out / "b_mask.png", indices=True)
        np.testing.assert_array_equal(mask, of_class_1 >= np.float32(threshold))
        assert 0.1 < mask.mean() < 0.3


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cells.safetensors images --threshold 0", "the threshold is a probability between 0 and"),
        ("cells.safetensors images --threshold 1.5", "between 0 and 1, got 1.5; give one such as"),
        ("cells.safetensors images --threshold nan", "between 0 and 1, got nan"),
        ("four.safetensors images --threshold 0.3", "divides two classes, and the net has 4"),
        ("sigmoid.safetensors images --threshold 0.3", "divides two classes, and the net has 4"),
        ("cells.safetensors images/a.png five.tif", "five.tif: the image has 5 channels and the"),
        ("cells.safetensors images/a.png text.png", "text.png: not"),
        ("cells.safetensors images other/a.png", "its output has the name of"),
        ("cells.safetensors images --largest-gb 0", "--largest-gb is a number of GB above 0, got"),
        ("cells.safetensors images --largest-gb nan", "is a number of GB above 0, got nan"),
        ("cells.safetensors images --largest-gb inf", "is a number of GB above 0, got inf"),
        ("cells.safetensors images --largest-gb 2e-6", "too large, at most 500 are read; cut it"),
        ("many.safetensors images", "the net has 300 classes, and a mask holds 256"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_anything_is_written(here, command, says):
    planar = np.zeros((5, 9, 12), np.uint8)
    tifffile.imwrite(here / "five.tif", planar, metadata={"axes": "CYX"}, photometric="minisblack")
    (here / "text.png").write_text("no image")
    (here / "other").mkdir()
    (here / "other" / "a.png").write_bytes((here / "images" / "a.png").read_bytes())
    many = replace(NET, classes=300)
    weight_file.write(here / "many.safetensors", WeightFile(many, random_tensors(many, seed=1)))
    done = run_unet(f"unet predict {command} --out out", here)
    assert (done.status, says in done.text) == (2, True), done.text
    assert not (here / "out").exists()


def test_a_name_of_a_file_steers_no_terminal_and_a_link_to_itself_is_named(here):
    (here / "images" / "a.png").rename(here / "images" / "a\x1b[31m\n.png")
    done = run_unet(PREDICT, here)
    assert done.status == 0
    assert "a\\x1b[31m\\n.png 13x21 -> a\\x1b[31m\\n_mask.png" in done.text
    (here / "images" / "b\x1b.png").write_text("no image")
    done = run_unet(PREDICT, here)
    assert (done.status, "unet: images/b\\x1b.png: not an image that" in done.text) == (2, True)
    (here / "images" / "b\x1b.png").unlink()
    (here / "images" / "link.png").symlink_to("link.png")
    done = run_unet(PREDICT, here)
    assert done.status == 2
    assert "link.png" in done.text


# a folder in which a prediction was stopped


def test_a_finished_folder_says_so_and_stays_and_the_report_is_whole(here, monkeypatch):
    for extra in ("", "--probabilities tif", "--probabilities npy"):
        out = f"out_{extra[-3:]}"
        command = f"{PREDICT} --out {out} {extra}"
        first = run_unet(f"{command} --json first.json", here)
        assert first.status == 0, first.text
        assert "3 of 4: images/c.tif 11x18 -> c_0000_mask.png (" in first.text
        before = read_files(here / out)
        with monkeypatch.context() as patch:
            patch.setattr(predicting, "_load", None)  # no framework is needed
            patch.setattr(predicting, "read_page", None)  # and no image is read
            again = run_unet(f"{command} --json again.json", here)
        assert (again.status, again.text) == (0, "all 4 images are there already")
        after = read_files(here / out)
        assert before.pop(prediction_folder.RECORD)[0] != after.pop(prediction_folder.RECORD)[0]
        assert after == before
        reports = [json.loads((here / f"{name}.json").read_text()) for name in ("first", "again")]
        for report in reports:
            report.pop("command")
        assert reports[0] == reports[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_a_signal_ended_goes_on_where_it_was(here, number):
    """The same command then gives what one that nobody stopped gives, byte for byte."""
    rng = np.random.default_rng(1)
    count = 12
    (here / "large").mkdir()
    for index in range(count):
        pixels = rng.integers(0, 255, (320, 250), np.uint8)
        Image.fromarray(pixels).save(here / "large" / f"{index:02d}.png")
    command = "predict cells.safetensors large --framework torch --out"
    process = subprocess.Popen(
        [sys.executable, "-m", "unet_cli", *shlex.split(f"{command} out")],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, deadline = here / "out", time.monotonic() + 120
    while len(list(out.glob("*_mask.png"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    masks = {p.name for p in out.glob("*_mask.png")}
    assert 3 <= len(masks) < count, "it was stopped in the middle"
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        words = f"unet: {number.name}; {len(masks)} of {count} images are done, and the same"
        assert errors.startswith(words)
        assert len(errors.splitlines()) == 1
        assert not list(out.glob(".*")), "nothing half-written is left"
    before = read_files(out)
    done = run_unet(f"unet {command} out --json out.json", here)
    assert done.status == 0, done.text
    assert f"{len(masks)} of {count} images are there already" in done.text
    assert run_unet(f"unet {command} whole --json whole.json", here).status == 0
    after, whole = read_files(out), read_files(here / "whole")
    assert all(after[name] == before[name] for name in masks)
    assert after.keys() == whole.keys()
    for name in after.keys() - {prediction_folder.RECORD}:
        assert after[name][0] == whole[name][0], name
    rows = [json.loads((here / n).read_text())["images"] for n in ("out.json", "whole.json")]
    assert rows[0] == rows[1]


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def change_shape(path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)


@pytest.mark.parametrize("harm", [os.unlink, cut], ids=["missing", "cut"])
@pytest.mark.parametrize(
    "name", ["a_mask.png", "b_overlay.png", "c_0001_probabilities.tif", "c_0001_probabilities.npy"]
)
def test_an_image_of_which_a_file_is_not_whole_is_predicted_again(here, name, harm):
    command = f"{PREDICT} --probabilities {'npy' if name.endswith('npy') else 'tif'}"
    assert run_unet(command, here).status == 0
    before = read_files(here / "out")
    harm(here / "out" / name)
    done = run_unet(command, here)
    assert done.status == 0, done.text
    assert "3 of 4 images are there already" in done.text
    after = read_files(here / "out")
    stem = name[: name.rindex("_")]
    for file, content in before.items():
        assert after[file][0] == content[0]
        assert (after[file] == content) == (not file.startswith(stem)), file


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (1, 1)])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_tiny_images_and_single_channels_are_there_too(here, suffix, size):
    """Readers of TIFF leave out axes of length 1."""
    Image.fromarray(np.full(size, 7, np.uint8)).save(here / "tiny.png")
    command = f"unet predict one.safetensors tiny.png --out out --probabilities {suffix}"
    assert run_unet(command, here).status == 0
    assert run_unet(command, here).text == "all 1 images are there already"


def test_a_mask_of_another_size_is_not_that_of_the_image(here):
    assert run_unet(PREDICT, here).status == 0
    change_shape(here / "out" / "a_mask.png")
    assert "3 of 4 images are there already" in run_unet(PREDICT, here).text
    (mask,) = unet_image.read_pages(here / "out" / "a_mask.png")
    assert mask.shape[:2] == (13, 21)


def test_what_a_killed_process_had_begun_is_removed_and_nothing_else(here):
    assert run_unet(PREDICT, here).status == 0
    begun = [".a_mask.png.x1y2z3ab", ".prediction.json.abcdefgh", ".c_0001_overlay.png.00000000"]
    others = [".a_mask.png", ".notes.txt.abcdefgh", "a_mask.png.bak", ".hidden"]
    for name in begun + others:
        (here / "out" / name).write_text("half")
    assert run_unet(PREDICT, here).status == 0
    assert {n for n in begun + others if (here / "out" / n).exists()} == set(others)


def test_a_folder_in_which_only_the_record_was_begun_is_empty(here):
    (here / "out").mkdir()
    (here / "out" / ".prediction.json.abcdefgh").write_text("{")
    done = run_unet(PREDICT, here)
    assert done.status == 0, done.text
    assert not list((here / "out").glob(".*"))


def other_weights(here):
    (here / "one.safetensors").replace(here / "cells.safetensors")
    return "", "was made with another weight file"


def other_threshold(here):
    return "--threshold 0.3", "has no --threshold"


def other_files(here):
    return "--probabilities tif", "has no --probabilities"


def other_framework(here):
    return "--framework jax", "has torch for --framework"


def an_image_less(here):
    (here / "images" / "a.png").unlink()
    return "", "a.png, which is not among the images now"


def an_image_of_another_time(here):
    os.utime(here / "images" / "b.png", ns=(1, 1))
    return "", "b.png, which has changed since"


@pytest.mark.parametrize(
    "change",
    [other_weights, other_threshold, other_files, other_framework, an_image_less,
     an_image_of_another_time],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_another_prediction_in_the_folder_is_refused_and_stays(here, change):
    assert run_unet(PREDICT, here).status == 0
    before = read_files(here / "out")
    flags, says = change(here)
    done = run_unet(f"{PREDICT} {flags}", here)
    assert done.status == 2
    assert done.text.startswith("unet: out: the prediction there ")
    assert says in done.text
    assert done.text.endswith("; name another --out")
    assert read_files(here / "out") == before


def test_images_that_are_new_are_predicted_beside_the_others(here):
    assert run_unet(PREDICT, here).status == 0
    before = read_files(here / "out")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(here / "images" / "d.png")
    done = run_unet(PREDICT.replace("images", "images images/d.png"), here)  # which is there twice
    assert done.status == 0, done.text
    after = read_files(here / "out")
    assert {"d_mask.png", "d_overlay.png"} == after.keys() - before.keys()
    assert all(after[name] == before[name] for name in before if name != "prediction.json")


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        '"a"',
        '{"images": []}',
        "half {",
        "\xff",
        '{"images": {"a": {"files": [1]}}}',
        '{"images": {"a": {"files": ["\\u0000"]}}}',
        '{"images": {}, "images": {}}',
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["prediction.json", "a_mask.png"])
def test_a_folder_of_something_else_is_refused_and_stays(here, name, content):
    (here / "out").mkdir()
    (here / "out" / name).write_text(content)
    before = read_files(here / "out")
    done = run_unet(PREDICT, here)
    assert (done.status, "out: exists already" in done.text) == (2, True), done.text
    assert read_files(here / "out") == before


def test_two_commands_do_not_predict_into_one_folder(here):
    assert run_unet(PREDICT, here).status == 0
    handle = os.open(here / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = run_unet(PREDICT, here)
    os.close(handle)
    assert (done.status, "another command is predicting there" in done.text) == (2, True)
    assert run_unet(PREDICT, here).status == 0


def test_a_folder_into_which_nothing_was_predicted_is_not_left(here):
    """What is wrong is seen in the pixels, when the folder is made already."""
    for path in (here / "images").iterdir():
        path.unlink()
    tifffile.imwrite(here / "images" / "a.tif", np.full((14, 9), np.nan, np.float32))
    done = run_unet(PREDICT, here)
    assert (done.status, "a.tif: the image holds NaN" in done.text) == (2, True)
    assert not (here / "out").exists()


@pytest.mark.parametrize("remedy", ["mended", "taken away"])
def test_a_damaged_image_stops_with_its_name_and_the_next_command_goes_on(here, remedy):
    """What was wrong with it is only seen in its pixels, after others are written."""
    path = here / "images" / "b.tif"
    (here / "images" / "b.png").unlink()
    pixels = np.ones((14, 9), np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels)
    done = run_unet(PREDICT, here)
    assert done.status == 2
    assert done.text.endswith(
        f"unet: {path.relative_to(here)}: the image holds NaN or infinite values, or some beyond "
        "1.7e+38; mend it before it is used"
    )
    assert {p.name for p in (here / "out").iterdir()} == {
        "prediction.json", "a_mask.png", "a_overlay.png"
    }  # fmt: skip
    if remedy == "mended":
        tifffile.imwrite(path, np.ones((15, 9), np.float32))
    else:
        path.unlink()
    done = run_unet(PREDICT, here)
    count = 4 if remedy == "mended" else 3
    assert done.status == 0, done.text
    assert f"1 of {count} images are there already" in done.text
    assert len(list((here / "out").glob("*_mask.png"))) == count
    assert "there already" in run_unet(PREDICT, here).text


def test_each_image_is_read_once_and_one_ahead_of_the_net(here, monkeypatch):
    events, one = [], predicting._predict_one

    def watched_read(page, **kwargs):
        events.append(("read", page.name))
        return unet_image.read_page(page, **kwargs)

    def watched_one(run, target, *arguments):
        wanted = OUTPUTS.index(target.name) + 2
        deadline = time.monotonic() + 60
        while len([e for e in events if e[0] == "read"]) < min(wanted, 4):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        events.append(("predict", target.page.name))
        return one(run, target, *arguments)

    monkeypatch.setattr("unet_command.predicting.read_page", watched_read)
    monkeypatch.setattr(predicting, "_predict_one", watched_one)
    assert run_unet(PREDICT, here).status == 0
    pages = ["a.png", "b.png", "c.tif[0]", "c.tif[1]"]
    assert events == [
        ("read", pages[0]), ("read", pages[1]), ("predict", pages[0]), ("read", pages[2]),
        ("predict", pages[1]), ("read", pages[3]), ("predict", pages[2]), ("predict", pages[3]),
    ]  # fmt: skip
