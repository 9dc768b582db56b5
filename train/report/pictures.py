"""The pictures of a run: what the net will see, and what it predicts of held-out images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

import unet_image
from unet_jax import UNet, predict
from unet_spec import UNetConfig

from ..config import AugmentConfig, DataConfig
from ..input.augment import augment_batch
from ..input.crops import cut_batch
from ..input.samples import Sample
from .validation import ImageScore, Scores

WORST = BEST = 3  # images of which there are pictures
PREVIEW_IMAGES = 4  # of the first batch
PREVIEW_STEPS = 5  # shown of each
GAP_PX = 4
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
OURS = re.compile(r"[0-9]+_.*\.png")  # a picture in RUN/pictures


def write_preview(
    path: Path,
    training: Sequence[Sample],
    *,
    data: DataConfig,
    net: UNetConfig,
    augment: AugmentConfig,
    seed: int,
) -> None:
    """Write a picture of what the net will see of the first batch."""
    first = cut_batch(training, 0, data=data, net=net, seed=seed, rows=slice(0, PREVIEW_IMAGES))
    sheet = draw_preview(first.x, first.truth, config=augment, seed=seed, count=PREVIEW_STEPS)
    unet_image.write_picture(path, sheet)


def is_whole_png(path: Path) -> bool:
    """Return whether a file that this project wrote is there, up to its last bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        is_png = stream.read(len(PNG_START)) == PNG_START
        stream.seek(max(0, path.stat().st_size - len(PNG_END)))
        return is_png and stream.read() == PNG_END


def draw_preview(
    x: np.ndarray, truth: np.ndarray, *, config: AugmentConfig, seed: int, count: int
) -> np.ndarray:
    """Draw a sheet of (h', w', 3) bytes with the outlines of the truth.

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
    return _join_pictures([_draw_row(*crop) for crop in zip(images, masks, strict=True)], axis=0)


def _draw_row(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw images (n, h, w, c) with their masks (n, h, w), side by side."""
    count, height, width, channels = images.shape
    pictures = unet_image.make_visible(images.reshape(count * height, width, channels))
    pictures = pictures.reshape(count, height, width, 3)
    for picture, mask in zip(pictures, masks, strict=True):
        picture[unet_image.outline(mask)] = unet_image.TRUE
    return _join_pictures(pictures, axis=1)


def _join_pictures(pictures: Sequence[np.ndarray] | np.ndarray, *, axis: int) -> np.ndarray:
    """Put pictures next to one another, white between them."""
    gap = [(0, 0), (0, 0), (0, 0)]
    gap[axis] = (0, GAP_PX)
    padded = [np.pad(picture, gap, constant_values=255) for picture in pictures]
    return np.concatenate([*padded[:-1], pictures[-1]], axis)


def draw_worst_and_best(
    model: UNet, validation: Sequence[Sample], scores: Scores
) -> dict[str, np.ndarray]:
    """Draw the held-out images with the lowest and the highest IoU, by name.

    An image without a score is neither; if none has one, the first images are drawn.
    """
    order = rank_by_iou(scores.images) or list(range(len(scores.images)))
    return draw_overlays(model, validation, dict.fromkeys([*order[:WORST], *order[-BEST:]]))


def rank_by_iou(images: Sequence[ImageScore]) -> list[int]:
    """Return the indices of the images that have an IoU, the lowest first."""
    ious = {index: image.iou for index, image in enumerate(images) if image.iou is not None}
    return sorted(ious, key=ious.__getitem__)


def draw_overlays(
    model: UNet, validation: Sequence[Sample], indices: Iterable[int]
) -> dict[str, np.ndarray]:
    """Predict some of the held-out images, and draw them with the predicted and the true outline,
    by name."""
    pictures = {}
    for index in indices:
        sample = validation[index]
        mask = predict(model, sample.image)
        pictures[sample.name] = unet_image.overlay(sample.image, mask, sample.mask)
    return pictures


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write the pictures into a folder, numbered in their order, in place of earlier ones."""
    folder.mkdir(exist_ok=True)
    for earlier in folder.iterdir():
        if OURS.fullmatch(earlier.name) and earlier.is_file():
            earlier.unlink()
    for place, (name, picture) in enumerate(pictures.items()):
        unet_image.write_picture(folder / f"{place}_{_file_stem(name)}.png", picture)


def _file_stem(name: str) -> str:
    """Make a file name from that of a sample: a.tif[3] is a_3_."""
    without_suffix = re.sub(r"\.\w+(?=\[|$)", "", name)
    return re.sub(r"[^\w.-]", "_", without_suffix)
