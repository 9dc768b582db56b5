"""One image of any size through a net that takes only legal sizes and has only so much memory."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.preprocessing import Preprocessing, prepare

TILE_PX = 2048  # side of the largest input


class Tile(NamedTuple):
    """A part of one axis: of the input what the net sees, of its output what is kept, and where
    that lies in the whole output."""

    seen: slice
    kept: slice
    told: slice


def predict(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    config: UNetConfig,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """The class of every pixel: (h, w) of uint8, or uint16 for more than 256 classes.

    The paper's overlap-tile strategy: the image is mirrored at its borders up to the next legal
    size, cut into tiles where it is larger than `TILE_PX`, and the output cropped back. Tiles
    overlap so far that every pixel sees what it would see in the whole image.

    Args:
        forward: logits of one batch, (1, h, w, in_channels) -> (1, h', w', classes).
        image: as for `unet_spec.preprocessing.prepare`.
    """
    x = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    height, width = x.shape[:2]
    rows, columns = (border(config, size) for size in (height, width))
    padded = np.pad(x, (rows, columns, (0, 0)), mode="symmetric")
    mask = np.empty(
        [geometry.output_size(config, size) for size in padded.shape[:2]],
        np.uint8 if config.classes <= 256 else np.uint16,
    )
    for down in tiles(config, padded.shape[0]):
        for right in tiles(config, padded.shape[1]):
            logits = forward(padded[None, down.seen, right.seen])[0][down.kept, right.kept]
            if logits.shape[-1] != config.classes:
                raise AssertionError(f"the net gave {logits.shape} for {config.classes} classes")
            if not np.isfinite(logits).all():
                raise InputError(
                    "the net's output holds NaN or infinite values: its weights are damaged"
                )
            mask[down.told, right.told] = logits.argmax(-1)
    return mask[:height, :width]


def tiles(config: UNetConfig, size_px: int) -> list[Tile]:
    """How a height or width is cut: all tiles have one size, so one compilation does for them.

    A net that is not the same everywhere (`norm` group or instance, whose statistics are those of
    the whole map; `up=bilinear_aligned`, whose sampling drifts with the size) is not cut.
    """
    whole = geometry.output_size(config, size_px)
    unit = 2**config.depth  # tiles see the pools in phase
    halo = -(-(geometry.reach(config) - geometry.margin(config)) // unit) * unit
    tile_px = TILE_PX - (TILE_PX - size_px) % unit  # they end in the phase in which the whole ends
    uneven = config.norm in ("group", "instance") or config.up == "bilinear_aligned"
    if uneven or size_px <= TILE_PX:
        return [Tile(slice(0, size_px), slice(0, whole), slice(0, whole))]
    step = (geometry.output_size(config, tile_px) - 2 * halo) // unit * unit
    if step < unit:
        raise InputError(
            f"an image of {size_px} pixels is cut into tiles of {tile_px}, and the net sees "
            f"{halo} further; give it parts of at most {TILE_PX} pixels"
        )
    found, at = [], 0
    while at < whole:
        start = min(max(0, at - halo), size_px - tile_px)
        end = whole if start == size_px - tile_px else at + step
        kept = slice(at - start, end - start)
        found.append(Tile(slice(start, start + tile_px), kept, slice(at, end)))
        at = end
    return found


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
