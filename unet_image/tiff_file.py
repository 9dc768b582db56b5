"""TIFF files, also BigTIFF, ImageJ's and OME-TIFF."""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from unet_image import jpeg_file, png_file, webp_file
from unet_image.axes import arrange, check_axes, count_pages, image_shape, locate_page
from unet_image.header import Header, make_palette, valid_orientation
from unet_image.limits import DEFLATE, LARGEST_PAGES, LZW, PACKBITS, check_content, check_count
from unet_spec import InputError

KINDS = ("shaped", "ome", "imagej")
"""Who says in a description what the axes are: tifffile, OME and ImageJ."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
JPEG = (6, 7, 33007, 34892)
"""Compressions whose decoder turns YCbCr into RGB."""
FACTORS = {1: 1, 5: LZW, 8: DEFLATE, 32773: PACKBITS, 32946: DEFLATE}
"""How many bytes a byte becomes at most, by compression, where there is such a number."""
PNG, WEBP = 34933, 50001
SIZED = (*JPEG, PNG, WEBP)
"""Compressions by which each strip or tile is an image file, which states its size once more."""
COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, *SIZED)
"""Those that are read: none, fax, LZW, Deflate, PackBits, LZMA, Zstandard, and those with a size.
What others decode is as large as the data say, and not as the directory does."""
MOST_DIRECTORIES = 10_000
"""A file has at most so many, because each takes about 0.1 ms to read."""
TAG_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a whole number, by its type in a tag."""
OBEYED = frozenset((254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322,
                    323, 324, 325, 338, 339))  # fmt: skip
"""The tags of whole numbers that decide what the pixels are."""
NEEDED = {256: "ImageWidth", 257: "ImageLength", 262: "PhotometricInterpretation"}
"""Tags without which nobody knows what the pixels are."""
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
        dtype: of the stored samples, where they are stored as they are, in one piece or in one for
            each directory.
        data: the offsets of these pieces.
    """

    header: Header
    directories: tuple[int, ...]
    shape: tuple[int, ...]
    axes: str
    index: int
    dtype: np.dtype | None = None
    data: tuple[int, ...] = ()


class _Listing(NamedTuple):
    """The images of a file, and their headers."""

    places: tuple[_Place, ...]
    headers: list[Header]


def measure(path: Path) -> list[Header]:
    """Measure the images of a TIFF by its directories.

    Raises:
        InputError: not whole, or stored in a way that is not read.
    """
    return _list_places(path).headers


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples of an image; only its part of the file is read.

    Raises:
        Exception: whatever a decoder raises for data that are not whole.
    """
    place = _list_places(path).places[index]
    stored = _decode(path, place) if place.dtype is None else _load(path, place)
    image = arrange(place.axes, stored[locate_page(place.axes, place.shape, place.index)])
    # not a part of something larger, and in the machine's byte order
    copy = np.asarray if image.size == stored.size and type(stored) is np.ndarray else np.array
    return copy(image, np.uint8 if image.dtype.kind == "b" else image.dtype.newbyteorder("="))


def _load(path: Path, place: _Place) -> np.ndarray:
    """Return samples that are stored as they are; what is not looked at is not read."""
    assert place.dtype is not None
    count = math.prod(place.shape) // len(place.data)
    if count_pages(place.axes, place.shape) > 1 and len(place.data) == 1:
        return np.memmap(path, place.dtype, "r", place.data[0], place.shape)
    parts = []
    with path.open("rb") as stream:
        for start in place.data:
            stream.seek(start)
            parts.append(np.fromfile(stream, place.dtype, count))
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(place.shape)


def _decode(path: Path, place: _Place) -> np.ndarray:
    with _open(path) as file:
        pages = []
        for offset in place.directories:
            file.filehandle.seek(offset)
            page = tifffile.TiffPage(file, index=0)
            _check_inner_sizes(page)
            pages.append(page.asarray())
    return np.stack(pages).reshape(place.shape)


