"""The readers that share no code with the project read what torch and safetensors wrote."""

import zipfile
from argparse import Namespace

import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks.other_readers import NotConsistentError, read_safetensors, read_torch

BASE = torch.arange(24.0)
STATE = {
    "view": BASE.reshape(2, 3, 4)[1].t(),
    "tied": BASE[3:9:2],
    "bfloat16": torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
    "double": torch.tensor([[0.1]], dtype=torch.float64),
    "complex": torch.tensor([1 + 2j]),
    "flags": torch.tensor([True, False]),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def check(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        tensor = tensor.detach().contiguous()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert tensors[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(tensors[name], tensor.numpy(), strict=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_tensors_of_torch_are_those_that_were_saved(path, is_zip):
    content = {"net": STATE, "step": 3, "a": Namespace(x=[1]), "n": np.float64(2), "s": {1}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    check(read_torch(path), {f"net.{name}": tensor for name, tensor in STATE.items()})


def test_tensors_of_safetensors_are_those_that_were_saved(path):
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in STATE.items()}
    safetensors.torch.save_file(whole, path)
    tensors = read_safetensors(path)
    check({name: tensors[name] for name in whole}, whole)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_module_is_more_than_tensors(path, is_zip):
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=is_zip)
    assert read_torch(path) is None


def test_a_flipped_bit_of_a_zip_is_found(path):
    torch.save(STATE, path)
    flip(path, path.read_bytes().find(BASE.numpy().tobytes()) + 9)
    with pytest.raises(NotConsistentError, match="CRC"):
        read_torch(path)


def test_a_zip_without_checksums_is_read(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    check(read_torch(path), STATE)


def test_a_name_that_stands_twice_in_a_zip_is_found(path):
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data/0", b"")
    with pytest.raises(NotConsistentError, match="one name"):
        read_torch(path)


@pytest.mark.parametrize("lost", [1, 30, 200])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_short_is_found(path, kind, lost):
    if kind == "safetensors":
        safetensors.torch.save_file({"a": torch.ones(64)}, path)
    else:
        torch.save({"a": torch.ones(64)}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(NotConsistentError):
        read_safetensors(path) if kind == "safetensors" else read_torch(path)


def test_a_name_that_stands_twice_in_a_header_is_found(path):
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"a"'))
    with pytest.raises(NotConsistentError, match="twice"):
        read_safetensors(path)
