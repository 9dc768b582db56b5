"""What every script of a figure has: arguments with a help text, and a result file."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_spec.files import atomic_write

RESULTS = Path(__file__).parent / "results"


def parse_arguments(
    description: str | None, *, result: Path, folders: tuple[str, ...] = ()
) -> argparse.Namespace:
    """Return the arguments of a script.

    Args:
        description: the script's docstring, which `--help` shows.
        result: the file that it writes by default; `--out` names another.
        folders: names of folders that have to be given, as absolute paths in the answer.
    """
    return make_parser(description, result=result, folders=folders).parse_args()


def make_parser(
    description: str | None, *, result: Path, folders: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
    """Return what parses the arguments of a script that has more of them; as `parse_arguments`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{result.stem}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in folders:
        parser.add_argument(
            name.lower(), metavar=name, type=_existing_folder, help=f"folder of {name.lower()}"
        )
    parser.add_argument(
        "--out",
        "--json",
        metavar="FILE",
        type=Path,
        default=result,
        help=f"by default {result.name}",
    )
    return parser


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(result, indent=2).encode() + b"\n")


def _existing_folder(text: str) -> Path:
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder")
    return folder
