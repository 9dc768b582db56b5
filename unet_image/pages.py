"""The pages of an image file: measured without decoding, and read one by one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_image import array_file, gif_file, jpeg_file, png_file, tiff_file, webp_file
from unet_image.files import STORE_FILES, is_store
from unet_image.header import Header
from unet_image.limits import check_size
from unet_image.quiet import silence_decoders
from unet_spec import InputError, Preprocessing
from unet_spec.preprocessing import LARGEST_GB, prepare
from unet_spec.safetensors_file import refuse_pointer


@dataclass(frozen=True)
class Page:
    """A `Page` is one image in a file, measured and not decoded.

    Attributes:
        index, count: its number in the file, from 0 on, and how many pages that has.
        shape: (h, w) or (h, w, c) as it is read, with an alpha channel where the file has one.
        dtype: as it is read.
        has_alpha: the file calls the last channel alpha.
        is_colour: its channels, if there are three, are red, green and blue.
        is_turned: the file names an orientation, by which the pixels are turned in reading.
        stamp: size and time of the last change of the file when it was measured, if it was.
        largest_gb: GB that it may take as float32.
    """

    path: Path
    index: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype
    has_alpha: bool = False
    is_turned: bool = False
    is_colour: bool = True
    stamp: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    largest_gb: float = field(default=LARGEST_GB, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Return the name of the file, with the number of the page where it has several."""
        return f"{self.path.name}[{self.index}]" if self.count > 1 else self.path.name

    @property
    def shape_without_alpha(self) -> tuple[int, ...]:
        """Return (h, w) or (h, w, c) as it is read where alpha is left out."""
        if not self.has_alpha:
            return self.shape
        height, width, channels = self.shape
        return (height, width) if channels == 2 else (height, width, channels - 1)

    @property
    def place(self) -> str:
        """Return the path of the file, with the number of the page where it has several."""
        return str(self.path.with_name(self.name))


class _Container(NamedTuple):
    """How a kind of file is measured, and how the stored samples of a page are read."""

    measure: Callable[[Path], list[Header]]
    read: Callable[[Path, int, Header], np.ndarray]


PNG = _Container(png_file.measure, png_file.read)
JPEG = _Container(jpeg_file.measure, jpeg_file.read)
GIF = _Container(gif_file.measure, gif_file.read)
WEBP = _Container(webp_file.measure, webp_file.read)
TIFF = _Container(tiff_file.measure, tiff_file.read)
NPY = _Container(array_file.measure_npy, array_file.read_npy)
ZARR = _Container(array_file.measure_zarr, array_file.read_zarr)
MOST_LETTERS = 200
"""Of what a decoder says is wrong with a file; it may repeat what the file says."""
STARTS = {
    png_file.SIGNATURE: PNG,
    b"\xff\xd8\xff": JPEG,
    b"GIF87a": GIF,
    b"GIF89a": GIF,
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
    b"\x93NUMPY": NPY,
}
"""What a file is, by its first bytes; its name says nothing."""


def measure_pages(path: Path, *, largest_gb: float = LARGEST_GB) -> list[Page]:
    """Measure the images of a file, by its headers alone.

    Args:
        largest_gb: GB that an image may take as float32, or in its own type where that is wider.

    Raises:
        InputError: missing, empty, a Git-LFS pointer, not an image, or stored in a way that is not
            read.
        TooLargeError: an image, or a block in which it is stored, is larger than `largest_gb`.
    """
    stamp = _read_stamp(path)
    headers = _measure(path, largest_gb)
    return [
        Page(
            path, index, len(headers), header.page_shape, header.page_dtype, header.has_alpha,
            header.orientation != 1, header.is_colour, stamp, largest_gb,
        )
        for index, header in enumerate(headers)
    ]  # fmt: skip


def read_page(page: Page, *, indices: bool = False, alpha: bool = False) -> np.ndarray:
    """Read one image of a file; no other page of it is decoded.

    Args:
        indices: keep samples as a mask stores them: the indices of a palette in place of its
            colours, and samples of fewer than 8 bits themselves (0 and 1 in place of 0 and 255).
        alpha: keep the channel that the file calls alpha; otherwise it is left out.

    Returns:
        (h, w) or (h, w, c) in the file's own integer or float type, as it was measured.

    Raises:
        InputError: missing, truncated, or other than it was measured.
    """
    path = page.path
    container = _identify(path)
    with _refuse_damage(path):
        headers = container.measure(path)
    is_old = page.stamp is None or page.stamp == _read_stamp(path)
    if not is_old or page.index >= len(headers) or not _is_same(page, headers[page.index]):
        raise InputError(
            f"{path}: it has changed since the command began; bring it back, or begin again"
        )
    header = headers[page.index]
    with _refuse_damage(path):
        header.check(path, page.largest_gb)
        stored = container.read(path, page.index, header)
        return header.to_pixels(stored, indices=indices, alpha=alpha)


