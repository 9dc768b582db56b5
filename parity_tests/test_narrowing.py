"""No damaged numbers: what is finite stays so, or a sentence names the tensor."""

import json
import re
import struct
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import unet_cli
import unet_jax
import unet_torch
from unet_convert import conversion
from unet_jax.layers import Numerics
from unet_parity import oracle
from unet_spec import InputError, UNetConfig, training_state, weight_file
from unet_spec.narrowing import SMALLEST_NORMAL, describe_losses, narrow, refuse_not_finite
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import checkpoint
from unet_torch import training_state as torch_state

NET = UNetConfig(widths=(4, 6), norm="batch")
TENSORS = oracle.random_tensors(NET, seed=0)
WEIGHTS = WeightFile(NET, TENSORS)
VARIANCE = "down_1.conv.conv.1.running_var"


def with_values(name, value):
    """The tensors of a net, one of them full of a value."""
    return {**TENSORS, name: np.full_like(TENSORS[name], value)}


def save_torch(path, tensors):
    torch.save({n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}, path)


def unet(monkeypatch, capsys, *argv):
    """Exit status and both outputs of a command."""
    monkeypatch.setattr("sys.argv", ["unet", *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        unet_cli.main()
    shown = capsys.readouterr()
    return ended.value.code, shown.out + shown.err


# the types


@given(st.integers(0, 2**32 - 1))
def test_bfloat16_is_that_of_torch_for_every_float32(bits):
    value = np.array([bits], np.uint32).view(np.float32)
    if not np.isfinite(value).all() or abs(value[0]) > 3.38e38:
        return
    theirs = torch.from_numpy(value.copy()).bfloat16().float().numpy()
    assert narrow("it", value, "bfloat16").tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        (1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7),  # above a tie, by less than float32 keeps
        (1 + 2.0**-8, 1.0),  # a tie, to even
        (1 + 3 * 2.0**-8 - 2.0**-40, 1 + 2.0**-7),
        (-1 - 2.0**-8 - 2.0**-40, -1 - 2.0**-7),
    ],
)
def test_a_float64_is_rounded_once(value, nearest):
    assert narrow("it", np.array([value]), "bfloat16")[0] == nearest


@pytest.mark.parametrize(
    ("dtype", "largest"), [("float16", 7e4), ("bfloat16", 3.4e38), ("float32", 1e39)]
)
def test_an_overflow_names_the_tensor_and_the_largest_value(dtype, largest):
    tensor = np.array([1.0, -largest, 2.0])
    with pytest.raises(InputError, match=rf"out\.bias does not fit {dtype}: 1 of its 3") as error:
        narrow("out.bias", tensor, dtype)
    assert f"{largest:.6g}" in str(error.value)


def test_small_values_are_counted():
    tensors = {"a": np.array([1, 0, 1e-6, -1e-9], np.float32), "b": np.array([2], np.float32)}
    narrowed = {name: narrow(name, t, "float16") for name, t in tensors.items()}
    sentence = describe_losses(tensors, narrowed, "float16")
    assert sentence.startswith("2 of 5 values are below the smallest normal number of float16")
    assert "1 have fewer digits now and 1 are 0; in a (2)" in sentence
    assert describe_losses({"b": tensors["b"]}, narrowed, "float16") == ""
    assert SMALLEST_NORMAL["float16"] == np.finfo(np.float16).smallest_normal


# files


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_small_file_is_read_by_stock_safetensors_and_both_twins(tmp_path, dtype):
    path = tmp_path / "small.safetensors"
    named = replace(WEIGHTS, class_names=("background", "cell"))
    weight_file.write(path, named, dtype=dtype)
    theirs = safetensors.torch.load_file(path)
    expected = {
        name: torch.from_numpy(np.array(t)).to(getattr(torch, dtype) if t.dtype.kind == "f"
                                               else torch.int64)
        for name, t in TENSORS.items()
    }  # fmt: skip
    assert {n: t.dtype for n, t in theirs.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in expected.items())
    for model in (unet_torch.load(path), unet_jax.load(path)):
        assert model.class_names == named.class_names
    read = weight_file.read(path).tensors
    assert all(np.array_equal(read[n], t.float().numpy()) for n, t in expected.items())
    jax_net = unet_jax.weights.to_weights(unet_jax.load(path))
    assert all(np.array_equal(jax_net.tensors[n], read[n]) for n in read)


def test_the_header_of_a_bfloat16_file_says_so(tmp_path):
    path = tmp_path / "small.safetensors"
    weight_file.write(path, WEIGHTS, dtype="bfloat16")
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    kinds = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert set(kinds.values()) == {"BF16", "I64"}
    assert size % 8 == 0
    again = tmp_path / "again.safetensors"
    weight_file.write(again, WEIGHTS, dtype="bfloat16")
    assert again.read_bytes() == content


