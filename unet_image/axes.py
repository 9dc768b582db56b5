"""Axes of stored arrays: Y and X make an image, C or S its channels, every other one its pages."""

import math
from pathlib import Path

import numpy as np

from unet_spec import InputError

CHANNELS = "CS"
MOST_UNNAMED_CHANNELS = 4
"""The last of three axes without names counts channels up to here, which is RGB and one more."""

LEAST_PX = 16
"""Three axes without names, of which one side would have fewer pixels, may be channels."""


def guess_axes(path: Path, shape: tuple[int, ...]) -> str:
    """Return the axes of an array without names.

    They are (h, w); (h, w, c) with at most 4 channels, otherwise (pages, h, w); (pages, h, w, c).
    The channels are S, samples of a colour, as nothing says that they are something else.

    Raises:
        InputError: another number of axes, or pages whose sides may be channels.
    """
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3:
        if shape[-1] <= MOST_UNNAMED_CHANNELS:
            return "YXS"
        if min(shape[1:]) < LEAST_PX:
            raise InputError(
                f"{path}: an array of the shape {shape} would be {shape[0]} pages of {shape[1]} x "
                f"{shape[2]} pixels; store (n, h, w) of at least {LEAST_PX} x {LEAST_PX} pixels, "
                f"(h, w, c) with c of at most {MOST_UNNAMED_CHANNELS}, (n, h, w, c), or a zarr "
                "with names of axes"
            )
        return "IYX"
    if len(shape) == 4:
        return "IYXS"
    raise InputError(
        f"{path}: an array of the shape {shape}; images are (h, w), (h, w, c), (pages, h, w) or "
        "(pages, h, w, c)"
    )


def check_axes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    """Refuse axes that make no image.

    Raises:
        InputError: no height or width, an axis twice, or two axes of channels.
    """
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise InputError(f"{path}: its axes are {axes}; an image needs one Y and one X")
    channels = [axis for axis, size in zip(axes, shape, strict=True) if axis in CHANNELS]
    sizes = [size for axis, size in zip(axes, shape, strict=True) if axis in CHANNELS and size > 1]
    if len(sizes) > 1 or len(channels) != len(set(channels)):
        raise InputError(
            f"{path}: its axes {axes} of {shape} have channels twice (C and S); store one axis of "
            "channels"
        )


def count_pages(axes: str, shape: tuple[int, ...]) -> int:
    """Return the number of images in an array."""
    return math.prod(_page_sizes(axes, shape))


def image_shape(axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (h, w) or (h, w, c) of one image in an array; one channel is none."""
    sizes = dict(zip(axes, shape, strict=True))
    channels = math.prod(sizes.get(axis, 1) for axis in CHANNELS)
    return (sizes["Y"], sizes["X"], channels) if channels > 1 else (sizes["Y"], sizes["X"])


def locate_page(axes: str, shape: tuple[int, ...], index: int) -> tuple[int | slice, ...]:
    """Return the place of an image in its array."""
    numbers = iter(np.unravel_index(index, _page_sizes(axes, shape) or (1,)))
    return tuple(slice(None) if _is_inside(axis) else int(next(numbers)) for axis in axes)


def arrange(axes: str, part: np.ndarray) -> np.ndarray:
    """Return an image (h, w) or (h, w, c) of the part of an array that `locate_page` names."""
    inside = "".join(axis for axis in axes if _is_inside(axis))
    order = [inside.index(axis) for axis in ("Y", "X", *CHANNELS) if axis in inside]
    image = part.transpose(order)
    return image.reshape(image_shape(inside, part.shape))


def _is_inside(axis: str) -> bool:
    return axis in ("Y", "X", *CHANNELS)


def _page_sizes(axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for axis, size in zip(axes, shape, strict=True) if not _is_inside(axis))