def read_pages(path: Path, *, indices: bool = False) -> list[np.ndarray]:
    """Read all images of a file, as `read_page` does.

    Raises:
        InputError: as in `measure_pages` and `read_page`.
    """
    container, headers = _identify(path), _measure(path, LARGEST_GB)
    with _refuse_damage(path):
        return [
            header.to_pixels(container.read(path, index, header), indices=indices, alpha=False)
            for index, header in enumerate(headers)
        ]


def takes_alpha(page: Page, *, channels: int, preprocessing: Preprocessing) -> bool:
    """Return whether a net takes the alpha of an image as a channel.

    It does where the alpha is one of the chosen channels, or where none is chosen and the image
    has as many channels as the net only with it.
    """
    if not page.has_alpha:
        return False
    count = page.shape[2]
    if preprocessing.channels:
        return count - 1 in preprocessing.channels
    return count == channels


def check_channels(page: Page, *, channels: int, preprocessing: Preprocessing) -> None:
    """Refuse an image whose channels a net cannot take; one pixel is enough to know.

    Raises:
        InputError: it names the image, and says what can be chosen.
        TooLargeError: with the channels of the net it is larger than `largest_gb` of the page.
    """
    alpha = takes_alpha(page, channels=channels, preprocessing=preprocessing)
    shape = page.shape if alpha else page.shape_without_alpha
    try:
        pixel = np.zeros((1, 1, *shape[2:]), np.uint8)
        prepare(pixel, channels=channels, preprocessing=preprocessing)
    except InputError as error:
        raise InputError(f"{page.place}: {error}") from error
    if channels == 1 and shape[2:] == (3,) and not page.is_colour and not preprocessing.channels:
        raise InputError(
            f"{page.place}: its 3 channels are not red, green and blue, and the net takes 1; "
            "choose one with --preprocessing.channels in training or conversion"
        )
    # as the net gets it: a gray image in a net of colours becomes three channels
    check_size(page.path, (*page.shape[:2], channels), np.dtype("f4"), largest_gb=page.largest_gb)


def _measure(path: Path, largest_gb: float) -> list[Header]:
    with _refuse_damage(path):
        headers = _identify(path).measure(path)
        for header in {id(header): header for header in headers}.values():  # pages may share one
            header.check(path, largest_gb)
        return headers


def _identify(path: Path) -> _Container:
    """Return what a file is, by its content.

    Raises:
        InputError: missing, empty, a pointer, or none that is read.
    """
    if is_store(path):
        return ZARR
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: it is no file; name an image, or a folder of images")
    refuse_pointer(path)
    with path.open("rb") as stream:
        start = stream.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return WEBP
    for signature, container in STARTS.items():
        if start.startswith(signature):
            return container
    raise InputError(
        f"{path}: not an image that can be read (PNG, JPEG, GIF, WebP, TIFF, .npy, zarr); "
        "replace the file"
    )


def _is_same(page: Page, header: Header) -> bool:
    return (page.shape, page.dtype, page.has_alpha, page.is_turned) == (
        header.page_shape, header.page_dtype, header.has_alpha, header.orientation != 1,
    )  # fmt: skip


def _read_stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change of a file, of a store those of its metadata."""
    for name in ("", *STORE_FILES):
        if (path / name).is_file():
            status = os.stat(path / name)
            return status.st_size, status.st_mtime_ns
    return None


@contextmanager
def _refuse_damage(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence that names the file.

    Raises:
        InputError: always where something was raised.
    """
    try:
        with silence_decoders():
            yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except Exception as error:  # decoders raise what they like: DeflateError, IndexError, ...
        reason = " ".join(str(error).replace(str(path), "the file").split())[:MOST_LETTERS]
        raise InputError(f"{path}: not a whole image ({reason}); replace the file") from error
