"""The image files of a folder."""

import os
from pathlib import Path

from unet_spec import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".npy", ".zarr")
OTHERS = (".bmp", ".jp2", ".heic", ".svs", ".ndpi", ".czi", ".nd2", ".lif", ".dcm", ".nii", ".mha",
          ".nrrd", ".exr", ".tga", ".ppm", ".pgm")  # fmt: skip
"""Images of other kinds: beside those that are read they would be missed without a word."""
STORE_FILES = ("zarr.json", ".zgroup", ".zarray")
"""One of these makes a folder a zarr store, which is one image file."""


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder by name; for a file, the file itself.

    Hidden files, as some systems leave beside others, are passed over.

    Raises:
        InputError: no such file or folder, none in it, or an image of a kind that is not read.
    """
    if folder.is_file() or is_store(folder):
        return [folder]
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise InputError(
                f"{folder}: a pipe, a device, or a link to nothing; name an image file or a folder"
            )
        raise InputError(f"{folder}: there is no such file or folder")
    files = sorted(path for path in folder.iterdir() if _is_image(path))
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in OTHERS and not path.name.startswith("."):
            raise InputError(
                f"{path}: {path.suffix} is not read; convert it to PNG or TIFF, or move it out of "
                "the folder"
            )
    if not files:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return files


def is_store(path: Path) -> bool:
    """Return whether a path is a folder that holds one image file, a zarr store."""
    if not path.is_dir():
        return False
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in STORE_FILES)


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return is_store(path)
    return path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".zarr"
