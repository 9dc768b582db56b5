"""Images and masks as samples: those of folders, or synthetic cells.

All images are read, and held in memory, before the first step: none can go missing later.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import unet_image
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.errors import ConfigError
from unet_spec.preprocessing import prepare

from ..config import DataConfig, TrainConfig
from . import synthetic
from .border_weights import border_weights, label_objects
from .masks import Stored, check_settings, to_truth


@dataclass(frozen=True)
class Sample:
    """A `Sample` is one image with its truth.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask, objects, stored: as in `masks.Truth`.
        x: (h, w, in_channels) float32, the net's input.
        weight: (h, w) float32, of each pixel in the loss.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    objects: np.ndarray | None = None
    weight: np.ndarray | None = None
    stored: Stored = "indices"


def load_samples(config: TrainConfig) -> list[Sample]:
    """Load every sample, with the map of border weights where the loss asks for it.

    Raises:
        InputError: as in `read_samples`.
    """
    return [_add_border_weights(config, sample) for sample in _read_or_draw(config)]


def read_samples(
    data: DataConfig,
    *,
    net: UNetConfig,
    preprocessing: Preprocessing,
    ignore_index: int | None = None,
) -> list[Sample]:
    """Read every image of `data.images` with its mask.

    In a folder a mask has the name of its image, in a stack it is the same page.

    Raises:
        InputError: an image without a mask or the reverse, other shapes, values that are no
            classes, a file that is not a whole image, settings that do not fit the net.
    """
    if data.images is None or data.masks is None:
        raise ConfigError(data, "{images} and {masks} say what is read; give both")
    check_settings(data, net)
    samples = []
    for image_path, mask_path in _pair_files(data.images, data.masks):
        images = unet_image.read_pages(image_path)
        masks = unet_image.read_pages(mask_path, indices=data.mask_values != "colours")
        if len(images) != len(masks):
            raise InputError(
                f"{mask_path}: {len(masks)} pages for the {len(images)} of {image_path}; "
                "a stack needs one mask for each image"
            )
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            page = f"[{number}]" if len(images) > 1 else ""
            where = f"{mask_path}{page}"
            truth = to_truth(mask, data=data, net=net, ignore_index=ignore_index, source=where)
            if truth.mask.shape != image.shape[:2]:
                raise InputError(
                    f"{where}: the mask is {truth.mask.shape} and its image {image_path} is "
                    f"{image.shape[:2]} (height, width); they must be the same"
                )
            name = f"{image_path.name}{page}"
            try:
                sample = make_sample(name, image, truth.mask, net, preprocessing)
            except InputError as error:
                raise InputError(f"{image_path}{page}: {error}") from error
            samples.append(replace(sample, objects=truth.objects, stored=truth.stored))
    return samples


def make_sample(
    name: str, image: np.ndarray, mask: np.ndarray, net: UNetConfig, preprocessing: Preprocessing
) -> Sample:
    """Make a sample whose input is prepared as it will be in prediction.

    Raises:
        InputError: an image that the net cannot take.
    """
    x = prepare(image, channels=net.in_channels, preprocessing=preprocessing)
    return Sample(name, image, mask, x)


def _read_or_draw(config: TrainConfig) -> list[Sample]:
    """Read the samples of a config, or draw synthetic ones where it names no images."""
    if config.data.images is not None:
        return read_samples(
            config.data,
            net=config.net,
            preprocessing=config.preprocessing,
            ignore_index=config.loss.ignore_index,
        )
    samples = []
    for i in range(config.data.synthetic):
        image, mask = synthetic.draw_cells(config.seed * 100_000 + i)
        name = f"synthetic {i}"
        samples.append(make_sample(name, image, mask, config.net, config.preprocessing))
    return samples


def _add_border_weights(config: TrainConfig, sample: Sample) -> Sample:
    """Return a sample with the map of border weights, where the loss asks for it."""
    if not config.loss.border_w0:
        return sample
    objects = sample.objects
    if objects is None:
        objects = label_objects(sample.mask, ignore_index=config.loss.ignore_index)
    weight = border_weights(objects, w0=config.loss.border_w0, sigma_px=config.loss.border_sigma_px)
    return replace(sample, weight=weight)


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
