"""One image of any size through a net that takes only legal sizes and has only so much memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import ConfigError, InputError
from unet_spec.preprocessing import Preprocessing, prepare

TILE_PX = 2048  # side of the largest input
AS_IT_IS = np.s_[::1, ::1]
MIRRORS = (AS_IT_IS, np.s_[::1, ::-1], np.s_[::-1, ::1], np.s_[::-1, ::-1])


class Tile(NamedTuple):
    """A `Tile` is a part of one axis, height or width.

    Attributes:
        input: what of the input the net gets.
        keep: what of the output of that is used.
        output: where this lies in the whole output.
    """

    input: slice
    keep: slice
    output: slice


def predict(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    config: UNetConfig,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Predict the class of every pixel: (h, w) of uint8, or uint16 for more than 256 classes.

    `choose_class` decides, by the logits.

    The paper's overlap-tile strategy: the image is mirrored at its borders up to the next legal
    size, cut into tiles where it is larger than `TILE_PX`, and the output cropped back. Tiles
    overlap so far that every pixel sees what it would see in the whole image. With
    `preprocessing.window_px` it is cut into windows of that size instead, which do not.

    Logits are averaged, where windows overlap and over mirror images, whatever the config's
    `output` is. The mean of logits is the logarithm of a geometric mean: of the probabilities of
    softmax but for a factor that all classes share, and of the odds p / (1 - p) of sigmoid.

    Args:
        forward: logits of a batch, (b, h, w, in_channels) -> (b, h', w', classes).
        image: as for `unet_spec.preprocessing.prepare`.

    Raises:
        InputError: an image or windows that do not fit the net, or an output that is not finite.
    """
    window_px, mirrors = preprocessing.window_px, MIRRORS if preprocessing.mirror else (AS_IT_IS,)
    check_window(config, window_px)
    if window_px is not None or preprocessing.mirror:
        # what `fit` crops or adds lies on one side: in a mirror image on the other
        config = replace(config, fit="error")
    x = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    padded = _mirror_borders(config, x, least_px=window_px or 0)

    def run(part: np.ndarray) -> np.ndarray:
        return _sum_logits(forward, part, config, mirrors)

    if window_px is None:
        mask = _predict_tiles(run, padded, config)
    else:
        mask = _predict_windows(run, padded, config, window_px)
    height, width = x.shape[:2]
    return mask[:height, :width]


def _mirror_borders(config: UNetConfig, x: np.ndarray, *, least_px: int) -> np.ndarray:
    """Mirror an input (h, w, c) at its borders up to a size of which the output covers it."""
    rows, columns = (border(config, size, least_px=least_px) for size in x.shape[:2])
    return np.pad(x, (rows, columns, (0, 0)), mode="symmetric")


def _sum_logits(
    forward: Callable[[np.ndarray], np.ndarray],
    part: np.ndarray,
    config: UNetConfig,
    mirrors: Sequence[tuple[slice, slice]],
) -> np.ndarray:
    """Return the logits (h', w', classes) of an input (h, w, c), summed over its mirror images."""
    logits = forward(np.stack([part[mirror] for mirror in mirrors]))
    if logits.shape[-1] != config.classes:
        raise AssertionError(f"the net gave {logits.shape} for {config.classes} classes")
    if not np.isfinite(logits).all():
        raise InputError("the net's output holds NaN or infinite values: its weights are damaged")
    # mirrored a second time, each lies as the input does
    return sum(each[mirror] for each, mirror in zip(logits, mirrors, strict=True))


def _predict_tiles(
    run: Callable[[np.ndarray], np.ndarray], padded: np.ndarray, config: UNetConfig
) -> np.ndarray:
    mask = np.empty(_output_shape(config, padded), _mask_type(config))
    height, width = padded.shape[:2]
    for row, column in product(cut_tiles(config, height), cut_tiles(config, width)):
        logits = run(padded[row.input, column.input])
        mask[row.output, column.output] = choose_class(logits[row.keep, column.keep], axis=-1)
    return mask


