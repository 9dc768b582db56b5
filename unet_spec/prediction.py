"""One image of any size through a net that takes only legal sizes and has only so much memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import ConfigError, InputError
from unet_spec.outputs import compute_probabilities
from unet_spec.preprocessing import Preprocessing, prepare

TILE_PX = 2048  # side of the largest input
STRIP_ROWS = 128  # of logits become classes and probabilities at once, which takes float64
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


class Part(NamedTuple):
    """A `Part` holds the averaged logits, (h, w, classes), of some rows and columns of an image."""

    rows: slice
    columns: slice
    logits: np.ndarray


def predict(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    config: UNetConfig,
    preprocessing: Preprocessing,
    threshold: float | None = None,
) -> np.ndarray:
    """Predict the class of every pixel: (h, w) of uint8, or uint16 for more than 256 classes.

    `choose_class` decides, by the logits; with a threshold the probability of class 1 does.

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
        threshold: a pixel of a net with two classes is class 1 where the probability of that is
            at least this.

    Raises:
        InputError: an image or windows that do not fit the net, an output that is not finite, or
            a threshold that is no probability or has more than two classes to tell apart.
    """
    check_threshold(config, threshold)
    x = _prepare(image, config, preprocessing)
    mask = np.empty(x.shape[:2], _mask_type(config))
    for part in _predict_parts(forward, x, config, preprocessing):
        mask[part.rows, part.columns] = _choose(config, part.logits, threshold)
    return mask


def predict_both(
    forward: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    config: UNetConfig,
    preprocessing: Preprocessing,
    threshold: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask that `predict` gives, and the probabilities by which it chooses.

    These are float32, (h, w, classes), of the averaged logits; `compute_probabilities` says what
    they are. The class in the mask is one with the largest probability. Where two are equal in
    float32 the logits, which are finer, have decided.

    Besides what `predict` takes, this takes 4 bytes for each pixel and class.
    """
    check_threshold(config, threshold)
    x = _prepare(image, config, preprocessing)
    mask = np.empty(x.shape[:2], _mask_type(config))
    probabilities = np.empty((*x.shape[:2], config.classes), np.float32)
    for part in _predict_parts(forward, x, config, preprocessing):
        place = part.rows, part.columns
        mask[place] = _choose(config, part.logits, threshold)
        probabilities[place] = compute_probabilities(config, part.logits, axis=-1)
    return mask, probabilities


