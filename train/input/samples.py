"""Images and masks as samples: those of files, or synthetic cells.

A sample is decoded when it is asked for, in whichever thread asks, and kept while there is room.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, Protocol, overload

import numpy as np
import psutil

import unet_image
from unet_spec import InputError, Preprocessing
from unet_spec.preprocessing import Statistics, apply, measure

from ..config import TrainConfig
from . import synthetic
from .border_weights import border_weights, label_objects
from .masks import Stored, read_mask, to_truth
from .pairs import Pair

FREE_SHARE = 0.25  # of the memory that is free, for decoded images
BORDER_BYTES = 4  # of a pixel in the map of border weights


@dataclass(frozen=True)
class Sample:
    """A `Sample` is one image with its truth, decoded.

    Attributes:
        name: of the file, with the page of a stack.
        image: (h, w) or (h, w, c), as read.
        mask, objects, stored: as in `masks.Truth`.
        channels, preprocessing, statistics: how the image becomes the net's input.
        weight: (h, w) float32, of each pixel in the loss.
        is_turned: by the orientation that the image's file names, and the mask's does not.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    channels: int
    preprocessing: Preprocessing
    statistics: Statistics
    objects: np.ndarray | None = None
    weight: np.ndarray | None = None
    stored: Stored = "indices"
    is_turned: bool = False

    @property
    def x(self) -> np.ndarray:
        """Return the net's input, (h, w, channels) float32, as it will be in prediction."""
        return self.cut_input(np.s_[:, :])

    def cut_input(self, inside: tuple[Any, ...]) -> np.ndarray:
        """Return a part of the net's input: that of the whole image, bit for bit.

        Args:
            inside: index of rows and columns.
        """
        return apply(
            self.image[inside], self.statistics,
            channels=self.channels, preprocessing=self.preprocessing,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Return the size of the arrays in memory."""
        arrays = (self.image, self.mask, self.objects, self.weight)
        return sum(array.nbytes for array in arrays if array is not None)


class Source(Protocol):
    """A `Source` is a sample that is not decoded."""

    @property
    def name(self) -> str:
        """Return the name that its sample will have."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width in pixels."""

    @property
    def bytes(self) -> int:
        """Return what its sample will take in memory."""

    def load(self) -> Sample:
        """Decode it."""


@dataclass(frozen=True)
class InFiles:
    """An `InFiles` is the source of an image and a mask in files."""

    pair: Pair
    config: TrainConfig

    @property
    def name(self) -> str:
        """Return the name of the pair: that of the image's file, with the page of a stack."""
        return self.pair.name

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        height, width, *_ = self.pair.image.shape
        return height, width

    @property
    def bytes(self) -> int:
        """Return what its sample will take in memory."""
        image, pixels = self.pair.image, self.shape[0] * self.shape[1]
        of_objects = 4 * pixels * (self.config.data.mask_values == "instances")
        of_weights = BORDER_BYTES * pixels * bool(self.config.loss.border_w0)
        image_bytes = int(np.prod(image.shape)) * image.dtype.itemsize
        return image_bytes + pixels + of_objects + of_weights

    def load(self) -> Sample:
        """Decode image and mask.

        Raises:
            InputError: a file that is gone, damaged or changed, values that are no classes, an
                image that the net cannot take.
        """
        config, pair = self.config, self.pair
        takes_alpha = unet_image.takes_alpha(
            pair.image, channels=config.net.in_channels, preprocessing=config.preprocessing
        )
        image = unet_image.read_page(pair.image, alpha=takes_alpha)
        mask, is_alpha = read_mask(pair.mask, config.data)
        truth = to_truth(
            mask, data=config.data, net=config.net,
            ignore_index=config.loss.ignore_index, source=pair.mask.place,
        )  # fmt: skip
        try:
            sample = make_sample(self.name, image, truth.mask, config)
        except InputError as error:
            raise InputError(f"{pair.image.place}: {error}") from error
        turned = pair.image.is_turned and not pair.mask.is_turned
        stored: Stored = "classes in alpha" if is_alpha else truth.stored
        sample = replace(sample, objects=truth.objects, stored=stored, is_turned=turned)
        try:
            return _add_border_weights(config, sample)
        except InputError as error:
            raise InputError(f"{pair.mask.place}: {error}") from error


@dataclass(frozen=True)
class Drawn:
    """A `Drawn` is the source of synthetic cells."""

    number: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Return the name, which says that there is no file."""
        return f"synthetic {self.number}"

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return synthetic.SHAPE

    @property
    def bytes(self) -> int:
        """Return what its sample will take in memory."""
        height, width = self.shape
        return height * width * (2 + BORDER_BYTES * bool(self.config.loss.border_w0))

    def load(self) -> Sample:
        """Draw the cells."""
        image, mask = synthetic.draw_cells(self.config.seed * 100_000 + self.number)
        return _add_border_weights(self.config, make_sample(self.name, image, mask, self.config))


@dataclass
class Room:
    """A `Room` is the memory that decoded images may take together.

    Attributes:
        limit_bytes, used_bytes: how much there is, and how much is taken.
    """

    limit_bytes: float
    used_bytes: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def take(self, count: int) -> bool:
        """Take so many bytes for good; return whether there was room for them."""
        with self._lock:
            if self.used_bytes + count > self.limit_bytes:
                return False
            self.used_bytes += count
            return True


class Samples(Sequence[Sample]):
    """A `Samples` decodes each sample when it is asked for, in whichever thread asks.

    The first that are asked for are kept while there is room, and none of them gives way to
    another: an epoch shows every image once, in an order of its own, so what was used last is not
    what is needed next.

    Attributes:
        sources: in the order of the samples.
        decoded: number of times that a sample was decoded.
    """

    def __init__(self, sources: Sequence[Source], room: Room):
        self.sources, self.decoded = list(sources), 0
        self._room = room
        self._kept: dict[int, Sample] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        sample = self._kept.get(index)
        if sample is None:
            sample = self.sources[index].load()
            with self._lock:
                self.decoded += 1
                if index not in self._kept and self._room.take(sample.bytes):
                    self._kept[index] = sample
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the samples; nothing is decoded for that."""
        return [source.name for source in self.sources]

    @property
    def bytes(self) -> int:
        """Return what all samples together would take in memory."""
        return sum(source.bytes for source in self.sources)


def make_room(config: TrainConfig) -> Room:
    """Return the room of `data.cache_gb`, or a share of what is free for each process of a run."""
    if config.data.cache_gb is not None:
        return Room(1e9 * config.data.cache_gb)
    return Room(FREE_SHARE * psutil.virtual_memory().available / config.mesh.processes)


def make_sample(name: str, image: np.ndarray, mask: np.ndarray, config: TrainConfig) -> Sample:
    """Make a sample of arrays; its input is prepared as it will be in prediction.

    Raises:
        InputError: an image that the net cannot take.
    """
    channels, preprocessing = config.net.in_channels, config.preprocessing
    statistics = measure(image, channels=channels, preprocessing=preprocessing)
    return Sample(name, image, mask, channels, preprocessing, statistics)


def _add_border_weights(config: TrainConfig, sample: Sample) -> Sample:
    """Return a sample with the map of border weights, where the loss asks for it."""
    if not config.loss.border_w0:
        return sample
    objects = sample.objects
    if objects is None:
        objects = label_objects(sample.mask, ignore_index=config.loss.ignore_index)
    weight = border_weights(objects, w0=config.loss.border_w0, sigma_px=config.loss.border_sigma_px)
    return replace(sample, weight=weight)
