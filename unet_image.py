"""Image files: read into arrays, and pictures of what a net saw in them."""

from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from unet_spec import InputError
from unet_spec.files import atomic_write
from unet_spec.safetensors_file import refuse_pointer

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

# class 0 black and class 1 white, then the ten colours of matplotlib's tab10
PALETTE = np.array(
    [(0, 0, 0), (255, 255, 255), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40),
     (148, 103, 189), (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34),
     (23, 190, 207)], np.uint8
)  # fmt: skip
PREDICTED = (255, 95, 31)
TRUE = (0, 200, 255)


def read_pages(path: Path, *, indices: bool = False) -> list[np.ndarray]:
    """Read the images of a file: the one of a PNG or JPEG, each page of a TIFF stack.

    Args:
        indices: keep the indices of a palette PNG (a mask), in place of its colours.

    Returns:
        (h, w) or (h, w, c) arrays in the file's own integer or float type.

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


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder by name; for a file, the file itself.

    Raises:
        InputError: no such file or folder, or none in it.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such file or folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return files


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of (h, w, 3) bytes."""
    with atomic_write(path) as stream:
        Image.fromarray(pixels).save(stream, format="png")


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a palette PNG of (h, w) class indices, with a colour for each class."""
    if mask.dtype != np.uint8:
        raise InputError(f"{path}: PNG palettes hold 256 classes, the mask is {mask.dtype}")
    image = Image.fromarray(mask)
    colours = np.concatenate([PALETTE, np.resize(PALETTE[2:], (256 - len(PALETTE), 3))])
    image.putpalette(colours.tobytes())
    with atomic_write(path) as stream:
        image.save(stream, format="png")


def overlay(image: np.ndarray, predicted: np.ndarray, true: np.ndarray | None = None) -> np.ndarray:
    """Draw the outlines of the predicted (orange) and true (blue) regions on an image.

    Returns:
        (h, w, 3) bytes.
    """
    picture = make_visible(image)
    if true is not None:
        picture[outline(true)] = TRUE
    picture[outline(predicted)] = PREDICTED
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """Find the pixels of a class other than 0 next to a pixel of another class: (h, w) bools."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([mask != other for other in neighbours], axis=0)


def make_visible(image: np.ndarray) -> np.ndarray:
    """Stretch an image so that all but its darkest and brightest half percent can be seen.

    Returns:
        (h, w, 3) bytes.
    """
    colours = image[..., None] if image.ndim == 2 else image
    colours = colours[..., :3] if colours.shape[-1] >= 3 else colours[..., :1].repeat(3, -1)
    low, high = np.percentile(colours, (0.5, 99.5))
    scaled = (colours.astype(np.float32) - low) / (high - low if high > low else 1)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


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
