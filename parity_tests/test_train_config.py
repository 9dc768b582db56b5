from dataclasses import replace
from pathlib import Path

import pytest

from unet_spec import InputError, Preprocessing
from unet_spec.recipe import Optimizer, Schedule
from unet_train.config import CELLS, AugmentConfig, DataConfig, LossConfig, MeshConfig

BOTH = {"images": Path("a"), "masks": Path("b")}
HELD_OUT = {"validation_images": Path("c"), "validation_masks": Path("d")}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"data": DataConfig(crop_px=33)}, "crop_px=33"),
        ({"steps": 0}, "steps"),
        ({"accumulate": 3}, "accumulate=3 does not divide"),
        ({"ema": 1.0}, "ema"),
        ({"loss": LossConfig(class_weights=(1.0, 2.0, 3.0))}, "class_weights"),
        ({"optimizer": Optimizer("sgd", dampening=0.5), "schedule": Schedule()}, "dampening"),
        ({"class_names": ("one",)}, "class_names needs 2 values, one for each class of"),
        ({"seed": -1}, "seed"),
        ({"preprocessing": Preprocessing(window_px=50)}, "window_px=50 is not legal"),
        (
            {
                "net": replace(CELLS.net, padding="valid"),
                "mesh": MeshConfig(rows=2),
                "data": DataConfig(crop_px=140),
            },
            "mesh.rows spreads rows of padded nets only",
        ),
        (
            {"schedule": Schedule("one_cycle", max_lr=1.0, total_steps=149)},
            "total_steps=149 ends before steps=150",
        ),
        (
            {"net": replace(CELLS.net, classes=1), "class_names": ("cell",)},
            "class_names needs 2 values, one for each class of net.classes=1, got",
        ),
        (
            {"schedule": Schedule("plateau", mode="max")},
            "schedule.mode=max waits for a value that rises, and schedule.name=plateau watches",
        ),
        (
            {"optimizer": Optimizer(undecayed=("head.weight",))},
            "undecayed names head.weight, which is no trained tensor of this net",
        ),
        (
            {"data": DataConfig(mask_values="instances"), "loss": LossConfig(ignore_index=255)},
            "leave out loss.ignore_index",
        ),
    ],
    ids=[
        "crop",
        "steps",
        "accumulate",
        "ema",
        "weights",
        "dampening",
        "names",
        "seed",
        "window",
        "rows of an unpadded net",
        "schedule",
        "classes",
        "rising plateau",
        "undecayed",
        "ignored",
    ],
)
def test_a_config_that_cannot_be_is_refused(change, names):
    with pytest.raises(InputError, match=names):
        replace(CELLS, **change)


@pytest.mark.parametrize(
    ("part", "fields", "names"),
    [
        (DataConfig, {"holdout": 1.0}, "holdout is a part between 0 and 1, got 1.0"),
        (DataConfig, {"synthetic": 1}, "synthetic needs at least 2, got 1"),
        (DataConfig, {"batch": 0}, "batch needs at least 1, got 0"),
        (DataConfig, {"masks": Path("a")}, "masks needs images as well; give the folder of images"),
        (DataConfig, {"groups": "("}, r"groups needs a regular expression \(missing \), "),
        (DataConfig, {"groups": "a"}, "groups needs images and masks; give both"),
        (DataConfig, {"split": Path("a")}, "split needs images and masks; give both"),
        (
            DataConfig,
            BOTH | HELD_OUT | {"images": None, "masks": None},
            "images needs images and",
        ),
        (DataConfig, {"validation_images": Path("a")}, "validation_images needs validation_masks"),
        (DataConfig, {"validation_masks": Path("a")}, "validation_masks needs validation_images"),
        (DataConfig, BOTH | HELD_OUT | {"split": Path("a")}, "split and validation_images both"),
        (
            DataConfig,
            BOTH | {"split": Path("a"), "holdout": 0.5},
            "holdout counts nothing",
        ),
        (
            DataConfig,
            BOTH | {"split": Path("a"), "groups": "a"},
            "groups counts nothing",
        ),
        (
            DataConfig,
            BOTH | HELD_OUT | {"holdout": 0.5},
            "holdout counts nothing with val",
        ),
        (AugmentConfig, {"noise": -1}, "noise needs at least 0, got -1"),
        (LossConfig, {"ignore_index": 256}, "a mask value from 0 to 255, got 256"),
        (LossConfig, {"class_weights": (1.0, float("nan"))}, "class_weights needs finite"),
        (LossConfig, {"border_sigma_px": float("nan")}, "border_sigma_px"),
        (MeshConfig, {"processes": 2, "coordinator": "node0"}, "HOST:PORT.*got 'node0'"),
        (MeshConfig, {"processes": 2, "coordinator": "node0:abc"}, "HOST:PORT.*got 'node0:abc'"),
    ],
)
def test_a_part_of_a_config_that_cannot_be_is_refused(part, fields, names):
    with pytest.raises(InputError, match=names):
        part(**fields)
