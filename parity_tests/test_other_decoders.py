"""Two decoders of every container read the same pixels: the project's and another library's."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import unet_image
from benchmarks.other_decoders import ADAM7, decode
from benchmarks.whole_files import write_images
from parity_tests.containers import chunk


def assert_same(path):
    ours, theirs = unet_image.read_pages(path), decode(path)
    assert theirs, path.name
    assert len(ours) == len(theirs), path.name
    for page, other in zip(ours, theirs, strict=True):
        assert (page.shape, page.dtype) == (other.shape, other.dtype), path.name
        np.testing.assert_array_equal(page, other, path.name)


def test_both_read_the_same_of_every_whole_file(tmp_path):
    for path in write_images(tmp_path):
        assert_same(path)


def draw(*shape, largest=256, dtype=np.uint8, seed=3):
    # smooth rows: every filter of a PNG is used
    rng = np.random.default_rng(seed)
    return (np.cumsum(rng.integers(0, 9, shape), axis=1) % largest).astype(dtype)


def test_both_read_every_depth_filter_and_interlace_of_a_png(tmp_path):
    for name, pixels in {
        "gray": draw(37, 23),
        "colour": draw(37, 23, 3),
        "alpha": draw(37, 23, 4),
        "deep": draw(37, 23, largest=65536, dtype=np.uint16),
        "deep_colour": draw(37, 23, 3, largest=65536, dtype=np.uint16),
    }.items():
        for number in range(2):
            filters = (imagecodecs.PNG.FILTER.PAETH, imagecodecs.PNG.FILTER.AVG)[number]
            path = tmp_path / f"{name}{number}.png"
            path.write_bytes(imagecodecs.png_encode(pixels, filter=filters))
            assert_same(path)
    for bits in (1, 2, 4):
        path = tmp_path / f"bits{bits}.png"
        Image.fromarray(draw(37, 23, largest=2**bits)).convert("P").save(path, bits=bits)
        assert_same(path)


@pytest.mark.parametrize("samples", [1, 3])
def test_both_read_the_passes_of_a_png(tmp_path, samples):
    pixels = draw(37, 23, samples)
    rows = b""
    for row, column, down, right in ADAM7:
        for line in pixels[row::down, column::right]:
            rows += b"\0" + line.tobytes()
    start = struct.pack(">IIBBBBB", 23, 37, 8, 0 if samples == 1 else 2, 0, 0, 1)
    path = tmp_path / "passes.png"
    parts = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert_same(path)
    np.testing.assert_array_equal(np.atleast_3d(unet_image.read_pages(path)[0]), pixels)


@pytest.mark.parametrize(("compression", "predictor"), [("lzw", False), ("zlib", True)])
def test_both_read_the_colours_of_a_compressed_tiff(tmp_path, compression, predictor):
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, draw(37, 23, 3), photometric="rgb", compression=compression, predictor=predictor
    )
    assert_same(path)


@pytest.mark.parametrize("name", ["gray.png", "gray.npy"])
def test_damage_that_a_checksum_or_a_length_shows_gives_no_page(tmp_path, name):
    path = next(path for path in write_images(tmp_path) if path.name == name)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert decode(path) == []
    if name.endswith(".png"):
        at = content.index(b"IDAT") + 6
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert decode(path) == []


def test_what_is_no_image_or_is_not_decoded_here_is_not_compared(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"no image")
    assert decode(path) is None
    tifffile.imwrite(path, draw(37, 23, 4), photometric="rgb", extrasamples=["unassalpha"])
    assert decode(path) is None
