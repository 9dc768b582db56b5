"""A safetensors file is read where its header describes exactly the bytes behind it."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from parity_tests.test_plain_json import WEIGHTS, write_card
from unet_spec import InputError, safetensors_file, structure, weight_file
from unet_spec.config import UNetConfig
from unet_spec.layers_of_file import MOST_LAYERS, find_layers
from unet_spec.safetensors_file import MOST_TENSORS
from unet_spec.wording import LONGEST, show


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, header, data=bytes(4)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refused(path, words):
    with pytest.raises(InputError) as error:
        safetensors_file.read(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert words in sentence
    assert sentence.isprintable()
    assert len(sentence) < LONGEST + 10


def test_every_type_is_read_as_the_library_reads_it(path):
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "number": np.array(2.5)}
    safetensors.numpy.save_file(arrays, path)
    card, tensors = safetensors_file.read(path)
    assert card is None
    assert list(tensors) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)
        assert tensors[name].flags.writeable


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry("F8_E4M3", (4,))}, "a is of type F8_E4M3, which is not read here"),
        ({"a": entry("C64", (1,), (0, 4))}, "a is of type C64"),
        ({"a": entry("\x1b[31m")}, r"a is of type \x1b[31m"),
        ({"a": entry("F64")}, "a of shape (1,) and type F64 in 4 bytes"),
        ({"a": entry("I8", (2,), (0, 2)), "b": entry("I8", (3,), (1, 4))}, "b begins at 1, where"),
        ({"a": entry("I8", (1,), (0, 1)), "b": entry("I8", (1,), (3, 4))}, "b begins at 3, where"),
        ({"a": entry("I8", (1,), (0, 1))}, "its tensors need 1 bytes, and it has 4"),
        ({"a": entry(shape=(2,), offsets=(0, 8))}, "its tensors need 8 bytes, and it has 4"),
        ({"a": entry(shape=(-1, -1))}, "sizes that are no whole numbers"),
        ({"a": entry(shape=(True,))}, "sizes that are no whole numbers"),
        ({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}, "a has the shape (0, 10995"),
        ({"a": entry(shape=(1,) * 65)}, "the entry of a is no tensor's"),
        ({"a": 5}, "the entry of a has no dtype"),
        ({"a\x1b[2J\n": entry()}, r"no name of a tensor: 'a\x1b[2J\n'"),
        ({"a" * 10**5: entry()}, "no name of a tensor: 'aaaa"),
        ({f"t{n}": entry() for n in range(MOST_TENSORS + 1)}, "20,001 tensors, and at most"),
        ({"__metadata__": 5}, "its metadata is no object of texts"),
        ({"__metadata__": {"unet": "[" * 10**5}, "a": entry()}, "nested too deeply"),
        (b"[]", "its header is no object"),
        (b'{"a":' + b"[" * 10**5, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (json.dumps({"a": entry()}).encode("utf-16"), "not a whole safetensors file"),
    ],
)
def test_a_header_that_does_not_describe_the_bytes_is_refused(path, header, words):
    write(path, header)
    refused(path, words)


def test_a_name_that_stands_twice_is_refused(path):
    write(path, b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2))
    refused(path, "'a' stands twice")


@pytest.mark.parametrize("length", [10**8 + 1, 2**63])
def test_a_header_that_is_longer_than_its_file_is_not_read(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(path, f"it states a header of {length:,} bytes")


def test_a_file_that_shrinks_while_it_is_read_is_refused(path, monkeypatch):
    safetensors.numpy.save_file({"a": np.ones(1000)}, path)
    read_card = safetensors_file._read_card

    def cut(*arguments):
        os.truncate(path, path.stat().st_size - 8)
        return read_card(*arguments)

    monkeypatch.setattr(safetensors_file, "_read_card", cut)
    refused(path, "it has become shorter while it was read")


def test_a_pipe_is_refused_and_does_not_wait(path):
    os.mkfifo(path)
    refused(path, "a pipe or a device")


def test_names_of_classes_are_printable(path):
    write_card(path, '"a", "b"', '"a\\u001b[31m", "b"')
    with pytest.raises(InputError, match=r"w\.safetensors: a class has the name 'a\\x1b\[31m'"):
        weight_file.read(path)
    write_card(path, '"a", "b"', '"' + "a" * 2000 + '", "b"')
    with pytest.raises(InputError, match=r"give one of at most 1000 characters"):
        weight_file.read(path)


def test_a_field_that_is_not_known_is_named_in_one_line(path):
    write_card(path, '"bias": true', '"bias": true, "\\n' + "z" * 9999 + '": 1')
    with pytest.raises(InputError, match=r"unknown field \\nzzzz") as error:
        weight_file.read(path)
    assert len(str(error.value)) < 300


def test_thousands_of_layers_are_no_search():
    weight = np.arange(9.0, dtype=np.float32).reshape(1, 1, 3, 3)
    tensors = {f"{number}.weight": weight + number for number in range(MOST_LAYERS + 1)}
    with pytest.raises(InputError, match="3,001 layers, and at most 3,000"):
        find_layers(tensors, ties={}, source="x")
    del tensors["0.weight"]
    with pytest.raises(InputError, match="it has no 1x1 convolution"):
        structure.recognise(tensors, given=UNetConfig(), settled=frozenset(), ties={}, source="x")


def test_a_sentence_is_one_line_of_bounded_length():
    assert show("plain words, é and 細胞") == "plain words, é and 細胞"
    assert show("a\r\x9b\u202e\udcff") == r"a\r\x9b\u202e\udcff"
    assert len(show("a" * 10**6)) == LONGEST + 5
    assert str(InputError("a\nb")) == r"a\nb"
    assert WEIGHTS.class_names == ("a", "b")
