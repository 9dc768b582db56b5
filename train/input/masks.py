"""Masks as they are stored, as classes: 0/255, indices, colours of a palette, or objects."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

import unet_image
from unet_image import Page
from unet_spec import InputError, UNetConfig
from unet_spec.errors import ConfigError, FieldError

from ..config import DataConfig, TrainConfig

STRIP_VALUES = 1 << 20  # of a mask that are looked at together
MANY_VALUES = 1 << 16  # different ones; no mask of classes has so many
MOST_LABELS = 16  # different values of a mask that are taken for classes
Stored = Literal["0/255", "indices", "all 0", "colours", "instances", "classes in alpha"]


class Truth(NamedTuple):
    """A `Truth` is a mask as classes.

    Attributes:
        mask: (h, w) class indices, uint8; pixels that count nothing hold `ignore_index`.
        objects: (h, w) numbers of objects, int32, 0 the background; of masks of instances.
        stored: what the mask held.
    """

    mask: np.ndarray
    objects: np.ndarray | None = None
    stored: Stored = "indices"


def to_truth(
    mask: np.ndarray, *, data: DataConfig, net: UNetConfig, ignore_index: int | None, source: str
) -> Truth:
    """Return a mask as classes; `data.mask_values` says what the file holds.

    Args:
        mask: as read, (h, w) or (h, w, c).
        source: name of the file, for errors.

    Raises:
        InputError: it holds something else.
    """
    if data.mask_values == "colours":
        return Truth(_look_up_colours(mask, data.palette, source), stored="colours")
    values = _take_one_channel(mask, net.mask_classes, source)
    if data.mask_values == "instances":
        objects = _check_instances(values, source)
        return Truth((objects > 0).astype(np.uint8), objects, "instances")
    return _interpret_values(values, net.mask_classes, ignore_index, source)


def read_mask(page: Page, data: DataConfig) -> tuple[np.ndarray, bool]:
    """Read a mask, and return it, and whether it is the file's alpha channel.

    It is where all colours are one, and the alpha has several values: a drawing program has painted
    the mask on an empty layer.
    """
    mask = unet_image.read_page(page, indices=data.mask_values != "colours")
    if page.has_alpha and data.mask_values != "colours" and (mask == mask[:1, :1]).all():
        alpha = unet_image.read_page(page, indices=True, alpha=True)[..., -1]
        if alpha.min() < alpha.max():
            return alpha, True
    return mask, False


def check_settings(data: DataConfig, net: UNetConfig) -> None:
    """Refuse a net whose classes cannot be what `data.mask_values` says.

    Raises:
        InputError: the number of classes does not fit; it says what does.
    """
    if net.classes > 256:
        raise FieldError(net, "classes", "is at most 256, as many as masks hold")
    if data.mask_values == "instances" and net.mask_classes != 2:
        raise ConfigError(
            TrainConfig,
            "{data.mask_values=instances} makes 2 classes, and "
            f"{{net.classes={net.classes}}}; use 2",
        )
    if data.mask_values == "colours":
        colours = _parse_palette(data.palette)
        count = net.mask_classes
        if len(colours) != count or len(set(colours)) != count:
            raise FieldError(
                data,
                "palette",
                "needs {count} different colours, one for each class of the net",
                count=count,
            )


def _parse_palette(palette: Sequence[str]) -> list[int]:
    """Return colours as whole numbers, 0xRRGGBB.

    Raises:
        InputError: a colour that is not written as RRGGBB.
    """
    if not all(re.fullmatch("#?[0-9a-fA-F]{6}", colour) for colour in palette):
        raise FieldError(DataConfig(palette=tuple(palette)), "palette", "holds colours as RRGGBB")
    return [int(colour.lstrip("#"), 16) for colour in palette]


def _look_up_colours(mask: np.ndarray, palette: Sequence[str], source: str) -> np.ndarray:
    """Return the class of each pixel: the index of its colour in the palette.

    Raises:
        InputError: another colour, or a mask of another type than uint8.
    """
    if mask.dtype != np.uint8:
        raise InputError(
            f"{source}: colours have 8 bits a channel, these are {mask.dtype}; store it as PNG"
        )
    channels = np.atleast_3d(mask)
    if channels.shape[-1] not in (1, 3):
        raise InputError(
            f"{source}: a mask of {channels.shape[-1]} channels is neither gray nor RGB; store it "
            "as one of them"
        )
    known = np.array(_parse_palette(palette))
    order = known.argsort()
    classes = np.empty(mask.shape[:2], np.uint8)
    strays: Counter[int] = Counter()
    for rows in _cut_strips(mask):
        # one number for a colour, as in the palette: 0xRRGGBB
        colours = (channels[rows].astype(np.int32) * (1 << 16, 1 << 8, 1)).sum(-1)
        places = np.searchsorted(known[order], colours).clip(max=len(known) - 1)
        classes[rows] = order[places]
        found, pixels = np.unique(colours[known[order][places] != colours], return_counts=True)
        strays.update(dict(zip(found.tolist(), pixels.tolist(), strict=True)))
    if strays:
        colour, most = strays.most_common(1)[0]
        raise ConfigError(
            DataConfig,
            "{source}: {count} pixels have a colour that is not in {palette}, {most} of them "
            "{colour}; add it, or paint them in a colour of the palette{jpeg}",
            source=source,
            count=strays.total(),
            most=most,
            colour=f"{colour:06X}",
            jpeg=_mention_jpeg(source),
        )
    return classes


def _take_one_channel(mask: np.ndarray, classes: int, source: str) -> np.ndarray:
    """Return the values of a mask, (h, w).

    Raises:
        InputError: its channels differ.
    """
    channels = np.atleast_3d(mask)
    if channels.shape[-1] > 1 and (channels != channels[..., :1]).any():
        raise ConfigError(
            DataConfig,
            "{source}: a mask in colours; say which with {mask_values=colours} and {palette}, or "
            "store class indices 0 to {last} in one channel{jpeg}",
            source=source,
            last=classes - 1,
            jpeg=_mention_jpeg(source),
        )
    return channels[..., 0]


def _interpret_values(
    values: np.ndarray, classes: int, ignore_index: int | None, source: str
) -> Truth:
    """Return the truth of a mask of 0 and 255, or of class indices.

    Raises:
        InputError: values that are neither.
    """
    distinct = _list_values(values)
    if ignore_index is not None:
        distinct = distinct[distinct != ignore_index]
    if classes == 2 and 255 in distinct and np.isin(distinct, (0, 255)).all():
        mask = np.where(values == ignore_index, values, values == 255)
        return Truth(mask.astype(np.uint8), stored="0/255")
    if np.isin(distinct, np.arange(classes)).all():
        return Truth(values.astype(np.uint8), stored="indices" if distinct.any() else "all 0")
    examples = ", ".join(str(value) for value in distinct[:6])
    if distinct.size > 6:
        examples += ", ..."
    binary = "0 and 255, or " if classes == 2 else ""
    raise ConfigError(
        TrainConfig,
        "{source}: mask values {examples} do not fit {classes} classes: {binary}0 to {last} are "
        f"needed{_mention_jpeg(source) or _guess_meaning(distinct, classes)}",
        source=source,
        examples=examples,
        classes=classes,
        binary=binary,
        last=classes - 1,
    )


def _list_values(values: np.ndarray) -> np.ndarray:
    """Return the values of a mask, each once; or many of them where they are too many for classes.

    Bytes are counted, which is quicker than sorting.
    """
    distinct = np.empty(0, values.dtype)
    for rows in _cut_strips(values):
        strip = values[rows]
        if values.dtype == np.uint8:
            strip = np.flatnonzero(np.bincount(strip.ravel())).astype(np.uint8)
        distinct = np.union1d(distinct, strip)
        if distinct.size > MANY_VALUES:
            break
    return distinct


def _cut_strips(values: np.ndarray) -> Iterator[slice]:
    """Yield slices of rows: what is computed of a strip at once may take 8 bytes a value."""
    rows = max(1, STRIP_VALUES // values[0].size)
    return (slice(start, start + rows) for start in range(0, len(values), rows))


def _guess_meaning(values: np.ndarray, classes: int) -> str:
    """Return what to do about values that are no classes, as a template of `ConfigError`."""
    if values.size > MOST_LABELS:
        return (
            "; a mask that was blended in resizing or as JPEG has to be made again, as PNG or "
            "TIFF; numbers of objects need {data.mask_values=instances}"
        )
    if (values < 0).any():
        return "; store them so, and pixels that count nothing as 255 with {loss.ignore_index=255}"
    if not np.isfinite(values).all() or (values % 1 != 0).any():
        return "; store each class as a whole number"
    if 255 in values and (values[values != 255] < classes).all():
        return "; if 255 marks pixels that count nothing: {loss.ignore_index=255}"
    count = int(values.max()) + 1
    more = f"{{net.classes={count}}} with as many {{class_names}}"
    if count <= MOST_LABELS and values.min() > 0:
        return f"; if the labels begin at 1, store them from 0, or use {more}"
    if classes == 2 and values.size <= 2:
        return (
            "; if all but 0 is class 1, as one object for each number: {data.mask_values=instances}"
        )
    objects = "; numbers of objects need {data.mask_values=instances}" if classes == 2 else ""
    if count <= MOST_LABELS:
        return f"; if there are more classes: {more}{objects}"
    return f"; store each class as its number{objects}"


def _check_instances(values: np.ndarray, source: str) -> np.ndarray:
    """Return numbers of objects as int32.

    Raises:
        InputError: values that are no such numbers, or those of a JPEG.
    """
    # a JPEG's values look like numbers of objects, whatever it was made from
    if _mention_jpeg(source) or not all(_are_numbers(values[rows]) for rows in _cut_strips(values)):
        raise InputError(
            f"{source}: numbers of objects are whole, from 0 to {np.iinfo(np.int32).max}; store "
            f"them so{_mention_jpeg(source)}"
        )
    return values.astype(np.int32)


def _are_numbers(values: np.ndarray) -> bool:
    """Return whether values are whole, and such as int32 holds; NaN is none of them."""
    fits = (values >= 0) & (values <= np.iinfo(np.int32).max)
    return bool(fits.all() and (values % 1 == 0).all())


def _mention_jpeg(source: str) -> str:
    """Return what to do about a mask that is a JPEG, or nothing for another file."""
    if Path(source).suffix.lower() in (".jpg", ".jpeg"):
        return "; JPEG smears masks: make it again as PNG or TIFF"
    return ""
