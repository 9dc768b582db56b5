"""Files that are damaged, too large, gone or changed: one sentence, little memory, no noise."""

import contextlib
import logging
import os
import struct
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unet_image
from parity_tests.containers import COLOUR, GRAY, chunk, exif, pack, png, save_bytes
from unet_image import TooLargeError, axes, jpeg_file, limits, tiff_file
from unet_image.pages import Page
from unet_image.png_file import ADAM7
from unet_spec import InputError, Preprocessing
from unet_spec.preprocessing import LARGEST_GB

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 37), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a picture in every container that is one file, with a suffix."""
    folder = tmp_path_factory.mktemp("whole")
    content = {}
    for name, (suffix, write) in {**GRAY, "webp": COLOUR["webp"]}.items():
        if "zarr" in name:
            continue
        path = folder / f"a{suffix}"
        write(path, np.stack([PIXELS] * 3, -1) if name == "webp" else PIXELS)
        content[name] = suffix, path.read_bytes()
    turned = Image.fromarray(PIXELS)
    content["jpeg"] = ".jpg", save_bytes(turned, format="jpeg", exif=exif(6))
    return content


@pytest.fixture(scope="module")
def files_and_animations(files):
    """The same, with animations, which are refused."""
    content = dict(files)
    frames = [Image.fromarray(PIXELS[::step].repeat(step, 0)[:23]) for step in (1, 2)]
    for kind in ("gif", "png", "webp"):
        data = save_bytes(frames[0], format=kind, save_all=True, append_images=frames[1:])
        content[f"{kind} of frames"] = f".{kind}", data
    return content


@given(st.data())
@settings(max_examples=400)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    files_and_animations, tmp_path_factory, data
):
    name = data.draw(st.sampled_from(sorted(files_and_animations)))
    suffix, whole = files_and_animations[name]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content)))]
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(content)
    try:
        pages = unet_image.measure_pages(path)[:3]
        read = [unet_image.read_page(page, alpha=True) for page in pages]
    except InputError as error:
        refusal = str(error)
    else:
        assert [(p.shape, p.dtype) for p in read] == [(p.shape, p.dtype) for p in pages]
        return
    assert str(path) in refusal
    assert "\n" not in refusal


def test_every_shortened_file_is_refused(files, tmp_path):
    for name, (suffix, whole) in files.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(whole[: len(whole) * 6 // 10])
        with pytest.raises(InputError, match=r"replace the file|store it"):
            unet_image.read_pages(path)


def test_decoders_print_nothing(files_and_animations, tmp_path, capfd, caplog):
    rng = np.random.default_rng(0)
    for name, (suffix, whole) in files_and_animations.items():
        for _ in range(12):
            content = bytearray(whole)
            for place in rng.integers(8, len(content), 3):
                content[place] = rng.integers(256)
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            with contextlib.suppress(InputError):
                unet_image.read_pages(path)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_log_lines_of_tifffile_are_only_kept_back_while_an_image_is_read(tmp_path, caplog):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, extratags=[(65000, 2, 3, "abc", True)])
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HH", 65000, 2))
    data[place + 2] = 77  # a type that there is not
    path.write_bytes(data)
    np.testing.assert_array_equal(unet_image.read_pages(path)[0], PIXELS)
    assert caplog.records == []
    tifffile.imread(path)
    assert caplog.records
    assert logging.getLogger("tifffile").isEnabledFor(logging.WARNING)


def test_metadata_that_break_a_limit_of_a_decoder_do_not_break_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    whole = png([row.tobytes() for row in PIXELS], PIXELS.shape, 8, 0, text)
    (tmp_path / "a.png").write_bytes(whole)
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    Image.fromarray(PIXELS).save(tmp_path / "c.gif")
    for path in unet_image.list_images(tmp_path):
        (pixels,) = unet_image.read_pages(path)
        assert pixels.shape == PIXELS.shape


def test_a_flipped_bit_of_a_png_is_a_checksum_that_is_not_right(tmp_path):
    whole = bytearray(png(pack(PIXELS >> 7, 1), PIXELS.shape, 1, 0))
    path = tmp_path / "a.png"
    for place in range(41, len(whole) - 16):
        whole[place] ^= 1
        path.write_bytes(whole)
        with pytest.raises(InputError, match="a checksum is not right"):
            unet_image.read_pages(path)
        whole[place] ^= 1
    path.write_bytes(whole)
    np.testing.assert_array_equal(unet_image.read_pages(path)[0], (PIXELS >> 7) * 255)


PIXEL_CHUNK = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS)))


def _png_of(*chunks, header=(37, 23, 8, 0, 0, 0, 0)):
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks,
         chunk(b"IEND", b"")]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_png_of(PIXEL_CHUNK, header=(37, 40, 8, 0, 0, 0, 0)), "rows are missing"),
        (_png_of(chunk(b"IDAT", zlib.compress(bytes(38 * 22)))), "rows are missing"),
        (_png_of(chunk(b"IDAT", zlib.compress(bytes(500))), header=(37, 23, 8, 0, 0, 0, 1)),
         "rows are missing"),
        (_png_of(chunk(b"tEXt", b"a\0b")[:-1] + b"x", PIXEL_CHUNK), "a checksum is not right"),
        (_png_of(chunk(b"tRNS", b"\0\5")[:-1] + b"x", PIXEL_CHUNK), "a checksum is not right"),
        (_png_of(chunk(b"CgBI", b"\x50\0\x20\2"), PIXEL_CHUNK), "a part b'CgBI' that no PNG has"),
        (_png_of(PIXEL_CHUNK, header=(37, 23, 8, 0, 1, 0, 0)), "8 bits .*stored by 010000"),
        (_png_of(PIXEL_CHUNK, header=(37, 23, 4, 2, 0, 0, 0)), "4 bits of colour type 2"),
    ],
)  # fmt: skip
def test_a_png_that_is_not_whole_or_not_standard_is_refused(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.png: not a whole image \({reason}"):
        unet_image.read_pages(tmp_path / "a.png")


def test_a_png_whose_last_row_is_black_is_whole(tmp_path):
    plain = bytes(23 * 38)
    passes = b"".join(
        bytes(len(range(row, 23, down)) * (1 + len(range(column, 37, right))))
        for row, column, down, right in ADAM7
    )
    for interlace, packed in enumerate((plain, passes)):
        header = (37, 23, 8, 0, 0, 0, interlace)
        data = _png_of(chunk(b"IDAT", zlib.compress(packed)), header=header)
        (tmp_path / "a.png").write_bytes(data + b"what a program appends")
        assert not unet_image.read_pages(tmp_path / "a.png")[0].any()


def test_an_interlaced_png_of_16_bits_is_read_without_a_word(tmp_path, capfd):
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 6, 3), np.uint16)
    rows = [
        b"\0" + pixels[y, column::right].astype(">u2").tobytes()
        for row, column, down, right in ADAM7
        for y in range(row, 5, down)
    ]
    data = _png_of(chunk(b"IDAT", zlib.compress(b"".join(rows))), header=(6, 5, 16, 2, 0, 0, 1))
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(unet_image.read_pages(tmp_path / "a.png")[0], pixels)
    assert capfd.readouterr().err == ""


def _segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _read_quickly(path):
    began = time.process_time()
    pages = unet_image.read_pages(path)
    assert time.process_time() - began < 5
    return pages


def test_a_jpeg_with_thousands_of_segments_or_fill_bytes_is_read_quickly(tmp_path):
    whole = save_bytes(Image.fromarray(PIXELS), format="jpeg")
    (tmp_path / "whole.jpg").write_bytes(whole)
    (expected,) = unet_image.read_pages(tmp_path / "whole.jpg")
    path = tmp_path / "a.jpg"
    for between in (_segment(0xE1, b"Exif\0\0II*\0") * 300_000, b"\xff" * 9_000_000):
        path.write_bytes(whole[:2] + between + whole[2:] + b"junk, as cameras append it")
        np.testing.assert_array_equal(_read_quickly(path)[0], expected)


def _progressive(height, width, scans):
    """Return a JPEG of zeros whose every scan is of all pixels, in a few bytes."""
    blocks = -(-height // 8) * -(-width // 8)
    bits = "".join("0" + "1" * 14 for _ in range(0, blocks, 2**15 - 1))
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = [
        _segment(0xDB, b"\0" + b"\1" * 64),
        _segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
        _segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0"),
        _segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0"),
    ]
    first = _segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    other = _segment(0xDA, b"\1\1\0\1\x3f\0") + data
    return b"\xff\xd8" + b"".join(tables) + first + other * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(_progressive(64, 80, jpeg_file.MOST_SCANS - 1) + b"\xff\xda" * 999)
    assert _read_quickly(path)[0].shape == (64, 80)
    path.write_bytes(_progressive(64, 80, jpeg_file.MOST_SCANS))
    with pytest.raises(InputError, match="more than 500 scans"):
        unet_image.read_pages(path)


@pytest.mark.parametrize(
    ("place", "content", "reason"),
    [
        (4, b"\0\0", "a segment is damaged"),
        (4, b"\xff\xff", "it ends early"),
        (2, b"\xff\xd9", "its segments are damaged"),
    ],
)
def test_a_jpeg_with_damaged_segments_is_refused(tmp_path, place, content, reason):
    whole = bytearray(save_bytes(Image.fromarray(PIXELS), format="jpeg"))
    whole[place : place + 2] = content
    (tmp_path / "a.jpg").write_bytes(whole)
    with pytest.raises(InputError, match=rf"a\.jpg: .*{reason}"):
        unet_image.read_pages(tmp_path / "a.jpg")


@pytest.mark.parametrize("place", [8, 10**8, "itself"])
def test_a_chain_of_pages_that_leads_nowhere_or_back_is_refused(tmp_path, place):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(PIXELS, metadata=None, contiguous=False)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        first, last = (page.offset for page in file.pages)
    next_place = last + 2 + 12 * int.from_bytes(data[last : last + 2], "little")
    assert data[next_place : next_place + 4] == bytes(4)
    target = {8: first, "itself": last}.get(place, place)
    data[next_place : next_place + 4] = struct.pack("<I", target)
    path.write_bytes(data)
    with pytest.raises(InputError, match="the chain of its pages is damaged"):
        unet_image.measure_pages(path)


@pytest.mark.parametrize(
    "change",
    [
        ('SizeZ="1"', 'SizeZ="1000000000"'),
        ("<TiffData ", '<TiffData PlaneCount="1000000000" '),
        ("<Image ", "<Image><Pixels/></Image>" * 20_000 + "<Image "),
    ],
    ids=["size", "count", "images"],
)
def test_an_ome_description_of_planes_that_are_not_there_is_refused_quickly(tmp_path, change):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata={"axes": "YX"})
    with tifffile.TiffFile(path) as file:
        text = file.pages.first.description
    old, new = change
    if old == "<TiffData " and "<TiffData " not in text:
        old, new = "<TiffData", new.rstrip()
    assert old in text
    description = text.replace(old, new, 1).replace('PlaneCount="1"', "")
    tifffile.imwrite(path, PIXELS, metadata=None, description=description.encode())
    began = time.process_time()
    with pytest.raises(InputError, match="its ome description"):
        unet_image.measure_pages(path)
    assert time.process_time() - began < 5


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: it is no file"):
        unet_image.measure_pages(tmp_path / "pipe.png")


# sizes


def _states_a_size(folder, kind, height, width):
    """Write a small file whose header states a size."""
    path = folder / f"a.{kind}"
    if kind == "png":
        path.write_bytes(png([b"\0"], (height, width), 8, 0))
    elif kind == "tif":
        tifffile.imwrite(path, np.zeros((8, 8), np.uint8), compression="zlib", metadata=None)
        data = bytearray(path.read_bytes())
        for tag, value in ((256, width), (257, height), (278, height)):
            place = data.index(struct.pack("<HH", tag, 4))
            data[place + 8 : place + 12] = struct.pack("<I", value)
        path.write_bytes(data)
    elif kind == "gif":
        data = bytearray(save_bytes(Image.fromarray(PIXELS), format="gif"))
        place = data.index(b"," + bytes(4)) + 5
        data[6:10] = data[place : place + 4] = struct.pack("<HH", width, height)
        path.write_bytes(data)
    elif kind == "jpg":
        data = bytearray(save_bytes(Image.fromarray(PIXELS), format="jpeg"))
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
        path.write_bytes(data)
    elif kind == "webp":
        data = bytearray(save_bytes(Image.fromarray(PIXELS), format="webp", lossless=True))
        sides = (width - 1) | (height - 1) << 14
        data[21:25] = struct.pack("<I", sides | data[24] >> 4 << 28)
        path.write_bytes(data)
    elif kind == "npy":
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({height}, {width})}}"
        length = struct.pack("<H", len(header) + 1)
        path.write_bytes(b"\x93NUMPY\x01\0" + length + header.encode() + b"\n" + bytes(9))
    return path


@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [("jpg", 20_000, 20_000), ("jpg", 65_000, 65_000), ("webp", 16_000, 16_000)],
)
def test_what_is_too_large_is_called_so_before_anything_is_allocated(tmp_path, kind, height, width):
    path = _states_a_size(tmp_path, kind, height, width)
    with _little_memory(), pytest.raises(TooLargeError, match="too large, at most 75,000,000"):
        unet_image.measure_pages(path)


def _write_large(path, rows, columns):
    """Write a PNG of zeros, 1 bit each, of which all are there."""
    path.write_bytes(png([bytes(-(-columns // 8))] * rows, (rows, columns), 1, 0))


def test_an_image_is_read_where_the_bound_is_raised_so_far(tmp_path):
    _write_large(tmp_path / "a.png", 8_000, 10_000)
    assert (tmp_path / "a.png").stat().st_size < 20_000
    with _little_memory(), pytest.raises(TooLargeError) as refusal:
        unet_image.measure_pages(tmp_path / "a.png")
    assert str(refusal.value) == (
        f"{tmp_path}/a.png: an image of 8,000 x 10,000 values is too large, at most 75,000,000 "
        "are read; cut it into smaller ones"
    )
    (page,) = unet_image.measure_pages(tmp_path / "a.png", largest_gb=refusal.value.needed_gb)
    assert unet_image.read_page(page).shape == (8_000, 10_000)
    with pytest.raises(TooLargeError):
        unet_image.measure_pages(tmp_path / "a.png", largest_gb=refusal.value.needed_gb - 0.001)


def test_a_gray_image_is_as_large_as_the_channels_that_the_net_makes_of_it(tmp_path):
    _write_large(tmp_path / "a.png", 5_000, 6_000)
    (page,) = unet_image.measure_pages(tmp_path / "a.png")
    plain = Preprocessing()
    unet_image.check_channels(page, channels=1, preprocessing=plain)
    with pytest.raises(TooLargeError, match="5,000 x 6,000 x 3 values is too large") as refusal:
        unet_image.check_channels(page, channels=3, preprocessing=plain)
    assert refusal.value.needed_gb == 0.36
    (page,) = unet_image.measure_pages(tmp_path / "a.png", largest_gb=0.36)
    unet_image.check_channels(page, channels=3, preprocessing=plain)


@pytest.mark.parametrize(
    ("kind", "side"),
    [("png", 8_000), ("png", 4_000_000_000), ("tif", 8_000), ("tif", 4_000_000_000),
     ("gif", 20_000), ("npy", 8_000)],
)  # fmt: skip
def test_a_small_file_that_cannot_hold_its_image_is_not_whole(tmp_path, kind, side):
    path = _states_a_size(tmp_path, kind, side, side)
    with _little_memory(), pytest.raises(InputError, match="not a whole image"):
        unet_image.measure_pages(path)


def test_no_bound_is_advised_that_no_computer_has_memory_for(tmp_path):
    check = partial(limits.check_size, tmp_path, dtype=np.dtype("u1"), largest_gb=0.3)
    for side in (10**6, 10**200):
        with pytest.raises(InputError, match="replace the file, or cut it") as refusal:
            check((side, side))
        assert not isinstance(refusal.value, TooLargeError)
    with pytest.raises(TooLargeError) as advice:
        check((499_999, 499_999))
    assert advice.value.needed_gb == 1000.0


def test_the_bound_that_is_advised_has_two_digits_and_is_enough():
    for needed in (0.3000001, 0.30004, 0.999, 1.0, 1.01, 9.99, 123.4, 0.301, 0.31):
        advised = limits._round_up(needed)
        assert needed <= advised < needed * 1.1
        assert len(f"{advised:g}".replace(".", "").lstrip("0").rstrip("0")) <= 2


class _little_memory:  # noqa: N801
    """Fail if more than 50 MB are allocated at a time."""

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *_):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6


def test_blocks_and_chunks_that_are_too_large_are_refused(tmp_path):
    import zarr

    zarr.create_array(str(tmp_path / "a.zarr"), shape=(9, 9), dtype="u1", chunks=(40_000, 40_000))
    with pytest.raises(
        TooLargeError, match=r"a\.zarr: a block of 40,000 x 40,000 values is too large"
    ):
        unet_image.measure_pages(tmp_path / "a.zarr")


def test_an_image_in_very_many_chunks_is_refused_before_they_are_looked_for(tmp_path):
    import zarr

    for name, shards in (("a", None), ("b", (8000, 8000))):
        where = str(tmp_path / f"{name}.zarr")
        zarr.create_array(where, shape=(8000, 8000), dtype="u1", chunks=(8, 8), shards=shards)
        with pytest.raises(InputError, match="an image in 1,000,000 chunks, at most 65,536 are"):
            unet_image.measure_pages(Path(where))


def test_the_bound_is_as_float32_or_the_type_itself(tmp_path):
    check = partial(limits.check_size, tmp_path, largest_gb=0.8)
    check((20_000, 10_000), np.dtype(np.uint8))
    check((10_000, 10_000), np.dtype(np.float64))
    for shape, kind in (((20_000, 10_001), np.uint8), ((10_000, 10_001), np.float64)):
        with pytest.raises(TooLargeError, match="too large"):
            check(shape, np.dtype(kind))
    with pytest.raises(InputError, match="is empty"):
        check((0, 9), np.dtype(np.uint8))


def test_the_document_lists_what_is_read():
    text = (Path(__file__).parent.parent / "docs" / "images.md").read_text()
    for suffix in unet_image.SUFFIXES[:-1]:
        assert f"`{suffix}`" in text, suffix
    assert unet_image.SUFFIXES[-1] == ".zarr"
    values = int(LARGEST_GB * 1e9 / 4)
    assert f"at most {LARGEST_GB} GB as float32, which is {values:,} values" in text
    assert f"the last one is at most {axes.MOST_UNNAMED_CHANNELS} long" in text


def test_nothing_is_decoded_to_measure(files, tmp_path, monkeypatch):
    for number, (name, (suffix, write)) in enumerate(GRAY.items()):
        if "zarr" in name:
            write(tmp_path / f"{number}{suffix}", PIXELS)
    for number, (suffix, whole) in enumerate(files.values()):
        (tmp_path / f"whole {number}{suffix}").write_bytes(whole)

    def decode(*args, **kwargs):
        raise AssertionError("something was decoded")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", decode)
        patch.setattr("tifffile.TiffPage.asarray", decode)
        patch.setattr("zarr.Array.__getitem__", decode)
        patch.setattr("PIL.WebPImagePlugin.WebPImageFile._get_next", decode)
        measured = {p: unet_image.measure_pages(p) for p in unet_image.list_images(tmp_path)}
    assert len(measured) == len(files) + sum("zarr" in name for name in GRAY)
    for path, pages in measured.items():
        assert [page.shape for page in pages] == [r.shape for r in unet_image.read_pages(path)], (
            path
        )


# pages of long stacks, several threads, files that change


def test_only_the_page_that_is_asked_for_is_decoded(tmp_path):
    stack = np.arange(40 * 9 * 13, dtype=np.uint16).reshape(40, 9, 13)
    tifffile.imwrite(tmp_path / "a.tif", stack, compression="zlib", photometric="minisblack")
    pages = unet_image.measure_pages(tmp_path / "a.tif")
    tiff_file._list_places_of.cache_clear()
    asarray = tifffile.TiffPage.asarray
    with (
        mock.patch.object(
            tifffile.TiffPage, "asarray", autospec=True, side_effect=asarray
        ) as calls,
        mock.patch.object(tiff_file, "_list_series", side_effect=tiff_file._list_series) as lists,
    ):
        for number in (0, 39, 17):
            np.testing.assert_array_equal(unet_image.read_page(pages[number]), stack[number])
        assert calls.call_count == 3
        assert lists.call_count == 1, "the directories of a stack are listed once"


def test_pages_are_read_by_several_threads_at_once(files, tmp_path):
    pages = []
    for number, (suffix, whole) in enumerate(files.values()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(whole)
        pages += unet_image.measure_pages(path)
    for number, (name, (suffix, write)) in enumerate(GRAY.items()):
        if "zarr" in name:
            write(tmp_path / f"z{number}{suffix}", PIXELS)
            pages += unet_image.measure_pages(tmp_path / f"z{number}{suffix}")
    expected = [unet_image.read_page(page) for page in pages]
    tiff_file._list_places_of.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(unet_image.read_page, pages * 6))
    for number, pixels in enumerate(read):
        np.testing.assert_array_equal(pixels, expected[number % len(expected)])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".zarr"])
def test_a_file_that_changed_or_vanished_is_refused_by_name(tmp_path, suffix):
    _, write = GRAY["zarr 3" if suffix == ".zarr" else suffix[1:].replace("tif", "tiff")]
    path = tmp_path / f"a{suffix}"
    write(path, PIXELS)
    (page,) = unet_image.measure_pages(path)
    unet_image.read_page(page)
    moved = path.rename(tmp_path / "gone")
    with pytest.raises(InputError, match=rf"a\{suffix}"):
        unet_image.read_page(page)
    write(path, PIXELS[:, :9])
    with pytest.raises(InputError, match=rf"a\{suffix}: it has changed since the command began"):
        unet_image.read_page(page)
    # one that was made by hand, without the time of its file
    for wrong in (Page(path, 0, 1, (9, 9), page.dtype), Page(path, 3, 4, page.shape, page.dtype)):
        with pytest.raises(InputError, match=rf"a\{suffix}: it has changed"):
            unet_image.read_page(wrong)
    assert moved.exists()
