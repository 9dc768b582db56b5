"""Images and masks as samples, and batches that are a pure function of (seed, step).

All images are read, and held in memory, before the first step: none can go missing later.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import unet_image
from train.config import DataConfig
from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.preprocessing import prepare

Stored = Literal["0/255", "indices", "all 0", "colours", "instances"]


class Truth(NamedTuple):
    """A mask as classes.

    Attributes:
        mask: (h, w) class indices, uint8; pixels that count nothing hold `ignore_index`.
        objects: (h, w) numbers of objects, int32, 0 the background; of masks of instances.
        stored: what the mask held.
    """

    mask: np.ndarray
    objects: np.ndarray | None = None
    stored: Stored = "indices"


@dataclass(frozen=True)
class Sample:
    """One image with its truth.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask, objects, stored: as in `Truth`.
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
        raise InputError("data.images and data.masks say what is read; give both")
    _check_settings(data, net)
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
            sample = make_sample(name, image, truth.mask, net, preprocessing)
            samples.append(replace(sample, objects=truth.objects, stored=truth.stored))
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


def to_truth(
    mask: np.ndarray, *, data: DataConfig, net: UNetConfig, ignore_index: int | None, source: str
) -> Truth:
    """A mask as read, (h, w) or (h, w, c), as classes; `data.mask_values` says what it holds.

    Raises:
        InputError: it holds something else.
    """
    if data.mask_values == "colours":
        return Truth(_of_colours(mask, data.palette, source), stored="colours")
    values = _one_channel(mask, net.classes, source)
    if data.mask_values == "instances":
        objects = _numbers(values, source)
        return Truth((objects > 0).astype(np.uint8), objects, "instances")
    return _of_values(values, net.classes, ignore_index, source)


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


def _check_settings(data: DataConfig, net: UNetConfig) -> None:
    if net.classes > 256:
        raise InputError(f"net.classes={net.classes}: masks hold 256 classes at most")
    if data.mask_values == "instances" and net.classes != 2:
        raise InputError(
            f"data.mask_values=instances makes 2 classes, and net.classes={net.classes}; use 2"
        )
    if data.mask_values == "colours":
        colours = _palette(data.palette)
        if len(colours) != net.classes or len(set(colours)) != net.classes:
            raise InputError(
                f"data.palette needs {net.classes} different colours, one for each of "
                f"net.classes, got {data.palette}"
            )


def _palette(palette: Sequence[str]) -> list[int]:
    if not all(re.fullmatch("#?[0-9a-fA-F]{6}", colour) for colour in palette):
        raise InputError(f"data.palette holds colours as RRGGBB, got {tuple(palette)}")
    return [int(colour.lstrip("#"), 16) for colour in palette]


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


def _colours(mask: np.ndarray) -> np.ndarray:
    """(h, w, 3), or (h, w, 1) of a gray mask; without alpha."""
    if mask.ndim == 2:
        return mask[..., None]
    return mask[..., :3] if mask.shape[-1] >= 3 else mask[..., :1]


def _of_colours(mask: np.ndarray, palette: Sequence[str], source: str) -> np.ndarray:
    if mask.dtype != np.uint8:
        raise InputError(
            f"{source}: colours have 8 bits a channel, these are {mask.dtype}; store it as PNG"
        )
    seen = (_colours(mask).astype(np.int32) * (1 << 16, 1 << 8, 1)).sum(-1)
    hits = seen[..., None] == np.array(_palette(palette))
    stray, pixels = np.unique(seen[~hits.any(-1)], return_counts=True)
    if stray.size:
        raise InputError(
            f"{source}: {pixels.sum()} pixels have a colour that is not in data.palette, "
            f"{pixels.max()} of them {stray[pixels.argmax()]:06X}; add it, or paint them in a "
            f"colour of the palette{_of_jpeg(source)}"
        )
    return hits.argmax(-1).astype(np.uint8)


def _one_channel(mask: np.ndarray, classes: int, source: str) -> np.ndarray:
    colours = _colours(mask)
    if colours.shape[-1] > 1 and (colours != colours[..., :1]).any():
        raise InputError(
            f"{source}: a mask in colours; say which with data.mask_values=colours and "
            f"data.palette, or store class indices 0 to {classes - 1} in one channel"
            f"{_of_jpeg(source)}"
        )
    return colours[..., 0]


def _of_values(values: np.ndarray, classes: int, ignore_index: int | None, source: str) -> Truth:
    found = np.unique(values)
    counted = found if ignore_index is None else found[found != ignore_index]
    if classes == 2 and 255 in counted and np.isin(counted, (0, 255)).all():
        mask = np.where(values == ignore_index, values, values == 255)
        return Truth(mask.astype(np.uint8), stored="0/255")
    if np.isin(counted, np.arange(classes)).all():
        return Truth(values.astype(np.uint8), stored="indices" if counted.any() else "all 0")
    listed = ", ".join(str(v) for v in counted[:6]) + (", ..." if counted.size > 6 else "")
    binary = "0 and 255, or " if classes == 2 else ""
    raise InputError(
        f"{source}: mask values {listed} do not fit {classes} classes: {binary}0 to {classes - 1} "
        f"are needed{_of_jpeg(source) or _likely(counted)}"
    )


def _likely(values: np.ndarray) -> str:
    """What values that are no classes may be."""
    if values.size > 16:
        return (
            "; a mask that was blended in resizing or as JPEG has to be made again, as PNG or "
            "TIFF; numbers of objects need data.mask_values=instances"
        )
    return "; if 255 marks pixels that count nothing: loss.ignore_index=255" * (255 in values)


def _numbers(values: np.ndarray, source: str) -> np.ndarray:
    fits = (values >= 0) & (values <= np.iinfo(np.int32).max)
    # a JPEG's values look like numbers of objects, whatever it was made from
    if not fits.all() or (values % 1 != 0).any() or _of_jpeg(source):
        raise InputError(
            f"{source}: numbers of objects are whole, from 0 to {np.iinfo(np.int32).max}; store "
            f"them so{_of_jpeg(source)}"
        )
    return values.astype(np.int32)


def _of_jpeg(source: str) -> str:
    jpeg = Path(source).suffix.lower() in (".jpg", ".jpeg")
    return "; JPEG smears masks: make it again as PNG or TIFF" if jpeg else ""


@lru_cache(maxsize=64)
def _order(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def _cut(sample: Sample, rng: np.random.Generator, crop_px: int, net: UNetConfig) -> Batch:
    out_px = geometry.output_size(net, crop_px)
    before = (crop_px - out_px) // 2
    starts = [rng.integers(0, max(1, size - out_px + 1)) for size in sample.mask.shape]
    seen = [start - before + np.arange(crop_px) for start in starts]
    inside = _mirrored(seen, sample.mask.shape)
    weight = None if sample.weight is None else sample.weight[inside]
    return Batch(sample.x[inside], sample.mask[inside], weight)


def _mirrored(indices: list[np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Indices beyond the border, reflected back inside, the border pixel repeated."""
    inside = []
    for index, size in zip(indices, shape, strict=True):
        folded = index % (2 * size)
        inside.append(np.where(folded < size, folded, 2 * size - 1 - folded))
    return np.ix_(*inside)
