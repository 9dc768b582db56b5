"""Event files for TensorBoard, written by hand: tensorboardX loads torch where it finds it.

The format is TFRecord around messages of TensorBoard's event.proto and summary.proto.
"""

import io
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unet_spec.files import name_errors

PREFIX = "events.out.tfevents."
END = re.compile(r"[0-9]{1,19}")  # nanoseconds since 1970


class EventFile:
    """An `EventFile` is a new event file in a folder, made where it is missing.

    Args:
        first_step: TensorBoard forgets the values that older files hold for it and later steps.
    """

    def __init__(self, folder: Path, *, first_step: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, and a clock may have
        # been set back since the last one
        earlier = [path.name.rpartition(".")[2] for path in folder.glob(f"{PREFIX}*")]
        last = max((int(end) for end in earlier if END.fullmatch(end)), default=0)
        self._path = folder / f"{PREFIX}{max(time.time_ns(), last + 1)}"
        self._stream = self._path.open("xb")
        self._write_event(0, _encode_bytes(3, b"brain.Event:2"))
        starts = _encode_integer(1, 1)
        self._write_event(first_step, _encode_bytes(7, starts))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a value to each curve; `a/b` is the curve b of the group a."""
        encoded = {tag: b"\x15" + _encode_float32(value) for tag, value in values.items()}
        self._write_summary(step, encoded)

    def add_images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Add pictures of (h, w, 3) bytes."""
        encoded = {tag: _encode_bytes(4, _encode_image(p)) for tag, p in pictures.items()}
        self._write_summary(step, encoded)

    def close(self) -> None:
        """Close the file."""
        with name_errors(self._path):
            self._stream.close()

    def _write_summary(self, step: int, values: Mapping[str, bytes]) -> None:
        """Write an event with encoded values by their tags."""
        summary = b"".join(
            _encode_bytes(1, _encode_bytes(1, tag.encode()) + value)
            for tag, value in values.items()
        )
        self._write_event(step, _encode_bytes(5, summary))

    def _write_event(self, step: int, content: bytes) -> None:
        """Write an event with encoded fields, framed as TFRecord does it."""
        event = b"\x09" + struct.pack("<d", time.time()) + _encode_integer(2, step) + content
        length = struct.pack("<Q", len(event))
        with name_errors(self._path):
            self._stream.write(length + _masked_crc(length) + event + _masked_crc(event))
            self._stream.flush()


def _encode_image(pixels: np.ndarray) -> bytes:
    """Encode (h, w, 3) bytes as a message Image of summary.proto."""
    height, width, channels = pixels.shape
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    sizes = _encode_integer(1, height) + _encode_integer(2, width) + _encode_integer(3, channels)
    return sizes + _encode_bytes(4, content.getvalue())


def _encode_integer(field: int, value: int) -> bytes:
    """Encode a field that holds an integer of at least 0."""
    return bytes([field << 3]) + _encode_varint(value)


def _encode_bytes(field: int, value: bytes) -> bytes:
    """Encode a field that holds bytes, text or a message."""
    return bytes([field << 3 | 2]) + _encode_varint(len(value)) + value


def _encode_float32(value: float) -> bytes:
    """Encode a number as four bytes, without its field."""
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return np.float64(value).astype("<f4").tobytes()


def _encode_varint(value: int) -> bytes:
    """Encode seven bits to a byte, the lowest first; the eighth says that more follow."""
    parts = [value & 127]
    while value := value >> 7:
        parts.append(value & 127)
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def _masked_crc(content: bytes) -> bytes:
    """Return the CRC-32C (Castagnoli) of bytes, masked as TFRecord does it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _compute_table_entry(crc: int) -> int:
    """Return what the checksum's polynomial makes of one byte."""
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_TABLE = [_compute_table_entry(byte) for byte in range(256)]
