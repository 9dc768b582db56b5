"""What a verb writes is tried before the work, and reports are written after it: what `--json` and
`--report` name."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_command.parsing import Command
from unet_spec import InputError
from unet_spec.files import atomic_write, name_errors


def check_target(
    path: Path | None, suffix: str = ".json", *, others: Sequence[Path | None] = ()
) -> None:
    """Refuse before the work a report that could not be written after it.

    Args:
        others: what the verb reads and writes beside it.

    Raises:
        InputError: the name ends in something else, or is that of another file of the command; or
            as `check_file`.
        OSError: as `check_file`.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise InputError(f"{path}: the report's name ends in {suffix}")
    if any(other is not None and _is_same(path, other) for other in others):
        raise InputError(f"{path}: the report would take the place of this file; name another")
    check_file(path)


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, by beginning one beside it, of which nothing is left.

    Raises:
        InputError: it is a folder, or its own folder does not exist.
        OSError: the system allows no file of this name there.
    """
    if not path.parent.is_dir():
        if path.parent.exists():
            raise InputError(
                f"{path}: {path.parent} is a file, and a folder is needed; name another"
            )
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    with name_errors(path):
        if path.is_dir():
            raise InputError(f"{path}: it is a folder, and a file is written; name another")
        # the name that `atomic_write` gives what is not yet whole, which is longer
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        os.unlink(temporary)


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be made or written into; of the trial nothing is left.

    Raises:
        InputError: it is a file, or lies in one.
        OSError: the system allows no folder of this name there, or no file in it.
    """
    with name_errors(path):
        there, missing = path, []
        while not there.exists() and there != there.parent:
            missing.append(there.name)
            there = there.parent
        if not there.is_dir():
            raise InputError(f"{path}: {there} is a file, and a folder is needed; name another")
        with tempfile.TemporaryDirectory(dir=there, prefix=".") as trial:
            for name in missing:
                Path(trial, name).mkdir()


def write_json(path: Path | None, content: dict[str, Any], *, command: Command) -> None:
    """Write a report with the command that made it, where a path was given."""
    if path is None:
        return
    report = {"command": str(command), **content}
    with atomic_write(path) as stream:
        stream.write(json.dumps(report, indent=2).encode() + b"\n")


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two names are of one file, which may not exist yet."""
    with name_errors(path):
        return path.resolve() == other.resolve()
