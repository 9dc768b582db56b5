"""What a file says of one of its images, and how the stored samples become its pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unet_image.limits import check_size
from unet_spec import InputError


@dataclass(frozen=True, eq=False)
class Header:
    """A `Header` is what a file says of one image; all containers obey it by the same code.

    Attributes:
        shape: (h, w) or (h, w, c) of the stored samples.
        dtype: of the stored samples, in the machine's byte order.
        largest: the largest sample of 1, 2 or 4 bits, which is 255 in the image; else None.
        is_inverted: the smallest sample is white.
        inverts_indices: also in a mask of few bits; tifffile stores bools with white as 0, and True
            as 1.
        is_colour: three channels are red, green and blue.
        palette: (n, c) bytes, the colour of each sample; c is 1 for a palette of grays, and one
            more where the palette has an alpha.
        is_cmyk: the four samples are inks.
        transparent: the samples of the one colour that is transparent; else None.
        has_alpha: the last channel of the image is alpha.
        orientation: 1 to 8 as in EXIF; the pixels are turned by it.
        blocks: the shapes of the tiles, strips, planes or chunks that are decoded as a whole, where
            the image is stored in such.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    largest: int | None = None
    is_inverted: bool = False
    inverts_indices: bool = True
    is_colour: bool = True
    palette: np.ndarray | None = None
    is_cmyk: bool = False
    transparent: tuple[int, ...] | None = None
    has_alpha: bool = False
    orientation: int = 1
    blocks: tuple[tuple[int, ...], ...] = ()

    @property
    def page_shape(self) -> tuple[int, ...]:
        """Return (h, w) or (h, w, c) of the image, with its alpha, after it was turned."""
        height, width = self.shape[:2]
        channels = self.shape[2] if len(self.shape) == 3 else 1
        if self.palette is not None:
            channels = self.palette.shape[1]
        elif self.is_cmyk:
            channels = 3
        if self.transparent is not None:
            channels += 1
        if self.orientation >= 5:
            height, width = width, height
        return (height, width) if channels == 1 else (height, width, channels)

    @property
    def page_dtype(self) -> np.dtype:
        """Return the type of the image."""
        return np.dtype(np.uint8) if self.palette is not None else self.dtype

    def check(self, path: Path, largest_gb: float) -> None:
        """Refuse an image that is too large, or of a type that no image has.

        Args:
            largest_gb: GB that it may take as float32.

        Raises:
            InputError: it names the size or the type.
        """
        if self.dtype.kind not in "iuf":
            raise InputError(
                f"{path}: holds values of type {self.dtype}; an image has integers or floats"
            )
        # as it is stored, and as it is used: inks become fewer channels, a palette's colours more
        for shape, dtype in ((self.shape, self.dtype), (self.page_shape, self.page_dtype)):
            check_size(path, shape, dtype, largest_gb=largest_gb)
        for block in self.blocks:
            check_size(path, block, self.dtype, largest_gb=largest_gb, what="a block")

    def to_pixels(self, stored: np.ndarray, *, indices: bool, alpha: bool) -> np.ndarray:
        """Return the image of its stored samples.

        Args:
            stored: of the shape and the type of this header.
            indices: return samples as they are stored: without palette, and those of fewer than 8
                bits without scale and inversion.
            alpha: keep the alpha.

        Raises:
            ValueError: another shape or type, or samples that the palette does not have.
        """
        if stored.shape != self.shape or stored.dtype != self.dtype:
            raise ValueError(
                f"{stored.shape} {stored.dtype} where its header says {self.shape} {self.dtype}"
            )
        pixels = stored
        if self.is_inverted and (self.inverts_indices or not indices):
            pixels = (self.largest or np.iinfo(self.dtype).max) - pixels
        if self.palette is not None:
            if not indices:
                pixels = self._look_up(pixels, alpha=alpha)
        else:
            pixels = self._convert(pixels, indices=indices, alpha=alpha)
        return np.ascontiguousarray(turn(pixels, self.orientation))

    def _look_up(self, stored: np.ndarray, *, alpha: bool) -> np.ndarray:
        assert self.palette is not None
        if stored.max() >= len(self.palette):
            raise ValueError(f"the colour {stored.max()} of a palette of {len(self.palette)}")
        palette = self.palette[:, :-1] if self.has_alpha and not alpha else self.palette
        return palette[stored][..., 0] if palette.shape[1] == 1 else palette[stored]

    def _convert(self, stored: np.ndarray, *, indices: bool, alpha: bool) -> np.ndarray:
        pixels = stored
        if self.is_cmyk:
            height, width = stored.shape[:2]
            inks = Image.frombytes("CMYK", (width, height), np.ascontiguousarray(stored).tobytes())
            return np.array(inks.convert("RGB"))
        if self.largest is not None and not indices:
            pixels = stored * np.uint8(255 // self.largest)
        if self.transparent is not None:
            if not alpha:
                return pixels
            colours = np.atleast_3d(stored)
            top = 255 if self.largest is not None else np.iinfo(self.dtype).max
            opaque = np.where((colours == self.transparent).all(-1, keepdims=True), 0, top)
            return np.concatenate([np.atleast_3d(pixels), opaque.astype(self.dtype)], axis=-1)
        if self.has_alpha and not alpha:
            pixels = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :-1]
        return pixels


def make_palette(colours: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Return a palette (n, c) of (n, 3) bytes: with c = 1 if all of them are gray.

    Args:
        alpha: (n,) bytes, which become a channel of their own.
    """
    palette = colours if (colours != colours[:, :1]).any() else colours[:, :1]
    if alpha is not None:
        palette = np.concatenate([palette, alpha[:, None]], axis=1)
    return palette.astype(np.uint8)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (h, w) or (h, w, c) as its orientation says.

    The numbers are those of EXIF and TIFF: where the first row and the first column lie.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def read_orientation(exif: bytes) -> int:
    """Return the orientation that EXIF data state, 1 to 8; 1 where they state none.

    EXIF is a TIFF directory; the orientation is its entry 274.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:4] == b"II*\0":
        order = "<"
    elif exif[:4] == b"MM\0*":
        order = ">"
    else:
        return 1
    start = int.from_bytes(exif[4:8], "little" if order == "<" else "big")
    count = np.frombuffer(exif[start : start + 2].ljust(2, b"\0"), order + "u2")[0]
    for entry in range(start + 2, start + 2 + 12 * int(count), 12):
        fields = np.frombuffer(exif[entry : entry + 12].ljust(12, b"\0"), order + "u2")
        if fields[0] == 274:
            return valid_orientation(int(fields[4]))
        if entry > len(exif):
            break
    return 1


def valid_orientation(value: object) -> int:
    """Return an orientation, or 1 for a value that is none."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
