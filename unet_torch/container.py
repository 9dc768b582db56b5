"""Files of `torch.save`, checked before torch reads them: their checksums, sizes and lengths.

torch trusts what such a file says of itself. It reads a tensor beyond the end of its record, and
gives whatever lies in memory there; it unpacks a compressed entry whatever its size; and it does
not look at the CRC-32 that it wrote beside every entry.
"""

import io
import mmap
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unet_spec import InputError
from unet_torch.outline import Storage, TensorOutline, read_outline

ZIP_HEAD = b"PK\x03\x04"
MOST_LEVELS = 32  # of dicts and lists in one another
MOST_VALUES = 4_000_000  # of them and of plain values, as often as they are named
_CHUNK = 2**20  # bytes
_LOCAL_HEADER = 30  # bytes, before the name of an entry
_LOCAL = struct.Struct("<HHHHIIIHH")  # what it says, behind its magic number and version
ZIP_END = b"PK\x05\x06"
_END_RECORD = 22  # bytes, without a comment


def check(path: Path) -> None:
    """Refuse a file whose reading by torch would fail, or give what was not written.

    Raises:
        InputError: a checksum, a length or a size in it is wrong; the sentence has no remedy yet.
        outline.MoreThanTensorsError: it holds more than tensors and plain values.
        Exception: it is damaged in another way.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        is_zip = stream.read(4) == ZIP_HEAD
        stream.seek(0)
        if is_zip:
            content = _check_zip(stream, size)
        else:  # of a map no more is read than there is, whatever a pickle asks for
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                content = _check_legacy(mapped, size)
    _check_extent(content, most=4 * size + 2**26)


def _check_zip(stream: io.BufferedIOBase, size: int) -> Any:
    """Check every entry of a zip, and return the outline of what it holds."""
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
    if stream.seek(-_END_RECORD, io.SEEK_END) + _END_RECORD != size or not stream.read(
        _END_RECORD
    ).startswith(ZIP_END):
        raise InputError("something else follows its last entry")
    if min(entry.header_offset for entry in entries):  # torch would look for them elsewhere
        raise InputError("something else stands before its first entry")
    names = [entry.filename for entry in entries]
    if len({*names}) < len(names):
        raise InputError("two of its entries have one name")
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
        raise InputError("its entries are compressed, and torch.save writes them as they are")
    if sum(entry.file_size for entry in entries) > size:
        raise InputError("its entries state more bytes than the file has")
    # torch.serialization.set_crc32_options(False) writes 0 in every entry
    has_checksums = any(entry.CRC for entry in entries)
    for entry in entries:
        _check_entry(stream, entry, has_checksums=has_checksums)
    (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
    _find_data(stream, pickled)
    content, storages = read_outline(io.BytesIO(stream.read(pickled.file_size)))
    folder = pickled.filename.removesuffix("data.pkl")
    sizes = {entry.filename: entry.file_size for entry in entries}
    for storage in _list_once(storages):
        record = sizes.get(f"{folder}data/{storage.key}", -1)
        if record < storage.nbytes:
            raise InputError(
                f"its tensors need {storage.nbytes} bytes of the entry data/{storage.key}, which "
                + ("is missing" if record < 0 else f"has {record}")
            )
    return content


def _check_entry(stream: io.BufferedIOBase, entry: zipfile.ZipInfo, *, has_checksums: bool) -> None:
    _find_data(stream, entry)
    checksum, left = 0, entry.file_size
    buffer = memoryview(bytearray(min(_CHUNK, left)))
    while left:
        length = stream.readinto(buffer[: min(_CHUNK, left)])
        if not length:
            raise InputError(f"it ends within its entry {entry.filename}")
        checksum, left = zlib.crc32(buffer[:length], checksum), left - length
    if has_checksums and checksum != entry.CRC:
        raise InputError(
            f"its entry {entry.filename} has other bytes than were written (its CRC-32 differs)"
        )


def _find_data(stream: io.BufferedIOBase, entry: zipfile.ZipInfo) -> None:
    """Go to the first byte of an entry, as torch finds it: behind its name and its extra field."""
    stream.seek(entry.header_offset)
    header = stream.read(_LOCAL_HEADER)
    if not header.startswith(ZIP_HEAD) or len(header) < _LOCAL_HEADER:
        raise InputError(f"its entry {entry.filename} does not begin where the file says")
    flags, method, _, _, crc, compressed, inflated, of_name, of_extra = _LOCAL.unpack(header[6:])
    name = stream.read(of_name)
    # 0 where they follow the data, as torch writes them; the other where an extra field has them
    sizes = {compressed, inflated} - {0, 2**32 - 1}
    if (
        name != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        or method != entry.compress_type
        or flags & 1
        or crc not in (0, entry.CRC)
        or sizes - {entry.file_size}
    ):
        raise InputError(f"its entry {entry.filename} is described twice, and differently")
    stream.seek(of_extra, io.SEEK_CUR)


def _check_legacy(stream: mmap.mmap, size: int) -> Any:
    """Check a file as torch wrote them before 1.6: five pickles, and behind them the storages.

    It has no checksums.
    """
    for _ in range(2):  # a magic number and a version, which torch checks
        read_outline(stream)
    system, _ = read_outline(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("it does not say that its bytes are little-endian")
    content, named = read_outline(stream)
    keys, _ = read_outline(stream)
    storages = {storage.key: storage for storage in _list_once(named)}
    if sorted(keys) != sorted(storages):
        raise InputError("its tensors and its storages have other keys")
    for key in keys:
        storage = storages[key]
        numel = int.from_bytes(stream.read(8), "little")
        if numel != storage.numel:
            raise InputError(f"its storage {key} has {numel} values, and {storage.numel} are said")
        if stream.tell() + storage.nbytes > size:
            raise InputError(f"it ends within its storage {key}")
        stream.seek(storage.nbytes, io.SEEK_CUR)
    if stream.tell() != size:
        raise InputError("something else follows its last storage")
    return content


def _list_once(storages: Iterable[Storage]) -> list[Storage]:
    """List every storage once.

    Raises:
        InputError: one is named with two sizes, and torch would take the first for both.
    """
    once = {*storages}
    keys = Counter(storage.key for storage in once)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise InputError(f"its storage {twice[0]} is named with several sizes")
    return list(once)


def _check_extent(content: Any, *, most: int) -> None:
    """Refuse content that becomes much larger than its file.

    Args:
        most: bytes that all tensors together may take.

    Raises:
        InputError: a tensor lies outside of its storage, all of them take too many bytes, or dicts
            and lists hold themselves or one another too often.
    """
    extents: dict[int, tuple[int, int]] = {}
    open_ones: set[int] = set()

    def measure(value: Any, place: tuple[str, ...]) -> tuple[int, int]:
        """Return how many values and how many bytes of tensors are in there."""
        name = ".".join(place) or "its content"
        if isinstance(value, TensorOutline):
            if not value.fits:
                raise InputError(f"{name} of shape {value.shape} is larger than its storage")
            if value.nbytes > most:
                raise InputError(
                    f"{name} of shape {value.shape} repeats few values {value.nbytes:,} bytes long"
                )
            return 1, value.nbytes
        if not isinstance(value, dict | list | tuple):
            return 1, 0
        if id(value) in open_ones:
            raise InputError(f"{name} holds itself")
        if len(place) > MOST_LEVELS:
            raise InputError(f"its dicts and lists are nested in more than {MOST_LEVELS} levels")
        if id(value) not in extents:
            open_ones.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts = [measure(item, (*place, str(key)[:100])) for key, item in items]
            open_ones.remove(id(value))
            extents[id(value)] = 1 + sum(part[0] for part in parts), sum(part[1] for part in parts)
        return extents[id(value)]

    values, total = measure(content, ())
    if values > MOST_VALUES:
        raise InputError("its dicts and lists name one another too often")
    if total > most:
        raise InputError(f"its tensors repeat few values {total:,} bytes long")
