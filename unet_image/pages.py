"""The pages of an image file: measured without decoding, and read one by one."""

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from unet_spec import InputError
from unet_spec.safetensors_file import refuse_pointer


@dataclass(frozen=True)
class Page:
    """A `Page` is one image in a file, measured and not decoded.

    Attributes:
        index, count: its number in the file, from 0 on, and how many pages that has.
        shape: (h, w) or (h, w, c) as it is read, with an alpha channel where the file has one.
        dtype: as it is read.
        has_alpha: the file calls the last channel alpha.
        is_turned: the file names an orientation, by which the pixels are turned in reading.
    """

    path: Path
    index: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype
    has_alpha: bool = False
    is_turned: bool = False

    @property
    def name(self) -> str:
        """Return the name of the file, with the number of the page where it has several."""
        return f"{self.path.name}[{self.index}]" if self.count > 1 else self.path.name

    @property
    def place(self) -> str:
        """Return the path of the file, with the number of the page where it has several."""
        return str(self.path.with_name(self.name))


def measure_pages(path: Path) -> list[Page]:
    """Measure the images of a file: the one of a PNG or JPEG, each page of a TIFF stack.

    Raises:
        InputError: missing, empty, a Git-LFS pointer, or not an image.
    """
    arrays = _read_all(path, indices=False)
    return [
        Page(path, index, len(arrays), array.shape, array.dtype)
        for index, array in enumerate(arrays)
    ]


def read_page(page: Page, *, indices: bool = False, alpha: bool = False) -> np.ndarray:
    """Read one image of a file.

    Args:
        indices: keep the indices of a palette (a mask), in place of its colours.
        alpha: keep the channel that the file calls alpha; otherwise it is left out.

    Returns:
        (h, w) or (h, w, c) in the file's own integer or float type.

    Raises:
        InputError: missing, truncated, or other than it was measured.
    """
    pixels = _read_all(page.path, indices=indices)[page.index]
    if page.has_alpha and not alpha:
        return pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :-1]
    return pixels


def read_pages(path: Path, *, indices: bool = False) -> list[np.ndarray]:
    """Read all images of a file, as `read_page` does.

    Raises:
        InputError: missing, empty, truncated, a Git-LFS pointer, or not an image.
    """
    return [read_page(page, indices=indices) for page in measure_pages(path)]


def _read_all(path: Path, *, indices: bool) -> list[np.ndarray]:
    """Read the images of a file: the one of a PNG or JPEG, each page of a TIFF stack.

    Raises:
        InputError: missing, empty, truncated, a Git-LFS pointer, or not an image.
    """
    refuse_pointer(path)
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path)
        with Image.open(path) as image:
            if _is_16_bit_colour(image):  # Pillow would cut it to 8
                return [imagecodecs.png_decode(path.read_bytes())]
            return [_read_pillow(image, indices=indices)]
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image that can be read; replace the file") from error
    except Exception as error:  # decoders raise what they like: DeflateError, IndexError, ...
        reason = " ".join(str(error).replace(str(path), "the file").split())
        raise InputError(f"{path}: not a whole image ({reason}); replace the file") from error


def _is_16_bit_colour(image: Image.Image) -> bool:
    coded = {str(tile.args) for tile in getattr(image, "tile", ())}
    return image.format == "PNG" and bool(coded & {"RGB;16B", "RGBA;16B", "LA;16B"})


def _read_pillow(image: Image.Image, *, indices: bool) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and not indices:
        image = image.convert("RGB")
    if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _read_tiff(path: Path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as file:  # pages that were written one by one are a series each
        return [page for series in file.series for page in _split_pages(series)]


def _split_pages(series: tifffile.TiffPageSeries) -> list[np.ndarray]:
    pixels, axes = series.asarray(), series.axes
    for channel in ("S", "C"):
        if channel in axes:
            pixels = np.moveaxis(pixels, axes.index(channel), -1)
            axes = axes.replace(channel, "") + channel
            break
    page = pixels.ndim - axes.index("Y")
    pixels = pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
    return list(pixels.reshape(-1, *pixels.shape[-page:]))
