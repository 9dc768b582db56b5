"""Damaged files of `torch.save` are refused in one sentence, before torch believes them."""

import io
import os
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.watched import peak_mb
from unet_spec import InputError
from unet_torch import checkpoint, container

STATE = {
    "a.weight": torch.arange(24.0).reshape(2, 3, 4),
    "a.bias": torch.ones(5, dtype=torch.bfloat16),
    "a.view": torch.arange(12.0).reshape(3, 4).t(),
    "count": torch.tensor(3),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


def write(path, content=STATE, *, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path.read_bytes()


def rewrite(path, changes, *, drop=(), compression=zipfile.ZIP_STORED):
    """Write a zip again, with right checksums, other contents of some entries and less of them."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w", compression) as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            if name not in drop:
                new.writestr(entry.filename, changes.get(name, old.read(entry)))
    path.write_bytes(written.getvalue())


def read_entry(path, name):
    with zipfile.ZipFile(path) as archive:
        (entry,) = (e for e in archive.namelist() if e.partition("/")[2] == name)
        return archive.read(entry)


def refused(path, words):
    with pytest.raises(InputError) as error:
        checkpoint.read_content(path)
    assert str(error.value).startswith(f"{path}: not a whole PyTorch file")
    assert words in str(error.value)
    assert str(error.value).endswith("fetch or write it again")


# whole files


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_what_is_whole_is_read_as_torch_reads_it(path, is_zip):
    content = {
        "model": OrderedDict(STATE),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "tied": [STATE["a.weight"], STATE["a.weight"][1:]],
        "plain": (1, 2.5, None, True, "x", b"y", {"z"}, 10**20, torch.Size([2]), torch.float16),
        "numpy": [np.float64(2.0), np.arange(3), np.dtype("f4")],
        "empty": torch.zeros(0, 4),
        "namespace": Namespace(lr=0.1),
        "complex": torch.ones(2, dtype=torch.complex64),
        "device": torch.device("cpu"),
    }
    write(path, content, is_zip=is_zip)
    found = checkpoint.read_content(path)
    assert str(found) == str(content)
    assert found["tied"][0].data_ptr() == found["model"]["a.weight"].data_ptr()


def test_a_zip_that_torch_wrote_without_checksums_is_read(path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write(path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(checkpoint.read_content(path)["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_types_that_numpy_has_not_become_float32(path, is_zip):
    narrow = [torch.bfloat16] + [torch.float8_e4m3fn] * is_zip
    for dtype in narrow:
        write(path, {"a.weight": STATE["a.weight"].to(dtype)}, is_zip=is_zip)
        found = checkpoint.read(path)
        assert found.tensors["a.weight"].dtype == np.float32
        assert np.array_equal(found.tensors["a.weight"], STATE["a.weight"].to(dtype).float())


# checksums and lengths


def test_a_flipped_bit_of_any_entry_is_seen(path):
    whole = write(path)
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if e.file_size]
        places = [whole.find(archive.read(e), e.header_offset + 30) for e in entries]
    for entry, place in zip(entries, places, strict=True):
        damaged = bytearray(whole)
        damaged[place + entry.file_size // 2] ^= 64
        path.write_bytes(damaged)
        refused(path, f"its entry {entry.filename} has other bytes than were written")


def test_a_record_that_is_shorter_than_its_tensor_gives_no_foreign_memory(path):
    write(path)
    rewrite(path, {"data/0": read_entry(path, "data/0")[:-4]})
    refused(path, "its tensors need 96 bytes of the entry data/0, which has 92")
    write(path)
    rewrite(path, {}, drop=("data/0",))
    refused(path, "which is missing")


def test_a_tensor_beyond_its_storage_gives_no_foreign_memory(path):
    write(path)
    pickled = read_entry(path, "data.pkl")
    # the shape (2, 3, 4) becomes (2, 3, 9)
    shape = b"K\x02K\x03K\x04\x87"
    assert pickled.count(shape) == 1
    rewrite(path, {"data.pkl": pickled.replace(shape, b"K\x02K\x03K\x09\x87")})
    refused(path, "a.weight of shape (2, 3, 9) is larger than its storage")


def test_one_storage_of_two_sizes_is_refused(path):
    tensor = torch.arange(8.0)
    write(path, {"a": tensor, "b": tensor[2:]})
    pickled = read_entry(path, "data.pkl")
    first = pickled.index(b"K\x08")
    assert pickled.count(b"K\x08") >= 2
    rewrite(path, {"data.pkl": pickled[:first] + b"K\x07" + pickled[first + 2 :]})
    refused(path, "is named with several sizes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: whole[:-8], "it ends within its storage"),
        (lambda whole: whole[: len(whole) // 2], ""),
        (lambda whole: whole.replace(struct.pack("<Q", 24), struct.pack("<Q", 23)), "23 values"),
    ],
    ids=["the end", "the middle", "a length"],
)
def test_a_legacy_file_is_measured_as_well(path, change, words):
    whole = write(path, is_zip=False)
    assert change(whole) != whole
    path.write_bytes(change(whole))
    refused(path, words)


def test_a_legacy_file_whose_keys_are_others_gives_no_foreign_memory(path):
    whole = write(path, is_zip=False)
    at = whole.rfind(b"]q")
    place = whole.index(b"X", at) + 6
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(path, "its tensors and its storages have other keys")


# sizes that are only said


def test_nothing_is_unpacked(path):
    write(path)
    rewrite(path, {}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "its entries are compressed")


@pytest.mark.parametrize("shape", [(2**20, 2**20), (2**29,)])
def test_a_tensor_that_repeats_few_values_is_refused_before_it_is_made(path, shape):
    write(path, {**STATE, "b.weight": torch.zeros(1).expand(shape)})
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process begins anew
    before = peak_mb()
    refused(path, f"b.weight of shape {shape} repeats few values")
    assert peak_mb() < before + 256
    write(path, {"mean": torch.zeros(3, 1, 1).expand(3, 8, 8)})  # as programs do
    assert checkpoint.read(path).tensors["mean"].shape == (3, 8, 8)


def test_one_storage_under_very_many_names_is_refused(path):
    tensor = torch.zeros(2**20)
    write(path, {str(number): tensor for number in range(100)})
    refused(path, "its tensors repeat few values")


def test_content_that_holds_itself_is_refused(path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    write(path, loop)
    refused(path, "model holds itself")
    ladder: list[object] = []
    for _ in range(30):
        ladder = [ladder, ladder]
    write(path, {"model": STATE, "beside": ladder})
    refused(path, "its dicts and lists name one another too often")
    deep: list[object] = []
    for _ in range(container.MOST_LEVELS + 2):
        deep = [deep]
    write(path, {"model": STATE, "beside": deep})
    refused(path, "nested in more than 32 levels")


def pickle_calling(function, argument):
    """A pickle that calls a function of `builtins` or torch with one argument."""
    module, name = function
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


def test_what_would_allocate_by_a_number_alone_is_not_called(path):
    write(path)
    number = b"J" + struct.pack("<i", 2**30)
    for function in (("__builtin__", "bytearray"), ("torch.storage", "UntypedStorage")):
        rewrite(path, {"data.pkl": pickle_calling(function, number)})
        with pytest.raises(InputError):
            checkpoint.read_content(path)
        with pytest.raises((ValueError, TypeError)):
            container.check(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_no_code_of_a_file_runs(path, tmp_path, is_zip):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'run')!r}, 'w')",))

    write(path, {"model": STATE, "beside": Evil()}, is_zip=is_zip)
    with pytest.raises(InputError, match="it holds more than tensors"):
        checkpoint.read_content(path)
    assert not (tmp_path / "run").exists()


# bytes of any kind


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02.", b"\x80\x02]q\x00.", b"\x80\x05K\x05.", b"\x80\x00", b"PK\x03\x04" * 99,
     b"PK\x03\x04", b"\x80\x02" + b"(" * 5000 + b".", b"\x80\x02X\xff\xff\xff\xff", b"\x00" * 99,
     b"\x80\x02S'\\q'\n."],
)  # fmt: skip
def test_bytes_of_any_kind_end_in_one_sentence(path, content):
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        refused(path, "")
    assert not noise


def test_two_entries_of_one_name_are_refused(path):
    write(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    refused(path, "two of its entries have one name")


# an archive that two readers read differently, and pickles that take long


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [(6, "<H", 1), (8, "<H", 8), (14, "<I", 7), (18, "<I", 7), (22, "<I", 7), (30, "<B", 122)],
    ids=["encrypted", "method", "checksum", "stored", "inflated", "name"],
)
@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_an_entry_that_is_described_differently_twice_is_refused(path, entry, place, form, value):
    content = bytearray(write(path))
    with zipfile.ZipFile(path) as archive:
        (at,) = (e.header_offset for e in archive.infolist() if e.filename.endswith(f"x/{entry}"))
    struct.pack_into(form, content, at + place, value)
    path.write_bytes(content)
    refused(path, "is described twice, and differently")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_is_one_whole_archive_and_nothing_else(path, is_zip):
    other = write(path, {"a.weight": torch.zeros(2, 3, 4)})
    whole = write(path, is_zip=is_zip)
    path.write_bytes(whole + other)
    words = "stands before its first entry" if is_zip else "follows its last storage"
    refused(path, f"something else {words}")
    path.write_bytes(whole + b"more")
    refused(path, f"something else follows its last {'entry' if is_zip else 'storage'}")


def test_a_key_that_takes_for_ever_to_hash_is_refused(path):
    """A tuple of the tuple before it, twice, forty times: hashed 2**40 times."""
    tuples = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))
    for pickled in (
        b"\x80\x02}" + tuples + b"K\x01s.",
        b"\x80\x02c__builtin__\nset\n](" + tuples + b"e\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n](" + tuples + b"K\x01\x86e\x85R.",
        b"\x80\x02ctorch\nSize\n" + tuples + b"R.",
    ):
        write(path)
        rewrite(path, {"data.pkl": pickled})
        refused(path, "not a whole")


@pytest.mark.parametrize("steps", [b")" + b"\x85" * 2_000_001, b"](" + b"K\x01" * 2_000_001 + b"e"])
def test_a_pickle_of_millions_of_steps_is_refused(path, steps):
    write(path)
    rewrite(path, {"data.pkl": b"\x80\x02" + steps + b"."})
    refused(path, "its pickle has more than 2,000,000 steps")


def test_thousands_of_views_are_refused_before_they_are_made(path):
    one = torch.ones(1)
    write(path, {f"{number}": one[:] for number in range(20_001)})
    refused(path, "it has more than 20,000 tensors")


def test_a_pipe_is_refused_and_does_not_wait(path):
    os.mkfifo(path)
    with pytest.raises(InputError, match="a pipe or a device"):
        checkpoint.read(path)


# values that are no tensors, and tensors that numpy has not


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({1: torch.ones(2, 2), "1": torch.ones(2, 2)}, "two tensors have the name 1"),
        ({"b": np.ones(3)}, "b is an array of numpy among tensors"),
        ({"\x1b[2J\n": torch.ones(2)}, r"a tensor has the name '\x1b[2J\n'"),
        ({"b" * 1001: torch.ones(2)}, "a tensor has the name 'bbb"),
        ({"b": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "b is of type"),
    ],
)
def test_an_entry_that_would_be_lost_is_named(path, entry, words):
    write(path, {**STATE, **entry})
    with pytest.raises(InputError) as error:
        checkpoint.read(path)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_views_that_only_mark_a_sign_are_read(path):
    weight = torch.arange(4.0).reshape(2, 2)
    conjugate = torch.complex(weight, weight).conj()
    write(path, {"a.weight": torch._neg_view(weight), "b": conjugate})
    tensors = checkpoint.read(path).tensors
    np.testing.assert_array_equal(tensors["a.weight"], -weight.numpy())
    np.testing.assert_array_equal(tensors["b"], np.conj(weight.numpy() * (1 + 1j)))
