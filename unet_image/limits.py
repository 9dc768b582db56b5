"""Sizes that a file may state, checked before anything is allocated."""

import math
from pathlib import Path

import numpy as np

from unet_spec import InputError

LARGEST_BYTES = 1 << 30
"""An image takes at most 1 GiB as float32, or in its own type where that is wider.

The net's input is float32 and an image becomes it as a whole, a few times over, so a computer of
8 GB can use an image of this size. It is one of 16,384 x 16,384 pixels in gray.
"""
LARGEST_PAGES = 1_000_000
"""A file has at most so many pages, because each one is listed."""

DEFLATE, LZW, PACKBITS = 1032, 2560, 64
"""A byte of compressed data becomes at most so many: 258 bytes from 2 bits; 3839 bytes, the longest
entry of a full table, from 12 bits; 128 bytes from 2 bytes."""


def check_size(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, *, what: str = "an image"
) -> None:
    """Refuse an image, or a block of stored data, that is empty or larger than `LARGEST_BYTES`.

    Raises:
        InputError: it names the shape and the largest size.
    """
    size = " x ".join(f"{side:,}" for side in shape)
    if min(shape) < 1:
        raise InputError(f"{path}: {what} of {size} values is empty; replace the file")
    if math.prod(shape) * max(dtype.itemsize, 4) > LARGEST_BYTES:
        values = LARGEST_BYTES // max(dtype.itemsize, 4)
        raise InputError(
            f"{path}: {what} of {size} values is too large, at most {values:,} are read; cut it "
            "into smaller ones"
        )


def check_content(path: Path, *, stored: int, decoded: float, factor: int) -> None:
    """Refuse an image that is larger than what its file can hold.

    Args:
        stored, decoded: bytes in the file, and bytes of the image that they become.
        factor: the most bytes that one becomes.

    Raises:
        InputError: it is not whole.
    """
    if decoded > stored * factor:
        raise InputError(
            f"{path}: not a whole image (its {stored:,} bytes of pixels cannot hold the "
            f"{math.ceil(decoded):,} that its header states); replace the file"
        )


def check_frames(path: Path, count: int) -> None:
    """Refuse an animation, whose frames are drawn over one another.

    Raises:
        InputError: it has more than one frame.
    """
    if count > 1:
        raise InputError(f"{path}: an animation; store each of its frames as a file of its own")


def check_count(path: Path, count: int) -> None:
    """Refuse a file without pages, or with more than `LARGEST_PAGES`.

    Raises:
        InputError: it names the number.
    """
    if count < 1:
        raise InputError(f"{path}: holds no image; replace the file")
    if count > LARGEST_PAGES:
        raise InputError(
            f"{path}: {count:,} pages are too many, at most {LARGEST_PAGES:,} are read; cut it "
            "into smaller files"
        )
