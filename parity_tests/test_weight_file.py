import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx

import unet_jax
import unet_torch
from parity_tests import slides
from unet_parity.oracle import random_tensors
from unet_spec import InputError, Preprocessing, UNetConfig, weight_file
from unet_spec.parameters import parameters
from unet_spec.weight_file import WeightFile

SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10), groups=2)
AXES = {
    "slides": SMALL,
    "valid": replace(SMALL, padding="valid"),
    "batch_norm": replace(SMALL, norm="batch"),
    "batch_norm_after": replace(SMALL, norm="batch", norm_place="after"),
    "group_norm": replace(SMALL, norm="group", norm_place="after"),
    "instance_norm": replace(SMALL, norm="instance", bias=False),
    "leaky": replace(SMALL, activation="leaky_relu", negative_slope=0.1),
    "bilinear": replace(SMALL, up="bilinear", concat="skip_first"),
    "bilinear_aligned": replace(SMALL, up="bilinear_aligned", fit="edge"),
    "nearest": replace(SMALL, up="nearest", fit="zeros", dropout=0.3),
    "one_pool": replace(SMALL, widths=(7, 5), fit="crop"),
}


def weights(config=SMALL, **kwargs):
    return WeightFile(config, random_tensors(config, seed=1), **kwargs)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("axis", AXES)
def test_round_trips_between_frameworks_keep_every_byte(axis, tmp_path):
    first, through_jax, through_torch = (tmp_path / f"{n}.safetensors" for n in range(3))
    card = Preprocessing("range", channels=(2, 0)), ("sky", "cell", "border", "none")
    written = weights(AXES[axis], preprocessing=card[0], class_names=card[1])
    unet_torch.save(unet_torch.weights.from_weights(written), first)
    unet_jax.save(unet_jax.load(first), through_jax)
    unet_torch.save(unet_torch.load(through_jax), through_torch)
    assert sha256(first) == sha256(through_jax) == sha256(through_torch)

    back = weight_file.read(through_torch)
    assert (back.config, back.preprocessing, back.class_names) == (AXES[axis], *card)
    for name, tensor in written.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(back.tensors[name], tensor, err_msg=name)


def test_a_new_jax_net_survives_the_way_over_torch(tmp_path):
    first, second, third = (tmp_path / f"{n}.safetensors" for n in range(3))
    net = unet_jax.UNet(replace(SMALL, widths=(6, 8), norm="batch"), rngs=nnx.Rngs(0))
    net(jax.random.normal(jax.random.key(0), (2, 12, 20, 3)))  # moves the statistics
    unet_jax.save(net, first)
    unet_torch.save(unet_torch.load(first), second)
    unet_jax.save(unet_jax.load(second), third)
    assert sha256(first) == sha256(second) == sha256(third)
    assert weight_file.read(first).tensors["neck.conv.1.num_batches_tracked"] == 1


def test_stock_safetensors_loads_into_the_slides_module(tmp_path):
    """What a PyTorch user does, without any code of this project."""
    path = tmp_path / "cells.safetensors"
    config = UNetConfig(widths=(6, 12, 24, 48, 96))
    unet_jax.save(unet_jax.weights.from_weights(weights(config)), path)
    printed = slides.UNet(step_down=6)
    printed.load_state_dict(safetensors.torch.load_file(path), strict=True)
    x = torch.randn(2, 1, 32, 48)
    assert torch.equal(printed(x), unet_torch.load(path)(x))


def test_header_is_one_entry_of_json(tmp_path):
    path = tmp_path / "cells.safetensors"
    weight_file.write(path, weights())
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert list(metadata) == ["unet"]
    card = json.loads(metadata["unet"])
    assert sorted(card) == ["class_names", "config", "preprocessing", "sha256", "version"]
    assert card["version"] == 1
    assert UNetConfig.from_json(json.dumps(card["config"])) == SMALL


def test_equal_weights_are_equal_bytes_whatever_their_order(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    given = weights()
    weight_file.write(first, given)
    weight_file.write(second, replace(given, tensors=dict(reversed(given.tensors.items()))))
    assert first.read_bytes() == second.read_bytes()


def test_transposed_view_is_saved_as_it_reads(tmp_path):
    path = tmp_path / "view.safetensors"
    given = weights()
    views = {name: np.ascontiguousarray(tensor.T).T for name, tensor in given.tensors.items()}
    assert not views["up_1.up.weight"].flags.c_contiguous
    weight_file.write(path, replace(given, tensors=views))
    stock = safetensors.numpy.load_file(path)
    for name, tensor in given.tensors.items():
        np.testing.assert_array_equal(stock[name], tensor, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_is_that_of_the_floating_tensors(dtype, tmp_path):
    path = tmp_path / "typed.safetensors"
    given = weights(replace(SMALL, norm="batch"))
    weight_file.write(path, given, dtype=dtype)
    for name, tensor in safetensors.numpy.load_file(path).items():
        expected = given.tensors[name].astype("int64" if tensor.ndim == 0 else dtype)
        assert tensor.dtype == expected.dtype, name
        np.testing.assert_array_equal(tensor, expected, err_msg=name)
    x = np.random.default_rng(0).random((13, 21, 3))
    assert unet_torch.predict(unet_torch.load(path), x[:12, :20]).shape == (12, 20)
    assert unet_jax.predict(unet_jax.load(path), x[:12, :20]).shape == (12, 20)


def test_unknown_dtype_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="float16, float32, float64, got int8"):
        weight_file.write(tmp_path / "typed.safetensors", weights(), dtype="int8")
    assert not list(tmp_path.iterdir())


def stock_file(path, *, card=None, **changed):
    """A file written without the checks of `weight_file.write`."""
    tensors = {**weights().tensors, **changed}
    metadata = {
        "version": 1,
        "config": json.loads(SMALL.to_json()),
        "preprocessing": {"normalize": "image"},
        "class_names": [],
        **(card or {}),
    }
    safetensors.numpy.save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        path,
        {"unet": json.dumps(metadata)},
    )


