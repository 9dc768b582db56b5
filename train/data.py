"""Images and masks as samples, and batches that are a pure function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import unet_image
from train.config import DataConfig
from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.preprocessing import prepare


@dataclass(frozen=True)
class Sample:
    """One image with its truth.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask: (h, w) class indices, uint8.
        x: (h, w, in_channels) float32, the net's input.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    x: np.ndarray


def read_samples(
    images: Path, masks: Path, *, net: UNetConfig, preprocessing: Preprocessing
) -> list[Sample]:
    """Every image of a folder (or stack) with the mask of the same name.

    Raises:
        InputError: an image without a mask or the reverse, other shapes, values that are no
            classes, a file that is not a whole image.
    """
    samples = []
    for image_path, mask_path in _pairs(images, masks):
        pages, truths = (
            unet_image.read_pages(image_path),
            unet_image.read_pages(mask_path, indices=True),
        )
        if len(pages) != len(truths):
            raise InputError(
                f"{mask_path}: {len(truths)} pages for the {len(pages)} of {image_path}; "
                "a stack needs one mask for each image"
            )
        for page, (image, truth) in enumerate(zip(pages, truths, strict=True)):
            name = image_path.name if len(pages) == 1 else f"{image_path.name}[{page}]"
            where = str(mask_path) if len(pages) == 1 else f"{mask_path}[{page}]"
            mask = class_indices(truth, classes=net.classes, source=where)
            if mask.shape != image.shape[:2]:
                raise InputError(
                    f"{where}: the mask is {mask.shape} and its image {image_path} is "
                    f"{image.shape[:2]} (height, width); they must be the same"
                )
            samples.append(make_sample(name, image, mask, net, preprocessing))
    return samples


def make_sample(
    name: str, image: np.ndarray, mask: np.ndarray, net: UNetConfig, preprocessing: Preprocessing
) -> Sample:
    """A sample whose input is prepared as it will be in prediction."""
    try:
        x = prepare(image, channels=net.in_channels, preprocessing=preprocessing)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return Sample(name, image, mask, x)


def class_indices(truth: np.ndarray, *, classes: int, source: str) -> np.ndarray:
    """(h, w) class indices from a mask as read: 0/255 with two classes, or the indices.

    Raises:
        InputError: colours, or values that are neither.
    """
    if truth.ndim == 3:
        colours = truth[..., :3] if truth.shape[-1] >= 3 else truth[..., :1]
        if (colours != colours[..., :1]).any():
            raise InputError(
                f"{source}: a mask in colours; store class indices 0 to {classes - 1} in one "
                "channel"
            )
        truth = colours[..., 0]
    values = np.unique(truth)
    if classes == 2 and np.isin(values, (0, 255)).all():
        return (truth == 255).astype(np.uint8)
    if values.min() >= 0 and values.max() < classes and (values == values.astype(int)).all():
        return truth.astype(np.uint8)
    smeared = " (JPEG smears masks: store them as PNG or TIFF)" if values.size > 16 else ""
    found = ", ".join(str(v) for v in values[:6]) + (", ..." if values.size > 6 else "")
    binary = "0 and 255, or " if classes == 2 else ""
    raise InputError(
        f"{source}: mask values {found} do not fit {classes} classes: "
        f"{binary}0 to {classes - 1} are needed{smeared}"
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
    samples: Sequence[Sample], step: int, *, data: DataConfig, net: UNetConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step: inputs (b, crop, crop, c) float32 and truths (b, out, out) uint8.

    Every epoch is a permutation of all samples; crops are uniform, flips and quarter turns
    equally likely. A function of its arguments alone, so a run can go on at any step.
    """
    rng = np.random.default_rng((seed, step))
    first = step * data.batch
    chosen = [_shuffled(first + i, len(samples), seed) for i in range(data.batch)]
    cuts = [_cut(samples[i], rng, crop_px=data.crop_px, net=net) for i in chosen]
    return np.stack([x for x, _ in cuts]), np.stack([y for _, y in cuts])


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


def _shuffled(position: int, count: int, seed: int) -> int:
    epoch, place = divmod(position, count)
    return int(np.random.default_rng((seed, epoch, count)).permutation(count)[place])


def _cut(
    sample: Sample, rng: np.random.Generator, *, crop_px: int, net: UNetConfig
) -> tuple[np.ndarray, np.ndarray]:
    """A random square and its truth. What the net sees beyond the border is mirrored."""
    out_px = geometry.output_size(net, crop_px)
    before = (crop_px - out_px) // 2
    starts = [rng.integers(0, max(1, size - out_px + 1)) for size in sample.mask.shape]
    seen = [start - before + np.arange(crop_px) for start in starts]
    told = [start + np.arange(out_px) for start in starts]
    x = sample.x[_mirrored(seen, sample.mask.shape)]
    y = sample.mask[_mirrored(told, sample.mask.shape)]
    turns, flip = int(rng.integers(4)), int(rng.integers(2))
    x, y = np.rot90(x, turns), np.rot90(y, turns)
    return (x[:, ::-1], y[:, ::-1]) if flip else (x, y)


def _mirrored(indices: list[np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices beyond the border, reflected back inside, the border pixel repeated."""
    inside = []
    for index, size in zip(indices, shape, strict=True):
        folded = index % (2 * size)
        inside.append(np.where(folded < size, folded, 2 * size - 1 - folded))
    return np.ix_(*inside)
