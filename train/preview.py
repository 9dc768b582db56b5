"""What the net will see: a sheet of crops, each beside what augmentation makes of it."""

from collections.abc import Sequence

import jax
import numpy as np

import unet_image

from .augment import augment_batch
from .config import AugmentConfig

GAP_PX = 4


def preview(
    x: np.ndarray, truth: np.ndarray, *, config: AugmentConfig, seed: int, count: int
) -> np.ndarray:
    """A sheet of (h', w', 3) bytes with the outlines of the truth.

    Each row is a crop as it was cut, and what the first `count` steps would make of it. One row
    has one scale of brightness, so that other gray values are seen as such.

    Args:
        x: (b, h, w, c) float32.
        truth: (b, h, w).
    """
    augmented = jax.jit(augment_batch, static_argnames=("seed", "config"))
    steps = [augmented(x, truth, seed=seed, step=n, config=config)[:2] for n in range(count)]
    images, masks = (
        np.stack([np.asarray(part) for part in parts], axis=1)
        for parts in zip((x, truth), *steps, strict=True)
    )
    return _joined([_row(*crop) for crop in zip(images, masks, strict=True)], axis=0)


def _row(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Images (n, h, w, c) with their masks (n, h, w), side by side."""
    count, height, width, channels = images.shape
    pictures = unet_image.make_visible(images.reshape(count * height, width, channels))
    pictures = pictures.reshape(count, height, width, 3)
    for picture, mask in zip(pictures, masks, strict=True):
        picture[unet_image.outline(mask)] = unet_image.TRUE
    return _joined(pictures, axis=1)


def _joined(pictures: Sequence[np.ndarray] | np.ndarray, *, axis: int) -> np.ndarray:
    """Pictures next to one another, white between them."""
    gap = [(0, 0), (0, 0), (0, 0)]
    gap[axis] = (0, GAP_PX)
    padded = [np.pad(picture, gap, constant_values=255) for picture in pictures]
    return np.concatenate([*padded[:-1], pictures[-1]], axis)