def _check_inner_sizes(page: tifffile.TiffPage) -> None:
    """Refuse strips or tiles that are images of another size than the directory says.

    Raises:
        ValueError: it names both sizes.
    """
    if page.compression not in SIZED:
        return
    height, width = page.imagelength, page.imagewidth
    block_height, block_width = min(page.rowsperstrip, height), width
    if page.is_tiled:
        block_height, block_width = page.tilelength, page.tilewidth
    down, across = -(-height // block_height), -(-width // block_width)
    stream = page.parent.filehandle
    for number, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        stream.seek(offset)
        size = _read_inner_size(stream.read(count), page.compression)
        top, left = number // across % down * block_height, number % across * block_width
        # the last ones may be whole blocks, or end where the image ends
        heights, widths = (block_height, height - top), (block_width, width - left)
        if size[0] not in heights or size[1] not in widths:
            raise ValueError(
                f"a part of it is an image of {size[0]} x {size[1]} pixels, and its directory says "
                f"{block_height} x {block_width}"
            )


def _read_inner_size(data: bytes, compression: int) -> tuple[int, int]:
    """Return height and width by what an image file says at its beginning.

    Raises:
        ValueError: it is damaged.
    """
    if compression == PNG:
        return png_file.read_size(data)
    if compression == WEBP:
        return webp_file.read_start(data[:30])[:2]
    return jpeg_file.read_size(data)


def _open(path: Path) -> tifffile.TiffFile:
    # a file that speaks of others is read by itself: they may be anything
    return tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False)


def _list_places(path: Path) -> _Listing:
    status = path.stat()
    return _list_places_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _list_places_of(path: Path, size: int, changed_ns: int) -> _Listing:
    """List where the images of a file lie; of a stack of 10,000 pages it takes seconds."""
    sizes = _walk(path)
    with _open(path) as file:
        kind = next((kind for kind in KINDS if getattr(file, f"is_{kind}")), None)
        if kind == "ome":
            _check_ome(path, file.pages.first.description, sizes)
        places = tuple(_list_pages(path, file) if kind is None else _list_series(path, file, kind))
    check_count(path, len(places))
    return _Listing(places, [place.header for place in places])


def _walk(path: Path) -> list[tuple[int, int]]:
    """Return height and width of each directory in a file; each names the place of the next one.

    tifffile passes over a tag that it cannot read, and goes on as if it were not there.

    Raises:
        InputError: there are too many.
        ValueError: a place that is not in the file, or one twice; a tag that is damaged or missing.
    """
    places, sizes, tags = set[int](), list[tuple[int, int]](), 0
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(4)
        order, is_big = "<" if start[:2] == b"II" else ">", 43 in start[2:]
        offset, number, entry = (order + kinds for kinds in (("Q", "Q", "HHQQ") if is_big
                                                             else ("I", "H", "HHII")))  # fmt: skip
        offset_bytes, number_bytes, entry_bytes = map(struct.calcsize, (offset, number, entry))
        stream.seek(8 if is_big else 4)
        while place := struct.unpack(offset, stream.read(offset_bytes))[0]:
            if place in places or place + number_bytes > file_bytes:
                raise ValueError("the chain of its pages is damaged")
            places.add(place)
            check_count(path, len(places), MOST_DIRECTORIES)
            stream.seek(place)
            count = struct.unpack(number, stream.read(number_bytes))[0]
            tags += count
            if tags * entry_bytes > file_bytes:  # directories that lie in one another
                raise ValueError("the chain of its pages is damaged")
            entries = stream.read(count * entry_bytes)
            values = _read_tags(entries, entry, offset_bytes, file_bytes)
            missing = [name for tag, name in NEEDED.items() if tag not in values]
            if missing:
                raise ValueError(f"its tag {missing[0]} is missing")
            sizes.append((values[257], values[256]))
    return sizes


