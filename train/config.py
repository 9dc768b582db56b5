"""What a run is: frozen values that are the flags, the Python API and RUN/config.json."""

import dataclasses
import re
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress

from unet_spec import PAPER, InputError, Preprocessing, UNetConfig, geometry, prediction
from unet_spec.recipe import Optimizer, Recipe, Schedule, rename

_ADDRESS = re.compile(r"\S+:(?!0*$)\d{1,5}")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and what a batch is."""

    images: Path | None = None
    """Folder of images (PNG, JPEG, TIFF), or one TIFF stack. Without it: synthetic cells."""
    masks: Path | None = None
    """Folder of masks with the images' names, or one TIFF stack; `mask_values` says of what."""
    mask_values: Literal["classes", "colours", "instances"] = "classes"
    """What the values of a mask are: classes (0/255, 0/1 or indices), colours of `palette`, or a
    number for each object (0 the background), which become classes 0 and 1."""
    palette: tuple[str, ...] = ()
    """Colour of each class as RRGGBB, in their order, for masks in colours."""
    holdout: float = 0.25
    """Part of the images that is held out for validation."""
    crop_px: int = 128
    """Side of the square that the net sees in training; legal for the net."""
    batch: int = 8
    """Images in a step."""
    synthetic: int = 48
    """Number of synthetic images, where no folder is given."""


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a crop before the net sees it; each part is off at 0."""

    flips: bool = True
    """Mirror left and right, and up and down, each in half of the crops."""
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees."""
    rotation_deg: float = 0.0
    """Turn by up to this, either way."""
    shift_px: float = 0.0
    """Move by up to this along each axis; a fraction of a pixel is interpolated."""
    scale: float = 0.0
    """Enlarge or shrink by a factor of up to 1 + this."""
    elastic_px: float = 0.0
    """Standard deviation of the displacements on the coarse grid; 10 in the U-Net paper."""
    elastic_grid: int = 3
    """Points of that grid along each axis; bicubic between them."""
    brightness: float = 0.0
    """Add up to this, either way; the input of a net has a standard deviation of about 1."""
    contrast: float = 0.0
    """Multiply by a factor of up to 1 + this, or its inverse."""
    gamma: float = 0.0
    """Bend the gray values between the crop's darkest and brightest by an exponent of up to
    1 + this, or its inverse."""
    illumination: float = 0.0
    """Add a smooth field, bicubic between 3x3 points, with a standard deviation of up to this."""
    noise: float = 0.0
    """Standard deviation, at most, of normal noise."""
    invert: float = 0.0
    """Part of the crops whose sign is turned: dark on bright becomes bright on dark."""

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if not 0 <= value < float("inf"):
                raise InputError(f"augment.{field_.name} needs at least 0, got {value}")
        if self.elastic_grid < 2:
            raise InputError(f"augment.elastic_grid needs at least 2, got {self.elastic_grid}")
        if self.invert > 1:
            raise InputError(f"augment.invert is a part from 0 to 1, got {self.invert}")


@dataclass(frozen=True)
class LossConfig:
    """A sum of losses, each with its weight."""

    cross_entropy: float = 1.0
    """Weight of the cross-entropy of pixels."""
    dice: float = 0.0
    """Weight of 1 - the soft Dice score, mean over images and over classes 1 and up."""
    focal: float = 0.0
    """Weight of the focal loss."""
    focal_gamma: float = 2.0
    """How much the focal loss turns from pixels that are right already."""
    class_weights: tuple[float, ...] = ()
    """One for each class, in cross-entropy and focal loss; by default all 1."""
    ignore_index: int | None = None
    """Mask value of pixels that count nothing, such as 255."""
    border_w0: float = 0.0
    """Extra weight of pixels between close cells in the cross-entropy; 10 in the U-Net paper."""
    border_sigma_px: float = 5.0
    """How far from the cells' borders it reaches."""

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "dice", "focal", "focal_gamma", "border_w0"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"loss.{name} needs at least 0, got {getattr(self, name)}")
        if self.cross_entropy + self.dice + self.focal == 0:
            raise InputError("loss.cross_entropy, loss.dice and loss.focal are all 0; give one")
        if not 0 < self.border_sigma_px < float("inf"):
            raise InputError(f"loss.border_sigma_px is above 0, got {self.border_sigma_px}")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= 255:
            raise InputError(
                f"loss.ignore_index is a mask value from 0 to 255, got {self.ignore_index}"
            )
        if self.border_w0 and not self.cross_entropy:
            raise InputError("loss.border_w0 weighs the cross-entropy, whose weight is 0")
        if not all(0 <= weight < float("inf") for weight in self.class_weights) or (
            self.class_weights and not any(self.class_weights)
        ):
            raise InputError(
                "loss.class_weights needs finite numbers of at least 0, not all 0, got "
                f"{self.class_weights}"
            )


