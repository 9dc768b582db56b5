"""One image of any size through a net that takes only legal sizes and has only so much memory."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import ConfigError, InputError
from unet_spec.preprocessing import Preprocessing, prepare

TILE_PX = 2048  # side of the largest input
MIRRORED = [np.s_[::down, ::right] for down in (1, -1) for right in (1, -1)]


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
    overlap so far that every pixel sees what it would see in the whole image. With
    `preprocessing.window_px` it is cut into windows of that size instead, which do not, and whose
    logits are averaged.

    Args:
        forward: logits of a batch, (b, h, w, in_channels) -> (b, h', w', classes).
        image: as for `unet_spec.preprocessing.prepare`.
    """
    window_px, mirror = preprocessing.window_px, preprocessing.mirror
    check_window(config, window_px)
    if window_px is not None or mirror:
        config = replace(config, fit="error")  # what is cropped or added has a side
    x = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    height, width = x.shape[:2]
    rows, columns = (border(config, size, least_px=window_px or 0) for size in (height, width))
    padded = np.pad(x, (rows, columns, (0, 0)), mode="symmetric")

    def logits(down: slice, right: slice) -> np.ndarray:
        seen = padded[down, right]
        found = forward(np.stack([seen[turn] for turn in (MIRRORED if mirror else MIRRORED[:1])]))
        if found.shape[-1] != config.classes:
            raise AssertionError(f"the net gave {found.shape} for {config.classes} classes")
        if not np.isfinite(found).all():
            raise InputError(
                "the net's output holds NaN or infinite values: its weights are damaged"
            )
        return sum(each[turn] for each, turn in zip(found, MIRRORED, strict=False))

    shape = [geometry.output_size(config, size) for size in padded.shape[:2]]
    mask = np.empty(shape, np.uint8 if config.classes <= 256 else np.uint16)
    if window_px is None:
        for down, right in product(*(tiles(config, size) for size in padded.shape[:2])):
            kept = logits(down.seen, right.seen)[down.kept, right.kept]
            mask[down.told, right.told] = kept.argmax(-1)
    else:
        weight = _weight(geometry.output_size(config, window_px))
        sums = np.zeros((*shape, config.classes), np.float32)
        for down, right in product(*(windows(config, n, window_px) for n in padded.shape[:2])):
            sums[down.told, right.told] += weight * logits(down.seen, right.seen)
        mask[:] = sums.argmax(-1)
    return mask[:height, :width]


def check_window(config: UNetConfig, window_px: int | None) -> None:
    """Refuse windows of a size that the net does not take, or takes only by `fit`.

    Raises:
        InputError: with the nearest sizes that it takes.
    """
    strict = replace(config, fit="error")
    if window_px is not None and not geometry.is_legal(strict, window_px):
        near = " or ".join(map(str, geometry.nearest_legal(strict, window_px)))
        raise ConfigError(
            Preprocessing(window_px=window_px),
            "{window_px=} is not legal for the net; use {near}",
            near=near,
        )


def windows(config: UNetConfig, size_px: int, window_px: int) -> list[Tile]:
    """How a height or width is cut into windows, half of each seen by the next one too."""
    whole, told = (geometry.output_size(config, size) for size in (size_px, window_px))
    starts = dict.fromkeys([*range(0, whole - told, max(1, told // 2)), whole - told])
    return [Tile(slice(at, at + window_px), slice(0, told), slice(at, at + told)) for at in starts]


def _weight(size_px: int) -> np.ndarray:
    """(size, size, 1): a Hann window, which is 0 just outside."""
    hann = np.hanning(size_px + 2)[1:-1].astype(np.float32)
    return np.outer(hann, hann)[..., None]


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


def border(config: UNetConfig, size_px: int, *, least_px: int = 0) -> tuple[int, int]:
    """Pixels to add before and after, so that the output starts at the image's first pixel and
    covers it, and the input has at least `least_px`.

    >>> border(UNetConfig(padding="valid"), 388)
    (92, 92)
    """
    before = geometry.margin(config)
    size = geometry.next_legal(config, max(size_px + 2 * before, least_px))
    while geometry.output_size(config, size) < size_px:
        size = geometry.next_legal(config, size + 1)
    return before, size - size_px - before
