import os

import numpy as np
import pytest

from unet_train.input.identity import BLOCK_BYTES, BLOCKS, identify


def _write(path, content):
    path.write_bytes(content)
    return path


def test_a_copy_is_the_same_and_a_changed_byte_of_a_short_file_is_told(tmp_path):
    content = bytes(range(200))
    one = identify(_write(tmp_path / "a", content))
    copy = _write(tmp_path / "b", content)
    os.utime(copy, (1, 1))
    assert identify(copy).is_same(one)
    assert identify(copy) != one
    other = _write(tmp_path / "c", content[:100] + b"x" + content[101:])
    assert not identify(other).is_same(one)
    assert not identify(_write(tmp_path / "d", content + b"x")).is_same(one)


@pytest.mark.parametrize(
    ("place", "is_noticed"), [(0, True), (-1, True), (BLOCK_BYTES, False)], ids=str
)
def test_of_a_long_file_only_some_blocks_are_read(tmp_path, place, is_noticed):
    """The first and the last among them; what lies between two of them is not looked at."""
    content = bytearray(np.random.default_rng(0).bytes(3 * BLOCK_BYTES * BLOCKS))
    before = identify(_write(tmp_path / "a", bytes(content)))
    content[place] ^= 1
    after = identify(_write(tmp_path / "b", bytes(content)))
    assert before.is_same(after) == (not is_noticed)


def test_what_has_the_length_and_the_time_that_are_known_is_not_read(tmp_path):
    path = _write(tmp_path / "a", b"abc")
    known = identify(path)
    facts = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert identify(path, known) is known
    assert not identify(path).is_same(known)


def test_a_store_is_known_by_all_its_files(tmp_path):
    (tmp_path / "a.zarr" / "c").mkdir(parents=True)
    _write(tmp_path / "a.zarr" / "zarr.json", b"{}")
    chunk = _write(tmp_path / "a.zarr" / "c" / "0", b"abc")
    one = identify(tmp_path / "a.zarr")
    assert one.bytes == 5
    chunk.write_bytes(b"abd")
    assert not identify(tmp_path / "a.zarr").is_same(one)
    chunk.write_bytes(b"abc")
    chunk.rename(chunk.with_name("1"))
    assert not identify(tmp_path / "a.zarr").is_same(one)
