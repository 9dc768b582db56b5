"""Pictures of what a net saw: masks, overlays, outlines."""

from pathlib import Path

import numpy as np
from PIL import Image

from unet_spec import InputError
from unet_spec.files import atomic_write

# class 0 black and class 1 white, then the ten colours of matplotlib's tab10
PALETTE = np.array(
    [(0, 0, 0), (255, 255, 255), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40),
     (148, 103, 189), (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34),
     (23, 190, 207)], np.uint8
)  # fmt: skip
STRIP_VALUES = 1 << 20  # that are made visible at once
PREDICTED = (255, 95, 31)
TRUE = (0, 200, 255)


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
    colours = colours[..., : 3 if colours.shape[-1] >= 3 else 1]
    low, high = np.percentile(colours, (0.5, 99.5))
    picture = np.empty((*image.shape[:2], 3), np.uint8)
    rows = max(1, STRIP_VALUES // colours[0].size)
    for start in range(0, len(picture), rows):  # all at once would take 24 bytes a pixel
        strip = colours[start : start + rows].astype(np.float32)
        scaled = (strip - low) / (high - low if high > low else 1)
        picture[start : start + rows] = np.round(255 * scaled.clip(0, 1))
    return picture
