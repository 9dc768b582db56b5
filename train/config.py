"""A training run as frozen values, which are the flags, the Python API and RUN/config.json."""

import dataclasses
import re
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress

from unet_spec import PAPER, Preprocessing, UNetConfig, geometry, prediction
from unet_spec.config import check_bounds, check_class_names
from unet_spec.errors import ConfigError, FieldError
from unet_spec.fields import check_fields
from unet_spec.parameters import trained_names
from unet_spec.preprocessing import LARGEST_GB
from unet_spec.ranges import IMAGE_GB, MOST_PIXELS, Pixels, Range, Share, Side, Steps, Weight
from unet_spec.recipe import Optimizer, Recipe, Schedule, rename

_Draw = Annotated[int, Range(0, 10_000, why="because they are drawn before the first step")]
_Batch = Annotated[int, Range(1, 2**20)]
_Devices = Annotated[int, Range(1, 2**16)]
# so many bytes are a petabyte
_Gigabytes = Annotated[float, Range(0, 1e6)]
_Largest = Annotated[float, IMAGE_GB]
# of the input, whose standard deviation is about 1
_Change = Annotated[float, Range(0, 1e6)]
_Turn = Annotated[float, Range(0, 360, why="which is a whole turn")]
_Grid = Annotated[int, Range(2, 256, why="because each crop has a grid of its own")]
_Sigma = Annotated[float, Range(0.001, MOST_PIXELS)]
_MaskValue = Annotated[int, Range(0, 255, rule="is a mask value from 0 to 255")]
_Exponent = Annotated[float, Range(0, 100, why="with which only wrong pixels are left")]
# `balance` gives a class of a single pixel this weight among as many pixels
_ClassWeight = Annotated[float, Range(0, 1e15, rule="needs finite numbers of at least 0")]
_Seconds = Annotated[int, Range(1, 86_400, why="which is a day")]
_HELD_OUT = "is a part between 0 and 1"
_ADDRESS = re.compile(r"\S+:(?!0*$)\d{1,5}")


