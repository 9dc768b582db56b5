"""GIF files: each frame drawn over those before it, in colours or in indices of its palette."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin

from unet_image.header import Header, make_palette
from unet_image.limits import LZW, check_content, check_count, check_size
from unet_spec import InputError

CLEAR, RESTORE = 2, 3
"""What becomes of a frame before the next one: its place becomes transparent, or as it was."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """A frame of a GIF.

    Attributes:
        rows, columns: its place in the image.
        colours: (n, 3) bytes, its palette.
        clear: the index that is transparent, if any.
        disposal: what becomes of it before the next frame.
        flags: of its descriptor; its bit 6 says that the rows are interlaced.
        data: the compressed indices.
    """

    rows: slice
    columns: slice
    colours: np.ndarray
    clear: int | None
    disposal: int
    flags: int
    data: bytes

    def covers(self, shape: tuple[int, int]) -> bool:
        """Return whether no pixel of an image (h, w) is left out by the frame."""
        is_whole = (self.rows, self.columns) == (slice(0, shape[0]), slice(0, shape[1]))
        return is_whole and self.clear is None


@dataclass(frozen=True, eq=False)
class _Gif:
    shape: tuple[int, int]
    background: int
    frames: list[_Frame]

    def common_palette(self) -> bool:
        """Return whether all frames have the same palette."""
        first = self.frames[0].colours
        return all(np.array_equal(frame.colours, first) for frame in self.frames)


def measure(path: Path) -> list[Header]:
    """Measure the frames of a GIF by its blocks.

    Raises:
        InputError: too large, or not whole.
    """
    gif = _parse(path.read_bytes())
    check_count(path, len(gif.frames))
    check_size(path, (*gif.shape, 4), np.dtype(np.uint8))  # frames are drawn in colours with alpha
    for frame in gif.frames:
        pixels = (frame.rows.stop - frame.rows.start) * (frame.columns.stop - frame.columns.start)
        check_content(path, stored=len(frame.data), decoded=pixels, factor=LZW)
    return [_make_header(gif).check(path)] * len(gif.frames)


def read(path: Path, index: int, *, indices: bool, alpha: bool) -> np.ndarray:
    """Read a frame as it is shown, or its indices.

    Raises:
        InputError: indices of frames with different palettes.
        ValueError, OSError: it is not whole.
    """
    gif = _parse(path.read_bytes())
    if indices and len(gif.frames) > 1 and not gif.common_palette():
        raise InputError(
            f"{path}: its frames have palettes of their own, so their indices are not one set of "
            "classes; store each frame as a file"
        )
    header = _make_header(gif)
    colours, indexed = _draw(gif, index)
    if indices:
        return indexed
    assert header.palette is not None
    is_gray = header.palette.shape[1] - header.has_alpha == 1
    channels = [0] if is_gray else [0, 1, 2]
    if header.has_alpha and alpha:
        channels = [*channels, 3]
    pixels = colours[..., channels]
    return pixels[..., 0] if len(channels) == 1 else pixels


def _make_header(gif: _Gif) -> Header:
    """Return the header of every frame; its palette says only which channels there are."""
    colours = np.concatenate([frame.colours for frame in gif.frames])
    has_alpha = not _is_opaque(gif)
    alpha = np.full(len(colours), 255, np.uint8) if has_alpha else None
    palette = make_palette(colours, alpha)
    return Header(gif.shape, np.dtype(np.uint8), palette=palette, has_alpha=has_alpha)


def _is_opaque(gif: _Gif) -> bool:
    """Return whether no frame, as it is shown, can have a transparent pixel."""
    is_full = False
    for frame in gif.frames:
        before, is_full = is_full, is_full or frame.covers(gif.shape)
        if not is_full:
            return False
        if frame.disposal == CLEAR:
            is_full = False
        elif frame.disposal == RESTORE:
            is_full = before
    return True


def _draw(gif: _Gif, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame as it is shown: (h, w, 4) bytes, and (h, w) indices.

    Where nothing was drawn it has the background's colour and index, and is transparent.
    """
    # frames before one that covers the image do not count, if it stays until this one
    first = index
    while first > 0:
        frame = gif.frames[first]
        if frame.covers(gif.shape) and (first == index or frame.disposal not in (CLEAR, RESTORE)):
            break
        first -= 1
    indexed = np.full(gif.shape, gif.background, np.uint8)
    colours = np.zeros((*gif.shape, 4), np.uint8)
    palette = gif.frames[first].colours
    if gif.background < len(palette):
        colours[..., :3] = palette[gif.background]
    blank = colours[0, 0].copy()
    for number in range(first, index + 1):
        frame = gif.frames[number]
        place = frame.rows, frame.columns
        before = None
        if frame.disposal == RESTORE and number < index:
            before = colours[place].copy(), indexed[place].copy()
        _draw_frame(frame, colours[place], indexed[place])
        if number == index:
            break
        if frame.disposal == CLEAR:
            colours[place], indexed[place] = blank, gif.background
        elif before is not None:
            colours[place], indexed[place] = before
    return colours, indexed


