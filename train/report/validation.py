"""How good a net is on the images that were held out, whole, as `unet predict` sees them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from unet_jax import UNet, predict

from ..input.border_weights import label_objects
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
        masks: what the net predicts of them.
    """

    mean_image_iou: float | None
    pooled_iou: list[float | None]
    pooled_dice: list[float | None]
    pixel_error: float | None
    rand_score: float | None
    confusion: list[list[float]]
    images: list[ImageScore]
    masks: list[np.ndarray] = field(repr=False)

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


def validate(model: UNet, samples: Iterable[Sample], *, ignore_index: int | None = None) -> Scores:
    """Return the scores of a net, without the pixels whose truth is `ignore_index`."""
    classes = model.config.mask_classes
    rows, matrices, masks, ious, dices, rand = [], [], [], [], [], []
    for sample in samples:
        predicted = predict(model, sample.image)
        counted = confusion(predicted, sample.mask, classes=classes, ignore_index=ignore_index)
        matrix = np.asarray(counted, np.float64)
        matrices.append(matrix)
        masks.append(predicted)
        height, width = sample.mask.shape
        ious.append(foreground_iou(matrix))
        dices.append(foreground_dice(matrix))
        rows.append(
            ImageScore(sample.name, height, width, as_result(ious[-1]), as_result(dices[-1]))
        )
        if classes == 2:
            objects = label_objects(sample.mask == 1) if sample.objects is None else sample.objects
            rand.append(rand_score(predicted == 1, objects))
    pooled = np.sum(matrices, axis=0)
    return Scores(
        mean_image_iou=as_result(mean_score(ious)),
        pooled_iou=[*map(as_result, iou(pooled))],
        pooled_dice=[*map(as_result, dice(pooled))],
        pixel_error=as_result(pixel_error(pooled)),
        rand_score=as_result(mean_score(rand)),
        confusion=pooled.tolist(),
        images=rows,
        masks=masks,
    )
