"""Images and masks as samples: those of folders, or synthetic cells.

All images are read, and held in memory, before the first step: none can go missing later.
"""

from dataclasses import dataclass, replace

import numpy as np

import unet_image
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.preprocessing import prepare

from ..config import DataConfig, TrainConfig
from . import synthetic
from .border_weights import border_weights, label_objects
from .masks import Stored, check_settings, to_truth
from .pairs import Pair, list_pairs


@dataclass(frozen=True)
class Sample:
    """A `Sample` is one image with its truth.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask, objects, stored: as in `masks.Truth`.
        x: (h, w, in_channels) float32, the net's input.
        weight: (h, w) float32, of each pixel in the loss.
        pair: the files; None for a synthetic image.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    objects: np.ndarray | None = None
    weight: np.ndarray | None = None
    stored: Stored = "indices"
    pair: Pair | None = None


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
    check_settings(data, net)
    samples = []
    for pair in list_pairs(data).pairs:
        image = unet_image.read_page(pair.image, alpha=pair.image.shape[2:] == (net.in_channels,))
        mask = unet_image.read_page(pair.mask, indices=data.mask_values != "colours")
        source = pair.mask.place
        truth = to_truth(mask, data=data, net=net, ignore_index=ignore_index, source=source)
        try:
            sample = make_sample(pair.name, image, truth.mask, net, preprocessing)
        except InputError as error:
            raise InputError(f"{pair.image.place}: {error}") from error
        samples.append(replace(sample, objects=truth.objects, stored=truth.stored, pair=pair))
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
