"""Reports are what `--json` and `--report` name: refused before the work, written after it."""

import json
from pathlib import Path
from typing import Any

from unet_command.parsing import Command
from unet_spec import InputError
from unet_spec.files import atomic_write, check_place


def check_target(path: Path | None, suffix: str = ".json") -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        InputError: the name ends in something else, or its folder does not exist.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise InputError(f"{path}: the report's name ends in {suffix}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise InputError(f"{path}: a folder; name a file for the report")
    check_place(path)


def write_json(path: Path | None, content: dict[str, Any], *, command: Command) -> None:
    """Write a report with the command that made it, where a path was given."""
    if path is None:
        return
    report = {"command": str(command), **content}
    with atomic_write(path) as stream:
        stream.write(json.dumps(report, indent=2).encode() + b"\n")
