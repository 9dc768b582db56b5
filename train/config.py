"""What a run is: frozen values that are the flags, the Python API and RUN/config.json."""

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.recipe import Optimizer, Recipe, Schedule


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and what a batch is."""

    images: Path | None = None
    """Folder of images (PNG, JPEG, TIFF), or one TIFF stack. Without it: synthetic cells."""
    masks: Path | None = None
    """Folder of masks with the images' names, or one TIFF stack: 0/255, 0/1 or class indices."""
    holdout: float = 0.25
    """Part of the images that is held out for validation."""
    crop_px: int = 128
    """Side of the square that the net sees in training; legal for the net."""
    batch: int = 8
    """Images in a step."""
    synthetic: int = 48
    """Number of synthetic images, where no folder is given."""


@dataclass(frozen=True)
class TrainConfig:
    """A run."""

    net: UNetConfig = field(default_factory=UNetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-3, weight_decay=1e-2))
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            "one_cycle", max_lr=2e-3, pct_start=0.2, div_factor=25.0, cycle_momentum=False
        )
    )
    class_names: tuple[str, ...] = ("background", "cell")
    """Names of the classes; they go into the weight file."""
    steps: int = 600
    """Number of batches; a schedule without a length of its own ends at the last."""
    validate_every: int = 200
    """Steps between validations; each also writes the weight file and the training state."""
    seed: int = 0
    """Of the initial weights, the split, the crops and the dropout."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the net; parameters and loss stay float32."""

    def __post_init__(self) -> None:
        data = self.data
        if (data.images is None) != (data.masks is None):
            given, lacking = ("images", "masks") if data.masks is None else ("masks", "images")
            raise InputError(f"data.{given} needs data.{lacking} as well: the folder beside it")
        if not 0 < data.holdout < 1:
            raise InputError(f"data.holdout is a part between 0 and 1, got {data.holdout}")
        for name, value in (
            ("steps", self.steps),
            ("validate_every", self.validate_every),
            ("data.batch", data.batch),
        ):
            if value < 1:
                raise InputError(f"{name} needs at least 1, got {value}")
        self.recipe.check_complete()
        if not geometry.is_legal(self.net, data.crop_px):
            near = " or ".join(map(str, geometry.nearest_legal(self.net, data.crop_px)))
            raise InputError(f"data.crop_px={data.crop_px} is not legal for the net; use {near}")
        if self.class_names and len(self.class_names) != self.net.classes:
            raise InputError(
                f"class_names needs {self.net.classes} names, one for each of net.classes, "
                f"got {self.class_names}"
            )

    @property
    def recipe(self) -> Recipe:
        """How the weights move in a run of `steps`; `plateau` watches the loss of the batch."""
        return Recipe(self.optimizer, self.schedule).for_steps(self.steps)


def to_plain(config: TrainConfig) -> dict:
    """The config as JSON values."""
    plain = dataclasses.asdict(config)
    for name in ("images", "masks"):
        value = getattr(config.data, name)
        plain["data"][name] = None if value is None else str(value)
    return plain


_SMALL = UNetConfig(widths=(16, 32, 64, 128, 256))

NUCLEI = TrainConfig(net=_SMALL)
CELLS = replace(NUCLEI, net=UNetConfig(widths=(8, 16, 32, 64)), steps=150, validate_every=75)

PRESETS: dict[str, TrainConfig] = {"nuclei": NUCLEI, "cells": CELLS}
PROMISES = {
    "nuclei": "Padded, base width 16, for folders of microscopy images; minutes on a CPU.",
    "cells": "Padded, base width 8, on synthetic cells; under a minute on a CPU.",
}
