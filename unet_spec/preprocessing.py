"""Preprocessing makes the net's input of an image; how it does travels in the weight file."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unet_spec.errors import FieldError, InputError
from unet_spec.fields import check_types

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Preprocessing:
    """A `Preprocessing` says how an image becomes the net's input, and is put before it.

    It travels in the weight file, so `predict` of both frameworks does as the training did.

    Raises:
        InputError: a field has a value of another type.
    """

    normalize: Literal["image", "range", "none"] = "image"
    """The values are scaled to mean 0 and standard deviation 1 over the whole image (`image`); or
    an integer image is divided by the largest value of its type (`range`); or they stay as they
    are (`none`)."""
    sqrt: bool = False
    """Take the square root of every value first (of a negative one, minus that of its size).
    Counted photons then have the same noise everywhere, which brings out dim objects beside
    bright ones."""
    window_px: int | None = None
    """Predict in square windows of this side in pixels, each shifted by half of it, and average
    their logits with most weight in the middle; the default takes the image as a whole. Group and
    instance norm depend on the mean of what they see, so give such a net windows of the size of
    its training crops."""
    mirror: bool = False
    """Average the logits over the four mirror images, which is a little better and takes 4 times
    as long."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.window_px is not None and self.window_px < 1:
            raise FieldError(self, "window_px", "needs at least 1")


def prepare(image: np.ndarray, *, channels: int, preprocessing: Preprocessing) -> np.ndarray:
    """Return the net's input: float32 (h, w, channels).

    Args:
        image: (h, w) or (h, w, c) with c = 1, 3 or 4 (the fourth, alpha, is dropped); for
            other channel counts, exactly those of the net. Integers, bools or floats.
        channels: of the net. 1 turns colour into luma (BT.601), 3 repeats gray.

    Raises:
        InputError: another shape, or channels that do not fit.
    """
    values = _with_channels(image, channels)
    if not np.isfinite(values).all():
        raise InputError("the image holds NaN or infinite values; mend it before it is used")
    if preprocessing.normalize == "range" and np.issubdtype(image.dtype, np.integer):
        values = values / np.float32(np.iinfo(image.dtype).max)
    if preprocessing.sqrt:
        values = np.sign(values) * np.sqrt(np.abs(values))
    if preprocessing.normalize == "image":
        deviation = values.std(dtype=np.float64)
        centred = values - np.float32(values.mean(dtype=np.float64))
        return centred / np.float32(deviation) if deviation > 0 else centred
    return values


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"an image is (h, w) or (h, w, c), got the shape {image.shape}")
    values = image.astype(np.float32)
    if values.shape[-1] == channels:
        return values
    if values.shape[-1] == 4:
        values = values[..., :3]
    if values.shape[-1] == 2:
        values = values[..., :1]
    count = values.shape[-1]
    if count == channels:
        return values
    if (count, channels) == (3, 1):
        # not `@`, which rounds otherwise on another processor
        red, green, blue = np.moveaxis(values * _LUMA, -1, 0)
        return (red + green + blue)[..., None]
    if (count, channels) == (1, 3):
        return np.repeat(values, 3, axis=-1)
    raise InputError(
        f"the image has {image.shape[-1]} channels and the net takes {channels}; "
        "only gray, RGB and RGBA are turned into one another"
    )
