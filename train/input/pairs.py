"""Images with their masks, by the names of their files; nothing is decoded."""

from dataclasses import dataclass
from pathlib import Path

import unet_image
from unet_image import Page
from unet_spec import InputError
from unet_spec.errors import ConfigError

from ..config import DataConfig


@dataclass(frozen=True)
class Pair:
    """A `Pair` is an image and its mask, in their files.

    Attributes:
        held_out: whether the image is held out; None where that is drawn.
    """

    image: Page
    mask: Page
    held_out: bool | None = None


def list_pairs(data: DataConfig) -> list[Pair]:
    """List every image of `data.images` with its mask.

    In a folder a mask has the name of its image, in a stack it is the same page.

    Raises:
        InputError: an image without a mask or the reverse, other shapes, a file that is no image.
    """
    if data.images is None or data.masks is None:
        raise ConfigError(data, "{images} and {masks} say what is read; give both")
    pairs = []
    for image_path, mask_path in _pair_files(data.images, data.masks):
        images, masks = unet_image.measure_pages(image_path), unet_image.measure_pages(mask_path)
        if len(images) != len(masks):
            raise InputError(
                f"{mask_path}: {len(masks)} pages for the {len(images)} of {image_path}; "
                "a stack needs one mask for each image"
            )
        for image, mask in zip(images, masks, strict=True):
            if mask.shape[:2] != image.shape[:2]:
                raise InputError(
                    f"{mask.place}: the mask is {mask.shape[:2]} and its image {image_path} is "
                    f"{image.shape[:2]} (height, width); they must be the same"
                )
            pairs.append(Pair(image, mask))
    return pairs


def _pair_files(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return each image with its mask: two files, or those of the same stem in two folders.

    Raises:
        InputError: a file without its other half, or two files of the same stem.
    """
    image_paths, mask_paths = unet_image.list_images(images), unet_image.list_images(masks)
    if images.is_file() and masks.is_file():
        return [(images, masks)]
    masks_by_stem = _index_by_stem(mask_paths)
    images_by_stem = _index_by_stem(image_paths)
    _refuse_lonely(images_by_stem, masks_by_stem, what="image", missing="mask", folder=masks)
    _refuse_lonely(masks_by_stem, images_by_stem, what="mask", missing="image", folder=images)
    return [(path, masks_by_stem[stem]) for stem, path in images_by_stem.items()]


def _index_by_stem(paths: list[Path]) -> dict[str, Path]:
    """Return paths by their names without suffix.

    Raises:
        InputError: two paths of the same stem.
    """
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise InputError(f"{path}: {by_stem[path.stem].name} has the same name; rename one")
        by_stem[path.stem] = path
    return by_stem


def _refuse_lonely(
    paths: dict[str, Path], others: dict[str, Path], *, what: str, missing: str, folder: Path
) -> None:
    """Refuse paths whose stem is not among the others.

    Raises:
        InputError: it names the first such path and says how many more there are.
    """
    lonely = [path for stem, path in paths.items() if stem not in others]
    if lonely:
        more = f" (and {len(lonely) - 1} more like it)" if len(lonely) > 1 else ""
        raise InputError(
            f"{lonely[0]}: no {missing} named {lonely[0].stem}.* in {folder}{more}; "
            f"every {what} needs one"
        )
