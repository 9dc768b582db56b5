"""TIFF files, also BigTIFF, ImageJ's and OME-TIFF."""

import math
import re
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile

from unet_image.axes import arrange, check_axes, count_pages, image_shape, locate_page
from unet_image.header import Header, make_palette, valid_orientation
from unet_image.limits import DEFLATE, LARGEST_PAGES, LZW, PACKBITS, check_content, check_count
from unet_image.quiet import silence_errors
from unet_spec import InputError

KINDS = ("shaped", "ome", "imagej")
"""Who says in a description what the axes are: tifffile, OME and ImageJ."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
JPEG = (6, 7, 33007, 34892)
"""Compressions whose decoder turns YCbCr into RGB."""
FACTORS = {1: 1, 5: LZW, 8: DEFLATE, 32773: PACKBITS, 32946: DEFLATE}
"""How many bytes a byte becomes at most, by compression, where there is such a number."""
JPEG_XR = (22610, 34934)
"""Its library writes what it does not know in a damaged file into the standard error."""
ALPHA = (1, 2)
"""What the tag ExtraSamples says of an alpha: the colours are multiplied by it, or are not."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where an image lies in its file.

    Attributes:
        header: of the image.
        directories: the offsets of the directories whose arrays make the image, one or one for
            each channel.
        shape, axes: of these arrays together, as far as they are stored there.
        index: the number of the image in that.
        data: the offset of its samples, where one directory describes many images in a row.
    """

    header: Header
    directories: tuple[int, ...]
    shape: tuple[int, ...]
    axes: str
    index: int
    data: int | None = None


def measure(path: Path) -> list[Header]:
    """Measure the images of a TIFF by its directories.

    Raises:
        InputError: not whole, or stored in a way that is not read.
    """
    return [place.header for place in _list_places(path)]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples of an image; only its part of the file is read.

    Raises:
        Exception: whatever a decoder raises for data that are not whole.
    """
    place = _list_places(path)[index]
    with _open(path) as file:
        pages = []
        for offset in place.directories:
            file.filehandle.seek(offset)
            pages.append(tifffile.TiffPage(file, index=0))
        if place.data is None:
            is_loud = pages[0].compression in JPEG_XR
            with silence_errors() if is_loud else nullcontext():
                stored = np.stack([page.asarray() for page in pages]).reshape(place.shape)
        else:
            dtype = np.dtype(pages[0].dtype).newbyteorder(file.byteorder)
            stored = np.memmap(path, dtype, "r", place.data, place.shape)
    image = arrange(place.axes, stored[locate_page(place.axes, place.shape, place.index)])
    # owned, and in the machine's byte order
    return np.array(image, np.uint8 if image.dtype.kind == "b" else image.dtype.newbyteorder("="))


def _open(path: Path) -> tifffile.TiffFile:
    # a file that speaks of others is read by itself: they may be anything
    return tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False)


def _list_places(path: Path) -> tuple[_Place, ...]:
    status = path.stat()
    return _list_places_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _list_places_of(path: Path, size: int, changed_ns: int) -> tuple[_Place, ...]:
    """List where the images of a file lie; of a stack of 10,000 pages it takes seconds."""
    with _open(path) as file:
        count = _count_directories(path, file)
        kind = next((kind for kind in KINDS if getattr(file, f"is_{kind}")), None)
        if kind == "ome":
            _check_ome(path, file.pages.first.description, count)
        places = tuple(_list_pages(path, file) if kind is None else _list_series(path, file, kind))
    check_count(path, len(places))
    return places


def _count_directories(path: Path, file: tifffile.TiffFile) -> int:
    """Return the number of directories in a file; each names the place of the next one.

    Raises:
        InputError: there are too many.
        ValueError: a place that is not in the file, or one twice.
    """
    stream, tiff, places = file.filehandle, file.tiff, set[int]()
    stream.seek(8 if tiff.is_bigtiff else 4)
    while place := struct.unpack(tiff.offsetformat, stream.read(tiff.offsetsize))[0]:
        if place in places or place + tiff.tagnosize > stream.size:
            raise ValueError("the chain of its pages is damaged")
        places.add(place)
        check_count(path, len(places))
        stream.seek(place)
        tags = struct.unpack(tiff.tagnoformat, stream.read(tiff.tagnosize))[0]
        stream.seek(place + tiff.tagnosize + tags * tiff.tagsize)
    return len(places)


