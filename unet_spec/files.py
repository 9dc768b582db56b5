"""Files that are whole or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from unet_spec.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose content becomes `path` when the block ends well.

    Otherwise nothing is left of it.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    with name_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # write()'s own
            error.filename = str(path)
        raise


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Make a folder that becomes `path` when the block ends well.

    A folder that is there already, with files in it, stays and takes each file by itself.
    """
    if path.is_dir() and any(path.iterdir()):
        yield path
        return
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    with name_errors(path):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary)
        raise


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Give the errors of the block this file name, in place of a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


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
    """Refuse to write over what is there."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise InputError(f"{path}: {why}; name another output, or remove it first")