def _choose(config: UNetConfig, logits: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return the class of each pixel (h, w) of logits (h, w, classes)."""
    if threshold is None:
        return choose_class(logits, axis=-1)
    return _reach_threshold(compute_probabilities(config, logits, axis=-1), threshold)


def check_threshold(config: UNetConfig, threshold: float | None) -> None:
    """Refuse a threshold that is no probability, or that does not divide a net's classes in two.

    Raises:
        InputError: with what to do instead.
    """
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise InputError(
            f"the threshold is a probability between 0 and 1, got {threshold}; give one such as 0.3"
        )
    if config.mask_classes != 2:
        raise InputError(
            f"the threshold divides two classes, and the net has {config.classes}; leave it out, "
            "or compare the probabilities of the class that you mean"
        )


def check_size(
    height: int, width: int, *, config: UNetConfig, preprocessing: Preprocessing
) -> None:
    """Refuse an image that the net cannot predict, by its size, before its pixels are read.

    Raises:
        InputError: the size, or the windows, do not fit.
    """
    check_window(config, preprocessing.window_px)
    _refuse_wide_window(preprocessing.window_px, max(height, width))
    if preprocessing.window_px is None:
        config = _without_fit(config, preprocessing)
        for size in (height, width):
            cut_tiles(config, size + sum(border(config, size)))


def input_shape(
    height: int, width: int, *, config: UNetConfig, preprocessing: Preprocessing
) -> tuple[int, int, int, int]:
    """Return the shape (b, h, w, in_channels) of every input that the net gets of an image.

    Raises:
        InputError: the size, or the windows, do not fit.
    """
    check_size(height, width, config=config, preprocessing=preprocessing)
    count, window_px = len(_list_mirrors(preprocessing)), preprocessing.window_px
    if window_px is not None:
        return count, window_px, window_px, config.in_channels
    config = _without_fit(config, preprocessing)
    rows, columns = (
        cut_tiles(config, size + sum(border(config, size)))[0].input for size in (height, width)
    )  # all tiles of an axis have one size
    return count, rows.stop - rows.start, columns.stop - columns.start, config.in_channels


def _list_mirrors(preprocessing: Preprocessing) -> Sequence[tuple[slice, slice]]:
    return MIRRORS if preprocessing.mirror else (AS_IT_IS,)


def _prepare(image: np.ndarray, config: UNetConfig, preprocessing: Preprocessing) -> np.ndarray:
    """Return the input (h, w, in_channels) of an image, and refuse what does not fit the net."""
    check_window(config, preprocessing.window_px)
    _refuse_wide_window(preprocessing.window_px, max(image.shape[:2]))
    return prepare(image, channels=config.in_channels, preprocessing=preprocessing)


def _refuse_wide_window(window_px: int | None, side_px: int) -> None:
    """Refuse a window to which an image would be mirrored many times, with all of its memory.

    Args:
        side_px: the longer side of the image.

    Raises:
        InputError: the window is above `TILE_PX` and twice the side.
    """
    if window_px is not None and window_px > max(TILE_PX, 2 * side_px):
        raise InputError(
            f"its window_px of {window_px} is more than twice the image's longer side of {side_px} "
            f"pixels; above {TILE_PX} a window is for larger images, so train or convert the net "
            "with a smaller one"
        )


def _without_fit(config: UNetConfig, preprocessing: Preprocessing) -> UNetConfig:
    """Return the config by which sizes are chosen.

    What `fit` crops or adds lies on one side, and in a mirror image on the other: with windows and
    mirror images only sizes are used that need no `fit`.
    """
    if preprocessing.window_px is not None or preprocessing.mirror:
        return replace(config, fit="error")
    return config


def _predict_parts(
    forward: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    config: UNetConfig,
    preprocessing: Preprocessing,
) -> Iterator[Part]:
    """Yield the logits of an input (h, w, c), averaged, in strips that together are the whole."""
    window_px, mirrors = preprocessing.window_px, _list_mirrors(preprocessing)
    config = _without_fit(config, preprocessing)
    padded = _mirror_borders(config, x, least_px=window_px or 0)

    def run(part: np.ndarray) -> np.ndarray:
        return _average_logits(forward, part, config, mirrors)

    if window_px is None:
        parts = _predict_tiles(run, padded, config)
    else:
        parts = iter([_predict_windows(run, padded, config, window_px)])
    height, width = x.shape[:2]
    for part in parts:
        yield from _cut_strips(_crop(part, height, width))


def _crop(part: Part, height: int, width: int) -> Part:
    """Return what of a part lies in an image, which may be nothing."""
    rows = slice(part.rows.start, max(part.rows.start, min(part.rows.stop, height)))
    columns = slice(part.columns.start, max(part.columns.start, min(part.columns.stop, width)))
    logits = part.logits[: rows.stop - rows.start, : columns.stop - columns.start]
    return Part(rows, columns, logits)


def _cut_strips(part: Part) -> Iterator[Part]:
    """Yield a part in strips of at most `STRIP_ROWS` rows."""
    for start in range(0, len(part.logits), STRIP_ROWS):
        logits = part.logits[start : start + STRIP_ROWS]
        first = part.rows.start + start
        yield Part(slice(first, first + len(logits)), part.columns, logits)


def _mirror_borders(config: UNetConfig, x: np.ndarray, *, least_px: int) -> np.ndarray:
    """Mirror an input (h, w, c) at its borders up to a size of which the output covers it."""
    rows, columns = (border(config, size, least_px=least_px) for size in x.shape[:2])
    return np.pad(x, (rows, columns, (0, 0)), mode="symmetric")


def _average_logits(
    forward: Callable[[np.ndarray], np.ndarray],
    part: np.ndarray,
    config: UNetConfig,
    mirrors: Sequence[tuple[slice, slice]],
) -> np.ndarray:
    """Return the logits (h', w', classes) of an input (h, w, c), the mean of its mirror images."""
    logits = forward(np.stack([part[mirror] for mirror in mirrors]))
    if logits.shape[-1] != config.classes:
        raise AssertionError(f"the net gave {logits.shape} for {config.classes} classes")
    if not np.isfinite(logits).all():
        raise InputError("the net's output holds NaN or infinite values: its weights are damaged")
    # mirrored a second time, each lies as the input does
    return np.mean([each[mirror] for each, mirror in zip(logits, mirrors, strict=True)], axis=0)


def _predict_tiles(
    run: Callable[[np.ndarray], np.ndarray], padded: np.ndarray, config: UNetConfig
) -> Iterator[Part]:
    """Yield the logits of each tile, where it answers for the output."""
    height, width = padded.shape[:2]
    for row, column in product(cut_tiles(config, height), cut_tiles(config, width)):
        logits = run(padded[row.input, column.input])
        yield Part(row.output, column.output, logits[row.keep, column.keep])


def _predict_windows(
    run: Callable[[np.ndarray], np.ndarray],
    padded: np.ndarray,
    config: UNetConfig,
    window_px: int,
) -> Part:
    """Return the logits of the whole output, averaged over the windows that see a pixel."""
    height, width = _output_shape(config, padded)
    sums = np.zeros((height, width, config.classes), np.float32)
    weights = np.zeros((height, width, 1), np.float32)
    weight = _make_weight(geometry.output_size(config, window_px))
    rows, columns = (cut_windows(config, size, window_px) for size in padded.shape[:2])
    for row, column in product(rows, columns):
        sums[row.output, column.output] += weight * run(padded[row.input, column.input])
        weights[row.output, column.output] += weight
    sums /= weights
    return Part(slice(0, height), slice(0, width), sums)


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


def _reach_threshold(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return where the last channel, which is that of class 1, has at least a probability.

    Both are compared as float32, in which 0.7 is 0.7.
    """
    return probabilities[..., -1] >= np.float32(threshold)


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
    if unit > TILE_PX:
        raise InputError(
            f"an image of {size_px} pixels is cut into tiles of {TILE_PX}, and the pools of the "
            f"net need {unit}; give it parts of at most {TILE_PX} pixels"
        )
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
