"""Chunks of zarr stores: what they become in memory, known before zarr decodes them."""

import itertools
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

from unet_image.limits import DEFLATE
from unet_spec import InputError

if TYPE_CHECKING:
    import zarr

COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib")
NEUTRAL = ("bytes", "transpose", "crc32c")
"""Codecs of zarr 3 that leave as many bytes, but for a checksum."""
FILTERS = ("delta", "shuffle", "fixedscaleoffset", "astype", "quantize", "bitround", "packbits",
           "crc32", "crc32c", "adler32", "fletcher32")  # fmt: skip
"""Filters of zarr 2 that make a value of at most `WIDEST_VALUE` times as many bytes."""
WIDEST_VALUE = 8
MORE_BYTES = 64  # checksums of a chunk, generously
LEAST_FRAME_BYTES = 9  # of Zstandard
SHARD = "sharding_indexed"
SHARD_INDEX = ["bytes", "crc32c"]
NO_CHUNK = 2**64 - 1  # the place and the size in a shard of a chunk that is not stored
FREE_BYTES = 1 << 25
"""Deflated data that cannot become more are not inflated twice, which takes time."""


@dataclass(frozen=True)
class _Codecs:
    """How the chunks of an array are compressed.

    Attributes:
        compressor: one of `COMPRESSORS`, or nothing.
        most_bytes: a chunk becomes at most so many.
        shard: the numbers of chunks in a shard, if they lie in shards.
        index_first: the index of a shard stands at its beginning.
    """

    compressor: str
    most_bytes: int
    shard: int = 0
    index_first: bool = False


