"""Crops of the samples, as batches that are a pure function of (seed, step)."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unet_spec import UNetConfig, geometry

from ..config import DataConfig
from .samples import Sample


class Batch(NamedTuple):
    """A `Batch` holds crops: NumPy's arrays on the host, JAX's on a device.

    Attributes:
        x: (b, h, w, c) float32.
        truth: (b, h, w) uint8.
        weight: (b, h, w) float32, where samples have one.
    """

    x: Any
    truth: Any
    weight: Any = None


def cut_batch(
    samples: Sequence[Sample],
    step: int,
    *,
    data: DataConfig,
    net: UNetConfig,
    seed: int,
    rows: slice = slice(None),
    decode: Callable[[Callable[[int], Sample], Iterable[int]], Iterable[Sample]] = map,
) -> Batch:
    """Cut the crops of a step, `data.crop_px` high and wide.

    Truth and weight are as large as the input. Every image depends on (seed, step, its place)
    alone: a run can go on at any step, and each process can make its own `rows` of the whole
    batch, and decodes no other. What the net will answer for lies uniformly in the image, but for
    the share `data.foreground` of the crops; what it sees beyond the border is mirrored.

    Args:
        decode: maps the function that decodes over the numbers of the samples; that of a thread
            pool decodes several at once.
    """
    places = range(data.batch)[rows]
    chosen = choose_samples(len(samples), step, data=data, seed=seed, rows=rows)
    crops = []
    for place, sample in zip(places, decode(samples.__getitem__, chosen), strict=True):
        rng = np.random.default_rng((seed, step, place))
        crops.append(_cut_crop(sample, rng, data=data, net=net))
    return Batch(
        x=np.stack([crop.x for crop in crops]),
        truth=np.stack([crop.truth for crop in crops]),
        weight=None if crops[0].weight is None else np.stack([crop.weight for crop in crops]),
    )


def choose_samples(
    count: int, step: int, *, data: DataConfig, seed: int, rows: slice = slice(None)
) -> list[int]:
    """Choose the samples that a step shows, in the order of the batch, by their numbers.

    Every epoch is a permutation of all samples. A batch may end one epoch and begin the next.

    Args:
        count: of the samples.
    """
    chosen = []
    for place in range(data.batch)[rows]:
        epoch, position = divmod(step * data.batch + place, count)
        chosen.append(int(_draw_order(epoch, count, seed)[position]))
    return chosen


@lru_cache(maxsize=64)
def _draw_order(epoch: int, count: int, seed: int) -> np.ndarray:
    """Draw the order in which an epoch shows the samples."""
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def _cut_crop(
    sample: Sample, rng: np.random.Generator, *, data: DataConfig, net: UNetConfig
) -> Batch:
    """Cut one crop out of a sample; its arrays have no axis for the batch."""
    out_px = geometry.output_size(net, data.crop_px)
    before = (data.crop_px - out_px) // 2
    shape = sample.mask.shape
    starts = [int(rng.integers(0, max(1, size - out_px + 1))) for size in shape]
    if data.foreground and rng.random() < data.foreground:
        pixel = _draw_foreground(sample.mask, net.mask_classes, rng)
        if pixel is not None:
            starts = [
                max(0, min(place - out_px // 2, size - out_px))
                for place, size in zip(pixel, shape, strict=True)
            ]
    inside = _index_crop([start - before for start in starts], data.crop_px, shape)
    weight = None if sample.weight is None else sample.weight[inside]
    return Batch(sample.cut_input(inside), sample.mask[inside], weight)


def _draw_foreground(
    mask: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draw a class other than 0 of those that a mask has, and a pixel of it: row and column.

    None where it has no such class. The rule is nnU-Net's: rare classes are drawn as often as
    frequent ones (Isensee et al., nnU-Net, Nature Methods 18, 2021, oversampling of foreground).
    """
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=classes)[1:classes]) + 1
    if not present.size:
        return None
    places = np.flatnonzero(mask.ravel() == rng.choice(present))
    row, column = divmod(int(rng.choice(places)), mask.shape[1])
    return row, column


def _index_crop(starts: list[int], crop_px: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the index of the crop that starts at a row and a column.

    Beyond the border the image is mirrored, and the border pixel is repeated.
    """
    if all(0 <= start <= size - crop_px for start, size in zip(starts, shape, strict=True)):
        return tuple(slice(start, start + crop_px) for start in starts)  # no copy of single pixels
    inside = []
    for start, size in zip(starts, shape, strict=True):
        folded = (start + np.arange(crop_px)) % (2 * size)
        inside.append(np.where(folded < size, folded, 2 * size - 1 - folded))
    return np.ix_(*inside)
