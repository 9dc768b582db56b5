"""Images decoded by other code than the project's: what both read must be the same, bit by bit.

PNG and `.npy` are decoded here, by zlib and NumPy, and TIFF and GIF by libtiff and giflib, which
the project does not use. JPEG and WebP, for which everybody has the same code, are read by another
build of it, without Pillow.
"""

import ast
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np

PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""How many samples a pixel has, by the type of colour."""
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
"""First row, first column, and the steps between rows and columns, of each pass of a PNG."""
LARGEST_PNG = 1 << 22  # bytes; the filters of a PNG are undone in Python, which is slow
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
              16: 8, 17: 8, 18: 8}  # fmt: skip
"""Bytes of a value, by its type in a tag."""
MOST_DIRECTORIES = 100


class _NotComparedError(Exception):
    """The file says something that is not decoded here."""


def decode(path: Path) -> list[np.ndarray] | None:
    """Decode all pages of an image file, as `unet_image.read_pages` gives them.

    Returns:
        the pages; none where a checksum or a length of a PNG or a `.npy` says that the file is
        damaged; None where nothing can be compared: the file says something that is not decoded
        here, or the other library refuses it.
    """
    data = path.read_bytes()
    for start, decoder in DECODERS.items():
        if data.startswith(start):
            try:
                return decoder(data)
            except (
                Exception
            ):  # _NotComparedError, and what libraries raise: each has errors of its own
                return None
    return None


def _decode_png(data: bytes) -> list[np.ndarray]:
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while not chunks or chunks[-1][0] != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        content = data[place + 8 : place + 8 + length]
        checksum = data[place + 8 + length : place + 12 + length]
        if len(checksum) < 4 or zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
            return []
        chunks.append((kind, content))
        place += 12 + length
    kinds = [kind for kind, _ in chunks]
    if {b"eXIf", b"acTL", b"CgBI"} & set(kinds) or kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1:
        raise _NotComparedError
    start = chunks[0][1]
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (0, 4))
    bits, colour, compression, filtering, interlace = start[8:13]
    if compression or filtering or interlace > 1:
        raise _NotComparedError
    samples = PNG_SAMPLES[colour]
    if height * width * samples * bits > 8 * LARGEST_PNG:
        raise _NotComparedError
    packed = zlib.decompressobj()
    stream = packed.decompress(b"".join(c for k, c in chunks if k == b"IDAT"), 4 * LARGEST_PNG)
    pixels = np.zeros((height, width, samples), np.uint16 if bits == 16 else np.uint8)
    passes = ADAM7 if interlace else ((0, 0, 1, 1),)
    for row, column, rows, columns in passes:
        part = pixels[row::rows, column::columns]
        if part.size:
            stream = _fill_png_pass(stream, part, bits)
    if not packed.eof:
        return []  # the last four bytes of zlib are its checksum
    if colour == 3:
        palette = np.frombuffer(next(c for k, c in chunks if k == b"PLTE"), np.uint8).reshape(-1, 3)
        return [_squeeze(palette[pixels[..., 0]], is_gray=_is_gray(palette))]
    if bits < 8:
        pixels *= 255 // (2**bits - 1)
    return [_squeeze(pixels[..., :-1] if samples in (2, 4) else pixels)]


def _fill_png_pass(stream: bytes, pixels: np.ndarray, bits: int) -> bytes:
    """Undo the filters of a pass, put its samples into an array, and return what is behind it."""
    height, width, samples = pixels.shape
    length = (width * samples * bits + 7) // 8
    apart = max(1, samples * bits // 8)
    above = bytes(length)
    for y in range(height):
        start = y * (length + 1)
        row = bytearray(stream[start + 1 : start + 1 + length])
        if len(row) < length:
            raise _NotComparedError
        _undo_filter(stream[start], row, above, apart)
        values = np.frombuffer(bytes(row), ">u2" if bits == 16 else np.uint8)
        if bits < 8:
            each = np.unpackbits(values).reshape(-1, bits)
            values = each @ (1 << np.arange(bits)[::-1])
        pixels[y] = values[: width * samples].reshape(width, samples)
        above = bytes(row)
    return stream[height * (length + 1) :]


def _undo_filter(kind: int, row: bytearray, above: bytes, apart: int) -> None:
    if kind > 4:
        raise _NotComparedError
    for i in range(len(row)):
        left = row[i - apart] if i >= apart else 0
        up, corner = above[i], above[i - apart] if i >= apart else 0
        guess = 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        elif kind == 4:
            sum_of_all = left + up - corner
            distances = [abs(sum_of_all - value) for value in (left, up, corner)]
            guess = (left, up, corner)[distances.index(min(distances))]
        row[i] = (row[i] + guess) & 255


def _decode_jpeg(data: bytes) -> list[np.ndarray]:
    if b"Exif\0\0" in data:  # it may be turned
        raise _NotComparedError
    pixels = imagecodecs.jpeg8_decode(data)
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise _NotComparedError
    return [_squeeze(pixels)]


def _decode_gif(data: bytes) -> list[np.ndarray]:
    if not data[10] & 0x80:
        raise _NotComparedError
    palette = np.frombuffer(data[13 : 13 + (6 << (data[10] & 7))], np.uint8).reshape(-1, 3)
    pixels = imagecodecs.gif_decode(data, index=None)
    if pixels.ndim > 3 or pixels.shape[-1] != 3:
        raise _NotComparedError
    return [_squeeze(pixels, is_gray=_is_gray(palette))]


def _decode_webp(data: bytes) -> list[np.ndarray]:
    if data[8:12] != b"WEBP" or (data[12:16] == b"VP8X" and data[20] & 0b1010):
        raise _NotComparedError  # it is an animation, or may be turned
    return [np.ascontiguousarray(imagecodecs.webp_decode(data)[..., :3])]


def _decode_tiff(data: bytes) -> list[np.ndarray]:
    pages, channels = [], 1
    for index, tags in enumerate(_list_directories(data)):
        if tags.get(254, [0])[0] & 0b101:  # a smaller copy, or a transparency mask
            continue
        pixels = imagecodecs.tiff_decode(data, index=index)
        is_planar = tags.get(284, [1])[0] == 2
        is_plain = tags.get(274, [1]) == [1] and 338 not in tags and not is_planar
        if not is_plain or tags.get(258, [1])[0] not in (8, 16, 32, 64):
            raise _NotComparedError
        match tags.get(262, [1])[0]:
            case 1 | 2:
                pages.append(_squeeze(pixels))
            case 3:
                colours = np.array(tags[320]).reshape(3, -1).T
                colours = (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)
                pages.append(_squeeze(colours[pixels], is_gray=_is_gray(colours)))
            case _:
                raise _NotComparedError
        description = bytes(tags.get(270, [])).decode("latin-1")
        if index == 0 and description.startswith("ImageJ="):
            channels = _count_imagej_channels(description)
    if len(pages) % channels:
        raise _NotComparedError
    groups = [pages[first : first + channels] for first in range(0, len(pages), channels)]
    return [np.stack(group, axis=-1) if channels > 1 else group[0] for group in groups]


def _count_imagej_channels(description: str) -> int:
    """Return how many planes in a row are the channels of an image, in a file of ImageJ."""
    found = re.search(r"^channels=(\d+)$", description, re.MULTILINE)
    return int(found[1]) if found else 1


def _list_directories(data: bytes) -> Iterator[dict[int, list[int]]]:
    """Yield the tags of integers and of texts of each directory, by their numbers."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = int(np.frombuffer(data[2:4], order + "u2")[0]) == 43
    wide, entry = (8, 20) if is_big else (4, 12)

    def read(at: int, size: int) -> int:
        return int(np.frombuffer(data[at : at + size], f"{order}u{size}")[0])

    place = read(8 if is_big else 4, wide)
    for _ in range(MOST_DIRECTORIES):
        if place == 0:
            return
        count_size = 8 if is_big else 2
        count = read(place, count_size)
        tags: dict[int, list[int]] = {}
        for at in range(place + count_size, place + count_size + entry * count, entry):
            number, kind, values = read(at, 2), read(at + 2, 2), read(at + 4, wide)
            size = TIFF_SIZES.get(kind, 1)
            if kind not in (1, 2, 3, 4, 16) or values * size > len(data):
                continue
            first = at + entry - wide
            first = first if values * size <= wide else read(first, wide)
            tags[number] = [read(first + size * i, size) for i in range(values)]
        yield tags
        place = read(place + count_size + entry * count, wide)
    raise _NotComparedError


