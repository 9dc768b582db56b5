"""Images whose parts are larger, or other, than the file says: one sentence, before the memory."""

import gzip
import io
import math
import os
import re
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

import unet_image
from parity_tests.containers import chunk, png
from unet_image.header import Header
from unet_image.limits import TooLargeError
from unet_spec import InputError
from unet_spec.preprocessing import LARGEST_GB

numcodecs: Any = pytest.importorskip("numcodecs")  # it has no types
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
MANY = bytes(50_000_000)


def read(path):
    """Return the one image of a file; decoding it takes no more than 20 MB."""
    tracemalloc.start()
    try:
        (image,) = unet_image.read_pages(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6
    return image


def change_tag(data, tag, place, content, *, number=0):
    """Return a little-endian TIFF, of which a tag of one directory has other bytes at a place."""
    data, at = bytearray(data), int.from_bytes(data[4:8], "little")
    for _ in range(number):
        at += 2 + 12 * int.from_bytes(data[at : at + 2], "little")
        at = int.from_bytes(data[at : at + 4], "little")
    count = int.from_bytes(data[at : at + 2], "little")
    entries = range(at + 2, at + 2 + 12 * count, 12)
    (entry,) = (e for e in entries if data[e : e + 2] == struct.pack("<H", tag))
    data[entry + place : entry + place + len(content)] = content
    return bytes(data)


def write_tiff(image, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("tag", "place", "content", "reason"),
    [
        (262, 0, b"\x06\x05", "its tag PhotometricInterpretation is missing"),
        (262, 2, b"\x63\0", "its tag 262 is damaged"),  # a type that there is not
        (262, 4, b"\xff\xff\xff\xff", "its tag 262 is damaged"),  # more values than the file has
        (317, 2, b"\x63\0", "its tag 317 is damaged"),  # the predictor
        (257, 4, b"\0\0\0\0", "its tag 257 is damaged"),  # no value
        (258, 0, b"\x01\x01", "its tag 257 is damaged"),  # 257 twice
    ],
)
def test_a_tag_that_decides_the_pixels_is_not_passed_over(tmp_path, tag, place, content, reason):
    path = tmp_path / "a.tif"
    whole = write_tiff(PIXELS, compression="lzw", predictor=True)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read(path), PIXELS)
    path.write_bytes(change_tag(whole, tag, place, content))
    with pytest.raises(InputError, match=rf"a\.tif: not a whole image \({reason}"):
        unet_image.read_pages(path)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tags_of_both_byte_orders_are_checked(tmp_path, byteorder, bigtiff):
    for axes, pages in (("YX", PIXELS), ("ZYX", np.stack([PIXELS] * 3))):
        path = tmp_path / f"{axes}.tif"
        options = {"byteorder": byteorder, "bigtiff": bigtiff, "metadata": {"axes": axes}}
        tifffile.imwrite(path, pages, ome=True, photometric="minisblack", **options)
        for page in unet_image.read_pages(path):
            np.testing.assert_array_equal(page, PIXELS)


def test_a_stack_that_lost_a_page_of_its_chain_is_refused(tmp_path):
    path, whole = tmp_path / "a.tif", write_tiff(np.stack([PIXELS] * 3), photometric="minisblack")
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        second = file.pages[1].offset
    link = second + 2 + 12 * int.from_bytes(whole[second : second + 2], "little")
    path.write_bytes(whole[:link] + bytes(4) + whole[link + 4 :])
    with pytest.raises(InputError, match="shaped description is of 3 pages, and 2 are in it"):
        unet_image.measure_pages(path)


@pytest.mark.parametrize(
    ("text", "pages", "numbers"),
    [
        ("ImageJ=1.53\nimages=1000000000\n", 1, ("1,000,000,000", "1")),
        ("ImageJ=1.53\nimages=3\nslices=3\n", 5, ("3", "5")),
    ],
)
def test_an_imagej_description_of_other_pages_is_refused(tmp_path, text, pages, numbers):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index in range(pages):
            description = None if index else text
            writer.write(PIXELS, metadata=None, description=description, contiguous=False)
    stated, there = numbers
    with pytest.raises(InputError, match=f"is of {stated} pages, and {there} are in it"):
        unet_image.measure_pages(tmp_path / "a.tif")


