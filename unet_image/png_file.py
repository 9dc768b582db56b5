"""PNG files."""

import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import PngImagePlugin

from unet_image.header import Header, make_palette, read_orientation
from unet_image.limits import DEFLATE, check_content, check_frames
from unet_image.quiet import silence_errors

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""How many samples a pixel has, by the type of colour."""
BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""How many bits a sample may have, by the type of colour."""
GRAY, RGB, INDEXED = 0, 2, 3
DECODED = (b"IHDR", b"PLTE", b"IEND")
"""The chunks that a decoder gets as they are."""
NO_PASSES = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
"""The first row, the first column and the steps between both of each pass of an interlaced PNG."""
OURS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL")
"""The chunks that are obeyed besides the pixels."""


@dataclass(frozen=True)
class _Chunks:
    """The chunks of a PNG that are obeyed, and the number of bytes in those of the pixels."""

    content: dict[bytes, bytes]
    pixel_bytes: int


def measure(path: Path) -> list[Header]:
    """Measure the image of a PNG by its chunks.

    Raises:
        InputError: an animation, or not whole.
    """
    with path.open("rb") as stream:
        return [_make_header(path, _walk(stream, path.stat().st_size))]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples.

    Raises:
        ValueError, OSError: it is not whole.
    """
    data = path.read_bytes()
    plain = _copy_pixels(data, header)
    bits, colour = data[24], data[25]
    if bits == 16 and colour != GRAY:  # Pillow would cut it to 8
        with silence_errors():  # libpng prints warnings
            return imagecodecs.png_decode(plain)
    with PngImagePlugin.PngImageFile(io.BytesIO(plain)) as image:
        stored = np.array(image)
    if stored.dtype == np.bool_:
        return stored.astype(np.uint8)
    if colour == GRAY and header.largest:  # Pillow has scaled it
        return stored // np.uint8(255 // header.largest)
    return stored


def read_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a PNG that lies in another file.

    Raises:
        ValueError: it is none.
    """
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError("a part of it is no PNG")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _walk(stream: BinaryIO, size: int) -> _Chunks:
    """Read the chunks that are obeyed, and pass over the others.

    Raises:
        ValueError: the file ends early, or its chunks are damaged.
    """
    content: dict[bytes, bytes] = {}
    pixel_bytes, place = 0, len(SIGNATURE)
    while b"IEND" not in content:
        stream.seek(place)
        start = stream.read(8)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        place += 12 + length
        if len(start) < 8 or place > size:
            raise ValueError("it ends early")
        if kind == b"IDAT":
            pixel_bytes += length
        elif kind == b"IEND" or (kind in OURS and kind not in content):
            content[kind] = stream.read(length)
    return _Chunks(content, pixel_bytes)


def _copy_pixels(data: bytes, header: Header) -> bytes:
    """Return a PNG without anything but its pixels, which are not compressed, and their palette.

    A decoder has limits on texts and profiles, obeys transparency in a way of its own, and does
    not say whether the compressed data are whole.

    Raises:
        ValueError: the file ends early, a checksum is not right, or there are other rows.
    """
    view, parts, pixels = memoryview(data), [SIGNATURE], list[memoryview]()
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 :][:4])
        end = place + 12 + length
        if end > len(view):
            raise ValueError("it ends early")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError("a checksum is not right")
        if kind == b"IDAT":
            pixels.append(view[place + 8 : end - 4])
        elif kind == b"IEND":
            parts.append(_pack(b"IDAT", zlib.compress(_inflate(b"".join(pixels), data, header), 0)))
        elif not kind[0] & 32 and kind not in DECODED:
            # without which, says the file, it is not read rightly
            raise ValueError(f"a part {kind!r} that no PNG has")
        if kind in DECODED:
            parts.append(bytes(view[place:end]))
        place = end
    return b"".join(parts)


def _inflate(packed: bytes, data: bytes, header: Header) -> bytes | bytearray:
    """Return the rows of a PNG, each behind the number of its filter.

    Raises:
        ValueError: rows are missing, or there are more; a checksum is not right.
    """
    height, width = header.shape[:2]
    pixel_bits = data[24] * (header.shape[2] if len(header.shape) == 3 else 1)
    size = 0
    for row, column, down, right in ADAM7 if data[28] else NO_PASSES:
        rows, columns = len(range(row, height, down)), len(range(column, width, right))
        if columns:
            size += rows * (1 + -(-columns * pixel_bits // 8))
    try:
        rows_of_bytes = imagecodecs.deflate_decode(packed, out=size)
    except imagecodecs.DeflateError as error:
        raise ValueError("its pixels are damaged, or are more than its header states") from error
    if len(rows_of_bytes) < size:
        raise ValueError("rows are missing")
    return rows_of_bytes


def _pack(kind: bytes, content: bytes) -> bytes:
    """Return a chunk."""
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join([len(content).to_bytes(4, "big"), kind, content, checksum.to_bytes(4, "big")])


def _make_header(path: Path, chunks: _Chunks) -> Header:
    content = chunks.content
    start = content.get(b"IHDR", b"")
    if len(start) != 13:
        raise ValueError("it has no header")
    width, height = int.from_bytes(start[:4], "big"), int.from_bytes(start[4:8], "big")
    bits, colour = start[8], start[9]
    if bits not in BITS.get(colour, ()) or start[10] or start[11] or start[12] > 1:
        raise ValueError(f"{bits} bits of colour type {colour}, stored by {start[10:].hex()}")
    check_frames(path, int.from_bytes(content.get(b"acTL", b"")[:4], "big"))
    samples = SAMPLES[colour]
    header = Header(
        shape=(height, width) if samples == 1 else (height, width, samples),
        dtype=np.dtype(np.uint16 if bits == 16 else np.uint8),
        largest=2**bits - 1 if bits < 8 and colour == GRAY else None,
        has_alpha=samples in (2, 4),
        orientation=read_orientation(content.get(b"eXIf", b"")),
    )
    header = _add_transparency(header, content, colour)
    check_content(
        path, stored=chunks.pixel_bytes, decoded=height * width * samples * bits / 8, factor=DEFLATE
    )
    return header


def _add_transparency(header: Header, content: dict[bytes, bytes], colour: int) -> Header:
    """Return a header with the palette and the transparent colours that the chunks state."""
    clear = content.get(b"tRNS")
    if colour == INDEXED:
        colours = np.frombuffer(content.get(b"PLTE", b""), np.uint8).reshape(-1, 3)
        if not len(colours):
            raise ValueError("it has no palette")
        alpha = None
        if clear is not None:
            alpha = np.full(len(colours), 255, np.uint8)
            alpha[: len(clear)] = np.frombuffer(clear, np.uint8)[: len(colours)]
        palette = make_palette(colours, alpha)
        return replace(header, palette=palette, has_alpha=clear is not None)
    if clear is not None and colour in (GRAY, RGB):
        samples = tuple(np.frombuffer(clear, ">u2").tolist())
        if len(samples) != SAMPLES[colour]:
            raise ValueError("its transparent colour is damaged")
        return replace(header, transparent=samples, has_alpha=True)
    return header
