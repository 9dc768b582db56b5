import re

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import unet_image
from unet_spec import InputError

GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
RGB = np.stack([GRAY, GRAY // 2, 255 - GRAY], -1)
RGBA = np.concatenate([RGB, np.full((5, 7, 1), 255, np.uint8)], -1)


@pytest.mark.parametrize("pixels", [GRAY, RGB, RGBA], ids=["gray", "rgb", "rgba"])
def test_png_reads_as_written(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (page,) = unet_image.measure_pages(tmp_path / "a.png")
    assert page.shape == pixels.shape
    np.testing.assert_array_equal(unet_image.read_page(page, alpha=True), pixels)
    np.testing.assert_array_equal(unet_image.read_page(page), pixels if pixels is GRAY else RGB)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_tiff_stack_reads_page_by_page(tmp_path, dtype, compression):
    stack = np.arange(3 * 5 * 7).reshape(3, 5, 7).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, compression=compression, photometric="minisblack")
    pages = unet_image.read_pages(tmp_path / "a.tif")
    assert len(pages) == 3
    np.testing.assert_array_equal(np.stack(pages), stack)
    assert pages[0].dtype == dtype


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_colours_come_last(tmp_path, planar):
    data = RGB if planar == "contig" else np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar)
    (read,) = unet_image.read_pages(tmp_path / "a.tif")
    np.testing.assert_array_equal(read, RGB)


def test_sixteen_bit_png_keeps_its_values(tmp_path):
    Image.fromarray(GRAY.astype(np.uint16) * 200).save(tmp_path / "a.png")
    (read,) = unet_image.read_pages(tmp_path / "a.png")
    np.testing.assert_array_equal(read, GRAY.astype(np.uint16) * 200)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_png_in_colour_keeps_its_values(tmp_path, channels):
    pixels = np.stack([GRAY.astype(np.uint16) * 200 + c for c in range(channels)], -1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    (page,) = unet_image.measure_pages(tmp_path / "a.png")
    np.testing.assert_array_equal(unet_image.read_page(page, alpha=True), pixels)
    assert page.has_alpha == (channels != 3)


def test_tiff_pages_written_one_by_one_are_all_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GRAY)
        file.write(GRAY[::-1])
        file.write(RGB, photometric="rgb")
    pages = unet_image.read_pages(tmp_path / "a.tif")
    for page, expected in zip(pages, [GRAY, GRAY[::-1], RGB], strict=True):
        np.testing.assert_array_equal(page, expected)


def test_written_mask_reads_back_as_class_indices(tmp_path):
    mask = (GRAY % 5).astype(np.uint8)
    unet_image.write_mask(tmp_path / "m.png", mask)
    (read,) = unet_image.read_pages(tmp_path / "m.png", indices=True)
    np.testing.assert_array_equal(read, mask)
    (colours,) = unet_image.read_pages(tmp_path / "m.png")
    assert colours.shape == (5, 7, 3)


def test_outline_is_the_rim_of_each_region():
    mask = np.zeros((7, 8), np.uint8)
    mask[1:6, 2:7] = 1
    rim = mask.astype(bool)
    rim[2:5, 3:6] = False
    np.testing.assert_array_equal(unet_image.outline(mask), rim)


def _png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)).save(path)
    return path


def _truncated(tmp_path):
    path = _png(tmp_path)
    path.write_bytes(path.read_bytes()[:900])
    return path


def _truncated_tiff(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 40), np.uint16), compression="zlib")
    path.write_bytes(path.read_bytes()[:60])
    return path


def _pointer(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return path


def _empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    return tmp_path / "a.jpg"


def _text(tmp_path):
    (tmp_path / "a.tif").write_text("not an image at all")
    return tmp_path / "a.tif"


def test_a_pointer_is_in_place_of_any_file(tmp_path):
    path = _pointer(tmp_path)
    with pytest.raises(InputError) as refusal:
        unet_image.measure_pages(path)
    words = "a Git-LFS pointer in place of the file itself; run: git lfs pull"
    assert str(refusal.value) == f"{path}: {words}"


@pytest.mark.parametrize("make", [_truncated, _truncated_tiff, _pointer, _empty, _text])
def test_a_damaged_image_is_one_sentence_that_names_it(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(InputError) as refusal:
        unet_image.read_pages(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["b.bmp", "b.JP2", "b.nii"])
def test_an_image_of_a_kind_that_is_not_read_is_not_missed(tmp_path, name):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    for other in ("notes.txt", "Thumbs.db", f".{name}"):
        (tmp_path / other).write_bytes(b"x")
    assert unet_image.list_images(tmp_path) == [tmp_path / "a.png"]
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{re.escape(name)}: {re.escape(name[1:])} is not"):
        unet_image.list_images(tmp_path)
