"""Sizes that a file may state, checked before anything is allocated."""

import math
from pathlib import Path

import numpy as np

from unet_spec import InputError

MOST_BYTES = 10**12
"""No computer reads an image of more bytes, so no larger bound is advised."""
LARGEST_PAGES = 1_000_000
"""A file has at most so many pages, because each one is listed."""

DEFLATE, LZW, PACKBITS = 1032, 2560, 64
"""A byte of compressed data becomes at most so many: 258 bytes from 2 bits; 3839 bytes, the longest
entry of a full table, from 12 bits; 128 bytes from 2 bytes."""


class TooLargeError(InputError):
    """A `TooLargeError` is raised where an image takes more memory than it may.

    Attributes:
        reason: what is too large, without what to do about it.
        needed_gb: with this bound it is read, in GB.
    """

    def __init__(self, reason: str, needed_gb: float):
        self.reason, self.needed_gb = reason, needed_gb
        super().__init__(f"{reason}; cut it into smaller ones")

    def __reduce__(self) -> tuple[type, tuple[str, float]]:
        """Cross the border of a process whole."""
        return TooLargeError, (self.reason, self.needed_gb)


def check_size(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    largest_gb: float,
    what: str = "an image",
) -> None:
    """Refuse an image, or a block of stored data, that is empty or too large.

    Args:
        largest_gb: GB that it may take as float32, or in its own type where that is wider.

    Raises:
        InputError: it is empty.
        TooLargeError: it names the shape and the largest size.
    """
    size = " x ".join(f"{side:,}" for side in shape)
    if min(shape) < 1:
        raise InputError(f"{path}: {what} of {size} values is empty; replace the file")
    value_bytes = max(dtype.itemsize, 4)
    needed_bytes = math.prod(shape) * value_bytes
    if needed_bytes > largest_gb * 1e9:
        most = int(largest_gb * 1e9) // value_bytes
        reason = f"{path}: {what} of {size} values is too large, at most {most:,} are read"
        if needed_bytes > MOST_BYTES:
            raise InputError(f"{reason}; replace the file, or cut it into smaller ones")
        raise TooLargeError(reason, _round_up(needed_bytes / 1e9))


def _round_up(value: float) -> float:
    """Return the next number of two digits."""
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return rounded if rounded >= value else round(rounded + 10.0**-digits, digits)


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


def check_count(path: Path, count: int, most: int = LARGEST_PAGES) -> None:
    """Refuse a file without pages, or with more than are read.

    Raises:
        InputError: it names the number.
    """
    if count < 1:
        raise InputError(f"{path}: holds no image; replace the file")
    if count > most:
        raise InputError(
            f"{path}: {count:,} pages are too many, at most {most:,} are read; cut it "
            "into smaller files"
        )
