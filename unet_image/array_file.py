"""NumPy files and zarr stores."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_image.axes import (
    arrange,
    check_axes,
    count_pages,
    guess_axes,
    image_shape,
    locate_page,
)
from unet_image.header import Header
from unet_image.limits import check_count
from unet_image.zarr_chunks import check_chunks
from unet_spec import InputError
from unet_spec.wording import list_names

if TYPE_CHECKING:
    import zarr


MOST_CHUNKS = 1 << 16
"""An image is read from at most so many chunks: each takes about 0.06 ms, and a file perhaps."""
MOST_NAMES = 5  # in a sentence


@dataclass(frozen=True, eq=False)
class _Stack:
    """An array of images.

    Attributes:
        array: of NumPy or zarr, of which parts can be read.
        axes: a letter for each axis, Y and X among them.
    """

    array: Any
    axes: str

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of what is decoded as a whole, where it is stored in such parts."""
        return () if isinstance(self.array, np.ndarray) else (tuple(self.array.chunks),)


def measure_npy(path: Path) -> list[Header]:
    """Measure the images of a NumPy file by its header.

    Raises:
        InputError: axes or values that are no image's.
    """
    return _measure(path, [_open_npy(path)])


def read_npy(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples of an image; only its part of the file is read."""
    return _read(path, [_open_npy(path)], index)


def measure_zarr(path: Path) -> list[Header]:
    """Measure the images of a zarr store by its metadata.

    Raises:
        InputError: axes or values that are no image's, or several arrays of which none is said to
            be the image.
    """
    return _measure(path, _open_zarr(path))


def read_zarr(path: Path, index: int, header: Header) -> np.ndarray:
    """Read the stored samples of an image; only its chunks are read."""
    return _read(path, _open_zarr(path), index)


def _measure(path: Path, stacks: list[_Stack]) -> list[Header]:
    headers: list[Header] = []
    for stack in stacks:
        shape, dtype = tuple(stack.array.shape), np.dtype(stack.array.dtype)
        check_axes(path, stack.axes, shape)
        image = image_shape(stack.axes, shape)
        is_bilevel = dtype.kind == "b"
        header = Header(
            image,
            np.dtype(np.uint8) if is_bilevel else dtype.newbyteorder("="),
            largest=1 if is_bilevel else None,
            is_colour="C" not in stack.axes,
            blocks=stack.chunks,
        )
        count = count_pages(stack.axes, shape)
        check_count(path, count + len(headers))
        _check_chunks(path, shape, stack)
        headers += [header] * count
    return headers


def _check_chunks(path: Path, shape: tuple[int, ...], stack: _Stack) -> None:
    """Refuse an image in so many chunks that it takes minutes to look for them.

    Raises:
        InputError: it names their number.
    """
    for chunk in stack.chunks:
        sides = [
            -(-side // max(1, length))
            for axis, side, length in zip(stack.axes, shape, chunk, strict=True)
            if axis in "YXCS"
        ]
        if math.prod(sides) > MOST_CHUNKS:
            raise InputError(
                f"{path}: an image in {math.prod(sides):,} chunks, at most {MOST_CHUNKS:,} are "
                "read; store it in larger ones"
            )


def _read(path: Path, stacks: list[_Stack], index: int) -> np.ndarray:
    for stack in stacks:
        shape = tuple(stack.array.shape)
        count = count_pages(stack.axes, shape)
        if index < count:
            chosen = locate_page(stack.axes, shape, index)
            if not isinstance(stack.array, np.ndarray):
                check_chunks(path, stack.array, chosen)
            part = np.asarray(stack.array[chosen])
            image = arrange(stack.axes, part)
            # owned, and in the machine's byte order
            kind = np.uint8 if image.dtype.kind == "b" else image.dtype.newbyteorder("=")
            return np.array(image, kind)
        index -= count
    raise ValueError(f"it has no page {index}")


def _open_npy(path: Path) -> _Stack:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" not in str(error):
            raise
        raise InputError(
            f"{path}: it holds Python objects and no image; save its images or masks as PNG or TIFF"
        ) from error
    return _Stack(array, guess_axes(path, array.shape))


def _open_zarr(path: Path) -> list[_Stack]:
    """Return the arrays of a store that are images.

    Raises:
        InputError: a plate or a well, or several arrays of which none is said to be the image.
    """
    import zarr  # it is slow to import, and few need it

    opened = zarr.open(path, mode="r")
    if isinstance(opened, zarr.Array):
        return [_Stack(opened, _name_axes(path, opened))]
    return list(_list_images(path, opened))


def _list_images(path: Path, group: "zarr.Group") -> Iterator[_Stack]:
    said: Any = dict(group.attrs)
    said = said.get("ome", said)  # version 0.5 has a name for its own attributes
    for kind in ("plate", "well"):
        if kind in said:
            raise InputError(f"{path}: an OME-Zarr {kind}; name the images in it")
    if "multiscales" in said:
        yield _open_scales(path, group, said["multiscales"])
        return
    if "bioformats2raw.layout" in said:  # its groups 0, 1, ... are an image each
        groups = {int(key): inner for key, inner in group.groups() if key.isdigit()}
        for number in sorted(groups):
            yield from _list_images(path, groups[number])
        return
    arrays = dict(group.arrays())
    if len(arrays) != 1:
        names = list_names(sorted([*arrays, *group.group_keys()]), MOST_NAMES) or "nothing"
        raise InputError(f"{path}: a zarr group of {names}; name the array that is the image")
    (array,) = arrays.values()
    yield _Stack(array, _name_axes(path, array))


def _open_scales(path: Path, group: "zarr.Group", scales: Any) -> _Stack:
    """Return the largest of the sizes in which OME-Zarr holds an image."""
    if len(scales) != 1:
        raise InputError(f"{path}: an OME-Zarr of {len(scales)} images; store each by itself")
    array: Any = group[scales[0]["datasets"][0]["path"]]
    axes = scales[0].get("axes") or "tczyx"[-len(array.shape) :]  # so it was before version 0.3
    letters = []
    for axis in axes:
        name = axis if isinstance(axis, str) else axis["name"]
        is_channel = not isinstance(axis, str) and axis.get("type") == "channel"
        letters.append("C" if is_channel else _letter(name))
    return _Stack(array, "".join(letters))


def _name_axes(path: Path, array: "zarr.Array") -> str:
    """Return the axes of an array that stands by itself: as it names them, else by its shape.

    Raises:
        InputError: names without y and x, or a shape that is no image's.
    """
    names: Any = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS")  # as xarray writes them
    if not names or None in names:
        return guess_axes(path, array.shape)
    return "".join(_letter(str(name)) for name in names)


def _letter(name: str) -> str:
    """Return the letter of an axis: Y, X, C or S, and I for all that count pages."""
    letter = "C" if name.lower() in ("c", "channel", "channels") else name.upper()
    return letter if letter in ("Y", "X", "C", "S") else "I"
