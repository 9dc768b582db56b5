"""WebP files of one frame."""

from pathlib import Path

import numpy as np
from PIL import WebPImagePlugin

from unet_image.header import Header, read_orientation
from unet_image.limits import check_frames, check_size


def measure(path: Path) -> list[Header]:
    """Measure the image of a WebP.

    Raises:
        InputError: too large, or an animation.
    """
    with path.open("rb") as stream:
        height, width = _read_size(stream.read(30), path.stat().st_size)
        check_size(path, (height, width, 4), np.dtype(np.uint8))  # before a canvas is allocated
        stream.seek(0)
        with WebPImagePlugin.WebPImageFile(stream) as image:
            check_frames(path, image.n_frames)
            channels = len(image.getbands())
            header = Header(
                shape=(image.height, image.width, channels),
                dtype=np.dtype(np.uint8),
                has_alpha=channels == 4,
                orientation=read_orientation(image.info.get("exif", b"")),
            )
    return [header.check(path)]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples.

    Raises:
        OSError: it is not whole.
    """
    with path.open("rb") as stream, WebPImagePlugin.WebPImageFile(stream) as image:
        return np.array(image)


def _read_size(start: bytes, size: int) -> tuple[int, int]:
    """Return the height and width that the first 30 bytes of a WebP state.

    Args:
        size: of the file in bytes.

    Raises:
        ValueError: the file ends early, or is damaged.
    """
    if len(start) < 30 or int.from_bytes(start[4:8], "little") + 8 > size:
        raise ValueError("it ends early")
    kind = start[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(start[i : i + 3], "little") + 1 for i in (24, 27))
    elif kind == b"VP8L":
        sides = int.from_bytes(start[21:25], "little")
        width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(start[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    else:
        raise ValueError(f"it begins with {kind!r}")
    return height, width
