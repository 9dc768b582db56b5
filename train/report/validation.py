"""How good a net is on the images that were held out, whole, as `unet predict` sees them.

Each device of each process predicts a part of the images, with arrays of its own; nothing is
exchanged but the numbers at the end.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

import jax
import numpy as np
from flax import nnx

from unet_jax import UNet, predict

from ..devices.processes import gather_objects
from ..input.border_weights import label_objects
from ..input.prefetch import read_ahead
from ..input.samples import Sample
from ..metrics import (
    as_result,
    confusion,
    dice,
    foreground_dice,
    foreground_iou,
    iou,
    mean_score,
    pixel_error,
    rand_score,
)


@dataclass(frozen=True)
class ImageScore:
    """An `ImageScore` has means over the classes 1 and up that one image has or the net finds.

    They are None if there is no such class.
    """

    name: str
    height: int
    width: int
    iou: float | None
    dice: float | None


@dataclass(frozen=True)
class Scores:
    """A `Scores` is that of all held-out images.

    A score is None where there is nothing to score: it is not in the mean of others.

    Attributes:
        mean_image_iou: mean over images of the mean IoU of classes 1 and up, of those that are
            there or found.
        pooled_iou: of each class, over the pixels of all images.
        pooled_dice: likewise.
        pixel_error: part of the pixels whose class is wrong.
        rand_score: mean over images of the EM challenge's foreground-restricted Rand score, of
            those with an object; None for more than two classes as well.
        confusion: pixels, rows are the truth, columns the prediction.
        images: one by one.
    """

    mean_image_iou: float | None
    pooled_iou: list[float | None]
    pooled_dice: list[float | None]
    pixel_error: float | None
    rand_score: float | None
    confusion: list[list[float]]
    images: list[ImageScore]

    @property
    def headline(self) -> dict[str, float | None]:
        """Return the numbers of which a curve is drawn; the Rand score only with two classes."""
        matrix = np.asarray(self.confusion)
        numbers = {
            "mean_image_iou": self.mean_image_iou,
            "pooled_iou": as_result(foreground_iou(matrix)),
            "pooled_dice": as_result(foreground_dice(matrix)),
            "pixel_error": self.pixel_error,
        }
        if len(matrix) > 2:
            return numbers
        return {**numbers, "rand_score": self.rand_score}


@dataclass(frozen=True)
class _Counted:
    """A `_Counted` is what is counted in one image: (classes, classes) pixels, and the Rand score
    where there are two classes."""

    name: str
    shape: tuple[int, int]
    matrix: np.ndarray
    rand: float | None


def validate(
    model: UNet,
    samples: Sequence[Sample],
    *,
    ignore_index: int | None = None,
    before_each: Callable[[], None] = lambda: None,
    name: str = "scores",
) -> Scores:
    """Return the scores of a net, without the pixels whose truth is `ignore_index`.

    Args:
        before_each: is called before each image, in some thread; it may raise, which ends it.
        name: of the exchange between processes; no other one may have it.
    """
    devices = jax.local_devices()
    ours = range(jax.process_index(), len(samples), jax.process_count())

    def count_part(number: int, device: jax.Device) -> list[tuple[int, _Counted]]:
        """Count in the images of one device, each with its place in the order."""
        counted = []
        with jax.default_device(device):
            placed = place(model, device)
            for index, sample in read_ahead(samples, ours[number :: len(devices)]):
                before_each()
                counted.append((index, _count(placed, sample, ignore_index)))
        return counted

    with ThreadPoolExecutor(len(devices)) as threads:
        parts = list(threads.map(count_part, range(len(devices)), devices))
    gathered = chain.from_iterable(gather_objects(name, list(chain.from_iterable(parts))))
    return _sum_up([counted for _, counted in sorted(gathered, key=itemgetter(0))])


def place(model: UNet, device: jax.Device) -> UNet:
    """Return a copy of a net whose arrays are on a device, where it then computes."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.device_put(state, device))


def _count(model: UNet, sample: Sample, ignore_index: int | None) -> _Counted:
    """Predict an image and count its pixels."""
    classes = model.config.mask_classes
    predicted = predict(model, sample.image)
    counted = confusion(predicted, sample.mask, classes=classes, ignore_index=ignore_index)
    rand = None
    if classes == 2:
        objects = label_objects(sample.mask == 1) if sample.objects is None else sample.objects
        rand = rand_score(predicted == 1, objects)
    height, width = sample.mask.shape
    return _Counted(sample.name, (height, width), np.asarray(counted, np.float64), rand)


def _sum_up(counted: Sequence[_Counted]) -> Scores:
    """Return the scores of all images together."""
    matrices = [one.matrix for one in counted]
    ious, dices = map(foreground_iou, matrices), map(foreground_dice, matrices)
    rows = [
        ImageScore(one.name, *one.shape, as_result(image_iou), as_result(image_dice))
        for one, image_iou, image_dice in zip(counted, ious, dices, strict=True)
    ]
    pooled = np.sum(matrices, axis=0)
    return Scores(
        mean_image_iou=as_result(mean_score([foreground_iou(matrix) for matrix in matrices])),
        pooled_iou=[*map(as_result, iou(pooled))],
        pooled_dice=[*map(as_result, dice(pooled))],
        pixel_error=as_result(pixel_error(pooled)),
        rand_score=as_result(mean_score([one.rand for one in counted if one.rand is not None])),
        confusion=pooled.tolist(),
        images=rows,
    )
