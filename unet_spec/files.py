"""Files that are whole or not there, and files that are read up to a bound."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from unet_spec.errors import InputError

SHOWN_BYTES = 100
"""Of a file's name in that of its temporary one, which a file system would not take otherwise."""
_RANDOM = "[a-z0-9_]{8}"  # what `tempfile` appends
_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes, where the system does not say it


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose content becomes `path` when the block ends well.

    Otherwise nothing is left of it.

    Raises:
        InputError: the folder does not exist.
        OSError: it cannot be written; by its own name, never by the temporary one.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    with name_errors(path):
        os.path.lexists(path)  # a name that is too long
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path.name))
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the folder may be gone, or closed by now
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            raise _name_error(error, path) from error
        raise


def temporary_prefix(name: str) -> str:
    """Return how the name of a file begins while `atomic_write` writes the file `name`."""
    shown = name.encode(errors="surrogateescape")[:SHOWN_BYTES].decode(errors="ignore")
    return f".{shown}."


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Give the errors of the block this file name, in place of a temporary one or of none."""
    try:
        yield
    except OSError as error:
        raise _name_error(error, path) from error


@contextmanager
def open_named(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read it; whatever error the block meets has its name.

    Raises:
        OSError: it cannot be opened or read.
    """
    with name_errors(path), path.open("rb") as stream:
        yield stream


def _name_error(error: OSError, path: Path) -> OSError:
    """Return the error with the name of this file; some libraries give no number either."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


def refuse_no_file(path: Path) -> None:
    """Refuse to read what is no plain file: a pipe may wait for ever, and a device has no end.

    Raises:
        InputError: it is a folder, a pipe or a device, or there is nothing.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder, and a file is needed")
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if not path.is_file():
        raise InputError(
            f"{path}: a pipe or a device, and a file is needed; save its content first"
        )


def refuse_existing(path: Path, *, why: str = "exists already") -> None:
    """Refuse to write over what is there, and what could not be written.

    Raises:
        InputError: something is there; or as `check_place`.
    """
    check_place(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise InputError(f"{path}: {why}; name another output, or remove it first")


def check_place(path: Path) -> None:
    """Refuse before the work a file or a folder that could not be made after it.

    Of the trial nothing is left. Folders that are missing on the way to it can be made.

    Raises:
        InputError: its name is too long, or it lies below a file, in a folder into which
            nothing can be written, or behind a link to nothing; or it is a device.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: no name of a file holds a zero byte; name another output")
    place = path.absolute()
    if len(os.fsencode(place)) >= _LONGEST_PATH or _has_long_name(place):
        raise InputError(f"{path}: the name is too long for a file; name another output")
    try:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: a link to nothing; remove it, or name another output")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: a device or a pipe; name a file or a folder")
        folder = place if place.is_dir() else place.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{path}: {_relative(folder, path)} is no folder; name another output")
    except OSError as error:
        raise _name_error(error, path) from error
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="."):
            pass
    except OSError as error:
        raise InputError(
            f"{path}: nothing can be written into {_relative(folder, path)} ({error.strerror}); "
            "mend that, or name another output"
        ) from error


def _has_long_name(place: Path) -> bool:
    """Return whether a name on the way to a place is longer than its file system takes."""
    for folder in place.parents:
        with suppress(OSError):
            longest = os.pathconf(folder, "PC_NAME_MAX")
            break
    else:
        longest = _LONGEST_NAME
    return any(len(os.fsencode(part)) > longest for part in place.parts)


def _relative(folder: Path, path: Path) -> Path:
    """Return a folder above a path as the path itself names it."""
    if path.is_absolute():
        return folder
    with suppress(ValueError):
        return folder.relative_to(Path.cwd())
    return folder


@contextmanager
def open_plain(path: Path, *, most_bytes: int) -> Iterator[BinaryIO]:
    """Open a file to read it; pipes and devices, which may never end, are refused.

    Raises:
        ValueError: it is no file, or longer than `most_bytes`.
        OSError: it is missing, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no file")
        if facts.st_size > most_bytes:
            raise ValueError(f"it is longer than {most_bytes // 2**20} MiB")
        yield stream