@dataclass(frozen=True)
class MeshConfig:
    """How a run is spread over devices, and over processes."""

    data: int | None = None
    """Devices over which the images of a batch are spread; by default the most of them that
    divide the batch."""
    rows: int = 1
    """Devices over which the rows of each image are spread; for padded nets."""
    shard_parameters: bool = False
    """Keep a part of the parameters and moments on each device of `data`, in place of copies."""
    processes: int = 1
    """Processes of the run, on this or on other machines."""
    process: int | None = None
    """Which of them this is, from 0; on a TPU pod or under Slurm it is found out."""
    coordinator: str | None = None
    """HOST:PORT of process 0; on a TPU pod or under Slurm it is found out."""
    heartbeat_s: int = 30
    """Silence after which another process is taken for dead."""

    def __post_init__(self) -> None:
        for name in ("data", "rows", "processes", "heartbeat_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"mesh.{name} needs at least 1, got {value}")
        if self.coordinator is not None and not _ADDRESS.fullmatch(self.coordinator):
            raise InputError(
                "mesh.coordinator is HOST:PORT of process 0, such as 10.0.0.1:12345, got "
                f"{self.coordinator}"
            )
        if self.process is not None and not 0 <= self.process < self.processes:
            raise InputError(
                f"mesh.process is 0 to {self.processes - 1} with mesh.processes="
                f"{self.processes}, got {self.process}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A run."""

    preset: Annotated[str, Suppress] = ""
    """The name of the preset that it began as; no flag."""
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
    """Weight file to start from, or a folder that `unet convert` made of a PyTorch run: with its
    net, optimizer and schedule, at its step."""
    class_names: tuple[str, ...] = ("background", "cell")
    """Names of the classes; they go into the weight file."""
    steps: int = 600
    """Number of batches; a schedule without a length of its own ends at the last."""
    validate_every: int = 200
    """Steps between validations; each also writes the weight files."""
    checkpoint_every: int = 100
    """Steps between checkpoints. A killed run loses those since the last; if it dies while that is
    being written, those since the one before."""
    keep: int = 2
    """Checkpoints that are kept besides the best."""
    patience: int | None = None
    """Validations without a better IoU after which the run ends; by default it never ends early."""
    seed: int = 0
    """Of the initial weights, the split, the crops, their augmentation and the dropout."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the net; parameters and loss stay float32. On GPU and TPU as well, float32 is
    full float32, without TF32."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after the other, to save memory."""
    remat: bool = False
    """Compute each level again in the backward pass in place of keeping it: less memory on GPU and
    TPU, more time. On CPU XLA undoes it."""
    ema: float = 0.0
    """Decay of a running average of the weights, and of batch norm's statistics, which validation
    and the weight file then use; 0 for none. It starts low: (1 + step) / (10 + step) at most."""

    def __post_init__(self) -> None:
        self._check_numbers()
        data = self.data
        if (data.images is None) != (data.masks is None):
            given, lacking = ("images", "masks") if data.masks is None else ("masks", "images")
            raise InputError(
                f"data.{given} needs data.{lacking} as well: the folder of {lacking} with the "
                "same names"
            )
        self.recipe.check_complete()
        self._check_schedule()
        if data.batch % self.accumulate:
            raise InputError(
                f"accumulate={self.accumulate} does not divide data.batch={data.batch}; "
                "change either"
            )
        if self.start is None:  # which brings another net
            self.check_net()

    def check_net(self) -> None:
        """Refuse settings that do not fit the net.

        Raises:
            InputError: with what fits.
        """
        data = self.data
        if self.net.classes < 2:
            raise InputError(
                "net.classes counts the background as well, so training needs at least 2, got "
                f"{self.net.classes}"
            )
        if not geometry.is_legal(self.net, data.crop_px):
            near = " or ".join(map(str, geometry.nearest_legal(self.net, data.crop_px)))
            raise InputError(f"data.crop_px={data.crop_px} is not legal for the net; use {near}")
        prediction.check_window(self.net, self.preprocessing.window_px)
        for name, values in (
            ("class_names", self.class_names),
            ("loss.class_weights", self.loss.class_weights),
        ):
            if values and len(values) != self.net.classes:
                raise InputError(
                    f"{name} needs {self.net.classes} values, one for each of net.classes, "
                    f"got {values}"
                )
        if self.mesh.rows > 1 and self.net.padding == "valid":
            raise InputError(
                "mesh.rows spreads rows of padded nets only, whose output keeps the rows of its "
                "input; use mesh.data, or net.padding=same"
            )

    def _check_schedule(self) -> None:
        total = self.schedule.total_steps
        if total is not None and total * self.schedule.every < self.steps:
            raise InputError(
                f"schedule.total_steps={total} ends before steps={self.steps}, and one_cycle goes "
                f"no further, as in torch; use steps={total * self.schedule.every}, or begin a new "
                "schedule from the weight file alone: start=FILE"
            )

    def _check_numbers(self) -> None:
        if not 0 < self.data.holdout < 1:
            raise InputError(f"data.holdout is a part between 0 and 1, got {self.data.holdout}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is an integer from 0 to 2^32 - 1, got {self.seed}")
        if self.data.mask_values == "instances" and self.loss.ignore_index is not None:
            raise InputError(
                "data.mask_values=instances takes every number but 0 for an object; leave out "
                "loss.ignore_index"
            )
        if self.data.synthetic < 2:
            raise InputError(f"data.synthetic needs at least 2, got {self.data.synthetic}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is a decay in [0, 1), got {self.ema}")
        for name, value in (
            ("steps", self.steps),
            ("validate_every", self.validate_every),
            ("checkpoint_every", self.checkpoint_every),
            ("keep", self.keep),
            ("accumulate", self.accumulate),
            ("patience", self.patience),
            ("data.batch", self.data.batch),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} needs at least 1, got {value}")

    @property
    def recipe(self) -> Recipe:
        """How the weights move in a run of `steps`; `plateau` watches the loss of the batch."""
        return Recipe(self.optimizer, self.schedule).for_steps(self.steps)


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON values."""
    plain = dataclasses.asdict(config)
    for part, name in ((plain["data"], "images"), (plain["data"], "masks"), (plain, "start")):
        part[name] = None if part[name] is None else str(part[name])
    return plain


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
    "nuclei": "Padded, base width 24, for folders of microscopy images; minutes on a CPU.",
    "cells": "Padded, base width 8, on synthetic cells; under a minute on a CPU.",
    "paper": "The U-Net paper's: unpadded, 572-pixel tiles, momentum 0.99, border weights, elastic "
    "deformation; for an accelerator.",
    "modern": "Padded, base width 64, batch norm, AdamW, cosine, bfloat16, Dice and cross-entropy, "
    "averaged weights; for an accelerator.",
}


def presets(*, optimizer: str | None = None, schedule: str | None = None) -> dict[str, TrainConfig]:
    """The presets as flags start from them that name another optimizer or schedule (unchecked:
    `unet_spec.recipe.rename`)."""
    found = {name: copy(config) for name, config in PRESETS.items()}
    for config in found.values():
        object.__setattr__(config, "optimizer", rename(config.optimizer, optimizer))
        object.__setattr__(config, "schedule", rename(config.schedule, schedule))
    return found
