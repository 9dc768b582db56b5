"""JPEG files."""

from pathlib import Path

import numpy as np
from PIL import JpegImagePlugin

from unet_image.header import Header, read_orientation

CHANNELS: dict[str, tuple[int, ...]] = {"L": (), "RGB": (3,), "CMYK": (4,)}


def measure(path: Path) -> list[Header]:
    """Measure the image of a JPEG. Of several in one file, as telephones write, it is the first."""
    with path.open("rb") as stream, JpegImagePlugin.JpegImageFile(stream) as image:
        header = Header(
            shape=(image.height, image.width, *CHANNELS[image.mode]),
            dtype=np.dtype(np.uint8),
            is_cmyk=image.mode == "CMYK",
            orientation=read_orientation(image.info.get("exif", b"")),
        )
    return [header]


def read(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples.

    Raises:
        OSError: it is not whole.
    """
    with path.open("rb") as stream, JpegImagePlugin.JpegImageFile(stream) as image:
        return np.array(image)
