"""How good a net is on the images that were held out, whole, as `unet predict` sees them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from unet_jax import UNet, predict

from ..input.border_weights import label_objects
from ..input.samples import Sample
from ..metrics import confusion, dice, foreground_dice, foreground_iou, iou, pixel_error, rand_score


@dataclass(frozen=True)
class ImageScore:
    """An `ImageScore` has means over the classes 1 and up that one image has or the net finds."""

    name: str
    height: int
    width: int
    iou: float
    dice: float


@dataclass(frozen=True)
class Scores:
    """A `Scores` is that of all held-out images.

    Attributes:
        mean_image_iou: mean over images of the mean IoU of classes 1 and up, of those that are
            there or found.
        pooled_iou: of each class, over the pixels of all images.
        pooled_dice: likewise.
        pixel_error: part of the pixels whose class is wrong.
        rand_score: mean over images of the EM challenge's foreground-restricted Rand score; None
            for more than two classes.
        confusion: pixels, rows are the truth, columns the prediction.
        images: one by one.
        masks: what the net predicts of them.
    """

    mean_image_iou: float
    pooled_iou: list[float]
    pooled_dice: list[float]
    pixel_error: float
    rand_score: float | None
    confusion: list[list[float]]
    images: list[ImageScore]
    masks: list[np.ndarray] = field(repr=False)

    @property
    def headline(self) -> dict[str, float]:
        """Return the numbers of which a curve is drawn."""
        numbers = {
            "mean_image_iou": self.mean_image_iou,
            "pooled_iou": foreground_iou(np.asarray(self.confusion)),
            "pooled_dice": foreground_dice(np.asarray(self.confusion)),
            "pixel_error": self.pixel_error,
        }
        if self.rand_score is None:
            return numbers
        return {**numbers, "rand_score": self.rand_score}


def validate(model: UNet, samples: Iterable[Sample], *, ignore_index: int | None = None) -> Scores:
    """Return the scores of a net, without the pixels whose truth is `ignore_index`."""
    classes = model.config.mask_classes
    rows, matrices, masks, rand = [], [], [], []
    for sample in samples:
        predicted = predict(model, sample.image)
        counted = confusion(predicted, sample.mask, classes=classes, ignore_index=ignore_index)
        matrix = np.asarray(counted, np.float64)
        matrices.append(matrix)
        masks.append(predicted)
        height, width = sample.mask.shape
        rows.append(
            ImageScore(sample.name, height, width, foreground_iou(matrix), foreground_dice(matrix))
        )
        if classes == 2:
            objects = label_objects(sample.mask == 1) if sample.objects is None else sample.objects
            rand.append(rand_score(predicted == 1, objects))
    pooled = np.sum(matrices, axis=0)
    return Scores(
        mean_image_iou=float(np.mean([row.iou for row in rows])),
        pooled_iou=iou(pooled).tolist(),
        pooled_dice=dice(pooled).tolist(),
        pixel_error=float(pixel_error(pooled)),
        rand_score=float(np.mean(rand)) if rand else None,
        confusion=pooled.tolist(),
        images=rows,
        masks=masks,
    )
