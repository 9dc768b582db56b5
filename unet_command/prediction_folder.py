"""The folder of `unet predict`: what it was made of, what is there, and what a stop left behind."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_image import Page, read_pages
from unet_spec import InputError
from unet_spec.files import atomic_write, refuse_existing
from unet_spec.plain_json import read_json

RECORD = "prediction.json"
NAME = re.compile(r"[^/\0]{1,255}")  # of a file
NOT_COMPARED = ("command",)  # it is there for those who read the file


@dataclass(frozen=True)
class Target:
    """A `Target` is what is written of one page.

    Attributes:
        page: the image, measured.
        name: with which the names of its files begin; no other page has it.
        probabilities: the suffix of the file of these, without a dot, or None for none.
    """

    page: Page
    name: str
    probabilities: str | None = None

    @property
    def mask_file(self) -> str:
        """Return the name of the mask, which is written last."""
        return f"{self.name}_mask.png"

    @property
    def overlay_file(self) -> str:
        """Return the name of the picture with outlines."""
        return f"{self.name}_overlay.png"

    @property
    def probabilities_file(self) -> str | None:
        """Return the name of the file of probabilities, or None where they are not written."""
        return self.probabilities and f"{self.name}_probabilities.{self.probabilities}"

    @property
    def files(self) -> list[str]:
        """Return the names of all its files."""
        return [n for n in (self.mask_file, self.overlay_file, self.probabilities_file) if n]


def list_targets(pages: Sequence[Page], probabilities: str | None) -> list[Target]:
    """Return what is written of each page; two images of one name are refused."""
    targets: dict[str, Target] = {}
    for page in pages:
        stem = page.path.stem
        name = stem if page.count == 1 else f"{stem}_{page.index:04d}"
        if name in targets:
            raise InputError(
                f"{page.path}: its output has the name of {targets[name].page.path}'s; predict "
                "them apart"
            )
        targets[name] = Target(page, name, probabilities)
    return list(targets.values())


def describe_request(
    targets: Sequence[Target], *, command: str, **options: str | float | None
) -> dict[str, Any]:
    """Return what goes into `RECORD`, by which a later command sees whether it is the same.

    Args:
        targets: with the images, of which path, size and time are taken.
        command: what was typed.
        options: what else the outputs depend on.
    """
    images: dict[str, Any] = {}
    for target in targets:
        path = target.page.path.absolute()
        if str(path) not in images:
            facts = path.stat()
            images[str(path)] = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "files": []}
        images[str(path)]["files"] += target.files
    return {"command": command, **options, "images": images}


@contextmanager
def open_folder(out: Path, request: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of a prediction, or go on in it, while nobody else does.

    Nothing of a file that a killed process had begun stays there, and nothing of a new folder into
    which nothing was predicted because of wrong input.

    Raises:
        InputError: something else is there, another prediction, or another command at work.
    """
    is_new = not out.is_dir()
    if is_new:
        refuse_existing(out)
        out.mkdir(parents=True)
    with _lock(out):
        record = _read_record(out)
        if record is None:
            if _list_leftovers(out, {RECORD}) != list(out.iterdir()):
                refuse_existing(out)
        else:
            difference = _find_difference(out, record, request)
            if difference is not None:
                raise InputError(f"{out}: the prediction there {difference}; name another --out")
        remove_leftovers(out, record or request)
        if record != request:
            with atomic_write(out / RECORD) as stream:
                stream.write(json.dumps(request, indent=2).encode() + b"\n")
        try:
            yield
        except InputError:
            if is_new and [path.name for path in out.iterdir()] == [RECORD]:
                shutil.rmtree(out)  # nothing was predicted
            raise


def read_mask(out: Path, target: Target, *, classes: int) -> np.ndarray | None:
    """Return the mask of a page that was predicted before, or None if anything of it is missing.

    Files are whole or not there, as this command writes them. What happened to them since is seen
    where it changed their size.

    Args:
        out: the folder.
        target: the page and its files.
        classes: the planes of a file of probabilities.
    """
    size = target.page.shape[:2]
    try:
        (mask,) = read_pages(out / target.mask_file, indices=True)
        (overlay,) = read_pages(out / target.overlay_file)
    except InputError:  # missing or damaged: it is predicted again
        return None
    if mask.shape != size or overlay.shape != (*size, 3):
        return None
    if target.probabilities_file is not None:
        path = out / target.probabilities_file
        if _count_values(path) != classes * mask.size:
            return None
    return mask


def write_probabilities(
    path: Path, probabilities: np.ndarray, *, class_names: Sequence[str]
) -> None:
    """Write the probabilities of an image, class by class: (classes, h, w) of float32.

    A TIFF has the axes CYX and the names in its metadata. Large ones are BigTIFFs.

    Args:
        path: its suffix is .tif or .npy.
        probabilities: (h, w, classes) float32.
        class_names: a name for each class of a mask, or none. A single channel is that of class 1.
    """
    planes = np.moveaxis(probabilities, -1, 0)
    with atomic_write(path) as stream:
        if path.suffix == ".npy":
            np.save(stream, planes)
            return
        metadata: dict[str, Any] = {"axes": "CYX"}
        if class_names:
            metadata["class_names"] = list(class_names[-len(planes) :])
        file = tifffile.FileHandle(stream, name=path.name)  # the stream's own is a number
        tifffile.imwrite(
            file, (np.ascontiguousarray(plane) for plane in planes), shape=planes.shape,
            dtype=planes.dtype, photometric="minisblack", metadata=metadata,
        )  # fmt: skip


def remove_leftovers(out: Path, request: Mapping[str, Any]) -> None:
    """Remove what is left of the files of a prediction that were being written."""
    for path in _list_leftovers(out, {RECORD} | _list_files(request)):
        path.unlink()


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Let nobody else predict into this folder while the block runs, however this process ends."""
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{out}: another command is predicting there; wait for it, or name another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _read_record(out: Path) -> dict[str, Any] | None:
    """Return what the folder was made of, or None where it is not that of a prediction."""
    try:
        record = read_json((out / RECORD).read_bytes())
        names = _list_files(record)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    are_names = all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    return record if are_names else None


def _list_files(record: Mapping[str, Any]) -> set[str]:
    """Return the names of all files that a record speaks of, but for its own."""
    return {name for image in record["images"].values() for name in image["files"]}


def _find_difference(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in what another prediction differs, as a part of a sentence, or None.

    There may be more images now. One of which nothing was written yet may have been mended or taken
    away.
    """
    if before.get("weights") != now["weights"]:
        return "was made with another weight file"
    for option in now.keys() - {"images", *NOT_COMPARED}:
        if before.get(option) != now[option]:
            made = "no" if before.get(option) is None else f"{before[option]} for"
            return f"has {made} --{option}"
    for path, image in before["images"].items():
        if now["images"].get(path) == image:
            continue
        if any((out / name).exists() for name in image["files"]):
            state = "has changed since" if path in now["images"] else "is not among the images now"
            return f"is of {path}, which {state}"
    return None


def _list_leftovers(out: Path, names: set[str]) -> list[Path]:
    """Return the files that `atomic_write` of these names began and did not end: .NAME.RANDOM."""
    return [
        path
        for path in out.iterdir()
        if path.name.startswith(".") and path.name[1:].rpartition(".")[0] in names
    ]


def _count_values(path: Path) -> int:
    """Return how many probabilities a file holds, without reading them; 0 if it is not whole."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).size
        return tifffile.memmap(path, mode="r").size
    except Exception:  # of a file that is cut off, tifffile raises what it likes: struct.error, ...
        return 0
