"""One image of any size through a net that takes only legal sizes."""

from collections.abc import Callable

import numpy as np

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.preprocessing import Preprocessing, prepare


def predict(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    config: UNetConfig,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """The class of every pixel: (h, w) of uint8, or uint16 for more than 256 classes.

    The image is mirrored at its borders up to the next legal size (the paper's overlap-tile
    strategy, for the whole image as one tile), and the output cropped back.

    Args:
        forward: logits of one batch, (1, h, w, in_channels) -> (1, h', w', classes).
        image: as for `unet_spec.preprocessing.prepare`.
    """
    x = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    height, width = x.shape[:2]
    rows, columns = (border(config, size) for size in (height, width))
    logits = forward(np.pad(x, (rows, columns, (0, 0)), mode="symmetric")[None])[0]
    cropped = logits[..., :height, :width, :]
    if cropped.shape != (height, width, config.classes):
        raise AssertionError(f"the net gave {logits.shape} for an image of {x.shape}")
    if not np.isfinite(cropped).all():
        raise InputError("the net's output holds NaN or infinite values: its weights are damaged")
    return cropped.argmax(-1).astype(np.uint8 if config.classes <= 256 else np.uint16)


def border(config: UNetConfig, size_px: int) -> tuple[int, int]:
    """Pixels to add before and after, so that the output starts at the image's first pixel and
    covers it.

    >>> border(UNetConfig(padding="valid"), 388)
    (92, 92)
    """
    before = geometry.margin(config)
    size = geometry.next_legal(config, size_px + 2 * before)
    while geometry.output_size(config, size) < size_px:
        size = geometry.next_legal(config, size + 1)
    return before, size - size_px - before
