"""WebP files of one frame."""

from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np

from unet_image.header import Header, read_orientation
from unet_image.limits import check_frames

ALPHA = 0x10  # a flag of the chunk VP8X
MOST_EXIF_BYTES = 1 << 16  # as in a JPEG; the orientation stands at their beginning


def measure(path: Path) -> list[Header]:
    """Measure the image of a WebP by its chunks.

    Raises:
        InputError: an animation.
        ValueError: the file ends early, or is damaged.
    """
    with path.open("rb") as stream:
        start = stream.read(30)
        height, width, has_alpha = read_start(start)
        end = int.from_bytes(start[4:8], "little") + 8
        if end > path.stat().st_size:
            raise ValueError("it ends early")
        frames, exif = _walk(stream, end)
    check_frames(path, frames)
    header = Header(
        shape=(height, width, 4 if has_alpha else 3),
        dtype=np.dtype(np.uint8),
        has_alpha=has_alpha,
        orientation=read_orientation(exif),
    )
    return [header]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples.

    Raises:
        Exception: whatever the decoder raises for data that are not whole.
    """
    return imagecodecs.webp_decode(path.read_bytes(), hasalpha=header.has_alpha)


def read_start(start: bytes) -> tuple[int, int, bool]:
    """Return the height, the width and whether there is an alpha, by the first 30 bytes.

    Raises:
        ValueError: the file ends early, or is damaged.
    """
    if len(start) < 30:
        raise ValueError("it ends early")
    match start[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(start[i : i + 3], "little") + 1 for i in (24, 27))
            return height, width, bool(start[20] & ALPHA)
        case b"VP8L":
            facts = int.from_bytes(start[21:25], "little")
            return (facts >> 14 & 0x3FFF) + 1, (facts & 0x3FFF) + 1, bool(facts >> 28 & 1)
        case b"VP8 ":
            width, height = (int.from_bytes(start[i : i + 2], "little") & 0x3FFF for i in (26, 28))
            return height, width, False
        case kind:
            raise ValueError(f"it begins with {kind!r}")


def _walk(stream: BinaryIO, end: int) -> tuple[int, bytes]:
    """Return the number of frames of an animation, and the beginning of the EXIF data.

    Raises:
        ValueError: a chunk ends behind the file.
    """
    frames, exif, place = 0, b"", 12
    while place + 8 <= end:
        stream.seek(place)
        start = stream.read(8)
        kind, length = start[:4], int.from_bytes(start[4:], "little")
        place += 8 + length + length % 2
        if place - length % 2 > end:
            raise ValueError("it ends early")
        if kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and not exif:
            exif = stream.read(min(length, MOST_EXIF_BYTES))
    return frames, exif