@dataclass(frozen=True)
class DataConfig:
    """A `DataConfig` says where the images come from, and what a batch is."""

    images: Path | None = None
    """Read the images from this folder (PNG, JPEG, GIF, WebP, TIFF, .npy, zarr) or stack, or those
    of a pattern such as 'FOLDER/*_0000.png' or 'FOLDER/*/*.png'."""
    masks: Path | None = None
    """Read the masks from this folder, stack or pattern. In a folder they have the names of the
    images, up to one beginning and one ending that all of a side share, such as `_mask`."""
    mask_values: Literal["classes", "colours", "instances"] = "classes"
    """A mask holds classes (0/255, 0/1 or indices), the colours of `palette`, or a number for each
    object (0 is the background), of which classes 0 and 1 are made."""
    palette: tuple[str, ...] = ()
    """The classes have these colours in masks of colours, as RRGGBB in the order of the
    classes."""
    holdout: Annotated[float, Range(above=0, below=1, rule=_HELD_OUT)] = 0.25
    """This part of the images is held out for validation."""
    validation_images: Path | None = None
    """Read the held-out images from here, as from `images`, of which none is held out then."""
    validation_masks: Path | None = None
    """Read the masks of the held-out images from here, as from `masks`."""
    split: Path | None = None
    """Read from this file which images are held out: a `.json` with their names under `training`
    and `validation`, as the `data.json` of a run has them, or a text with the name of a held-out
    image in each line."""
    groups: str | None = None
    """Keep images on one side of the split where this regular expression finds the same in their
    names without suffix, such as '^patient[0-9]+'. With a group in parentheses, that part
    counts."""
    crop_px: Side = 128
    """The net sees squares of this side in pixels in training; the net must be able to take
    them."""
    batch: _Batch = 8
    """Each step sees this many images."""
    foreground: Share = 0.0
    """This share of the crops is drawn around a pixel of a class other than 0, each class of the
    image as often as another; nnU-Net has 0.33."""
    cache_gb: _Gigabytes | None = None
    """Keep decoded images in at most this much memory, in GB for each process; by default a
    quarter of what is free at the start. What does not fit is decoded again when it is needed."""
    largest_gb: _Largest = LARGEST_GB
    """Read images that take at most so many GB as float32; training takes a few times as much
    memory."""
    synthetic: _Draw = 0
    """This many synthetic images of cells are drawn where no folder is given."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, other in (("images", "masks"), ("masks", "images")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ConfigError(
                    self,
                    f"{{{name}}} needs {{{other}}} as well; give the folder of {other} with the "
                    "same names",
                )
        try:
            re.compile(self.groups or "")
        except re.error as error:
            raise FieldError(
                self, "groups", "needs a regular expression ({reason})", reason=error
            ) from error
        self._check_split()

    def _check_split(self) -> None:
        """Refuse several answers to the question which images are held out, and half an answer."""
        sides = ("validation_images", "validation_masks")
        for name, other in (sides, sides[::-1]):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ConfigError(self, f"{{{name}}} needs {{{other}}} as well; give both")
        chosen = [name for name in ("split", sides[0]) if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(
                self, "{split} and {validation_images} both say what is held out; leave out one"
            )
        drawn = {"holdout": type(self).holdout, "groups": None}
        for name in chosen:
            for other, default in drawn.items():
                if getattr(self, other) != default:
                    raise ConfigError(
                        self,
                        f"{{{other}}} counts nothing with {{{name}}}, which says what is held out; "
                        "leave out one",
                    )
        for name in (*chosen, "groups"):
            if getattr(self, name) is not None and self.images is None:
                raise ConfigError(self, f"{{{name}}} needs {{images}} and {{masks}}; give both")

    def check_source(self) -> None:
        """Refuse a run without images, which a preset alone is.

        Raises:
            ConfigError: naming what gives it some.
        """
        if self.images is None and self.synthetic == 0:
            raise ConfigError(
                self,
                "there are no images to train on; give their folder by {images} and that of their "
                "masks by {masks}, or {synthetic=48} for cells that the program draws",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """An `AugmentConfig` says what happens to a crop before the net sees it; at 0 a part is off."""

    flips: bool = True
    """Mirror left and right, and up and down, each in half of the crops."""
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees."""
    rotation_deg: _Turn = 0.0
    """Turn by up to this many degrees, either way."""
    shift_px: Pixels = 0.0
    """Move by up to this many pixels along each axis; a fraction of a pixel is interpolated."""
    scale: _Change = 0.0
    """Enlarge or shrink by a factor of up to 1 + this."""
    elastic_px: Pixels = 0.0
    """Bend the crop by displacements on a coarse grid with this standard deviation in pixels; the
    U-Net paper has 10."""
    elastic_grid: _Grid = 3
    """The coarse grid of `elastic_px` has this many points along each axis, with bicubic
    interpolation between them."""
    brightness: _Change = 0.0
    """Add up to this, either way; the input of a net has a standard deviation of about 1."""
    contrast: _Change = 0.0
    """Multiply by a factor of up to 1 + this, or its inverse."""
    gamma: _Change = 0.0
    """Bend the gray values between the crop's darkest and brightest by an exponent of up to
    1 + this, or its inverse."""
    illumination: _Change = 0.0
    """Add a smooth field, bicubic between 3x3 points, with a standard deviation of up to this."""
    noise: _Change = 0.0
    """Add normal noise with a standard deviation of up to this."""
    invert: Annotated[float, Range(0, 1, rule="is a part from 0 to 1")] = 0.0
    """Turn the sign of this part of the crops: dark on bright becomes bright on dark."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LossConfig:
    """A `LossConfig` is a sum of losses, each with its weight."""

    cross_entropy: Weight = 1.0
    """The cross-entropy of pixels has this weight. With `output=sigmoid` and several classes, all
    losses are means over the classes, of each class against the rest."""
    dice: Weight = 0.0
    """The Dice loss has this weight; it is 1 - the soft Dice score, the mean over images and over
    classes 1 and up."""
    focal: Weight = 0.0
    """The focal loss has this weight."""
    focal_gamma: _Exponent = 2.0
    """The focal loss turns from pixels that are right already by this exponent."""
    class_weights: tuple[_ClassWeight, ...] = ()
    """The classes have these weights in cross-entropy and focal loss; by default all have 1."""
    balance: bool = False
    """The classes weigh in cross-entropy and focal loss by the inverse of their share of the
    pixels to train on, so that each class counts as much as another."""
    ignore_index: _MaskValue | None = None
    """Pixels with this mask value, such as 255, count nothing."""
    border_w0: Weight = 0.0
    """Pixels between close cells get up to this extra weight in the cross-entropy; the U-Net paper
    has 10."""
    border_sigma_px: _Sigma = 5.0
    """The extra weight of `border_w0` reaches this many pixels from the cells' borders."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cross_entropy + self.dice + self.focal == 0:
            raise ConfigError(self, "{cross_entropy}, {dice} and {focal} are all 0; give one")
        if self.border_w0 and not self.cross_entropy:
            raise ConfigError(self, "{border_w0} weighs the {cross_entropy}, whose weight is 0")
        if self.class_weights and not any(self.class_weights):
            raise FieldError(self, "class_weights", "needs a number above 0")


