"""Where cells all but touch, the loss looks harder: the U-Net paper's map of weights."""

import math

import numpy as np

from unet_spec import InputError

# beyond this many sigma the exponential is below 2^-24, half of float32's resolution at 1
REACH = math.sqrt(2 * 24 * math.log(2))
MOST_OBJECTS = 100_000  # of an image; each takes about 0.1 ms, and the largest tissue has fewer


def border_weights(objects: np.ndarray, *, w0: float, sigma_px: float) -> np.ndarray:
    """Return the extra weight of each background pixel between objects, and 0 on the objects.

    It is w0 * exp(-(d1 + d2)^2 / (2 sigma^2)), where d1 and d2 are the distances in pixels, from
    centre to centre, to the nearest pixel of the nearest and of the second nearest object: 1
    beside it. With fewer than two objects, and beyond 5.8 sigma from the second, it is 0. The
    source is section 3 of the paper (Ronneberger et al., 2015); the w_c that it adds are the
    loss's class weights.

    Args:
        objects: (h, w) numbers of objects, 0 the background; touching ones differ.

    Returns:
        The weights, (h, w) float32.

    Raises:
        InputError: more than `MOST_OBJECTS` objects.
    """
    from scipy import ndimage  # slow to import, and most runs have no border weights

    reach = math.ceil(REACH * sigma_px)
    # numbers without gaps, because `find_objects` makes a list as long as the largest
    numbers = np.unique(objects)
    if numbers.size > MOST_OBJECTS:
        raise InputError(
            f"{numbers.size:,} objects are too many for border weights, which take at most "
            f"{MOST_OBJECTS:,} in an image; cut it into smaller ones"
        )
    dense = np.empty(objects.shape, np.int32)
    for row, of_objects in zip(dense, objects, strict=True):
        row[:] = np.searchsorted(numbers, of_objects)
    nearest, second = np.full((2, *objects.shape), np.inf)
    for number, box in enumerate(ndimage.find_objects(dense), start=1):
        # the slices of this window reach beyond the box as far as the weight does
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(dense[window] != number)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma_px**2))
    return np.where(objects == 0, weights, 0).astype(np.float32)


def label_objects(mask: np.ndarray, *, ignore_index: int | None = None) -> np.ndarray:
    """Number the objects in a mask of classes.

    An object is what hangs together by the edges of pixels, of one class from 1 up.

    Args:
        mask: (h, w) classes.
        ignore_index: value that is no class.

    Returns:
        The numbers, (h, w) int32, 0 the background.
    """
    from scipy import ndimage

    objects = np.zeros(mask.shape, np.int32)
    for value in np.unique(mask):
        if value not in (0, ignore_index):
            parts, _ = ndimage.label(mask == value)
            objects[parts > 0] = objects.max() + parts[parts > 0]
    return objects
