"""A recorded pair is read as numpy wrote it; whatever else an .npz holds is refused, uninflated."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from unet_spec import InputError
from unet_spec.recorded import MOST_BYTES, read_recorded

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 1, 8, 12)).astype(np.float32)
Y = RNG.normal(size=(1, 2, 8, 12)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pair.npz"


def array_bytes(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def header(shape, *, descr="<f4"):
    stream = io.BytesIO()
    form = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, form)
    return stream.getvalue()


def write(path, *entries, compression=zipfile.ZIP_DEFLATED):
    """Write a zip whose entries are bytes, or bytes followed by a number of zeros."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, start, *zeros in entries:
            with archive.open(name, "w") as stream:
                stream.write(start)
                for _ in range(sum(zeros) // 2**24):
                    stream.write(bytes(2**24))


def refused(path, words):
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        read_recorded(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert peak < 2**24


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["y", "y0", "output", "logits"])
def test_what_numpy_wrote_is_read(path, save, name):
    x = np.asfortranarray((20 * X).astype(np.int16))
    save(path, x=x, **{name: Y.astype(">f8")}, other=np.array("text"))
    found_x, found_y = read_recorded(path)
    np.testing.assert_array_equal(found_x, x.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found_y, Y.astype(">f8"), strict=True)


def test_a_large_picture_of_one_gray_is_read(path):
    """It is deflated to a thousandth, as a picture's edges often are."""
    np.savez_compressed(path, x=np.ones((1, 3, 1024, 1024), np.float32), y=Y)
    assert path.stat().st_size < 20_000
    assert read_recorded(path)[0].shape == (1, 3, 1024, 1024)


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_recording_is_named(path, damage):
    np.savez(path, x=X, y=Y)
    whole = path.read_bytes()
    cut, bit = whole[: len(whole) // 2], whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]
    path.write_bytes(cut if damage == "cut" else bit)
    refused(path, "not a whole .npz file")


def test_an_array_that_says_its_size_is_refused_by_it(path):
    shape = (1, 1, 2**14, 2**13)
    write(path, ("x.npy", header(shape), 4 * 2**27), ("y.npy", array_bytes(Y)))
    refused(path, "its arrays become 536,871,680 bytes long, and at most")
    assert MOST_BYTES + 4 * path.stat().st_size < 4 * 2**27


def test_an_entry_that_is_longer_than_its_array_is_refused(path):
    write(path, ("x.npy", array_bytes(X), 2**28), ("y.npy", array_bytes(Y)))
    refused(path, "an array has another length than its header says")


def test_no_more_is_inflated_than_the_directory_says(path):
    write(path, ("x.npy", header(X.shape), 2**28), ("y.npy", array_bytes(Y)))
    content = bytearray(path.read_bytes())
    size = content.find(b"PK\x01\x02") + 24
    content[size : size + 4] = len(array_bytes(X)).to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "not a whole .npz file")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("x.npy", array_bytes(X)), ("x", array_bytes(X))], "two of its arrays have one name"),
        ([("x.npy", header((10**9,) * 4))], "an array has another length"),
        ([("x.npy", header((-1, -1, 8, 12)) + X.tobytes())], "an array has a negative size"),
        ([("x.npy", header((10**30, 0, 8, 12)))], "x has the shape (1000000"),
        ([("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff", 2**28)], "a header that no array"),
        ([("x.npy", header(X.shape).replace(b"}", b"," + b"(" * 99))], "not a whole .npz file"),
    ],
    ids=["twice", "huge", "negative", "empty", "long_header", "nested"],
)
def test_an_archive_that_no_numpy_wrote_is_refused(path, entries, words):
    write(path, *entries, ("y.npy", array_bytes(Y)))
    refused(path, words)


def test_another_compression_is_refused(path):
    entries = ("x.npy", array_bytes(X)), ("y.npy", array_bytes(Y))
    write(path, *entries, compression=zipfile.ZIP_LZMA)
    refused(path, "compressed in another way")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X + 0j, Y, "x is of type complex64"),
        (X, Y + 0j, "y is of type complex64"),
        (np.array([[[[None]]]]), Y, "x is of type object"),
        (np.array("a"), Y, "x is of type <U1"),
        (X, Y.astype(int), "y is of type int64, and floats are needed"),
        (X[0], Y, "x has the shape (1, 8, 12), and a batch is needed"),
        (X, Y[:0], "y has the shape (0, 2, 8, 12)"),
        (X + np.inf, Y, "96 of the 96 values of x are not finite"),
        (1e300 * X.astype(float), Y, "96 of the 96 values of x are not finite"),
        (X, Y + np.inf, "192 of the 192 values of y are not finite"),
    ],
)
def test_values_that_no_net_takes_or_gives_are_refused(path, x, y, words):
    np.savez(path, x=x, y=y)
    refused(path, words)


def test_names_of_arrays_cannot_move_the_cursor(path):
    write(path, ("a\x1b[2J\n.npy", array_bytes(X)))
    refused(path, r"it holds a\x1b[2J\n; the input is named x")


def test_a_pipe_and_a_folder_are_refused_at_once(path):
    refused(path, "there is no such file")
    os.mkfifo(path)
    refused(path, "a pipe or a device")
    path.unlink()
    path.mkdir()
    refused(path, "a folder")
