"""Images and masks as samples, and batches that are a pure function of (seed, step).

All images are read, and held in memory, before the first step: none can go missing later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import unet_image
from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.errors import ConfigError
from unet_spec.preprocessing import prepare

from .config import DataConfig
from .masks import Stored, check_settings, to_truth


@dataclass(frozen=True)
class Sample:
    """One image with its truth.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask, objects, stored: as in `train.masks.Truth`.
        x: (h, w, in_channels) float32, the net's input.
        weight: (h, w) float32, of each pixel in the loss.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    objects: np.ndarray | None = None
    weight: np.ndarray | None = None
    stored: Stored = "indices"


class Batch(NamedTuple):
    """Crops: NumPy's arrays on the host, JAX's on a device.

    Attributes:
        x: (b, h, w, c) float32.
        truth: (b, h, w) uint8.
        weight: (b, h, w) float32, where samples have one.
    """

    x: Any
    truth: Any
    weight: Any = None


def read_samples(
    data: DataConfig,
    *,
    net: UNetConfig,
    preprocessing: Preprocessing,
    ignore_index: int | None = None,
) -> list[Sample]:
    """Every image of `data.images` with its mask: of the same name in a folder, of the same page
    in a stack.

    Raises:
        InputError: an image without a mask or the reverse, other shapes, values that are no
            classes, a file that is not a whole image, settings that do not fit the net.
    """
    if data.images is None or data.masks is None:
        raise ConfigError(data, "{images} and {masks} say what is read; give both")
    check_settings(data, net)
    samples = []
    for image_path, mask_path in _pairs(data.images, data.masks):
        images = unet_image.read_pages(image_path)
        masks = unet_image.read_pages(mask_path, indices=data.mask_values != "colours")
        if len(images) != len(masks):
            raise InputError(
                f"{mask_path}: {len(masks)} pages for the {len(images)} of {image_path}; "
                "a stack needs one mask for each image"
            )
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            page = f"[{number}]" if len(images) > 1 else ""
            where = f"{mask_path}{page}"
            truth = to_truth(mask, data=data, net=net, ignore_index=ignore_index, source=where)
            if truth.mask.shape != image.shape[:2]:
                raise InputError(
                    f"{where}: the mask is {truth.mask.shape} and its image {image_path} is "
                    f"{image.shape[:2]} (height, width); they must be the same"
                )
            name = f"{image_path.name}{page}"
            try:
                sample = make_sample(name, image, truth.mask, net, preprocessing)
            except InputError as error:
                raise InputError(f"{image_path}{page}: {error}") from error
            samples.append(replace(sample, objects=truth.objects, stored=truth.stored))
    return samples


def make_sample(
    name: str, image: np.ndarray, mask: np.ndarray, net: UNetConfig, preprocessing: Preprocessing
) -> Sample:
    """A sample whose input is prepared as it will be in prediction.

    Raises:
        InputError: an image that the net cannot take.
    """
    return Sample(
        name, image, mask, prepare(image, channels=net.in_channels, preprocessing=preprocessing)
    )


def split(
    samples: Sequence[Sample], *, holdout: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): a random part is held out, at least one image on either side."""
    if len(samples) < 2:
        raise InputError(f"{len(samples)} image is too few: one to train and one to validate")
    order = np.random.default_rng(seed).permutation(len(samples))
    held = min(max(1, round(holdout * len(samples))), len(samples) - 1)
    return [samples[i] for i in sorted(order[held:])], [samples[i] for i in sorted(order[:held])]


def batch(
    samples: Sequence[Sample],
    step: int,
    *,
    data: DataConfig,
    net: UNetConfig,
    seed: int,
    rows: slice = slice(None),
) -> Batch:
    """The crops of a step, `data.crop_px` high and wide, truth and weight as large as the input.

    Every image of it depends on (seed, step, its place) alone: a run can go on at any step, and
    each process can make its own `rows` of the whole batch. What the net will answer for lies
    uniformly in the image; what it sees beyond the border is mirrored.
    """
    shown = chosen(samples, step, data=data, seed=seed, rows=rows)
    cuts = [
        _cut(sample, np.random.default_rng((seed, step, place)), data.crop_px, net)
        for place, sample in zip(range(data.batch)[rows], shown, strict=True)
    ]
    return Batch(*(None if part[0] is None else np.stack(part) for part in zip(*cuts, strict=True)))


def chosen(
    samples: Sequence[Sample],
    step: int,
    *,
    data: DataConfig,
    seed: int,
    rows: slice = slice(None),
) -> list[Sample]:
    """The samples that a step shows, in the order of the batch; every epoch is a permutation of
    all."""
    count = len(samples)
    positions = [step * data.batch + place for place in range(data.batch)[rows]]
    return [samples[_order(p // count, count, seed)[p % count]] for p in positions]


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    image_paths, mask_paths = unet_image.list_images(images), unet_image.list_images(masks)
    if images.is_file() and masks.is_file():
        return [(images, masks)]
    by_stem = _by_stem(mask_paths)
    pictures = _by_stem(image_paths)
    if lonely := [p for stem, p in pictures.items() if stem not in by_stem]:
        raise InputError(
            f"{lonely[0]}: no mask named {lonely[0].stem}.* in {masks}"
            f"{_and_more(lonely)}; every image needs one"
        )
    if lonely := [p for stem, p in by_stem.items() if stem not in pictures]:
        raise InputError(
            f"{lonely[0]}: no image named {lonely[0].stem}.* in {images}"
            f"{_and_more(lonely)}; every mask needs one"
        )
    return [(path, by_stem[stem]) for stem, path in pictures.items()]


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; rename one")
        found[path.stem] = path
    return found


def _and_more(paths: list[Path]) -> str:
    return f" (and {len(paths) - 1} more like it)" if len(paths) > 1 else ""


@lru_cache(maxsize=64)
def _order(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def _cut(sample: Sample, rng: np.random.Generator, crop_px: int, net: UNetConfig) -> Batch:
    out_px = geometry.output_size(net, crop_px)
    before = (crop_px - out_px) // 2
    starts = [int(rng.integers(0, max(1, size - out_px + 1))) for size in sample.mask.shape]
    inside = _window([start - before for start in starts], crop_px, sample.mask.shape)
    weight = None if sample.weight is None else sample.weight[inside]
    return Batch(sample.x[inside], sample.mask[inside], weight)


def _window(starts: list[int], crop_px: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Index of the crop that starts there; beyond the border it is mirrored, the border pixel
    repeated."""
    if all(0 <= start <= size - crop_px for start, size in zip(starts, shape, strict=True)):
        return tuple(slice(start, start + crop_px) for start in starts)  # no copy of single pixels
    inside = []
    for start, size in zip(starts, shape, strict=True):
        folded = (start + np.arange(crop_px)) % (2 * size)
        inside.append(np.where(folded < size, folded, 2 * size - 1 - folded))
    return np.ix_(*inside)