@pytest.mark.parametrize("side", ["X", "Y"])
def test_an_ome_description_of_other_sides_is_refused(tmp_path, side):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata={"axes": "YX"})
    with tifffile.TiffFile(path) as file:
        text = re.sub(
            rf'Size{side}="\d+"', f'Size{side}="145525401289"', file.pages.first.description
        )
    tifffile.imwrite(path, PIXELS, metadata=None, description=text.encode())
    with pytest.raises(InputError, match=f"states 145525401289 pixels along {side}"):
        unet_image.measure_pages(path)


def test_more_directories_than_are_read_are_refused_quickly(tmp_path):
    path = tmp_path / "a.tif"
    whole = write_tiff(PIXELS[:8, :8], metadata=None, software=None)
    first = int.from_bytes(whole[4:8], "little")
    directory = whole[first : first + 2 + 12 * int.from_bytes(whole[first : first + 2], "little")]
    content = bytearray(whole)
    content[4:8] = struct.pack("<I", len(content))
    for _ in range(70_000):
        content += directory + struct.pack("<I", len(content) + len(directory) + 4)
    path.write_bytes(content[:-4] + bytes(4))
    began = time.process_time()
    with pytest.raises(InputError, match="pages are too many, at most 10,000 are read; cut it"):
        unet_image.measure_pages(path)
    assert time.process_time() - began < 5


def test_pages_of_a_long_stack_are_each_read_in_the_same_time(tmp_path):
    """A header of each page, checked once for each page, took 10 s for 900 pages."""
    path, stack = tmp_path / "a.tif", np.arange(900 * 64, dtype=np.uint16).reshape(900, 8, 8)
    with tifffile.TiffWriter(path) as writer:
        for page in stack:
            writer.write(page, metadata=None, contiguous=False)
    began = time.process_time()
    np.testing.assert_array_equal(unet_image.read_pages(path), stack)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("codec", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_an_image_in_a_tiff_has_the_size_that_its_directory_says(tmp_path, codec, tile):
    path, colours = tmp_path / "a.tif", np.stack([PIXELS] * 3, axis=-1)
    options = {"photometric": "rgb", "compression": codec, "tile": tile, "metadata": None}
    path.write_bytes(write_tiff(colours, **options))
    assert read(path).shape == (48, 64, 3)
    large, data = io.BytesIO(), bytearray(path.read_bytes())
    Image.new("RGB", (64, 4000)).save(large, codec)
    with tifffile.TiffFile(path) as file:
        offsets, counts = (
            file.pages.first.tags[tag] for tag in ((324, 325) if tile else (273, 279))
        )
    for tag, value in ((offsets, len(data)), (counts, len(large.getvalue()))):
        form = "<H" if tag.dtype == 3 else "<I"
        struct.pack_into(form, data, tag.valueoffset, value)
    path.write_bytes(data + large.getvalue())
    with pytest.raises(InputError, match="is an image of 4000 x 64 pixels, and its directory says"):
        unet_image.read_pages(path)


@pytest.mark.parametrize("codec", ["jpeg2000", "jpegxl", "jpegxr", "lerc"])
def test_a_compression_whose_size_nobody_checks_is_refused_by_name(tmp_path, codec):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression=codec)
    with pytest.raises(InputError, match=r"a\.tif: compression .* is not read; store it with LZW"):
        unet_image.measure_pages(tmp_path / "a.tif")


ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (zlib.compress(ROWS + b"\0"), "its pixels are damaged, or are more than"),
        (zlib.compress(ROWS + MANY), "its pixels are damaged, or are more than"),
        (zlib.compress(ROWS)[:-4], "its pixels are damaged"),  # no checksum
        (zlib.compress(ROWS)[:-1] + b"\1", "its pixels are damaged"),  # another one
        (zlib.compress(ROWS[:-1]), "rows are missing"),
    ],
)
def test_a_png_inflates_to_its_rows_and_has_their_checksum(tmp_path, packed, reason):
    path = tmp_path / "a.png"
    start = png([row.tobytes() for row in PIXELS], PIXELS.shape, 8, 0)[:33]
    ends = chunk(b"IEND", b"")
    half = len(packed) // 2
    parts = chunk(b"IDAT", packed[:half]), chunk(b"IDAT", packed[half:])
    path.write_bytes(start + b"".join(parts) + ends)
    with pytest.raises(InputError, match=rf"a\.png: not a whole image \({reason}"):
        read(path)
    whole = zlib.compress(ROWS)
    path.write_bytes(start + chunk(b"IDAT", whole[:9]) + chunk(b"IDAT", whole[9:]) + ends)
    np.testing.assert_array_equal(read(path), PIXELS)