def _read_tags(data: bytes, entry: str, inline: int, size: int) -> dict[int, int]:
    """Return the tags that decide what the pixels are, each with its value or the place of that.

    Args:
        entry: how a tag is stored, for `struct`.
        inline: so many bytes stand in the tag itself.
        size: of the file.

    Raises:
        ValueError: such a tag is damaged.
    """
    values: dict[int, int] = {}
    for tag, kind, count, value in struct.iter_unpack(entry, data):
        if tag in OBEYED:
            each_bytes = TAG_BYTES.get(kind, size + 1)
            place = value if each_bytes * count > inline else 0
            if not 0 < each_bytes * count <= size - place or tag in values:
                raise ValueError(f"its tag {tag} is damaged")
            if entry[0] == "<":
                values[tag] = value & ((1 << 8 * each_bytes) - 1)
            else:
                values[tag] = value >> 8 * (inline - each_bytes)
    return values


def _check_ome(path: Path, description: str, sizes: list[tuple[int, int]]) -> None:
    """Refuse an OME description of far more than there is; each plane would be listed.

    Args:
        sizes: height and width of each directory.

    Raises:
        InputError: it states too many images or planes, or images of another size.
    """
    numbers = re.findall(r'\b(?:Size[ZCT]|PlaneCount|First[ZCT]|IFD)\s*=\s*"\s*(\d+)', description)
    images = re.findall(r"<(?:\w+:)?Pixels\b[^>]*", description)
    planes = [re.findall(r'\bSize[ZCT]\s*=\s*"\s*(\d+)', image) for image in images]
    stated = [len(number) > 7 or int(number) > LARGEST_PAGES for number in numbers]
    if any(stated) or any(math.prod(map(int, sizes)) > LARGEST_PAGES for sizes in planes):
        raise InputError(f"{path}: its ome description states too many planes; replace the file")
    if len(planes) > len(sizes):
        raise InputError(
            f"{path}: its ome description is of {len(planes)} images, and it holds {len(sizes)} "
            "pages; store it as one whole file"
        )
    for side, known in (("Y", {size[0] for size in sizes}), ("X", {size[1] for size in sizes})):
        for number in re.findall(rf'\bSize{side}\s*=\s*"\s*(\d+)', " ".join(images)):
            if len(number) > 10 or int(number) not in known:
                raise InputError(
                    f"{path}: its ome description states {number[:20]} pixels along {side}, which "
                    "no page of it has; store it as one whole file"
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
    starts = {len(file.pages), *(series.keyframe.index for series in file.series)}
    directories = 0
    for series in file.series:
        if series.kind != kind:
            raise InputError(
                f"{path}: its {kind} description does not fit its pages, or parts lie in other "
                "files; store it as one whole file"
            )
        keyframe = series.keyframe
        if isinstance(keyframe.index, tuple):
            continue  # a smaller copy
        shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
        check_axes(path, axes, shape)
        inner = _count_outer_axes(path, keyframe, shape, axes)
        planes = math.prod(shape[:inner])
        if kind == "imagej":
            _check_imagej(path, file, planes * keyframe.samplesperpixel)
        if is_row := len(file.pages) - keyframe.index < planes:
            if keyframe.index + 1 not in starts:
                raise _describe_missing(path, kind, planes, len(file.pages))
            directories += 1
        else:
            directories += planes
        if keyframe.is_reduced:
            continue  # a smaller copy
        if is_row:
            yield from _list_row(path, keyframe, shape, axes)
            continue
        pages = [series[number] for number in range(planes)]
        yield from _list_planes(path, keyframe, pages, shape, axes, inner)
    if kind != "ome" and directories != len(file.pages):
        raise _describe_missing(path, kind, directories, len(file.pages))


def _check_imagej(path: Path, file: tifffile.TiffFile, planes: int) -> None:
    """Refuse an ImageJ description of more images than there are.

    Raises:
        InputError: it names both numbers.
    """
    stated = (file.imagej_metadata or {}).get("images", 1)
    if stated > planes:
        raise _describe_missing(path, "imagej", stated, planes)


def _describe_missing(path: Path, kind: str, stated: int, directories: int) -> InputError:
    """Return what is wrong where a description is of another number of pages than there are."""
    return InputError(
        f"{path}: its {kind} description is of {stated:,} pages, and {directories:,} are in it; "
        "store it as one whole file"
    )


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
    directories, starts = [], []
    for page in pages:
        if page is None:
            raise InputError(f"{path}: a plane is missing; store it as one whole file")
        _check_stored(path, keyframe, page)
        directories.append(page.offset)
        starts.append(page.dataoffsets[0])
    header = _make_header(path, keyframe, image_shape(axes, shape))
    dtype = _read_dtype(keyframe) if all(map(_is_in_one_piece, pages)) else None
    outer_shape, outer_axes = shape[:inner], axes[:inner]
    numbers = np.arange(len(pages)).reshape(outer_shape)
    channels = [size for axis, size in zip(outer_axes, outer_shape, strict=True) if axis in "CS"]
    # what a group of directories holds: its channels, then the axes inside
    group_shape = (*channels, *shape[inner:])
    group_axes = "".join(axis for axis in outer_axes if axis in "CS") + axes[inner:]
    for group in range(math.prod(outer_shape) // math.prod(channels)):
        chosen = numbers[locate_page(outer_axes, outer_shape, group)].ravel()
        offsets = tuple(directories[number] for number in chosen)
        data = tuple(starts[number] for number in chosen) if dtype is not None else ()
        for index in range(count_pages(group_axes, group_shape)):
            yield _Place(header, offsets, group_shape, group_axes, index, dtype, data)


def _is_in_one_piece(page: "tifffile.TiffPage | tifffile.TiffFrame | None") -> bool:
    """Return whether the samples of a directory are stored as they are, one behind the other."""
    if page is None or not page.is_final:
        return False
    starts, counts = page.dataoffsets, page.databytecounts
    ends = (start + count for start, count in zip(starts, counts, strict=True))
    return all(end == start for end, start in zip(ends, starts[1:], strict=False))


def _read_dtype(page: tifffile.TiffPage) -> np.dtype:
    """Return the type of the samples as they are stored, with their byte order."""
    return np.dtype(page.dtype).newbyteorder(page.parent.byteorder)


def _list_row(
    path: Path, page: tifffile.TiffPage, shape: tuple[int, ...], axes: str
) -> Iterator[_Place]:
    """List images that lie in a row, described by one directory; ImageJ writes large stacks so.

    Raises:
        InputError: they are compressed, or the file ends early.
    """
    if page.dtype is None or not page.is_final:
        raise InputError(f"{path}: one directory describes many images; store it page by page")
    offset = page.dataoffsets[0]
    if offset + math.prod(shape) * page.dtype.itemsize > page.parent.filehandle.size:
        raise InputError(f"{path}: not a whole image (it ends early); replace the file")
    header = _make_header(path, page, image_shape(axes, shape))
    dtype, count = _read_dtype(page), count_pages(axes, shape)
    inner = min(axes.find(axis) for axis in "YXCS" if axis in axes)
    if count_pages(axes[inner:], shape[inner:]) > 1:  # the images lie among one another
        for index in range(count):
            yield _Place(header, (page.offset,), shape, axes, index, dtype, (offset,))
        return
    image_bytes = math.prod(shape[inner:]) * dtype.itemsize
    for index in range(count):
        data = (offset + index * image_bytes,)
        yield _Place(header, (page.offset,), shape[inner:], axes[inner:], 0, dtype, data)


def _check_stored(
    path: Path, keyframe: tifffile.TiffPage, page: "tifffile.TiffPage | tifffile.TiffFrame"
) -> None:
    """Refuse a page whose data are not all in the file.

    Raises:
        InputError: it is not whole.
    """
    bits = keyframe.bitspersample
    if keyframe.compression not in COMPRESSIONS:
        raise InputError(
            f"{path}: compression {keyframe.compression!s} is not read; store it with LZW, Deflate "
            "or none"
        )
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