def _predict_windows(
    run: Callable[[np.ndarray], np.ndarray],
    padded: np.ndarray,
    config: UNetConfig,
    window_px: int,
) -> np.ndarray:
    sums = np.zeros((*_output_shape(config, padded), config.classes), np.float32)
    weight = _make_weight(geometry.output_size(config, window_px))
    rows, columns = (cut_windows(config, size, window_px) for size in padded.shape[:2])
    for row, column in product(rows, columns):
        # the class with the largest sum is that with the largest average, and both have one sign
        sums[row.output, column.output] += weight * run(padded[row.input, column.input])
    return choose_class(sums, axis=-1).astype(_mask_type(config))


def choose_class(logits: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the class of each pixel, by its logits.

    It is the class with the largest logit, the first of equal ones. A single channel gives 1 where
    its logit is above 0, that is a probability above 1/2, and 0 elsewhere. Neither sigmoid nor
    softmax changes which channel is the largest, so no output function is applied.

    Args:
        axis: the axis of the channels, which goes.
    """
    if logits.shape[axis] == 1:
        return (logits > 0).squeeze(axis).astype(np.int64)
    return logits.argmax(axis)


def _output_shape(config: UNetConfig, padded: np.ndarray) -> tuple[int, int]:
    height, width = padded.shape[:2]
    return geometry.output_size(config, height), geometry.output_size(config, width)


def _mask_type(config: UNetConfig) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if config.classes <= 256 else np.uint16


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


def cut_windows(config: UNetConfig, size_px: int, window_px: int) -> list[Tile]:
    """Cut a height or width into windows, half of each seen by the next one too."""
    whole = geometry.output_size(config, size_px)
    part = geometry.output_size(config, window_px)
    step = max(1, part // 2)
    starts = [*range(0, whole - part, step), whole - part]
    return [
        Tile(slice(start, start + window_px), slice(0, part), slice(start, start + part))
        for start in starts
    ]


def _make_weight(size_px: int) -> np.ndarray:
    """Return a Hann window, (size, size, 1), which is 0 just outside."""
    hann = np.hanning(size_px + 2)[1:-1].astype(np.float32)
    return np.outer(hann, hann)[..., None]


def cut_tiles(config: UNetConfig, size_px: int) -> list[Tile]:
    """Cut a height or width into tiles of one size, so that one compilation does for them all.

    A net that is not the same everywhere (`norm` group or instance, whose statistics are those of
    the whole map; `up=bilinear_aligned`, whose sampling drifts with the size) is not cut.

    Raises:
        InputError: the net sees further than a tile reaches.
    """
    whole = geometry.output_size(config, size_px)
    is_uneven = config.norm in ("group", "instance") or config.up == "bilinear_aligned"
    if is_uneven or size_px <= TILE_PX:
        return [Tile(slice(0, size_px), slice(0, whole), slice(0, whole))]
    # tiles start in one phase of all pools, and end in that in which the whole ends
    unit = 2**config.depth
    tile_px = TILE_PX - (TILE_PX - size_px) % unit
    # what the net sees beyond the part that it answers for, in whole units
    halo = -(-(geometry.reach(config) - geometry.margin(config)) // unit) * unit
    step = (geometry.output_size(config, tile_px) - 2 * halo) // unit * unit
    if step < unit:
        raise InputError(
            f"an image of {size_px} pixels is cut into tiles of {tile_px}, and the net sees "
            f"{halo} further; give it parts of at most {TILE_PX} pixels"
        )
    tiles, begin = [], 0
    while begin < whole:
        start = min(max(0, begin - halo), size_px - tile_px)
        is_last = start == size_px - tile_px
        end = whole if is_last else begin + step
        keep = slice(begin - start, end - start)
        tiles.append(Tile(slice(start, start + tile_px), keep, slice(begin, end)))
        begin = end
    return tiles


def border(config: UNetConfig, size_px: int, *, least_px: int = 0) -> tuple[int, int]:
    """Return how many pixels to add before and after a height or width.

    The output then starts at the image's first pixel and covers it, and the input has at least
    `least_px`.

    >>> border(UNetConfig(padding="valid"), 388)
    (92, 92)
    """
    before = geometry.margin(config)
    size = geometry.next_legal(config, max(size_px + 2 * before, least_px))
    while geometry.output_size(config, size) < size_px:
        size = geometry.next_legal(config, size + 1)
    return before, size - size_px - before