def _decode_npy(data: bytes) -> list[np.ndarray]:
    wide = 2 if data[6] == 1 else 4
    start = 8 + wide + int.from_bytes(data[8 : 8 + wide], "little")
    facts = ast.literal_eval(data[8 + wide : start].decode("latin-1"))
    shape, dtype = facts["shape"], np.dtype(facts["descr"])
    if dtype.kind not in "biuf":
        raise _NotComparedError
    count = math.prod(shape)
    if len(data) < start + count * dtype.itemsize:
        return []
    values = np.frombuffer(data, dtype, count, start)
    array = values.reshape(shape, order="F" if facts["fortran_order"] else "C")
    array = np.ascontiguousarray(array.astype(dtype.newbyteorder("=")))
    if dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    is_page = array.ndim == 2 or (array.ndim == 3 and array.shape[2] <= 4)
    pages = [array] if is_page else list(array)
    return [_squeeze(page) for page in pages]


def _is_gray(palette: np.ndarray) -> bool:
    return bool((palette == palette[:, :1]).all())


def _squeeze(pixels: np.ndarray, *, is_gray: bool = False) -> np.ndarray:
    """Return (h, w) of one channel, or of colours that are all gray."""
    if pixels.ndim == 3 and (is_gray or pixels.shape[2] == 1):
        pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels)


DECODERS: dict[bytes, Callable[[bytes], list[np.ndarray]]] = {
    b"\x89PNG\r\n\x1a\n": _decode_png,
    b"\xff\xd8\xff": _decode_jpeg,
    b"GIF8": _decode_gif,
    b"RIFF": _decode_webp,
    b"II*\0": _decode_tiff,
    b"MM\0*": _decode_tiff,
    b"II+\0": _decode_tiff,
    b"MM\0+": _decode_tiff,
    b"\x93NUMPY": _decode_npy,
}
"""What decodes a file, by its first bytes."""
