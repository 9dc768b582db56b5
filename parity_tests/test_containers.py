"""One picture is the same array in every container, and what a file says of itself is obeyed."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unet_image
from parity_tests import containers
from parity_tests.containers import (
    COLOUR,
    GRAY,
    chunk,
    exif,
    ome_zarr,
    pack,
    png,
    turned_back,
)
from unet_spec import InputError, Preprocessing
from unet_spec.preprocessing import prepare


def picture(shape, kind=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.issubdtype(kind, np.floating):
        return rng.normal(size=shape).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


def read(path, **options):
    """Read the one image of a file, which is as it was measured."""
    (page,) = unet_image.measure_pages(path)
    pixels = unet_image.read_page(page, **options)
    if not options.get("indices"):
        visible = page.shape
        if page.has_alpha and not options.get("alpha"):
            visible = page.shape[:2] if page.shape[2] == 2 else (*page.shape[:2], page.shape[2] - 1)
        assert (pixels.shape, pixels.dtype) == (visible, page.dtype)
    assert pixels.dtype.isnative
    return pixels


SIDES = st.integers(16, 40)


@pytest.mark.parametrize("name", GRAY)
@settings(max_examples=8)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_a_gray_picture_is_the_same_in_every_container(name, tmp_path_factory, height, width, seed):
    _compare(GRAY[name], tmp_path_factory.mktemp("gray"), picture((height, width), seed=seed))


@pytest.mark.parametrize("name", COLOUR)
@settings(max_examples=8)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_a_picture_in_colours_is_the_same_in_every_container(
    name, tmp_path_factory, height, width, seed
):
    pixels = picture((height, width, 3), seed=seed)
    _compare(COLOUR[name], tmp_path_factory.mktemp("colour"), pixels)


def _compare(container, folder, pixels):
    suffix, write = container
    write(folder / f"a{suffix}", pixels)
    np.testing.assert_array_equal(read(folder / f"a{suffix}"), pixels, strict=True)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["npy", "npy in columns", "zarr 2", "zarr 3", "ome-zarr 0.5",
                                  "ome-tiff", "tiff", "tiff big-endian", "tiff zlib"])  # fmt: skip
@pytest.mark.parametrize("shape", [(19, 31), (19, 31, 3)], ids=["gray", "colours"])
def test_a_picture_keeps_its_type(tmp_path, name, shape, kind):
    if (name, kind) == ("ome-tiff", np.float16):
        pytest.skip("OME has no such type")
    _compare(GRAY[name], tmp_path, picture(shape, kind))


def test_a_jpeg_is_what_pillow_reads(tmp_path):
    smooth = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8)
    for name, pixels in {
        "gray": smooth,
        "rgb": np.stack([smooth, smooth[::-1], smooth], -1),
    }.items():
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(pixels).save(path, quality=95)
        np.testing.assert_array_equal(read(path), np.array(Image.open(path)), strict=True)
        # the same stream in a TIFF, which another decoder of the same library reads
        tifffile.imwrite(
            tmp_path / f"{name}.tif", pixels, compression="jpeg", compressionargs={"level": 95},
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
        )  # fmt: skip
        assert np.abs(read(tmp_path / f"{name}.tif").astype(int) - pixels).max() < 12


def test_inks_are_the_same_colours_in_jpeg_and_tiff(tmp_path):
    inks = Image.fromarray(picture((16, 16, 3))).convert("CMYK")
    inks.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as image:
        stored = image.copy()
    stored.save(tmp_path / "a.tif")
    expected = np.array(stored.convert("RGB"))
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), expected, strict=True)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), expected, strict=True)


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)], ids=["gray", "colours"])
@pytest.mark.parametrize("container", ["png", "tif", "webp", "jpg"])
def test_orientation_is_obeyed_in_every_container(tmp_path, container, shape, orientation):
    pixels = picture(shape)
    if container == "webp" and pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    stored = Image.fromarray(turned_back(pixels, orientation))
    path = tmp_path / f"a.{container}"
    if container == "tif":
        stored.save(path, tiffinfo={274: orientation})
    elif container == "webp":
        stored.save(path, exif=exif(orientation), lossless=True)
    else:
        stored.save(path, exif=exif(orientation))
    (page,) = unet_image.measure_pages(path)
    assert page.is_turned == (orientation != 1)
    if container != "jpg":
        np.testing.assert_array_equal(read(path), pixels, strict=True)
        return
    with Image.open(path) as image:
        image.getexif().clear()
        expected = np.array(image)
    # what it stores, turned back as the picture was, is what is read
    np.testing.assert_array_equal(turned_back(read(path), orientation), expected)


@pytest.mark.parametrize(
    "data", [b"", b"Exif\0\0", b"II*\0", exif(1)[:12], exif(6)[:-8], b"Exif\0\0XX*\0" + bytes(20),
             b"II*\0\x08\0\0\0\xff\xff" + bytes(30), exif(1).replace(b"\x12\x01", b"\x13\x01")],
)  # fmt: skip
def test_damaged_exif_turns_nothing(data):
    assert unet_image.header.read_orientation(data) == 1


# palettes and few bits


def _palettes(folder, indices, table):
    """Write indices with the same palette as PNG, GIF and TIFF."""
    image = Image.fromarray(indices)
    image.putpalette(table.tobytes())
    image.save(folder / "a.png")
    image.save(folder / "a.gif", optimize=False)
    tifffile.imwrite(
        folder / "a.tif", indices, photometric="palette", colormap=table.T.astype(np.uint16) * 257
    )
    # a TIFF whose palette has 8 bits in place of 16
    tifffile.imwrite(
        folder / "b.tif", indices, photometric="palette", colormap=table.T.astype(np.uint16)
    )
    return [folder / name for name in ("a.png", "a.gif", "a.tif", "b.tif")]


def test_a_palette_is_colours_as_an_image_and_indices_as_a_mask(tmp_path):
    indices, table = picture((9, 14)), picture((256, 3), seed=1)
    for path in _palettes(tmp_path, indices, table):
        np.testing.assert_array_equal(read(path), table[indices], strict=True)
        np.testing.assert_array_equal(read(path, indices=True), indices, strict=True)


def test_a_palette_of_grays_is_gray(tmp_path):
    indices, grays = picture((9, 14)), np.arange(256, dtype=np.uint8)[::-1]
    for path in _palettes(tmp_path, indices, np.stack([grays] * 3, -1)):
        np.testing.assert_array_equal(read(path), grays[indices], strict=True)
        np.testing.assert_array_equal(read(path, indices=True), indices, strict=True)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_span_0_to_255_as_an_image_and_are_themselves_as_a_mask(tmp_path, bits):
    samples = picture((9, 13)) >> (8 - bits)
    (tmp_path / "a.png").write_bytes(png(pack(samples, bits), (9, 13), bits, 0))
    _write_tiff(tmp_path / "a.tif", samples, bits, photometric=1)
    _write_tiff(tmp_path / "white is 0.tif", (1 << bits) - 1 - samples, bits, photometric=0)
    for path in sorted(tmp_path.iterdir()):
        scaled = samples * np.uint8(255 // ((1 << bits) - 1))
        np.testing.assert_array_equal(read(path), scaled, strict=True)
        np.testing.assert_array_equal(read(path, indices=True), samples, strict=True)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_small_palette_is_obeyed(tmp_path, bits):
    indices, table = picture((9, 13)) >> (8 - bits), picture((1 << bits, 3), seed=1)
    palette = chunk(b"PLTE", table.tobytes())
    (tmp_path / "a.png").write_bytes(png(pack(indices, bits), (9, 13), bits, 3, palette))
    _write_tiff(tmp_path / "a.tif", indices, bits, photometric=3, table=table)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read(path), table[indices], strict=True)
        np.testing.assert_array_equal(read(path, indices=True), indices, strict=True)


def _write_tiff(path, samples, bits, *, photometric, table=None):
    """Write a TIFF by hand: no library writes 2 or 4 bits, or white as 0."""
    rows = b"".join(pack(samples, bits))
    height, width = samples.shape
    colours = b"" if table is None else (table.T.astype("<u2") * 257).tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
            (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height),
            (279, 4, 1, len(rows))]  # fmt: skip
    if table is not None:
        tags.append((320, 3, 3 * len(table), 8 + len(rows)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(rows) + len(colours))
    path.write_bytes(start + rows + colours + directory + bytes(4))


def test_a_bilevel_picture_is_the_same_in_every_container(tmp_path):
    pixels = picture((17, 21)) > 127
    for suffix in (".png", ".tif", ".gif"):
        Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    for codec in ("packbits", "lzw", "zlib"):
        tifffile.imwrite(
            tmp_path / f"{codec}.tif", pixels, compression=codec, photometric="minisblack"
        )
    Image.fromarray(pixels).save(tmp_path / "fax.tif", compression="group4")
    np.save(tmp_path / "a.npy", pixels)
    containers.by_zarr(3)(tmp_path / "a.zarr", pixels)
    for path in unet_image.list_images(tmp_path):
        np.testing.assert_array_equal(read(path), pixels * np.uint8(255), strict=True)
        if path.suffix != ".gif":  # Pillow gives it a palette of 256 grays
            mask = read(path, indices=True)
            np.testing.assert_array_equal(mask, pixels.astype(np.uint8), strict=True)
    assert len(unet_image.list_images(tmp_path)) == 9


@pytest.mark.parametrize("compression", ["group4", "packbits", "tiff_lzw"])
def test_a_mask_of_two_tones_is_1_where_it_is_white(tmp_path, compression):
    mask = picture((17, 21)) > 127
    for photometric in (0, 1):
        path = tmp_path / f"{photometric}.tif"
        image = Image.fromarray(mask).convert("1")
        image.save(path, compression=compression, tiffinfo={262: photometric})
        with tifffile.TiffFile(path) as file:
            assert int(file.pages.first.photometric) == photometric
        np.testing.assert_array_equal(read(path), mask * np.uint8(255), strict=True)
        expected = mask.astype(np.uint8)
        np.testing.assert_array_equal(read(path, indices=True), expected, strict=True)


def test_bools_on_every_page_that_tifffile_writes_are_1_where_they_are_true(tmp_path):
    masks = picture((3, 17, 21)) > 127
    tifffile.imwrite(tmp_path / "a.tif", masks)
    tifffile.imwrite(tmp_path / "b.tif", masks, metadata=None)  # only its first page has the tag
    for path in unet_image.list_images(tmp_path):
        for page, mask in zip(unet_image.read_pages(path, indices=True), masks, strict=True):
            np.testing.assert_array_equal(page, mask.astype(np.uint8), strict=True)
    # another program means what it says
    tifffile.imwrite(tmp_path / "c.tif", masks[0], software="another")
    np.testing.assert_array_equal(read(tmp_path / "c.tif", indices=True), ~masks[0])


def test_a_mask_of_bools_that_tifffile_writes_is_1_where_it_is_true(tmp_path):
    """It says that 1 is black, as everybody shows it, and a mask is not a matter of colours."""
    mask = picture((17, 21)) > 127
    tifffile.imwrite(tmp_path / "a.tif", mask)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", indices=True), mask.astype(np.uint8))
    shown = np.array(Image.open(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), shown * np.uint8(255))
    np.testing.assert_array_equal(shown, ~mask)


def test_white_as_0_is_turned_to_black_as_0(tmp_path):
    for kind in (np.uint8, np.uint16):
        pixels = picture((9, 14), kind)
        tifffile.imwrite(tmp_path / "a.tif", np.iinfo(kind).max - pixels, photometric="miniswhite")
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), pixels, strict=True)


# alpha


def test_alpha_is_left_out_where_the_file_calls_it_so(tmp_path):
    pixels = picture((16, 16, 4))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    for kind in ("unassalpha", "assocalpha"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", pixels, photometric="rgb", extrasamples=[kind])
    tifffile.imwrite(
        tmp_path / "planar.tif", np.moveaxis(pixels, -1, 0), photometric="rgb",
        planarconfig="separate", extrasamples=["unassalpha"],
    )  # fmt: skip
    files = unet_image.list_images(tmp_path)
    assert len(files) == 5
    for path in files:
        np.testing.assert_array_equal(read(path), pixels[..., :3], strict=True)
        np.testing.assert_array_equal(read(path, alpha=True), pixels, strict=True)


def test_alpha_of_gray_is_left_out_too(tmp_path):
    pixels = picture((16, 16, 2))
    Image.fromarray(pixels, mode="LA").save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig",
        extrasamples=["unassalpha"],
    )  # fmt: skip
    for path in unet_image.list_images(tmp_path):
        np.testing.assert_array_equal(read(path), pixels[..., 0], strict=True)
        np.testing.assert_array_equal(read(path, alpha=True), pixels, strict=True)


@pytest.mark.parametrize(
    ("channels", "chosen", "expected"),
    [(3, (), False), (4, (), True), (1, (), False), (1, (3,), True), (2, (0, 3), True),
     (3, (0, 1, 2), False), (4, (0, 1, 2, 2), False)],
)  # fmt: skip
def test_a_net_takes_alpha_where_it_has_a_channel_for_it(tmp_path, channels, chosen, expected):
    Image.fromarray(picture((16, 16, 4))).save(tmp_path / "a.png")
    Image.fromarray(picture((16, 16, 3))).save(tmp_path / "b.png")
    settings = {"channels": channels, "preprocessing": Preprocessing(channels=chosen)}
    (page,) = unet_image.measure_pages(tmp_path / "a.png")
    assert unet_image.takes_alpha(page, **settings) == expected
    pixels = unet_image.read_page(page, alpha=expected)
    assert prepare(pixels, **settings).shape == (16, 16, channels)
    (page,) = unet_image.measure_pages(tmp_path / "b.png")
    assert not unet_image.takes_alpha(page, **settings)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_that_the_file_does_not_call_alpha_all_stay(tmp_path, count):
    planes = picture((count, 16, 18))
    expected = np.moveaxis(planes, 0, -1)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", planes, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "b.tif", planes, metadata={"axes": "CYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", planes, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "d.tif", expected, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        tmp_path / "e.tif", planes, imagej=True, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    ome_zarr(tmp_path / "f.zarr", planes, ["c", "y", "x"])
    if count <= 4:
        np.save(tmp_path / "g.npy", expected)
    np.save(tmp_path / "h.npy", expected[None])
    for path in unet_image.list_images(tmp_path):
        (page,) = unet_image.measure_pages(path)
        assert not page.has_alpha, path
        np.testing.assert_array_equal(read(path), expected, strict=True, err_msg=path.name)


def test_a_transparent_colour_is_an_alpha(tmp_path):
    gray, colours = picture((9, 13)) >> 6, picture((9, 13, 3)) >> 7
    clear = {"gray": (gray, 0, (2,)), "rgb": (colours, 2, (1, 0, 1))}
    for name, (pixels, colour, value) in clear.items():
        rows = [row.tobytes() for row in pixels]
        content = chunk(b"tRNS", struct.pack(f">{len(value)}H", *value))
        path = tmp_path / f"{name}.png"
        path.write_bytes(png(rows, (9, 13), 8, colour, content))
        np.testing.assert_array_equal(read(path), pixels, strict=True)
        expected = np.array(Image.open(path).convert("RGBA"))[..., 3]
        np.testing.assert_array_equal(read(path, alpha=True)[..., -1], expected)
        assert 0 < (expected == 0).mean() < 1
    indices, table = picture((9, 13)) >> 6, picture((4, 3), seed=1)
    see_through = np.array([255, 0, 128], np.uint8)  # the fourth colour is opaque
    parts = chunk(b"PLTE", table.tobytes()), chunk(b"tRNS", see_through.tobytes())
    (tmp_path / "p.png").write_bytes(png([r.tobytes() for r in indices], (9, 13), 8, 3, *parts))
    np.testing.assert_array_equal(read(tmp_path / "p.png"), table[indices], strict=True)
    expected = np.array(Image.open(tmp_path / "p.png").convert("RGBA"))
    np.testing.assert_array_equal(read(tmp_path / "p.png", alpha=True), expected, strict=True)
    np.testing.assert_array_equal(read(tmp_path / "p.png", indices=True), indices, strict=True)
    image = Image.fromarray(indices)
    image.putpalette(table.tobytes())
    image.save(tmp_path / "p.gif", transparency=1, optimize=False)
    np.testing.assert_array_equal(read(tmp_path / "p.gif"), table[indices], strict=True)
    alpha = read(tmp_path / "p.gif", alpha=True)[..., -1]
    np.testing.assert_array_equal(alpha, np.where(indices == 1, 0, 255))


# pages


def check_pages(path, expected):
    """Check every page of a file, one by one, from the last to the first."""
    pages = unet_image.measure_pages(path)
    assert [(page.index, page.count) for page in pages] == [
        (number, len(expected)) for number in range(len(expected))
    ]
    for page, pixels in reversed(list(zip(pages, expected, strict=True))):
        assert (page.shape, page.dtype) == (pixels.shape, pixels.dtype)
        np.testing.assert_array_equal(unet_image.read_page(page), pixels, strict=True)


@pytest.mark.parametrize("axes", ["TYX", "ZYX", "QYX", "TZYX", "TCYX", "CZYX", "TZCYX", "ZCYX"])
@pytest.mark.parametrize("kind", ["ome", "shaped", "imagej", "npy", "ome-zarr"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_plane_of_a_volume_is_a_page_and_channels_are_none(tmp_path, axes, kind, compression):
    if kind in ("npy", "ome-zarr") and (compression or "Q" in axes):
        pytest.skip("only TIFF has this")
    if kind == "imagej" and (compression or axes in ("QYX", "CZYX")):
        pytest.skip("ImageJ does not write this")
    if kind == "ome" and axes == "QYX":
        pytest.skip("OME has no such axis")
    sizes = {"T": 2, "Z": 5, "C": 3, "Q": 4, "Y": 17, "X": 19}
    array = picture([sizes[axis] for axis in axes], np.uint16)
    outer = [axis for axis in axes if axis not in "CYX"]
    last = np.moveaxis(array, axes.index("C"), -1) if "C" in axes else array
    planes = last.reshape(-1, *last.shape[len(outer) :])
    path = tmp_path / "a.tif"
    if kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, planes)
    elif kind == "ome-zarr":
        path = tmp_path / "a.zarr"
        ome_zarr(path, array, list(axes.lower()))
    else:
        tifffile.imwrite(
            path, array, photometric="minisblack", metadata={"axes": axes},
            compression=compression, ome=kind == "ome", imagej=kind == "imagej",
        )  # fmt: skip
    check_pages(path, list(planes))


def test_a_stack_that_one_directory_describes_is_read_page_by_page(tmp_path):
    """ImageJ writes stacks of more than 4 GB so; here the other directories are cut off."""
    stack = picture((6, 17, 19), np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZYX"}, byteorder=">")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        at = first.offset + 2 + 12 * len(first.tags)
    data[at : at + 4] = bytes(4)  # no directory follows
    path.write_bytes(data)
    check_pages(path, list(stack))
    path.write_bytes(data[: -stack[0].nbytes * 3])
    with pytest.raises(InputError, match=r"a\.tif"):
        unet_image.measure_pages(path)


def test_pages_of_different_kinds_stay_in_their_order(tmp_path):
    pages = [picture((9, 13)), picture((7, 5, 3)), picture((9, 13), np.uint16), picture((9, 13))]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            photometric = "rgb" if page.ndim == 3 else "minisblack"
            file.write(page, photometric=photometric, metadata=None)
    check_pages(tmp_path / "a.tif", pages)


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages(tmp_path):
    whole = picture((32, 48))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        file.write(whole, metadata=None)
        file.write(whole[::2, ::2], subfiletype=1, metadata=None)
        file.write(whole > 9, subfiletype=4, photometric=4, metadata=None)
    with tifffile.TiffWriter(tmp_path / "inside.tif") as file:
        file.write(whole, subifds=1, tile=(16, 16))
        file.write(whole[::2, ::2], subfiletype=1, tile=(16, 16))
    with tifffile.TiffWriter(tmp_path / "ome.tif", ome=True) as file:
        file.write(whole, subifds=1, tile=(16, 16))
        file.write(whole[::2, ::2], subfiletype=1, tile=(16, 16))
    for path in unet_image.list_images(tmp_path):
        check_pages(path, [whole])


def test_several_images_in_an_ome_tiff_are_pages(tmp_path):
    first, second = picture((9, 13)), picture((2, 7, 5), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(first)
        file.write(second, metadata={"axes": "ZYX"})
    check_pages(tmp_path / "a.ome.tif", [first, *second])


def test_channels_twice_and_images_in_other_files_are_refused(tmp_path):
    both = picture((2, 9, 13, 3))
    tifffile.imwrite(tmp_path / "a.tif", both, metadata={"axes": "CYXS"}, photometric="rgb")
    with pytest.raises(InputError, match="channels twice"):
        unet_image.measure_pages(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.ome.tif", picture((2, 9, 13)), metadata={"axes": "ZYX"})
    text = str(tifffile.tiffcomment(tmp_path / "b.ome.tif"))
    lies = text.replace(
        '<TiffData IFD="0" PlaneCount="2"/>',
        '<TiffData IFD="0" PlaneCount="2"><UUID FileName="/etc/hostname">urn:uuid:1</UUID>'
        "</TiffData>",
    )
    assert lies != text
    tifffile.tiffcomment(tmp_path / "b.ome.tif", lies.encode())
    with pytest.raises(InputError, match="parts lie in other files"):
        unet_image.measure_pages(tmp_path / "b.ome.tif")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_is_refused_in_the_same_words_in_every_container(tmp_path, suffix):
    images = [Image.fromarray(picture((16, 18), seed=n)) for n in range(2)]
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:])
    sentence = "an animation; store each of its frames as a file of its own"
    with pytest.raises(InputError) as refusal:
        unet_image.measure_pages(path)
    assert str(refusal.value) == f"{path}: {sentence}"
    images[0].save(path, save_all=True)
    assert len(unet_image.measure_pages(path)) == 1


def _gif(indices, *, size=None, corner=(0, 0), common=None, own=None, clear=None, order=None):
    """Return a GIF of indices below 128, in codes of 8 bits, which no compressor chose.

    Args:
        size: (h, w) of the image; None is that of its frame.
        corner: (top, left) of the frame.
        common, own: palettes (128, 3) of the image and of the frame.
        clear: the index that is transparent.
        order: of the rows in an interlaced frame.
    """
    size = indices.shape if size is None else size
    rows = indices if order is None else indices[order]
    start = b"GIF89a" + struct.pack("<HHBBB", size[1], size[0], 0 if common is None else 0x86, 0, 0)
    frame = struct.pack("<HHHH", corner[1], corner[0], indices.shape[1], indices.shape[0])
    flags = (0x40 if order is not None else 0) | (0x86 if own is not None else 0)
    # codes stay 8 bits wide where the table is cleared (128) often enough; 129 ends them
    codes = bytes(c for row in rows.tolist() for c in [128, *row]) + bytes([129])
    blocks = b"".join(
        bytes([len(codes[i : i + 200])]) + codes[i : i + 200] for i in range(0, len(codes), 200)
    )
    return b"".join([
        start, b"" if common is None else common.tobytes(),
        b"!\xfe\x03abc\0",
        # a frame that leaves its place as it was before, which a decoder has to prepare
        b"!\xf9\x04" + bytes([0x0C | (clear is not None), 0, 0, clear or 0, 0]),
        b"," + frame + bytes([flags]), b"" if own is None else own.tobytes(),
        b"\x07" + blocks + b"\0;",
    ])  # fmt: skip


def test_a_gif_written_by_hand_is_what_its_blocks_say(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)  # a limit of a decoder, not ours
    indices = picture((19, 31)) >> 1
    common, own = picture((128, 3), seed=1), picture((128, 3), seed=2)
    order = [*range(0, 19, 8), *range(4, 19, 8), *range(2, 19, 4), *range(1, 19, 2)]
    path = tmp_path / "a.gif"
    for options, table in (
        ({"common": common}, common), ({"own": own}, own), ({"common": common, "own": own}, own),
        ({"common": common, "order": order}, common), ({"own": own, "clear": 5}, own),
    ):  # fmt: skip
        path.write_bytes(_gif(indices, **options))
        np.testing.assert_array_equal(read(path), table[indices], strict=True)
        np.testing.assert_array_equal(read(path, indices=True), indices, strict=True)
        (page,) = unet_image.measure_pages(path)
        assert page.has_alpha == ("clear" in options)
        if page.has_alpha:
            alpha = np.where(indices == options["clear"], 0, 255)
            np.testing.assert_array_equal(read(path, alpha=True)[..., 3], alpha)
    path.write_bytes(_gif(indices))
    with pytest.raises(InputError, match="it has no palette"):
        unet_image.measure_pages(path)


@pytest.mark.parametrize(
    ("size", "corner"), [((19, 32), (0, 0)), ((20, 33), (1, 2)), ((19, 31), (1, 0)),
                         ((18, 31), (0, 0)), ((19, 30), (0, 0))],
)  # fmt: skip
def test_a_frame_of_another_size_than_its_gif_is_refused(tmp_path, size, corner):
    path = tmp_path / "a.gif"
    table = picture((128, 3), seed=1)
    path.write_bytes(_gif(picture((19, 31)) >> 1, size=size, corner=corner, common=table))
    sentence = (
        rf"a\.gif: its frame is not as large as the image, {size[0]} x {size[1]} pixels; store"
    )
    with pytest.raises(InputError, match=sentence):
        unet_image.measure_pages(path)


def test_arrays_without_names_of_axes(tmp_path):
    shapes: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {
        (9, 13): (1, (9, 13)), (9, 13, 1): (1, (9, 13)), (9, 13, 2): (1, (9, 13, 2)),
        (9, 13, 4): (1, (9, 13, 4)), (3, 16, 17): (3, (16, 17)), (2, 9, 13, 6): (2, (9, 13, 6)),
        (2, 9, 13, 1): (2, (9, 13)),
    }  # fmt: skip
    for number, (shape, (count, page)) in enumerate(shapes.items()):
        array = picture(shape)
        np.save(tmp_path / f"{number}.npy", array)
        containers.by_zarr(3 if number % 2 else 2)(tmp_path / f"{number}.zarr", array)
        for suffix in ("npy", "zarr"):
            path = tmp_path / f"{number}.{suffix}"
            check_pages(path, list(array.reshape(count, *page)))
    for shape in ((9,), (2, 2, 9, 13, 3)):
        np.save(tmp_path / "a.npy", picture(shape))
        with pytest.raises(InputError, match=r"a\.npy: an array of the shape"):
            unet_image.measure_pages(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(64, 64, 5), (64, 64, 15), (3, 15, 64)])
def test_an_array_that_may_be_pages_or_channels_is_refused(tmp_path, shape):
    array = picture(shape)
    np.save(tmp_path / "a.npy", array)
    containers.by_zarr(3)(tmp_path / "a.zarr", array)
    for path in (tmp_path / "a.npy", tmp_path / "a.zarr"):
        with pytest.raises(InputError) as refusal:
            unet_image.measure_pages(path)
        assert str(refusal.value) == (
            f"{path}: an array of the shape {shape} would be {shape[0]} pages of {shape[1]} x "
            f"{shape[2]} pixels; store (n, h, w) of at least 16 x 16 pixels, (h, w, c) with c of "
            "at most 4, (n, h, w, c), or a zarr with names of axes"
        )
    # the ways out
    np.save(tmp_path / "b.npy", array[None])
    check_pages(tmp_path / "b.npy", [array])
    zarr.create_array(str(tmp_path / "b.zarr"), data=array, dimension_names=["y", "x", "c"])
    check_pages(tmp_path / "b.zarr", [array])


def test_names_of_zarr_axes_are_obeyed(tmp_path):
    array = picture((3, 9, 13))
    zarr.create_array(str(tmp_path / "a.zarr"), data=array, dimension_names=["channel", "y", "x"])
    zarr.create_array(str(tmp_path / "b.zarr"), data=array, dimension_names=["z", "y", "x"])
    two = zarr.create_array(str(tmp_path / "c.zarr"), data=array, zarr_format=2)
    two.attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    zarr.create_array(str(tmp_path / "d.zarr"), data=array, dimension_names=["a", "b", "c"])
    check_pages(tmp_path / "a.zarr", [np.moveaxis(array, 0, -1)])
    check_pages(tmp_path / "b.zarr", list(array))
    check_pages(tmp_path / "c.zarr", [np.moveaxis(array, 0, -1)])
    with pytest.raises(InputError, match=r"d\.zarr: its axes are IIC; an image needs one Y"):
        unet_image.measure_pages(tmp_path / "d.zarr")


def test_groups_of_zarr_are_read_or_refused_by_name(tmp_path):
    images = [picture((9, 13), seed=n) for n in range(2)]
    group = zarr.open_group(str(tmp_path / "one.zarr"), mode="w")
    group.create_array("raw", data=images[0])
    check_pages(tmp_path / "one.zarr", images[:1])
    group.create_array("other", data=images[1])
    with pytest.raises(InputError, match="a zarr group of other, raw; name the array"):
        unet_image.measure_pages(tmp_path / "one.zarr")
    check_pages(tmp_path / "one.zarr" / "raw", images[:1])
    series = zarr.open_group(str(tmp_path / "series.zarr"), mode="w")
    series.attrs["bioformats2raw.layout"] = 3
    for number, image in enumerate(images):
        ome_zarr(tmp_path / "series.zarr" / str(number), image, ["y", "x"])
    check_pages(tmp_path / "series.zarr", images)
    for kind in ("plate", "well"):
        whole = zarr.open_group(str(tmp_path / f"{kind}.zarr"), mode="w")
        whole.attrs["ome"] = {kind: {}}
        with pytest.raises(InputError, match=f"an OME-Zarr {kind}; name the images in it"):
            unet_image.measure_pages(tmp_path / f"{kind}.zarr")


# content and names


def test_content_decides_what_a_file_is(tmp_path):
    pixels = picture((16, 18))
    for name, (suffix, write) in GRAY.items():
        if "zarr" in name:
            continue
        write(tmp_path / f"a{suffix}", pixels)
        path = (tmp_path / f"a{suffix}").rename(tmp_path / "a.jpg")
        np.testing.assert_array_equal(read(path), pixels, err_msg=name)


@pytest.mark.parametrize("kind", ["EPS", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "PDF"])
@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_only_the_promised_formats_are_opened(tmp_path, monkeypatch, kind, name):
    def run(*args, **kwargs):
        raise AssertionError(f"an outside program was started: {args}")

    monkeypatch.setattr("subprocess.Popen", run)
    Image.fromarray(picture((16, 16, 3))).save(tmp_path / name, format=kind)
    with pytest.raises(InputError, match=f"{name}: not an image that can be read"):
        unet_image.measure_pages(tmp_path / name)


def test_a_folder_lists_images_and_passes_over_what_systems_leave(tmp_path):
    for name in ("b.png", "a.PNG", "c.tif", "d.npy", "e.gif", "f.webp", "g.JPG", "h.tiff"):
        (tmp_path / name).write_bytes(b"x")
    containers.by_zarr(3)(tmp_path / "i.zarr", picture((9, 13)))
    containers.by_zarr(2)(tmp_path / "store", picture((9, 13)))
    for name in ("._b.png", ".hidden.tif", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("__MACOSX", "more", ".hidden.zarr"):
        (tmp_path / name).mkdir()
    (tmp_path / "__MACOSX" / "._b.png").write_bytes(b"x")
    listed = unet_image.list_images(tmp_path)
    assert [path.name for path in listed] == [
        "a.PNG", "b.png", "c.tif", "d.npy", "e.gif", "f.webp", "g.JPG", "h.tiff", "i.zarr", "store",
    ]  # fmt: skip
    assert unet_image.list_images(tmp_path / "i.zarr") == [tmp_path / "i.zarr"]
    assert unet_image.list_images(tmp_path / "store") == [tmp_path / "store"]


def test_a_link_that_leads_nowhere_is_an_image_that_is_missing(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nothing")
    (path,) = unet_image.list_images(tmp_path)
    with pytest.raises(InputError, match=r"a\.png: there is no such file"):
        unet_image.measure_pages(path)


@pytest.mark.parametrize("kind", [np.complex64, "S3", "M8[s]"])
def test_values_that_are_no_numbers_of_an_image_are_refused(tmp_path, kind):
    array = np.zeros((9, 13), kind)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"a\.npy: holds values of type"):
        unet_image.measure_pages(tmp_path / "a.npy")


def test_complex_values_in_a_tiff_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((9, 13), np.complex64))
    with pytest.raises(InputError, match=r"a\.tif: holds values of type complex64"):
        unet_image.measure_pages(tmp_path / "a.tif")


def test_objects_in_a_npy_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[print, 1]], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy"):
        unet_image.measure_pages(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("photometric", "words"), [("cielab", "colours as"), ("ycbcr", "YCbCr without JPEG")]
)
def test_colours_that_are_not_read_are_refused(tmp_path, photometric, words):
    tifffile.imwrite(
        tmp_path / "a.tif", picture((16, 16, 3)), photometric=photometric,
        extratags=[(530, 3, 2, (1, 1), True)],
    )  # fmt: skip
    with pytest.raises(InputError, match=words):
        unet_image.measure_pages(tmp_path / "a.tif")


def test_alpha_that_is_not_last_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", picture((9, 13, 5)), photometric="rgb",
        extrasamples=["unassalpha", "unspecified"],
    )  # fmt: skip
    with pytest.raises(InputError, match="its alpha is not its last channel"):
        unet_image.measure_pages(tmp_path / "a.tif")


def test_samples_that_imagecodecs_reads_as_png_are_those_of_pillow(tmp_path):
    pixels = picture((9, 13, 3), np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    np.testing.assert_array_equal(read(tmp_path / "a.png") >> 8, picture_of(tmp_path / "a.png"))


def picture_of(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("writer", ["Pillow", "tifffile"])
def test_a_bilevel_mask_with_white_as_0_is_read_as_it_is_shown(tmp_path, writer):
    """tifffile stores bools so, and True as 1; whoever else names white as 0 means it."""
    mask = picture((9, 13)) > 99
    path = tmp_path / "a.tif"
    if writer == "tifffile":
        tifffile.imwrite(path, mask)
    else:
        Image.fromarray(mask).save(path, compression="group4", tiffinfo={262: 0})
        np.testing.assert_array_equal(np.array(Image.open(path)), mask)
    (page,) = unet_image.measure_pages(path)
    np.testing.assert_array_equal(unet_image.read_page(page, indices=True), mask.astype(np.uint8))


def test_three_channels_that_are_no_colours_do_not_become_luma(tmp_path):
    pixels = picture((3, 9, 13))
    tifffile.imwrite(
        tmp_path / "c.ome.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    rgb = np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    np.save(tmp_path / "rgb.npy", rgb)
    plain, second = Preprocessing(), Preprocessing(channels=(1,))
    for name in ("rgb.tif", "rgb.npy"):
        (page,) = unet_image.measure_pages(tmp_path / name)
        unet_image.check_channels(page, channels=1, preprocessing=plain)
    (page,) = unet_image.measure_pages(tmp_path / "c.ome.tif")
    assert not page.is_colour
    unet_image.check_channels(page, channels=3, preprocessing=plain)
    unet_image.check_channels(page, channels=1, preprocessing=second)
    with pytest.raises(InputError, match="3 channels are not red, green and blue"):
        unet_image.check_channels(page, channels=1, preprocessing=plain)


def test_a_file_of_python_objects_is_no_damaged_image(tmp_path):
    objects = np.array([{"masks": np.zeros((4, 4))}], object)
    np.save(tmp_path / "a_seg.npy", objects, allow_pickle=True)
    with pytest.raises(InputError, match="holds Python objects and no image; save its"):
        unet_image.measure_pages(tmp_path / "a_seg.npy")
