"""What is in a checkpoint, and whether its files are still what they were when it was written."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_spec.files import atomic_write

NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint.

    Attributes:
        score: how good its weights are; higher is better.
        card: what the run wants to know when it goes on.
        arrays: by their path in the state, type and shape.
        orbax: its version.
        files: by their path in the folder, bytes and sha256; all but the manifest itself.
    """

    step: int
    score: float | None
    card: dict[str, Any]
    arrays: dict[str, str]
    orbax: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class NotWholeError(Exception):
    """What is wrong with a checkpoint, as the end of a sentence."""


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with all files that are in the folder now, written there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    records = {path.relative_to(folder).as_posix(): _record(path) for path in paths}
    return _write(folder, replace(manifest, files=records))


def told_anew(folder: Path, *, card: dict[str, Any], score: float | None) -> Manifest:
    """The manifest of a checkpoint with another card and score, written there.

    Raises:
        OSError: it cannot be written, or the one before it is missing or damaged.
    """
    try:
        return _write(folder, replace(read(folder), card=card, score=score))
    except NotWholeError as error:
        raise OSError(str(error)) from error


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint, whatever its files are.

    Raises:
        NotWholeError: it is missing or damaged.
    """
    try:
        told = json.loads((folder / NAME).read_bytes())
        if told["sha256"] == _digest(told["manifest"]):
            return Manifest(**told["manifest"])
    except FileNotFoundError:
        raise NotWholeError(f"{NAME}, which is written last, is missing") from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise NotWholeError(f"{NAME} is damaged")


def verified(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are what it says.

    Raises:
        NotWholeError: they are not.
    """
    manifest = read(folder)
    for name, told in manifest.files.items():
        try:
            found = _record(folder / name)
        except FileNotFoundError:
            raise NotWholeError(f"{name} is missing") from None
        except OSError as error:
            raise NotWholeError(f"{name} cannot be read ({error.strerror})") from None
        if found["bytes"] != told["bytes"]:
            raise NotWholeError(f"{name} has {found['bytes']} bytes, and had {told['bytes']}")
        if found != told:
            raise NotWholeError(f"{name} has other bytes than were written (sha256)")
    return manifest


def _write(folder: Path, manifest: Manifest) -> Manifest:
    content = asdict(manifest)
    with atomic_write(folder / NAME) as stream:
        stream.write(json.dumps({"sha256": _digest(content), "manifest": content}).encode())
    return manifest


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {
            "bytes": os.fstat(stream.fileno()).st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
