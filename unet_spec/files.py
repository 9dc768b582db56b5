"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from unet_spec.errors import InputError


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path` when the block ends well, and vanishes otherwise."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def refuse_existing(path: Path) -> None:
    """Refuse to write over what is there."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise InputError(f"{path}: exists already; name another output, or remove it first")