def _draw_frame(frame: _Frame, colours: np.ndarray, indexed: np.ndarray) -> None:
    """Draw a frame into its place in an image."""
    new = _decode(frame)
    if new.max() >= len(frame.colours):
        raise ValueError(f"the colour {new.max()} of a palette of {len(frame.colours)}")
    shown = np.concatenate([frame.colours, np.full((len(frame.colours), 1), 255)], axis=1)
    if frame.clear is None:
        indexed[...], colours[...] = new, shown.astype(np.uint8)[new]
        return
    is_clear = new == frame.clear
    if frame.clear < len(shown):
        shown[frame.clear, 3] = 0
    # a transparent pixel has its own colour where nothing lies under it
    drawn = ~is_clear | (colours[..., 3] == 0)
    np.copyto(indexed, new, where=drawn)
    np.copyto(colours, shown.astype(np.uint8)[new], where=drawn[..., None])


def _decode(frame: _Frame) -> np.ndarray:
    """Return the indices of a frame: it is decoded as a GIF of its own."""
    height = frame.rows.stop - frame.rows.start
    width = frame.columns.stop - frame.columns.start
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    palette = bytes(i for i in range(256) for _ in range(3))[::-1]  # no ramp, which were gray
    alone = (
        b"GIF89a" + size + b"\xf7\0\0" + palette
        + b"," + bytes(4) + size + bytes([frame.flags & 0x40]) + frame.data + b";"
    )  # fmt: skip
    with GifImagePlugin.GifImageFile(io.BytesIO(alone)) as image:
        return np.array(image)


def _parse(data: bytes) -> _Gif:
    """Return the frames of a GIF, and its size.

    Raises:
        ValueError: it ends early, or is damaged.
    """
    if len(data) < 13:
        raise ValueError("it ends early")
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    place = 13
    common, place = _read_palette(data, place, data[10])
    frames: list[_Frame] = []
    clear, disposal = None, 0
    while place < len(data) and data[place] != ord(";"):
        if data[place] == ord("!"):
            if data[place + 1 : place + 3] == b"\xf9\x04" and place + 7 < len(data):
                flags = data[place + 3]
                disposal = flags >> 2 & 7
                if disposal == RESTORE and not frames:
                    disposal = 0  # nothing was there before the first frame, and so it stays
                clear = data[place + 6] if flags & 1 else None
            place = _pass_blocks(data, place + 2)
        elif data[place] == ord(",") and place + 11 < len(data):
            left, top, columns, rows = np.frombuffer(data[place + 1 : place + 9], "<u2").tolist()
            flags = data[place + 9]
            own, start = _read_palette(data, place + 10, flags)
            place = _pass_blocks(data, start + 1)
            if top + rows > height or left + columns > width or 0 in (rows, columns):
                raise ValueError("a frame does not lie in the image")
            colours = own if own is not None else common
            if colours is None:
                raise ValueError("it has no palette")
            at = slice(top, top + rows), slice(left, left + columns)
            frames.append(_Frame(*at, colours, clear, disposal, flags, data[start:place]))
            clear, disposal = None, 0
        else:
            raise ValueError("its blocks are damaged")
    return _Gif((height, width), data[11], frames)


def _read_palette(data: bytes, place: int, flags: int) -> tuple[np.ndarray | None, int]:
    """Return the palette that the flags announce, (n, 3) bytes, and where it ends."""
    if not flags & 0x80:
        return None, place
    end = place + 3 * (2 << (flags & 7))
    if end > len(data):
        raise ValueError("it ends early")
    return np.frombuffer(data[place:end], np.uint8).reshape(-1, 3), end


def _pass_blocks(data: bytes, place: int) -> int:
    """Return where a chain of data blocks ends."""
    for size in _block_sizes(data, place):
        place += 1 + size
    return place


def _block_sizes(data: bytes, place: int) -> Iterator[int]:
    size = -1
    while size != 0:
        if place >= len(data):
            raise ValueError("it ends early")
        size = data[place]
        yield size
        place += 1 + size