def test_convert_refuses_an_overflow_and_counts_what_becomes_small(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_torch("large.pt", with_values(VARIANCE, 2e9))
    status, said = unet(monkeypatch, capsys, "convert", "large.pt", "new.safetensors",
                        "--dtype", "float16")  # fmt: skip
    assert status == 2
    assert f"{VARIANCE} does not fit float16: 4 of its 4 values" in said
    assert "the largest 2e+09" in said
    assert not (tmp_path / "new.safetensors").exists()
    save_torch("small.pt", with_values(VARIANCE, 1e-6))
    status, said = unet(monkeypatch, capsys, "convert", "small.pt", "new.safetensors",
                        "--dtype", "float16")  # fmt: skip
    assert status == 0
    count = re.search(r"(\d+) of \d+ values are below the smallest normal number of float16", said)
    assert count
    assert int(count[1]) >= 4
    status, said = unet(monkeypatch, capsys, "convert", "small.pt", "half.safetensors",
                        "--dtype", "bfloat16")  # fmt: skip
    assert (status, "smallest normal" in said) == (0, False)


def test_a_type_for_a_target_of_torch_is_refused_and_not_forgotten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weight_file.write("w.safetensors", WEIGHTS)
    status, said = unet(monkeypatch, capsys, "convert", "w.safetensors", "w.pt",
                        "--dtype", "float16")  # fmt: skip
    assert (status, "leave out --dtype" in said) == (2, True)


def test_float64_values_that_float32_does_not_hold_are_refused_on_every_way(tmp_path):
    path = tmp_path / "double.safetensors"
    tensors = {n: t.astype(np.float64) if t.dtype.kind == "f" else t for n, t in TENSORS.items()}
    tensors["out.bias"] = np.array([1e39, 0.0])
    weight_file.write(path, WeightFile(NET, tensors), dtype="float64")
    overflow = r"out\.bias does not fit float32"
    with pytest.raises(InputError, match=overflow):
        unet_jax.load(path)
    with pytest.raises(InputError, match=overflow):
        unet_jax.read_arrays(path)
    with pytest.raises(InputError, match=overflow):
        conversion.convert(path, tmp_path / "new.safetensors")
    weight_file.write(path, WeightFile(NET, with_values("out.bias", 7e4)))
    with pytest.raises(InputError, match=r"does not fit float16"):
        unet_jax.load(path, numerics=Numerics(param_dtype=jnp.float16))


def test_weights_that_outgrew_the_type_of_their_file_do_not_go_back(tmp_path):
    source, theirs = tmp_path / "half.pt", tmp_path / "back.pt"
    half = {n: torch.from_numpy(np.array(t)) for n, t in TENSORS.items()}
    torch.save({n: t.half() if t.is_floating_point() else t for n, t in half.items()}, source)
    content, _, _ = conversion.read(source)
    assert isinstance(content, WeightFile)
    grown = {**content.tensors, VARIANCE: np.full(4, 1e5, np.float32)}
    path = tmp_path / "grown.safetensors"
    weight_file.write(path, replace(content, tensors=grown))
    with pytest.raises(
        InputError, match=rf"{VARIANCE} does not fit float16, the type that it came"
    ):
        conversion.convert(path, theirs)
    assert not theirs.exists()


# values that are not finite


def raw_file(path, tensors):
    """A weight file with any values in it, such as another program could write."""
    weight_file.write(path, WEIGHTS)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    card = json.loads(metadata["unet"])
    del card["sha256"]
    safetensors.numpy.save_file(dict(tensors), path, {"unet": json.dumps(card)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_reader_and_writer_names_the_tensor(tmp_path, value):
    path, wrong = tmp_path / "w.safetensors", with_values("out.bias", value)
    raw_file(path, wrong)
    named = re.escape(f"{path}: the weights hold NaN or infinite values: out.bias (2 of 2)")
    for read in (unet_torch.load, unet_jax.load, unet_jax.read_arrays, conversion.read):
        with pytest.raises(InputError, match=named):
            read(path)
    with pytest.raises(InputError, match=named):
        training_state.read_either(path)  # what `train --start` reads
    save_torch(tmp_path / "w.pt", wrong)
    with pytest.raises(InputError, match=r"w\.pt: .* out\.bias \(2 of 2\)"):
        conversion.convert(tmp_path / "w.pt", tmp_path / "new.safetensors")
    weight_file.write(path, WEIGHTS)
    theirs, ours = unet_torch.load(path), unet_jax.load(path)
    with torch.no_grad():
        theirs.get_parameter("out.bias").fill_(float(value))
    assert ours.out.bias is not None
    ours.out.bias[...] = jnp.full(2, value)
    with pytest.raises(InputError, match=r"out\.bias \(2 of 2\)"):
        unet_torch.save(theirs, tmp_path / "new.safetensors")
    with pytest.raises(InputError, match=r"out\.bias \(2 of 2\)"):
        unet_jax.save(ours, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("verb", ["predict", "verify", "train", "convert"])
def test_every_verb_refuses_them(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    raw_file("w.safetensors", with_values("out.bias", np.nan))
    flags = {
        "predict": ["w.safetensors", "x.png", "--out", "new"],
        "verify": ["w.safetensors", "--steps", "0"],
        "train": ["cells", "--start", "w.safetensors", "--out", "new"],
        "convert": ["w.safetensors", "new"],
    }
    np.save("x.npy", np.zeros(1))
    status, said = unet(monkeypatch, capsys, verb, *flags[verb])
    assert status == 2
    assert said.startswith("unet: w.safetensors: the weights hold NaN or infinite values: out.bias")
    assert not (tmp_path / "new").exists()


def make_run(value):
    """A run whose second moment of one tensor is full of a value, and what its average is."""
    weights = WeightFile(NET, TENSORS)
    recipe = Recipe(Optimizer("adam", lr=1e-3)).for_steps(4)
    trained = {p.name for p in training_state.trained(weights)}
    slots = {
        slot: {n: np.abs(t) for n, t in TENSORS.items() if n in trained} for slot in recipe.slots
    }
    slots["exp_avg_sq"]["out.bias"] = np.full(2, value, np.float32)
    return weights, recipe, slots


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused_where_they_count(tmp_path, value):
    weights, recipe, slots = make_run(value)
    with pytest.raises(InputError, match=r"exp_avg_sq/out\.bias \(2 of 2\)"):
        TrainingState(weights, recipe, 2, slots, {"lr": 1e-3, "last_epoch": 2})
    whole = make_run(1.0)[2]
    state = TrainingState(weights, recipe, 2, whole, {"lr": 1e-3, "last_epoch": 2})
    for path in (tmp_path / "run.safetensors", tmp_path / "run.pt"):
        torch_state.write(path, state)
        damage_moment(path, value)
        with pytest.raises(InputError, match=r"exp_avg_sq/out\.bias"):
            conversion.read(path)
        alone, _, _ = conversion.read(path, weights_only=True)
        assert isinstance(alone, WeightFile)
        assert all(np.array_equal(alone.tensors[n], t) for n, t in TENSORS.items())


def damage_moment(path, value):
    """Put a value into the second moment of a run's file."""
    if path.suffix == ".pt":
        content = checkpoint.read_content(path)
        last = max(content["optimizer"]["state"])
        content["optimizer"]["state"][last]["exp_avg_sq"].fill_(float(value))
        torch.save(content, path)
        return
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    card = json.loads(metadata["unet"])
    del card["sha256"]
    tensors = safetensors.numpy.load_file(path)
    tensors["exp_avg_sq/out.bias"][:] = value
    safetensors.numpy.save_file(tensors, path, {"unet": json.dumps(card)})


def test_an_average_that_is_not_finite_is_refused(tmp_path):
    weights, recipe, slots = make_run(1.0)
    average = {n: t.copy() for n, t in TENSORS.items() if t.dtype.kind == "f"}
    average["out.bias"][0] = np.inf
    with pytest.raises(InputError, match=r"average/out\.bias \(1 of 2\)"):
        TrainingState(weights, recipe, 2, slots, {"lr": 1e-3, "last_epoch": 2}, average)


def test_integers_and_finite_values_are_left_alone():
    refuse_not_finite(
        {"count": np.array(2**62), "weight": np.array([3e38, -0.0, 1e-45], np.float32)}
    )
    with pytest.raises(InputError, match=r"a \(1 of 2\)"):
        refuse_not_finite({"a": np.array([np.nan, 1])})


def test_complex_weights_and_counts_that_are_none_are_refused():
    with pytest.raises(InputError, match=r"no floats: out\.bias complex64"):
        WeightFile(NET, {**TENSORS, "out.bias": TENSORS["out.bias"].astype(np.complex64)})
    count = "down_1.conv.conv.1.num_batches_tracked"
    for value in (np.array(np.nan), np.array(0.5), np.array(-1), np.array(True), np.array(1e30)):
        with pytest.raises(InputError, match=rf"no counts: {count}"):
            WeightFile(NET, {**TENSORS, count: value})
    WeightFile(NET, {**TENSORS, count: np.array(3.0)})  # as .half() leaves it
