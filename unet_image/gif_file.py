"""GIF files of one frame."""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import GifImagePlugin

from unet_image.header import Header, make_palette
from unet_image.limits import LZW, check_content, check_frames
from unet_spec import InputError


def measure(path: Path) -> list[Header]:
    """Measure the image of a GIF by its blocks.

    Raises:
        InputError: an animation, a frame of another size than the image, or not whole.
    """
    start, frame, clear = _walk(path)
    width, height = np.frombuffer(start[6:10], "<u2").tolist()
    own_palette = frame[10 : 10 + _count_palette_bytes(frame[9])]
    colours = np.frombuffer(own_palette or start[13:], np.uint8).reshape(-1, 3)
    if not len(colours):
        raise ValueError("it has no palette")
    alpha = None if clear is None else np.where(np.arange(len(colours)) == clear, 0, 255)
    palette, has_alpha = make_palette(colours, alpha), alpha is not None
    header = Header((height, width), np.dtype(np.uint8), palette=palette, has_alpha=has_alpha)
    if frame[1:9] != bytes(4) + start[6:10]:  # left, top, width and height
        raise InputError(
            f"{path}: its frame is not as large as the image, {height} x {width} pixels; store the "
            "whole image, for instance as PNG"
        )
    check_content(path, stored=len(frame), decoded=height * width, factor=LZW)
    return [header]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored indices.

    Raises:
        ValueError, OSError: it is not whole.
    """
    start, frame, _ = _walk(path)
    # no extensions: a decoder has limits on them, and obeys transparency in a way of its own
    with GifImagePlugin.GifImageFile(io.BytesIO(start + frame + b";")) as image:
        return np.array(image)


def _walk(path: Path) -> tuple[bytes, bytes, int | None]:
    """Return the start of a GIF with its palette, its frame, and the index that is transparent.

    Raises:
        InputError: an animation.
        ValueError: the file ends early, or is damaged.
    """
    frame, clear = b"", None
    with path.open("rb") as stream:
        start = _read(stream, 13)
        start += _read(stream, _count_palette_bytes(start[10]))
        while (kind := stream.read(1)) not in (b"", b";"):
            if kind == b",":
                check_frames(path, 2 if frame else 1)
                frame = kind + _read(stream, 9)
                frame += _read(stream, _count_palette_bytes(frame[9]) + 1) + _read_blocks(stream)
            elif kind == b"!":
                label, blocks = _read(stream, 1), _read_blocks(stream)
                if label == b"\xf9" and blocks[0] == 4 and not frame:
                    clear = blocks[4] if blocks[1] & 1 else None
            else:
                raise ValueError("its blocks are damaged")
    if not frame:
        raise ValueError("it has no frame")
    return start, frame, clear


def _count_palette_bytes(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0


def _read_blocks(stream: BinaryIO) -> bytes:
    """Read a chain of data blocks, each after its size, up to the empty one."""
    size = _read(stream, 1)
    blocks = bytearray(size)
    while size != b"\0":
        blocks += _read(stream, size[0])
        size = _read(stream, 1)
        blocks += size
    return bytes(blocks)


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError("it ends early")
    return data
