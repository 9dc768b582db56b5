from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from unet_spec import prediction
from unet_torch.model import UNet


def predict(model: UNet, image: np.ndarray, *, threshold: float | None = None) -> np.ndarray:
    """Predict the class of every pixel of one image of any size: (h, w) integers.

    The image is mirrored at its borders to a size that the net takes, and the mask has its own.
    `unet_spec.prediction` says how large images are cut.

    Args:
        model: its `preprocessing` turns the image into the input; it runs in inference mode
            and is left in the mode that it was in.
        image: (h, w) or (h, w, c), any integer or float type; sizes in pixels.
        threshold: a net of two classes gives class 1 where its probability is at least this,
            between 0 and 1; by default where it is the larger one.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values; or the
            threshold is no probability, or the net has more than two classes.
    """
    with _evaluate(model) as forward:
        return prediction.predict(
            forward, image, config=model.config, preprocessing=model.preprocessing,
            threshold=threshold,
        )  # fmt: skip


def predict_probabilities(model: UNet, image: np.ndarray) -> np.ndarray:
    """Predict the probability of every class in every pixel: (h, w, classes) float32.

    Those of a pixel add up to 1, but for a net with `output=sigmoid`, in which each class has its
    own, and a net of one channel, which gives that of class 1. `predict` chooses by them.

    Args:
        model, image: as for `predict(model, image)`.

    Raises:
        InputError: the image has other axes or channels, or holds NaN or infinite values.
    """
    return predict_both(model, image)[1]


def predict_both(
    model: UNet, image: np.ndarray, *, threshold: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict classes and probabilities at once, as `predict` and `predict_probabilities` do."""
    with _evaluate(model) as forward:
        return prediction.predict_both(
            forward, image, config=model.config, preprocessing=model.preprocessing,
            threshold=threshold,
        )  # fmt: skip


@contextmanager
def _evaluate(model: UNet) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Put a model into inference mode, and yield the function from a batch to its logits.

    That takes (b, h, w, c) and gives (b, h', w', classes). The model gets its mode back.
    """
    like = model.out.weight

    @torch.no_grad()
    def forward(x: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(x).permute(0, 3, 1, 2).to(like)
        return model(batch).permute(0, 2, 3, 1).float().cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        yield forward
    finally:
        model.train(was_training)
