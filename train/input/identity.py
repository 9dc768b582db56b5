"""Which files a run trains on: told apart without reading all of their bytes."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from unet_spec.files import name_errors

BLOCK_BYTES, BLOCKS = 4096, 4  # what is read of a file that is longer than all of them together


@dataclass(frozen=True)
class Identity:
    """An `Identity` tells a file, or the folder of a zarr store, from another.

    Attributes:
        bytes: the length of the file, or of all files of the store together.
        modified_ns: when it was last written, in nanoseconds since 1970.
        sha256: of the length and of `BLOCKS` blocks, the first, the last and those evenly between
            them; of a store, of the names, lengths and first blocks of its files. A compressed
            image that changes changes nearly always in these; an uncompressed one may not.
    """

    bytes: int
    modified_ns: int
    sha256: str

    def is_same(self, other: "Identity") -> bool:
        """Return whether both have the same content, as far as that is known."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


def identify(path: Path, known: Identity | None = None) -> Identity:
    """Return the identity of a file.

    Args:
        known: the identity that it had; where length and time are still those, nothing is read.

    Raises:
        InputError: it cannot be read.
    """
    with name_errors(path):
        length, modified_ns = _measure(path)
        if known is not None and (known.bytes, known.modified_ns) == (length, modified_ns):
            return known
        digest = hashlib.sha256(str(length).encode())
        if not path.is_dir():
            _add_blocks(digest, path, length, BLOCKS)
        else:
            for file in _list_files(path):
                bytes_of_file = file.stat().st_size
                digest.update(f"{file.relative_to(path)} {bytes_of_file}".encode())
                _add_blocks(digest, file, bytes_of_file, 1)
    return Identity(length, modified_ns, digest.hexdigest())


def _measure(path: Path) -> tuple[int, int]:
    """Return the length in bytes and the time in nanoseconds of a file or a store."""
    if not path.is_dir():
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns
    of_files = [file.stat() for file in _list_files(path)]
    times = [path.stat().st_mtime_ns, *(facts.st_mtime_ns for facts in of_files)]
    return sum(facts.st_size for facts in of_files), max(times)


def _list_files(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of their names."""
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def _add_blocks(digest: "hashlib._Hash", path: Path, length: int, blocks: int) -> None:
    """Add blocks of a file to a hash: all of it where it is short."""
    with path.open("rb") as stream:
        if length <= blocks * BLOCK_BYTES:
            digest.update(stream.read())
            return
        for block in range(blocks):
            last = length - BLOCK_BYTES
            stream.seek(last * block // max(1, blocks - 1))
            digest.update(stream.read(BLOCK_BYTES))