@dataclass(frozen=True)
class MeshConfig:
    """A `MeshConfig` says how a run is spread over devices, and over processes."""

    data: _Devices | None = None
    """The images of a batch are spread over this many devices; by default the most of them that
    divide the batch."""
    rows: _Devices = 1
    """The rows of each image are spread over this many devices, which padded nets allow."""
    shard_parameters: bool = False
    """Each device of `data` keeps a part of the parameters and moments, in place of a copy of
    all."""
    processes: _Devices = 1
    """The run has this many processes, on this or on other machines."""
    process: Annotated[int, Range(0, 2**16 - 1)] | None = None
    """This process has this number, from 0 on; a TPU pod or Slurm gives it by itself."""
    coordinator: str | None = None
    """Process 0 listens here, as HOST:PORT; a TPU pod or Slurm gives it by itself."""
    heartbeat_s: _Seconds = 30
    """Another process is taken for dead after so many seconds of silence."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.coordinator is not None and not _ADDRESS.fullmatch(self.coordinator):
            raise FieldError(
                self, "coordinator", "is HOST:PORT of process 0, such as 10.0.0.1:12345"
            )
        if self.process is not None and not 0 <= self.process < self.processes:
            raise FieldError(
                self, "process", "is 0 to {last} with {processes=}", last=self.processes - 1
            )


@dataclass(frozen=True)
class TrainConfig:
    """A `TrainConfig` is a training run."""

    preset: Annotated[str, Suppress] = ""
    """The run began as this preset; there is no flag for it."""
    net: UNetConfig = field(default_factory=UNetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-3, weight_decay=1e-2))
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            "one_cycle", max_lr=2e-3, pct_start=0.2, div_factor=25.0, cycle_momentum=False
        )
    )
    mesh: MeshConfig = field(default_factory=MeshConfig)
    start: Path | None = None
    """The run begins with this weight file, or with the folder that `unet convert` made of a
    PyTorch run: then with its net, optimizer and schedule, at its step."""
    class_names: tuple[str, ...] = ("background", "cell")
    """The classes have these names, which go into the weight file."""
    steps: Steps = 600
    """The run ends at this step, and with it a schedule that has no length of its own; a step is
    one batch."""
    validate_every: Steps = 200
    """Validate once in this many steps, and write the weight files each time."""
    checkpoint_every: Steps = 100
    """Write a checkpoint once in this many steps. A killed run loses the steps since the last; if
    it dies while that is being written, those since the one before."""
    keep: Steps = 2
    """Keep this many checkpoints besides the best."""
    patience: Steps | None = None
    """The run ends after this many validations without a better IoU; by default it never ends
    early."""
    seed: Annotated[int, Range(0, 2**32 - 1, rule="is an integer from 0 to 2^32 - 1")] = 0
    """The initial weights, the split, the crops, their augmentation and the dropout are drawn from
    this seed."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """The net computes in this arithmetic, while parameters and loss stay float32. Also on GPU and
    TPU, float32 is full float32, without TF32."""
    accumulate: _Batch = 1
    """A batch is computed in this many parts, one after the other, which saves memory."""
    remat: bool = False
    """Compute each level again in the backward pass in place of keeping it, which takes less memory
    on GPU and TPU, and more time. On CPU XLA undoes it."""
    ema: Annotated[float, Range(0, below=1, rule="is a decay in [0, 1)")] = 0.0
    """Average the weights over time with this decay, and batch norm's statistics with them;
    validation and the weight file then use the average. The decay starts low, at most
    (1 + step) / (10 + step); with 0 nothing is averaged."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.recipe.check_complete()
        self._check_schedule()
        if self.data.mask_values == "instances" and self.loss.ignore_index is not None:
            raise ConfigError(
                self,
                "{data.mask_values=instances} takes every number but 0 for an object; leave out "
                "{loss.ignore_index}",
            )
        if self.data.batch % self.accumulate:
            raise ConfigError(self, "{accumulate=} does not divide {data.batch=}; change either")
        if self.start is None:  # which brings another net
            self.check_net()

    def check_net(self) -> None:
        """Refuse settings that do not fit the net.

        Raises:
            InputError: with what fits.
        """
        check_bounds(self.net)
        check_class_names(self.class_names)
        if not geometry.is_legal(self.net, self.data.crop_px):
            near = " or ".join(map(str, geometry.nearest_legal(self.net, self.data.crop_px)))
            raise ConfigError(
                self, "{data.crop_px=} is not legal for the net; use {near}", near=near
            )
        self.optimizer.check_names(trained_names(self.net))
        prediction.check_window(self.net, self.preprocessing.window_px)
        self._check_norm()
        for name, values in (
            ("class_names", self.class_names),
            ("loss.class_weights", self.loss.class_weights),
        ):
            if values and len(values) != self.net.mask_classes:
                raise FieldError(
                    self,
                    name,
                    "needs {count} values, one for each class of {net.classes=}",
                    count=self.net.mask_classes,
                )
        if self.mesh.rows > 1 and self.net.padding == "valid":
            raise ConfigError(
                self,
                "{mesh.rows} spreads rows of padded nets only, whose output keeps the rows of its "
                "input; use {mesh.data}, or {net.padding=same}",
            )

    def _check_norm(self) -> None:
        """Refuse a norm over one value, of which nothing is left; torch refuses it as well."""
        net, batch, crop_px = self.net, self.data.batch, self.data.crop_px
        if net.norm == "none":
            return
        if _count_normed_values(net, crop_px, images=batch // self.accumulate) < 2:
            larger = _next_size_for_norm(net, crop_px)
            if net.norm == "batch":
                more = 2 * self.accumulate
                raise ConfigError(
                    self,
                    "{net.norm=} needs at least 2 values, and {data.crop_px=} leaves 1 x 1 pixel "
                    "at the deepest level, of one image at a time with {data.batch=} and "
                    f"{{accumulate=}}; use {{data.batch={more}}} or {{data.crop_px={larger}}}",
                )
            raise ConfigError(
                self,
                "{net.norm=} needs at least 2 values of each image, and {data.crop_px=} leaves "
                f"1 x 1 pixel at the deepest level; use {{data.crop_px={larger}}}",
            )
        window_px = self.preprocessing.window_px
        if window_px is None or net.norm == "batch":  # which predicts with its statistics
            return
        if _count_normed_values(net, window_px, images=1) < 2:
            larger = _next_size_for_norm(replace(net, fit="error"), window_px)
            raise ConfigError(
                self,
                "{net.norm=} needs at least 2 values, and {preprocessing.window_px=} leaves "
                f"1 x 1 pixel at the deepest level; use {{preprocessing.window_px={larger}}}",
            )

    def _check_schedule(self) -> None:
        if self.schedule.name == "plateau" and self.schedule.mode == "max":
            raise ConfigError(
                self,
                "{schedule.mode=} waits for a value that rises, and {schedule.name=} watches the "
                "loss of each batch, which falls; use {schedule.mode=min}",
            )
        total = self.schedule.total_steps
        if total is not None and total * self.schedule.every < self.steps:
            raise ConfigError(
                self,
                "{schedule.total_steps=} ends before {steps=}, and one_cycle goes no further, as "
                f"in torch; use {{steps={total * self.schedule.every}}}, or begin a new schedule "
                "from the weight file alone: {start=FILE}",
            )

    @property
    def recipe(self) -> Recipe:
        """Return how the weights move in a run of `steps`; `plateau` watches the batch's loss."""
        return Recipe(self.optimizer, self.schedule).for_steps(self.steps)


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the config as JSON values."""
    plain = dataclasses.asdict(config)
    for part in (plain, plain["data"]):
        part.update({name: str(value) for name, value in part.items() if isinstance(value, Path)})
    return plain


def _count_normed_values(net: UNetConfig, size_px: int, *, images: int) -> int:
    """Return of how many values the net's norm takes a mean at the deepest level.

    Args:
        size_px: side of the input, which is a square.
        images: of a batch, or of the part of it that is computed at once.
    """
    pixels = geometry.levels(net, size_px).neck ** 2
    if net.norm == "batch":
        return images * pixels
    return pixels * (net.widths[-1] // net.groups if net.norm == "group" else 1)


def _next_size_for_norm(net: UNetConfig, size_px: int) -> int:
    """Return the next legal size above this one that leaves more than a pixel everywhere."""
    while geometry.levels(net, size_px).neck < 2:
        size_px = geometry.next_legal(net, size_px + 1)
    return size_px


NUCLEI = TrainConfig(
    preset="nuclei",
    net=UNetConfig(in_channels=3, widths=(24, 48, 96, 192, 384), norm="group"),
    data=DataConfig(batch=4, crop_px=128),
    augment=AugmentConfig(
        rotation_deg=45, scale=1, illumination=0.8, brightness=0.3, contrast=0.4, gamma=0.5
    ),
    preprocessing=Preprocessing(sqrt=True, window_px=128, mirror=True),
    loss=LossConfig(dice=1),
    steps=800,
    validate_every=800,
    ema=0.99,
)
CELLS = TrainConfig(
    preset="cells",
    net=UNetConfig(widths=(8, 16, 32, 64)),
    data=DataConfig(synthetic=48),
    steps=150,
    validate_every=75,
    checkpoint_every=75,
)
# Ronneberger et al., 2015; the learning rate, which they do not give, is ours
PAPER_RECIPE = TrainConfig(
    preset="paper",
    net=replace(PAPER, dropout=0.5),
    data=DataConfig(crop_px=572, batch=1),
    augment=AugmentConfig(
        rotation_deg=180, shift_px=20, elastic_px=10, brightness=0.2, contrast=0.2
    ),
    loss=LossConfig(border_w0=10, border_sigma_px=5),
    optimizer=Optimizer("sgd", lr=1e-3, momentum=0.99),
    schedule=Schedule(),
    steps=20_000,
    validate_every=1000,
    checkpoint_every=500,
)
MODERN = TrainConfig(
    preset="modern",
    net=UNetConfig(norm="batch", bias=False),
    data=DataConfig(crop_px=256, batch=16),
    augment=AugmentConfig(
        rotation_deg=180, scale=0.4, elastic_px=6, brightness=0.3, contrast=0.4, noise=0.1
    ),
    loss=LossConfig(dice=1),
    optimizer=Optimizer(lr=1e-3, weight_decay=1e-2, clip_norm=1),
    schedule=Schedule("cosine"),
    steps=5000,
    validate_every=500,
    checkpoint_every=250,
    compute="bfloat16",
    ema=0.999,
)

PRESETS = {config.preset: config for config in (NUCLEI, CELLS, PAPER_RECIPE, MODERN)}
PROMISES = {
    "nuclei": "Train a padded net of base width 24 on folders of microscopy images; it takes "
    "minutes on a CPU.",
    "cells": "Train a padded net of base width 8 on synthetic cells; it takes under a minute on a "
    "CPU.",
    "paper": "Train as the U-Net paper does: unpadded, 572-pixel tiles, momentum 0.99, border "
    "weights, elastic deformation; it needs an accelerator.",
    "modern": "Train a padded net of base width 64 with batch norm, AdamW, cosine, bfloat16, Dice "
    "and cross-entropy, and averaged weights; it needs an accelerator.",
}


def list_presets(
    *, optimizer: str | None = None, schedule: str | None = None
) -> dict[str, TrainConfig]:
    """Return the presets as flags start from them that name another optimizer or schedule.

    They are not checked: `unet_spec.recipe.rename`.
    """
    configs = {name: copy(config) for name, config in PRESETS.items()}
    for config in configs.values():
        object.__setattr__(config, "optimizer", rename(config.optimizer, optimizer))
        object.__setattr__(config, "schedule", rename(config.schedule, schedule))
    return configs
