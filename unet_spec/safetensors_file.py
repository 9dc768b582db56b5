"""NAME.safetensors on the disk: tensors, and one card of JSON with the sha256 of the file.

The header's metadata has one entry, `unet`, which is the card. One entry only, because safetensors
writes several in no fixed order, and equal content is equal bytes. `sha256` in the card is the hash
of the whole file in which its own 64 digits stand as zeros.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from unet_spec import narrowing
from unet_spec.errors import InputError
from unet_spec.files import atomic_write, open_named, refuse_no_file
from unet_spec.narrowing import narrow, refuse_not_finite
from unet_spec.parameters import Tensors
from unet_spec.plain_json import read_json
from unet_spec.wording import is_name

VERSION = 1
DTYPES = ("float16", "bfloat16", "float32", "float64")
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "BF16": "<u2",
}  # fmt: skip
MOST_TENSORS = 20_000
"""A file has at most so many; a run of a U-Net of five levels has about three hundred."""
_LONGEST_HEADER = 100_000_000  # bytes, as of the library of the format
_MOST_AXES = 64  # as of numpy
_ZEROS = "0" * 64
_CHUNK = 2**20  # bytes


class NotWholeError(InputError):
    """The file is not, or no longer, what was written."""


def write(path: Path, tensors: Tensors, card: Mapping[str, Any], *, dtype: str) -> None:
    """Write the file whole or not at all; an existing one is replaced.

    Args:
        dtype: of the floating-point tensors, one of `DTYPES`.

    Raises:
        InputError: another dtype, values that are not finite or do not fit it, or the folder does
            not exist.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is one of {', '.join(DTYPES)}, got {dtype}")
    refuse_not_finite(tensors)
    contiguous = {name: _contiguous(name, tensor, dtype) for name, tensor in tensors.items()}
    if dtype == "bfloat16":
        _write(path, _save_bfloat16(contiguous, _word_card(card)))
    else:
        _write(path, safetensors.numpy.save(contiguous, _word_card(card)))


def write_as_they_are(path: Path, arrays: Tensors, card: Mapping[str, Any]) -> None:
    """Write likewise arrays that are contiguous, each in its own type, whatever its values.

    Raises:
        InputError: the folder does not exist.
    """
    _write(path, safetensors.numpy.save(dict(arrays), _word_card(card)))


