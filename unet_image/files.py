"""The image files of a folder."""

from pathlib import Path

from unet_spec import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder by name; for a file, the file itself.

    Raises:
        InputError: no such file or folder, or none in it.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such file or folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return files