def check_chunks(path: Path, array: "zarr.Array", chosen: tuple[int | slice, ...]) -> None:
    """Refuse chunks that become larger than the metadata say.

    Args:
        path: of the store.
        array: in that store.
        chosen: for each axis a number, or all of it.

    Raises:
        InputError: a codec of which nobody knows how large it makes a chunk.
        ValueError: a chunk is too large.
    """
    codecs = _read_codecs(path, array)
    if not codecs.compressor:
        return
    blocks = getattr(array, "shards", None) or array.chunks
    numbers = [
        range(-(-side // block)) if isinstance(place, slice) else (place // block,)
        for place, side, block in zip(chosen, array.shape, blocks, strict=True)
    ]
    folder = path / array.path
    for place in itertools.product(*numbers):
        file = folder / array.metadata.encode_chunk_key(place)
        if file.is_file():
            _check_file(file, codecs)


def _read_codecs(path: Path, array: "zarr.Array") -> _Codecs:
    """Return how the chunks are compressed.

    Raises:
        InputError: by a codec that is not read, or twice.
    """
    facts: dict[str, Any] = dict(array.metadata.to_dict())
    most_bytes = math.prod(array.chunks) * np.dtype(array.dtype).itemsize + MORE_BYTES
    if facts["zarr_format"] == 2:
        filters = [one["id"] for one in facts.get("filters") or ()]
        compressor = (facts.get("compressor") or {}).get("id", "")
        _check_names(path, filters, FILTERS)
        _check_names(path, [compressor], ("", *COMPRESSORS))
        return _Codecs(compressor, most_bytes * (WIDEST_VALUE if filters else 1))
    codecs = list(facts["codecs"])
    shard, index_first = 0, False
    if codecs[0]["name"] == SHARD:
        _check_names(path, [one["name"] for one in codecs[1:]], ())
        setup = codecs[0]["configuration"]
        codecs, index_first = list(setup["codecs"]), setup.get("index_location") == "start"
        shard = math.prod(array.shards or ()) // math.prod(array.chunks)
        if [one["name"] for one in setup["index_codecs"]] != SHARD_INDEX:
            raise InputError(f"{path}: shards with a compressed index are not read; store it plain")
    names = [one["name"] for one in codecs]
    _check_names(path, names, (*NEUTRAL, *COMPRESSORS))
    compressors = [name for name in names if name in COMPRESSORS]
    if len(compressors) > 1:
        raise InputError(f"{path}: chunks compressed twice are not read; compress them once")
    return _Codecs("".join(compressors), most_bytes, shard, index_first)


def _check_names(path: Path, names: list[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                f"{path}: the codec {name!r} is not read; store it with blosc, zstd or gzip alone"
            )


def _check_file(file: Path, codecs: _Codecs) -> None:
    """Refuse a chunk, or a chunk in a shard, that becomes too large.

    Raises:
        ValueError: it names its size.
    """
    with file.open("rb", buffering=0) as stream:
        size = file.stat().st_size
        for start, count in _list_ranges(stream, size, codecs):
            stream.seek(start)
            stated = _measure(stream, count, codecs)
            if stated > codecs.most_bytes:
                raise ValueError(
                    f"a chunk becomes {stated:,} bytes or more, and by its metadata at most "
                    f"{codecs.most_bytes:,}"
                )


def _list_ranges(stream: Any, size: int, codecs: _Codecs) -> list[tuple[int, int]]:
    """Return the place and the size of each chunk in a file.

    Raises:
        ValueError: a shard is not whole.
    """
    if not codecs.shard:
        return [(0, size)]
    index_bytes = 16 * codecs.shard
    if index_bytes + 4 > size:
        raise ValueError("a shard has no index")
    stream.seek(0 if codecs.index_first else size - index_bytes - 4)
    index = np.frombuffer(stream.read(index_bytes), "<u8").reshape(-1, 2).tolist()
    ranges = [(start, count) for start, count in index if start != NO_CHUNK]
    if any(start + count > size for start, count in ranges):
        raise ValueError("a shard ends early")
    return ranges


def _measure(stream: Any, count: int, codecs: _Codecs) -> int:
    """Return how many bytes a compressed chunk becomes; above the bound not all are counted.

    Args:
        stream: of the file, at the beginning of the chunk.
        count: of its bytes.
    """
    most_bytes = codecs.most_bytes
    if codecs.compressor in ("gzip", "zlib"):
        if count * DEFLATE <= max(most_bytes, FREE_BYTES):
            return 0
        return _inflate(stream.read(count), most_bytes)
    if codecs.compressor in ("blosc", "lz4"):
        start = stream.read(min(count, 8))
        return int.from_bytes(start[4:] if codecs.compressor == "blosc" else start[:4], "little")
    data = stream.read(count)
    stated = _read_zstd_size(data)
    if stated is not None:
        return stated
    try:
        return len(imagecodecs.zstd_decode(data, out=most_bytes + 1))
    except imagecodecs.ZstdError:  # damaged, or larger
        return most_bytes + 1


def _inflate(data: bytes, most_bytes: int) -> int:
    """Count the bytes of deflated data, piece by piece, up to a little more than a bound."""
    count = 0
    while data and count <= most_bytes:
        unpacker = zlib.decompressobj(47)  # zlib or gzip, which may have several parts
        while data and not unpacker.eof and count <= most_bytes:
            count += len(unpacker.decompress(data, 1 << 20))
            data = unpacker.unconsumed_tail
        data = unpacker.unused_data
    return count


def _read_zstd_size(data: bytes) -> int | None:
    """Return the size that data of Zstandard state, None where they do not, or not all of it.

    They are frames; each states its own size, or none, and is a list of blocks.
    """
    if len(data) < LEAST_FRAME_BYTES or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flags = data[4]
    is_single = flags >> 5 & 1
    length = (is_single, 2, 4, 8)[flags >> 6]
    place = 6 - is_single + (0, 1, 2, 4)[flags & 3]
    stated = int.from_bytes(data[place : place + length], "little") + 256 * (length == 2)
    place, is_last = place + length, 0
    while not is_last:
        block = int.from_bytes(data[place : place + 3], "little")
        if place + 3 > len(data):
            return None
        is_last, is_run = block & 1, block >> 1 & 3 == 1
        place += 3 + (1 if is_run else block >> 3)
    is_one_frame = len(data) - place < LEAST_FRAME_BYTES  # a checksum or two may be behind it
    return stated if length and is_one_frame else None