def _word_card(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file, in which the digits of its hash are still zeros."""
    return {"unet": json.dumps({**card, "version": VERSION, "sha256": _ZEROS}, sort_keys=True)}


def _write(path: Path, file: bytes) -> None:
    """Write a file with its hash in the place of the zeros."""
    content = memoryview(file)
    start = 8 + _find_digits(bytes(content[8 : 8 + _header_bytes(content)]))
    digest = hashlib.sha256(content).hexdigest()
    with atomic_write(path) as stream:
        stream.write(content[:start])
        stream.write(digest.encode())
        stream.write(content[start + len(digest) :])


@dataclass(frozen=True)
class _Entry:
    """An `_Entry` says where the bytes of a tensor lie, counted from the first one's."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class _Header:
    """A `_Header` is what stands before the tensors, which begin at the byte `start`."""

    entries: dict[str, _Entry]
    metadata: dict[str, str]
    start: int


def read(path: Path) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Return (card, tensors) of any safetensors file; the card is None where there is none.

    Tensors of bfloat16 are returned as float32, which holds each of its values.

    Raises:
        NotWholeError: missing, empty, cut short, or with other bytes than were written.
        InputError: no file, a Git-LFS pointer, of a newer version, with values of a type that numpy
            does not have, or too large for the memory.
    """
    header = _read_header(path)
    card = _read_card(path, header)
    for name, entry in header.entries.items():
        if entry.dtype not in _DTYPES:
            raise InputError(
                f"{path}: {name} is of type {entry.dtype}, which is not read here; save it as "
                "float32"
            )
    try:
        with open_named(path) as stream:
            return card, {
                name: _read_tensor(stream, header.start, header.entries[name], path=path)
                for name in sorted(header.entries)
            }
    except MemoryError as error:
        raise InputError(
            f"{path}: its tensors do not fit into memory; use a computer with more"
        ) from error


def read_card(path: Path) -> dict[str, Any] | None:
    """Return the card of a file whose bytes are those that were written; its tensors are not read.

    Raises:
        NotWholeError, InputError: as `read`.
    """
    return _read_card(path, _read_header(path))


def _read_card(path: Path, header: _Header) -> dict[str, Any] | None:
    if "unet" not in header.metadata:
        return None
    try:
        card: dict[str, Any] = read_json(header.metadata["unet"])
        version, digest = card["version"], card.get("sha256")
        if type(version) is not int or version < 1 or type(digest) not in (str, type(None)):
            raise ValueError(f"version {version!r} and sha256 {digest!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotWholeError(
            f"{path}: its metadata is damaged ({error!r}); fetch or write it again"
        ) from error
    if digest is not None:  # another program need not write it
        _check_hash(path, digest)
    if version > VERSION:
        raise InputError(f"{path}: format version {version}, known up to {VERSION}: update")
    return card


def _read_header(path: Path) -> _Header:
    """Return the header, if it describes exactly the bytes that follow it."""
    refuse_pointer(path)
    refuse_text(path)
    try:
        with open_named(path) as stream:
            length = _header_bytes(stream.read(8))
            rest = path.stat().st_size - 8 - length
            if length > _LONGEST_HEADER or rest < 0:
                raise ValueError(f"it states a header of {length:,} bytes")
            return _make_header(stream.read(length), rest)
    except (ValueError, MemoryError) as error:
        raise NotWholeError(
            f"{path}: not a whole safetensors file ({error}); fetch or write it again"
        ) from error


def _make_header(content: bytes, rest: int) -> _Header:
    """Return what a header says.

    Args:
        rest: the number of bytes behind it.

    Raises:
        ValueError: it says something else than is there.
    """
    header = read_json(content.decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if len(header) > MOST_TENSORS:
        raise ValueError(
            f"it states {len(header):,} tensors, and at most {MOST_TENSORS:,} are read"
        )
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise ValueError("its metadata is no object of texts")
    entries = {name: _make_entry(name, entry) for name, entry in header.items()}
    end = 0
    # every byte belongs to one tensor
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(f"{name} begins at {entry.begin}, where {end} is next")
        end = entry.end
    if end != rest:
        raise ValueError(f"its tensors need {end} bytes, and it has {rest}")
    return _Header(entries, metadata, 8 + len(content))


def _make_entry(name: str, entry: Any) -> _Entry:
    if not is_name(name):
        raise ValueError(f"no name of a tensor: {name[:100]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"the entry of {name} has sizes that are no whole numbers")
    if type(dtype) is not str or len(offsets) != 2 or len(shape) > _MOST_AXES:
        raise ValueError(f"the entry of {name} is no tensor's")
    if math.prod(n for n in shape if n) >= 2**62:  # beside a zero any other number would do
        raise ValueError(f"{name} has the shape {tuple(shape)}")
    begin, end = offsets
    if dtype in _DTYPES and end - begin != math.prod(shape) * _itemsize(dtype):
        raise ValueError(f"{name} of shape {tuple(shape)} and type {dtype} in {end - begin} bytes")
    return _Entry(dtype, tuple(shape), begin, end)


def _itemsize(dtype: str) -> int:
    return np.dtype(_DTYPES[dtype]).itemsize


def _read_tensor(stream: BufferedReader, start: int, entry: _Entry, *, path: Path) -> np.ndarray:
    stored = np.empty(entry.shape, _DTYPES[entry.dtype])
    stream.seek(start + entry.begin)
    # not a map of the file: one that shrinks meanwhile would end the process
    if stored.size and stream.readinto(stored.reshape(-1).view(np.uint8).data) != stored.nbytes:
        raise NotWholeError(f"{path}: it has become shorter while it was read; fetch it again")
    if entry.dtype != "BF16":
        return stored
    # a bfloat16 is the upper half of a float32
    return (stored.astype(np.uint32) << 16).view(np.float32)


def refuse_pointer(path: Path) -> None:
    """Refuse a missing or empty file, a folder, a pipe, a device, and a Git-LFS pointer.

    Raises:
        NotWholeError: there is no file, or nothing in it.
        InputError: it is one of the others.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors"))
        listed = f"; it holds {', '.join(inside)}" if inside else ""
        raise InputError(f"{path}: a folder, and a file is needed{listed}")
    if not path.exists():
        raise NotWholeError(f"{path}: there is no such file")
    refuse_no_file(path)
    with open_named(path) as stream:
        head = stream.read(40)
    if not head:
        raise NotWholeError(f"{path}: the file is empty; fetch or write it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path}: a Git-LFS pointer in place of the file itself; run: git lfs pull"
        )


def refuse_text(path: Path) -> None:
    """Refuse a page or a text under the name of a file of weights.

    Raises:
        NotWholeError: it is one.
    """
    with open_named(path) as stream:
        head = stream.read(512)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise NotWholeError(
            f"{path}: an HTML page, not weights: the link led to a page about the file; fetch the "
            "file itself"
        )
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        raise NotWholeError(f"{path}: a text, not weights; fetch or write the file again")


def _check_hash(path: Path, expected: str) -> None:
    """Hash the file with zeros in the place of its own digits, without holding it in memory."""
    with open_named(path) as stream:
        header = stream.read(_header_bytes(stream.read(8)))
        stream.seek(0)
        start = 8 + _find_digits(header)
        digest = hashlib.sha256(stream.read(start))
        digest.update(_ZEROS.encode())
        stream.seek(len(_ZEROS), 1)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise NotWholeError(
            f"{path}: it holds other bytes than were written (its sha256 differs); fetch or write "
            "it again"
        )


def _header_bytes(content: bytes | memoryview) -> int:
    """Number of bytes of the header of JSON, which follows these 8 bytes."""
    return int.from_bytes(content[:8], "little")


def _find_digits(header: bytes) -> int:
    """Where the 64 digits of the hash begin. The card is JSON inside of JSON, so the quotes of its
    keys stand behind a backslash, and those of its strings behind three."""
    key = rb"\"sha256\": \""
    return header.find(key) + len(key)  # nowhere: any place will do, for the hash differs then


def _contiguous(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    is_integer = np.issubdtype(tensor.dtype, np.integer)
    values = tensor.astype(np.int64) if is_integer else narrow(name, tensor, dtype)
    # safetensors takes the buffer as it lies: a transposed view would be scrambled, silently
    return np.ascontiguousarray(values).reshape(tensor.shape)


def _save_bfloat16(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """Return the bytes of a file in which the floats are bfloat16, which numpy does not have.

    They are written as integers of 16 bits, whose type in the header then becomes theirs.
    """
    halves = {
        name: (tensor.view(np.uint32) >> 16).astype(np.uint16) if tensor.dtype.kind == "f" else
        tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    content = safetensors.numpy.save(halves, metadata)
    size = _header_bytes(content)
    header = json.loads(content[8 : 8 + size])
    for name in narrowing.list_floats(tensors):
        header[name]["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