def whole(path):
    weight_file.write(path, weights())
    return path.read_bytes()


def config_of(**changes):
    return {"config": {**json.loads(SMALL.to_json()), **changes}}


BLANK = np.zeros((4,), np.float32)
WRONG_FILES = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "a folder, and a file is needed"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "git_lfs_pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "git lfs pull",
    ),
    "truncated": (lambda path: path.write_bytes(whole(path)[:-100]), "not a whole safetensors"),
    "cut_in_the_header": (lambda path: path.write_bytes(whole(path)[:50]), "not a whole"),
    "garbage": (lambda path: path.write_bytes(b"\3\4" * 99), "not a whole safetensors file"),
    "zip": (lambda path: path.write_bytes(b"PK\3\4" * 99), "a PyTorch checkpoint, not a weight"),
    "no_metadata": (
        lambda path: safetensors.numpy.save_file(dict(weights().tensors), path),
        "without this project's metadata",
    ),
    "damaged_metadata": (
        lambda path: safetensors.numpy.save_file(dict(weights().tensors), path, {"unet": "{"}),
        "its metadata is damaged",
    ),
    "version_that_is_no_number": (
        lambda path: stock_file(path, card={"version": [1]}),
        "its metadata is damaged",
    ),
    "card_that_is_no_object": (
        lambda path: safetensors.numpy.save_file(dict(weights().tensors), path, {"unet": "[1]"}),
        "its metadata is damaged",
    ),
    "no_version": (
        lambda path: safetensors.numpy.save_file(dict(weights().tensors), path, {"unet": "{}"}),
        "'version'",
    ),
    "missing_tensor": (lambda path: stock_file(path, **{"out.bias": None}), "missing: out.bias"),
    "unexpected_tensor": (lambda path: stock_file(path, head=BLANK), "unexpected: head"),
    "misshaped_tensor": (
        lambda path: stock_file(path, **{"neck.conv.0.bias": BLANK}),
        r"mis-shaped: neck.conv.0.bias \(4,\) instead of \(10,\)",
    ),
    "config_of_another_net": (
        lambda path: stock_file(path, card=config_of(norm="batch", classes=5)),
        "missing: .*; unexpected: .*; mis-shaped: ",
    ),
    "config_that_is_not_allowed": (
        lambda path: stock_file(path, card=config_of(widths=[6])),
        "widths needs at least 2 levels",
    ),
    "config_with_unknown_field": (
        lambda path: stock_file(path, card=config_of(attention=True)),
        "unknown field attention",
    ),
    "unknown_preprocessing": (
        lambda path: stock_file(path, card={"preprocessing": {"normalize": "log"}}),
        "normalize is one of image, range, none",
    ),
    "channels_that_no_image_has": (
        lambda path: stock_file(path, card={"preprocessing": {"channels": [0, -2]}}),
        "channels are numbered from 0",
    ),
    "channels_that_are_no_numbers": (
        lambda path: stock_file(path, card={"preprocessing": {"channels": "01"}}),
        "channels holds ints",
    ),
    "newer_version": (lambda path: stock_file(path, card={"version": 2}), "format version 2"),
    "class_names_of_another_net": (
        lambda path: stock_file(path, card={"class_names": ["one", "two"]}),
        "one name for each of 4 classes",
    ),
}


@pytest.mark.parametrize("load", [unet_torch.load, unet_jax.load], ids=["torch", "jax"])
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_file_is_refused_in_a_sentence_that_names_it(wrong, load, tmp_path):
    path = tmp_path / "cells.safetensors"
    make, words = WRONG_FILES[wrong]
    make(path)
    with pytest.raises(InputError, match=words) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_right_file_made_by_stock_safetensors_loads(tmp_path):
    """The files above are refused for what is wrong with them, and for nothing else."""
    path = tmp_path / "cells.safetensors"
    stock_file(path)
    assert weight_file.read(path).config == SMALL


def test_folder_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "nowhere" / "cells.safetensors"
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        weight_file.write(path, weights())


def test_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "cells.safetensors"
    before = whole(path)
    limit = len(before) // 2
    program = f"""
import resource, signal, sys
from unet_spec import weight_file
given = weight_file.read(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
weight_file.write(sys.argv[1], given, dtype="float64")
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "File too large" in run.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_that_fails_before_the_first_byte_leaves_no_file(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        weight_file.write(tmp_path / "cells.safetensors", weights())
    assert not list(tmp_path.iterdir())


def test_tensors_are_those_of_the_table_in_its_order(tmp_path):
    path = tmp_path / "cells.safetensors"
    given = weights(replace(SMALL, norm="batch"))
    weight_file.write(path, given)
    assert weight_file.read(path).tensors.keys() == {p.name for p in parameters(given.config)}


def test_bfloat16_weights_are_saved_as_the_same_values(tmp_path):
    net = unet_torch.UNet(UNetConfig(widths=(4, 6))).bfloat16()
    unet_torch.save(net, tmp_path / "a.safetensors")
    loaded = unet_torch.load(tmp_path / "a.safetensors")
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name


def test_integer_kernels_are_refused():
    config = UNetConfig(widths=(4, 6))
    tensors = unet_torch.weights.to_weights(unet_torch.UNet(config)).tensors
    wrong = {**tensors, "out.weight": np.ones((2, 4, 1, 1), np.int64)}
    with pytest.raises(InputError, match=r"no floats: out\.weight int64"):
        WeightFile(config, wrong)
