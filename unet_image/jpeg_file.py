"""JPEG files."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import JpegImagePlugin

from unet_image.header import Header, read_orientation
from unet_spec import InputError

START, END_OF_HEADERS = b"\xff\xd8", 0xDA
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
"""Markers that state the size."""
DECODED = (0xDB, 0xC4, 0xCC, 0xDD, *FRAMES)
"""Markers of the tables and the size, which a decoder needs."""
JFIF, EXIF, ADOBE = 0xE0, 0xE1, 0xEE
SHAPES: dict[int, tuple[int, ...]] = {1: (), 3: (3,), 4: (4,)}
"""What stands after height and width, by the number of components."""
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
"""Of the markers of the size, those of a JPEG in which a scan of few bytes may be of all pixels."""
MOST_SCANS = 500
"""Programs write about ten; each is a walk over all pixels: 500 over 75,000,000 take 2 s."""
END_OF_IMAGE = 0xD9
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Among pixels, 0xFF stands before 0 and before restarts too, which are none."""


@dataclass(frozen=True)
class _Start:
    """A `_Start` is what stands before the pixels of a JPEG.

    Attributes:
        marker, frame: those of the segment that states the size.
        exif: the first segment of EXIF data, or nothing.
        decoded: all that a decoder needs.
    """

    marker: int
    frame: bytes
    exif: bytes
    decoded: bytes


def measure(path: Path) -> list[Header]:
    """Measure the image of a JPEG. Of several in one file, as telephones write, it is the first.

    Raises:
        ValueError: it is damaged, or is not decoded.
    """
    with path.open("rb") as stream:
        start = _read_start(stream)
    bits, components = start.frame[0], start.frame[5]
    if bits != 8 or components not in SHAPES:
        raise InputError(
            f"{path}: a JPEG of {components} components of {bits} bits is not read; store it as "
            "PNG or TIFF"
        )
    header = Header(
        shape=(
            int.from_bytes(start.frame[1:3], "big"),
            int.from_bytes(start.frame[3:5], "big"),
            *SHAPES[components],
        ),
        dtype=np.dtype(np.uint8),
        is_cmyk=components == 4,
        orientation=read_orientation(start.exif),
    )
    return [header]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples.

    Raises:
        ValueError, OSError: it is not whole, or takes too long to decode.
    """
    with path.open("rb") as stream:
        start = _read_start(stream)
        pixels = stream.read()
    if start.marker in PROGRESSIVE:
        _check_scans(pixels)
    # texts, profiles and other images are left out: a decoder has ways of its own with them
    with JpegImagePlugin.JpegImageFile(io.BytesIO(start.decoded + pixels)) as image:
        return np.array(image)


def read_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG that lies in another file.

    Raises:
        ValueError: it is damaged, or takes too long to decode.
    """
    stream = io.BytesIO(data)
    if stream.read(2) != START:
        raise ValueError("a part of it is no JPEG")
    start = _read_start(stream)
    if start.marker in PROGRESSIVE:
        _check_scans(stream.read())
    return int.from_bytes(start.frame[1:3], "big"), int.from_bytes(start.frame[3:5], "big")


def _check_scans(pixels: bytes) -> None:
    """Refuse more scans than `MOST_SCANS`.

    Args:
        pixels: all behind the header of the first one.

    Raises:
        ValueError: there are more.
    """
    scans, place = 1, 0
    while match := MARKER.search(pixels, place):
        marker, place = match[0][1], match.end()
        if marker == END_OF_IMAGE:
            break
        scans += marker == END_OF_HEADERS
        if scans > MOST_SCANS:
            raise ValueError(f"more than {MOST_SCANS} scans")
        place += max(2, int.from_bytes(pixels[place : place + 2], "big"))


def _read_start(stream: BinaryIO) -> _Start:
    """Read the segments up to the pixels; the stream is behind them then.

    Raises:
        ValueError: they are damaged.
    """
    frame_marker, frame, exif = 0, b"", b""
    parts, has_jfif = [START], False
    stream.seek(len(START))
    while True:
        marker = _read_marker(stream)
        size = stream.read(2)
        length = int.from_bytes(size, "big") - 2
        if length < 0:
            raise ValueError("a segment is damaged")
        is_decoded = marker in DECODED or marker in (ADOBE, END_OF_HEADERS)
        if marker == JFIF and not has_jfif:
            is_decoded = has_jfif = True
        if not is_decoded and (marker != EXIF or exif):
            stream.seek(length, 1)
            continue
        content = stream.read(length)
        if len(content) < length:
            raise ValueError("it ends early")
        if is_decoded:
            parts.append(bytes([0xFF, marker]) + size + content)
        if marker == EXIF and content.startswith(b"Exif\0\0"):
            exif = content
        if marker in FRAMES:
            if frame or length < 6:
                raise ValueError("it states its size twice, or not as a whole")
            frame_marker, frame = marker, content
        if marker == END_OF_HEADERS:
            break
    if not frame:
        raise ValueError("it states no size")
    return _Start(frame_marker, frame, exif, b"".join(parts))


def _read_marker(stream: BinaryIO) -> int:
    """Read a marker, before which there may be any number of bytes 0xFF.

    Raises:
        ValueError: there is something else.
    """
    start = stream.read(2)
    while start == b"\xff\xff":
        block = stream.read(1 << 16)
        rest = block.lstrip(b"\xff")
        if rest:
            stream.seek(-len(rest), 1)
            return _check_marker(stream.read(1)[0])
        start = b"\xff\xff" if block else b""
    if len(start) < 2 or start[0] != 0xFF:
        raise ValueError("it ends early, or its segments are damaged")
    return _check_marker(start[1])


def _check_marker(marker: int) -> int:
    if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # without a content, or the end
        raise ValueError("its segments are damaged")
    return marker