def _check_ome(path: Path, description: str, directories: int) -> None:
    """Refuse an OME description of far more planes than there are; each would be listed.

    Raises:
        InputError: it states too many images or planes.
    """
    numbers = re.findall(r'\b(?:Size[ZCT]|PlaneCount|First[ZCT]|IFD)\s*=\s*"\s*(\d+)', description)
    planes = [re.findall(r'\bSize[ZCT]\s*=\s*"\s*(\d+)', pixels)
              for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", description)]  # fmt: skip
    stated = [len(number) > 7 or int(number) > LARGEST_PAGES for number in numbers]
    if any(stated) or any(math.prod(map(int, sizes)) > LARGEST_PAGES for sizes in planes):
        raise InputError(f"{path}: its ome description states too many planes; replace the file")
    if len(planes) > directories:
        raise InputError(
            f"{path}: its ome description is of {len(planes)} images, and it holds {directories} "
            "pages; store it as one whole file"
        )


def _list_pages(path: Path, file: tifffile.TiffFile) -> Iterator[_Place]:
    """List the images of a file without axes: each directory by itself."""
    for page in file.pages:
        assert isinstance(page, tifffile.TiffPage)
        if page.is_reduced or page.is_mask:  # a preview, or which pixels of another page count
            continue
        yield from _list_planes(path, page, [page], page.shape, page.axes)


def _list_series(path: Path, file: tifffile.TiffFile, kind: str) -> Iterator[_Place]:
    """List the images of a file that says what its axes are.

    Raises:
        InputError: what it says does not fit what it holds.
    """
    for series in file.series:
        if series.kind != kind:
            raise InputError(
                f"{path}: its {kind} description does not fit its pages, or parts lie in other "
                "files; store it as one whole file"
            )
        keyframe = series.keyframe
        if isinstance(keyframe.index, tuple) or keyframe.is_reduced:
            continue  # a smaller copy
        shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
        check_axes(path, axes, shape)
        inner = _count_outer_axes(path, keyframe, shape, axes)
        planes = math.prod(shape[:inner])
        if len(file.pages) - keyframe.index < planes:
            yield from _list_row(path, keyframe, shape, axes)
            continue
        pages = [series[number] for number in range(planes)]
        yield from _list_planes(path, keyframe, pages, shape, axes, inner)


def _count_outer_axes(
    path: Path, page: tifffile.TiffPage, shape: tuple[int, ...], axes: str
) -> int:
    """Return how many of the first axes count directories; a directory holds the others."""
    for inner in range(min(axes.index("Y"), axes.index("X")), -1, -1):
        if math.prod(shape[inner:]) == math.prod(page.shape):
            return inner
    raise InputError(
        f"{path}: its axes {axes} of {shape} are not stored plane by plane; store it as (..., Y, X)"
    )


def _list_planes(
    path: Path,
    keyframe: tifffile.TiffPage,
    pages: "list[tifffile.TiffPage | tifffile.TiffFrame | None] | list[tifffile.TiffPage]",
    shape: tuple[int, ...],
    axes: str,
    inner: int = 0,
) -> Iterator[_Place]:
    """List the images of directories, whose numbers the first `inner` axes count."""
    directories = []
    for page in pages:
        if page is None:
            raise InputError(f"{path}: a plane is missing; store it as one whole file")
        _check_stored(path, keyframe, page)
        directories.append(page.offset)
    header = _make_header(path, keyframe, image_shape(axes, shape))
    outer_shape, outer_axes = shape[:inner], axes[:inner]
    numbers = np.arange(len(pages)).reshape(outer_shape)
    channels = [size for axis, size in zip(outer_axes, outer_shape, strict=True) if axis in "CS"]
    # what a group of directories holds: its channels, then the axes inside
    group_shape = (*channels, *shape[inner:])
    group_axes = "".join(axis for axis in outer_axes if axis in "CS") + axes[inner:]
    for group in range(math.prod(outer_shape) // math.prod(channels)):
        chosen = numbers[locate_page(outer_axes, outer_shape, group)].ravel()
        offsets = tuple(directories[number] for number in chosen)
        for index in range(count_pages(group_axes, group_shape)):
            yield _Place(header, offsets, group_shape, group_axes, index)


def _list_row(
    path: Path, page: tifffile.TiffPage, shape: tuple[int, ...], axes: str
) -> Iterator[_Place]:
    """List images that lie in a row, described by one directory; ImageJ writes large stacks so.

    Raises:
        InputError: they are compressed, or the file ends early.
    """
    if page.dtype is None or not page.is_memmappable:
        raise InputError(f"{path}: one directory describes many images; store it page by page")
    offset = page.dataoffsets[0]
    if offset + math.prod(shape) * page.dtype.itemsize > page.parent.filehandle.size:
        raise InputError(f"{path}: not a whole image (it ends early); replace the file")
    header = _make_header(path, page, image_shape(axes, shape))
    for index in range(count_pages(axes, shape)):
        yield _Place(header, (page.offset,), shape, axes, index, offset)


def _check_stored(
    path: Path, keyframe: tifffile.TiffPage, page: "tifffile.TiffPage | tifffile.TiffFrame"
) -> None:
    """Refuse a page whose data are not all in the file.

    Raises:
        InputError: it is not whole.
    """
    bits = keyframe.bitspersample
    if keyframe.dtype is None or not isinstance(bits, int):
        raise InputError(
            f"{path}: samples of {bits} bits and format {keyframe.sampleformat!s} are not read; "
            "store integers or floats of 8, 16 or 32 bits"
        )
    counts = np.asarray(page.databytecounts, np.int64)
    offsets = np.asarray(page.dataoffsets, np.int64)
    is_whole = len(counts) == len(offsets) == math.prod(keyframe.chunked) and (counts > 0).all()
    if not is_whole or (offsets + counts > page.parent.filehandle.size).any():
        raise InputError(f"{path}: not a whole image (a part is missing); replace the file")
    if keyframe.compression in FACTORS:
        check_content(
            path,
            stored=int(counts.sum()),
            decoded=math.prod(keyframe.shape) * bits / 8,
            factor=FACTORS[keyframe.compression],
        )


def _make_header(path: Path, page: tifffile.TiffPage, shape: tuple[int, ...]) -> Header:
    """Return the header of an image (h, w) or (h, w, c) by the tags of its directory.

    Raises:
        InputError: colours or bits that are not read.
    """
    bits, photometric, dtype = page.bitspersample, int(page.photometric), page.dtype
    assert dtype is not None
    samples, colormap = shape[2] if len(shape) == 3 else 1, page.colormap
    extra = tuple(int(kind) for kind in page.extrasamples)
    if any(kind in ALPHA for kind in extra[:-1]):
        raise InputError(f"{path}: its alpha is not its last channel; store it last")
    refusal = None
    if photometric == YCBCR and page.compression not in JPEG:
        refusal = "colours as YCbCr without JPEG"
    elif photometric == CMYK and (samples != 4 or dtype != np.uint8):
        refusal = f"inks in {samples} samples of {dtype}"
    elif photometric == PALETTE and (samples != 1 or dtype.kind not in "ub" or colormap is None):
        refusal = "a palette for several samples, or none"
    elif photometric == WHITE_IS_ZERO and dtype.kind not in "ub":
        refusal = f"white as 0 of {dtype}"
    elif photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR):
        refusal = f"colours as {page.photometric!s}"
    elif bits in (3, 5, 6, 7):
        refusal = f"samples of {bits} bits"
    if refusal is not None:
        raise InputError(f"{path}: {refusal} is not read; store it as gray or RGB")
    return Header(
        shape=shape,
        dtype=np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("="),
        largest=2**bits - 1 if bits < 8 and photometric != PALETTE else None,
        is_inverted=photometric == WHITE_IS_ZERO,
        inverts_indices=bits > 1 or "tifffile" not in _read_software(page.parent),
        is_colour=photometric in (RGB, PALETTE, CMYK, YCBCR),
        palette=_make_palette(colormap)
        if photometric == PALETTE and colormap is not None
        else None,
        is_cmyk=photometric == CMYK,
        has_alpha=samples > 1 and bool(extra) and extra[-1] in ALPHA,
        orientation=valid_orientation(page.tags.valueof(274)),
        blocks=(page.chunks, page.shape),
    )


def _read_software(file: tifffile.TiffFile) -> str:
    """Return which program wrote a file; it may say so on the first page alone."""
    return str(file.pages.first.tags.valueof(305, ""))


def _make_palette(colormap: np.ndarray) -> np.ndarray:
    """Return the palette of a colour map (3, n): its upper 8 bits, as everybody takes them.

    Some programs have stored 8 bits in place of 16.
    """
    colours = colormap if colormap.max() < 256 else colormap >> 8
    return make_palette(colours.T)
