"""What a look at the data keeps of one image and its mask."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unet_spec.preprocessing import measure_deviation

from ..input.samples import Sample
from .near_duplicates import compute_fingerprint

SPECK_PX = 9  # JPEG or resizing leaves numbers of objects that have fewer pixels


@dataclass(frozen=True)
class Values:
    """A `Values` sums up the values of all pixels and channels of an image, or of all images."""

    low: float
    high: float
    mean: float
    deviation: float
    count: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Facts:
    """A `Facts` is what is left of an image once it was examined.

    Attributes:
        kind: channels and type as read, in words.
        counts: (256,) numbers of pixels by the value of the mask.
        fingerprint: of `compute_fingerprint`.
        saturated: part of the pixels at the top of 8, 10, 12, 14 or 16 bits.
    """

    name: str
    shape: tuple[int, int]
    bytes: int
    kind: str
    stored: str
    counts: np.ndarray
    fingerprint: np.ndarray
    as_read: Values
    as_input: Values
    saturated: float
    has_colour: bool
    has_specks: bool
    is_turned: bool


def measure_facts(sample: Sample) -> Facts:
    """Return what a diagnosis needs of an image."""
    image = _take_channels(sample.image, sample.preprocessing.channels)
    x = sample.x
    height, width = sample.mask.shape
    return Facts(
        name=sample.name,
        shape=(height, width),
        bytes=sample.bytes,
        kind=_describe_kind(image),
        stored=sample.stored,
        counts=_count_values(sample.mask),
        fingerprint=compute_fingerprint(x),
        as_read=_measure_values(image),
        as_input=_measure_values(x),
        saturated=_measure_saturation(image),
        has_colour=bool((image != image[..., :1]).any()),
        has_specks=is_mostly_specks(sample.objects),
        is_turned=sample.is_turned,
    )


def _take_channels(image: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return the channels of an image that `prepare` takes, (h, w, c)."""
    channels = np.atleast_3d(image)
    return channels[..., list(chosen)] if chosen else channels


def is_mostly_specks(objects: np.ndarray | None) -> bool:
    """Return whether the median of the objects has less than `SPECK_PX` pixels.

    It takes the memory of a copy of the map and a quarter, whatever is in it.
    """
    if objects is None or not objects.any():
        return False
    numbers = np.sort(objects, axis=None)
    numbers = numbers[np.searchsorted(numbers, 1) :]
    most = 2 * SPECK_PX  # larger objects change nothing in the mean of the two in the middle
    # an object of n pixels has n - d pairs of places at a distance of d
    pairs = [np.count_nonzero(numbers[d:] == numbers[: max(0, numbers.size - d)])
             for d in range(most + 1)]  # fmt: skip
    at_least = -np.diff(pairs)  # objects of at least 1, 2, ... pixels
    up_to = at_least[0] - np.append(at_least[1:], 0)  # objects of at most 1, 2, ... pixels
    middle = (at_least[0] - 1) // 2, at_least[0] // 2
    return bool((np.searchsorted(up_to, middle, side="right") + 1).sum() < most)


def _count_values(mask: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each value of bytes, (256,), row by row to take no memory."""
    counts = np.zeros(256, np.int64)
    for row in mask:
        counts += np.bincount(row, minlength=256)
    return counts


def _measure_saturation(image: np.ndarray) -> float:
    """Return the part of the pixels with a channel at the top of 8, 10, 12, 14 or 16 bits."""
    top = float(image.max())  # a float16 could not be compared with 65535
    if top not in (255, 1023, 4095, 16383, 65535):
        return 0.0
    return float((image == top).any(axis=-1).mean())


def _describe_kind(image: np.ndarray) -> str:
    """Return the channels and the type of an image (h, w, c), in words."""
    channels = image.shape[-1]
    return f"{channels} channel{'s' if channels > 1 else ''} of {image.dtype}"


def _measure_values(array: np.ndarray) -> Values:
    """Return the values of one image."""
    return Values(
        low=float(array.min()),
        high=float(array.max()),
        mean=float(array.mean(dtype=np.float64)),
        deviation=float(measure_deviation(array)),
        count=array.size,
    )