COMPRESSORS = {
    "gzip 3": ({"zarr_format": 3, "compressors": [GzipCodec()]}, gzip.compress(MANY)),
    "blosc 3": ({"zarr_format": 3, "compressors": [BloscCodec()]}, numcodecs.Blosc().encode(MANY)),
    "zstd 3": ({"zarr_format": 3, "compressors": [ZstdCodec()]}, numcodecs.Zstd().encode(MANY)),
    "blosc 2": ({"zarr_format": 2, "compressors": numcodecs.Blosc()},
                numcodecs.Blosc().encode(MANY)),
    "lz4 2": ({"zarr_format": 2, "compressors": numcodecs.LZ4()}, numcodecs.LZ4().encode(MANY)),
    "zlib 2": ({"zarr_format": 2, "compressors": numcodecs.Zlib()}, zlib.compress(MANY)),
    "gzip 2": ({"zarr_format": 2, "compressors": numcodecs.GZip()}, gzip.compress(MANY)),
    "frames 2": ({"zarr_format": 2, "compressors": numcodecs.Zstd()},
                 numcodecs.Zstd().encode(bytes(768)) + numcodecs.Zstd().encode(MANY)),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_chunk_of_a_zarr_is_as_large_as_its_metadata_say(tmp_path, monkeypatch, name):
    monkeypatch.setattr("unet_image.zarr_chunks.FREE_BYTES", 0)
    options, bomb = COMPRESSORS[name]
    path = tmp_path / "a.zarr"
    array = zarr.create_array(str(path), data=PIXELS, chunks=(24, 32), **options)
    np.testing.assert_array_equal(read(path), PIXELS)
    (path / array.metadata.encode_chunk_key((1, 1))).write_bytes(bomb)
    with pytest.raises(InputError, match=r"a\.zarr: .*a chunk becomes [0-9,]+ bytes or more"):
        read(path)


def test_a_chunk_in_a_shard_is_as_large_as_its_metadata_say(tmp_path):
    path, bomb = tmp_path / "a.zarr", numcodecs.Zstd().encode(MANY)
    zarr.create_array(str(path), data=PIXELS, chunks=(24, 32), shards=(48, 64))
    np.testing.assert_array_equal(read(path), PIXELS)
    file = path / "c" / "0" / "0"
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").copy()
    index[:2] = len(data) - 68, len(bomb)
    checksum = int(numcodecs.CRC32C().checksum(index.tobytes())).to_bytes(4, "little")
    file.write_bytes(data[:-68] + bomb + index.tobytes() + checksum)
    with pytest.raises(InputError, match="a chunk becomes 50,000,000 bytes or more"):
        read(path)


def test_codecs_of_which_nobody_knows_the_size_are_refused_by_name(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(str(path), data=PIXELS, compressors=numcodecs.BZ2(), zarr_format=2)
    with pytest.raises(InputError, match=r"a\.zarr: the codec 'bz2' is not read"):
        unet_image.read_pages(path)
    path = tmp_path / "b.zarr"
    zarr.create_array(str(path), data=PIXELS, compressors=[GzipCodec(), ZstdCodec()])
    with pytest.raises(InputError, match=r"b\.zarr: chunks compressed twice are not read"):
        unet_image.read_pages(path)


@pytest.mark.parametrize("of_palette", [True, False])
def test_the_bound_is_for_what_is_stored_and_for_what_it_becomes(tmp_path, of_palette):
    """A palette makes three values of an index, and inks become three channels of four."""
    most = int(LARGEST_GB * 1e9) // 4
    if of_palette:
        side = math.isqrt(most)  # as many indices as values may be
        header = Header((side, side), np.dtype("u1"), palette=np.zeros((256, 3), np.uint8))
    else:
        side = math.isqrt(most // 3)  # as many values as the three channels may have
        header = Header((side, side, 4), np.dtype("u1"), is_cmyk=True)
    with pytest.raises(TooLargeError, match="too large"):
        header.check(tmp_path / "a.png", LARGEST_GB)
    header.check(tmp_path / "a.png", 4 * LARGEST_GB)


@pytest.mark.parametrize("target", [None, "nothing", "a.png"], ids=["pipe", "nothing", "circle"])
def test_what_is_there_and_no_file_is_called_so(tmp_path, target):
    path = tmp_path / "a.png"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(InputError, match=r"a\.png: a pipe, a device, or a link to nothing"):
        unet_image.list_images(path)
