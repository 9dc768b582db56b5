"""Preprocessing makes the net's input of an image; how it does travels in the weight file."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from unet_spec.errors import InputError
from unet_spec.fields import check_fields
from unet_spec.ranges import MOST_CHANNELS, Range, Side

LARGEST_VALUE = float(np.finfo(np.float32).max) / 2
"""An image holds no value beyond this one, so that no difference of two leaves float32."""

_NUMBERED = f"are numbered from 0 to {MOST_CHANNELS - 1}"
LARGEST_GB = 0.3
"""An image takes at most so many GB as float32, if nothing else is said.

The net's input is float32, and an image becomes it as a whole, so it takes up to three times as
much memory, and the next one is read meanwhile. A camera's 6000 x 4000 pixels in colour fit.
"""

_PART = 1 << 16  # values that are squared at once
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Preprocessing:
    """A `Preprocessing` says how an image becomes the net's input, and is put before it.

    It travels in the weight file, so `predict` of both frameworks does as the training did.

    Raises:
        InputError: a field has a value of another type, or a channel has a number below 0.
    """

    normalize: Literal["image", "range", "none"] = "image"
    """The values are scaled to mean 0 and standard deviation 1 over the whole image (`image`); or
    an integer image is divided by the largest value of its type (`range`); or they stay as they
    are (`none`)."""
    sqrt: bool = False
    """Take the square root of every value first (of a negative one, minus that of its size).
    Counted photons then have the same noise everywhere, which brings out dim objects beside
    bright ones."""
    window_px: Side | None = None
    """Predict in square windows of this side in pixels, each shifted by half of it, and average
    their logits with most weight in the middle; the default takes the image as a whole. Group and
    instance norm depend on the mean of what they see, so give such a net windows of the size of
    its training crops."""
    mirror: bool = False
    """Average the logits over the four mirror images, which is a little better and takes 4 times
    as long."""
    channels: tuple[Annotated[int, Range(0, MOST_CHANNELS - 1, rule=_NUMBERED)], ...] = ()
    """Take these channels of an image, numbered from 0; the default takes all."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Statistics:
    """A `Statistics` holds what `apply` subtracts and divides by.

    Both are measured over a whole image where `normalize` is "image"; else they change nothing.
    """

    mean: float = 0.0
    deviation: float = 1.0


def prepare(image: np.ndarray, *, channels: int, preprocessing: Preprocessing) -> np.ndarray:
    """Return the net's input of a whole image: float32 (h, w, channels).

    Args:
        image: (h, w) or (h, w, c) of integers, bools or floats, without alpha.
            `preprocessing.channels` are taken first. Then gray and RGB (c = 1 or 3) are turned into
            one another where the net needs it; other channels have to be exactly those of the net.
        channels: of the net. 1 turns colour into luma (BT.601), 3 repeats gray.

    Raises:
        InputError: another shape or type, channels that do not fit, or undefined values.
    """
    values = _make_values(image, channels, preprocessing)
    return _scale(values, _measure(values, preprocessing))


def measure(image: np.ndarray, *, channels: int, preprocessing: Preprocessing) -> Statistics:
    """Measure an image as `apply` needs it for the parts of that image.

    `apply(image[part], measure(image))` equals `prepare(image)[part]` in every bit.

    Args:
        image, channels: as for `prepare`.

    Raises:
        InputError: as in `prepare`.
    """
    return _measure(_make_values(image, channels, preprocessing), preprocessing)


def apply(
    part: np.ndarray, statistics: Statistics, *, channels: int, preprocessing: Preprocessing
) -> np.ndarray:
    """Return the net's input of a part of an image: float32 (h, w, channels).

    Args:
        part: as the image for `prepare`.
        statistics: what `measure` gave for the whole image.
        channels: as for `prepare`.

    Raises:
        InputError: as in `prepare`.
    """
    return _scale(_make_values(part, channels, preprocessing), statistics)


def _make_values(image: np.ndarray, channels: int, preprocessing: Preprocessing) -> np.ndarray:
    """Return an image as float32 (h, w, channels) before any statistics; each pixel by itself."""
    values = _with_channels(image, channels, preprocessing.channels)
    # a NaN among them is both the largest and the smallest, and not at most anything
    if not (values.max() <= LARGEST_VALUE and values.min() >= -LARGEST_VALUE):
        raise InputError(
            f"the image holds NaN or infinite values, or some beyond {LARGEST_VALUE:.1e}; mend it "
            "before it is used"
        )
    if preprocessing.normalize == "range" and np.issubdtype(image.dtype, np.integer):
        values = values / np.float32(np.iinfo(image.dtype).max)
    if preprocessing.sqrt:
        values = np.sign(values) * np.sqrt(np.abs(values))
    return values


def _measure(values: np.ndarray, preprocessing: Preprocessing) -> Statistics:
    if preprocessing.normalize != "image":
        return Statistics()
    # an image of one value is only centred
    deviation = float(np.float32(measure_deviation(values))) or 1.0
    return Statistics(float(values.mean(dtype=np.float64)), deviation)


def measure_deviation(values: np.ndarray) -> np.float64:
    """Return `values.std(dtype=np.float64)`, to the last bit, in little memory.

    NumPy takes 8 bytes more for every value.
    """
    mean = values.mean(dtype=np.float64)
    # in the order in which the values lie, as NumPy takes them
    return np.sqrt(_add_squares(values.ravel(order="K"), mean) / values.size)


def _add_squares(values: np.ndarray, mean: np.float64) -> np.float64:
    """Return the sum of the squared distances to the mean, in parts: by halves, as NumPy adds."""
    if values.size <= _PART:
        return np.square(values - mean).sum()
    half = values.size // 2
    half -= half % 8
    return _add_squares(values[:half], mean) + _add_squares(values[half:], mean)


def _scale(values: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Scale values in their place, which takes no more memory."""
    if statistics != Statistics():
        values -= np.float32(statistics.mean)
        values /= np.float32(statistics.deviation)
    return values


def _with_channels(image: np.ndarray, channels: int, chosen: tuple[int, ...]) -> np.ndarray:
    """Return an image as float32 (h, w, channels).

    Raises:
        InputError: another shape or type, or channels that do not fit.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"an image is (h, w) or (h, w, c), got the shape {image.shape}")
    if image.dtype.kind not in "biuf":
        raise InputError(f"an image holds integers, bools or floats, not {image.dtype}")
    count = image.shape[-1]
    if max(chosen, default=0) >= count:
        raise InputError(
            f"the image has {_count_channels(count)}, and channel {max(chosen)} is to be taken; "
            f"they are numbered from 0 to {count - 1}"
        )
    taken = len(chosen) or count
    if taken != channels and (taken, channels) not in ((1, 3), (3, 1)):
        what = f", {taken} of them are taken," if chosen else ""
        raise InputError(
            f"the image has {_count_channels(count)}{what} and the net takes {channels}; choose "
            f"as many with --preprocessing.channels in training or conversion, or leave the others "
            "out of the image (only gray and RGB are turned into one another)"
        )
    if chosen:
        image = image[..., list(chosen)]
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the infinite values
        values = image.astype(np.float32)
    if taken == channels:
        return values
    if channels == 3:
        return np.repeat(values, 3, axis=-1)
    # not `@`, which rounds otherwise on another processor
    red, green, blue = np.moveaxis(values * _LUMA, -1, 0)
    return (red + green + blue)[..., None]


def _count_channels(count: int) -> str:
    return f"{count} channel{'s' if count != 1 else ''}"
