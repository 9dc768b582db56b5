"""Crops of the samples, as batches that are a pure function of (seed, step)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unet_spec import UNetConfig, geometry

from ..config import DataConfig
from .samples import Sample


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


def cut_batch(
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
    shown = choose_samples(samples, step, data=data, seed=seed, rows=rows)
    cuts = [
        _cut_crop(sample, np.random.default_rng((seed, step, place)), data.crop_px, net)
        for place, sample in zip(range(data.batch)[rows], shown, strict=True)
    ]
    return Batch(*(None if part[0] is None else np.stack(part) for part in zip(*cuts, strict=True)))


def choose_samples(
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
    return [samples[_epoch_order(p // count, count, seed)[p % count]] for p in positions]


@lru_cache(maxsize=64)
def _epoch_order(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def _cut_crop(sample: Sample, rng: np.random.Generator, crop_px: int, net: UNetConfig) -> Batch:
    out_px = geometry.output_size(net, crop_px)
    before = (crop_px - out_px) // 2
    starts = [int(rng.integers(0, max(1, size - out_px + 1))) for size in sample.mask.shape]
    inside = _mirrored_index([start - before for start in starts], crop_px, sample.mask.shape)
    weight = None if sample.weight is None else sample.weight[inside]
    return Batch(sample.x[inside], sample.mask[inside], weight)


def _mirrored_index(starts: list[int], crop_px: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Index of the crop that starts there; beyond the border it is mirrored, the border pixel
    repeated."""
    if all(0 <= start <= size - crop_px for start, size in zip(starts, shape, strict=True)):
        return tuple(slice(start, start + crop_px) for start in starts)  # no copy of single pixels
    inside = []
    for start, size in zip(starts, shape, strict=True):
        folded = (start + np.arange(crop_px)) % (2 * size)
        inside.append(np.where(folded < size, folded, 2 * size - 1 - folded))
    return np.ix_(*inside)
