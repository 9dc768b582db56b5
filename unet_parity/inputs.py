"""What `verify` can be given as its input: a size, an image, a recorded input."""

from pathlib import Path

import numpy as np

from unet_spec import InputError, UNetConfig, geometry
from unet_spec.preprocessing import Preprocessing, prepare

LARGEST_PX = 256


def check_size(config: UNetConfig, size: tuple[int, int]) -> None:
    """Refuse a --size that the net does not take.

    Args:
        size: (height, width) in pixels.

    Raises:
        InputError: it names the rule and the nearest legal sizes.
    """
    try:
        geometry.check(config, *size)
    except InputError as error:
        raise InputError(f"--size {size[0]} {size[1]}: {error}") from error


def crop_middle(
    image: np.ndarray, config: UNetConfig, preprocessing: Preprocessing, *, source: Path
) -> np.ndarray:
    """Return the middle of an image as the net's input, (1, in_channels, h, w).

    Each side is the largest legal size of at most `LARGEST_PX` pixels.

    Args:
        image: (h, w) or (h, w, c), as a file holds it.
        source: the file, for the refusal.

    Raises:
        InputError: the image is too small for the net, or its channels do not fit.
    """
    try:
        image = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    for axis in (0, 1):
        size = min(image.shape[axis], LARGEST_PX)
        legal = next((s for s in range(size, 0, -1) if geometry.is_legal(config, s)), None)
        if legal is None:
            raise InputError(
                f"{source}: {image.shape[axis]} pixels are too few for this net; take an image of "
                f"at least {geometry.next_legal(config, 1)}"
            )
        start = (image.shape[axis] - legal) // 2
        image = image.take(range(start, start + legal), axis)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def check_recorded(x: np.ndarray, y: np.ndarray, config: UNetConfig, *, source: Path) -> None:
    """Refuse a recorded input (b, in_channels, h, w) that the net does not take, and an output
    (b, classes, h', w') that it does not give.

    Raises:
        InputError: other channels or axes, or an illegal size.
    """
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise InputError(
            f"{source}: x has the shape {x.shape}, the net takes (b, {config.in_channels}, h, w)"
        )
    try:
        sizes = [geometry.output_size(config, size) for size in x.shape[2:]]
    except InputError as error:
        raise InputError(f"{source}: x: {error}") from error
    expected = (len(x), config.classes, *sizes)
    if y.shape != expected:
        raise InputError(
            f"{source}: y has the shape {y.shape}, and the net gives {expected}; record the net's "
            "own output"
        )
