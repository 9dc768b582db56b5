"""What a verb writes is checked before the work; reports, which `--json` and `--report` name, are
written after it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_command.parsing import Command
from unet_spec import InputError
from unet_spec.files import atomic_write, check_place, name_errors


def check_target(
    path: Path | None, suffix: str = ".json", *, others: Sequence[Path | None] = ()
) -> None:
    """Refuse before the work a report that could not be written after it.

    Args:
        others: what the verb reads and writes beside it.

    Raises:
        InputError: the name ends in something else, or is that of another file of the command; or
            as `check_file`.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise InputError(f"{path}: the report's name ends in {suffix}")
    if any(other is not None and _is_same(path, other) for other in others):
        raise InputError(f"{path}: the report would take the place of this file; name another")
    check_file(path)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        InputError: it is a folder, or its own folder does not exist; or as `check_place`.
    """
    check_place(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise InputError(f"{path}: it is a folder, and a file is written; name another")


def check_folder(path: Path) -> None:
    """Refuse a folder that could not be made, or written into.

    Raises:
        InputError: it is a file, or this user may not write into it; or as `check_place`.
    """
    check_place(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: it is a file, and a folder is needed; name another")


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
