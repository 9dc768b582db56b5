import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import unet_torch
from parity_tests.tiny import quiet
from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.recipe import Optimizer, Schedule
from unet_train import loop
from unet_train.config import CELLS, PRESETS, AugmentConfig, DataConfig, LossConfig, MeshConfig
from unet_train.overfit import learn_one_batch

BATCH = UNetConfig(widths=(4, 8, 16), norm="batch")

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
            {"net": BATCH, "data": DataConfig(crop_px=4, batch=1)},
            r"net\.norm=batch needs .* data\.crop_px=4 leaves 1 x 1 pixel .* data\.batch=1 and "
            r"accumulate=1; use data\.batch=2 or data\.crop_px=8",
        ),
        (
            {"net": BATCH, "data": DataConfig(crop_px=4, batch=3), "accumulate": 3},
            r"data\.batch=3 and accumulate=3; use data\.batch=6 or data\.crop_px=8",
        ),
        (
            {"net": replace(BATCH, fit="zeros"), "data": DataConfig(crop_px=7, batch=1)},
            r"use data\.batch=2 or data\.crop_px=8",
        ),
        (
            {"net": replace(BATCH, norm="instance"), "data": DataConfig(crop_px=4)},
            r"net\.norm=instance needs .* data\.crop_px=4 leaves .*; use data\.crop_px=8",
        ),
        (
            {
                "net": replace(BATCH, norm="group", groups=4, widths=(4, 4)),
                "data": DataConfig(crop_px=2),
            },
            r"net\.norm=group needs .* data\.crop_px=2 leaves .*; use data\.crop_px=4",
        ),
        (
            {"net": replace(BATCH, norm="instance"), "preprocessing": Preprocessing(window_px=4)},
            r"preprocessing\.window_px=4 leaves .*; use preprocessing\.window_px=8",
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
        "batch norm of one value",
        "batch norm of one value in each part",
        "batch norm of one value, odd size",
        "instance norm of one value",
        "group norm of one value",
        "instance norm of one value in a window",
        "ignored",
    ],
)
def test_a_config_that_cannot_be_is_refused(change, names):
    with pytest.raises(InputError, match=names):
        replace(CELLS, **change)


@given(
    norm=st.sampled_from(["none", "batch", "group", "instance"]),
    padding=st.sampled_from(["same", "valid"]),
    widths=st.sampled_from([(2, 2), (2, 4), (4, 4, 4)]),
    groups=st.sampled_from([1, 2]),
    convolutions=st.integers(1, 2),
    fit=st.sampled_from(["error", "crop"]),
    crop_px=st.integers(2, 30),
    images=st.integers(1, 2),
    parts=st.integers(1, 3),
)
@settings(max_examples=60)
def test_a_norm_is_refused_exactly_where_torch_refuses_it(
    norm, padding, widths, groups, convolutions, fit, crop_px, images, parts
):
    """In training, with a batch that is computed in parts; group norm of one image."""
    net = UNetConfig(
        widths=widths, padding=padding, norm=norm, groups=groups, convolutions=convolutions, fit=fit
    )
    assume(geometry.is_legal(net, crop_px))
    data = DataConfig(crop_px=crop_px, batch=images * parts)
    try:
        replace(CELLS, net=net, data=data, accumulate=parts)
        refusal = ""
    except InputError as error:
        refusal = str(error)
    # torch counts the values of group norm over the images, although it does not mix them
    batch = images if norm == "batch" else 1
    try:
        unet_torch.UNet(net).train()(torch.zeros(batch, 1, crop_px, crop_px))
        refusal_of_torch = ""
    except ValueError as error:
        refusal_of_torch = str(error)
    is_refused = "leaves 1 x 1 pixel at the deepest level" in refusal
    torch_refuses = re.search("more than 1 (value per channel|spatial element)", refusal_of_torch)
    assert is_refused == bool(torch_refuses)
    assert (bool(refusal), bool(refusal_of_torch)) == (is_refused, is_refused)


@pytest.mark.parametrize(
    ("part", "fields", "names"),
    [
        (DataConfig, {"holdout": 1.0}, "holdout is a part between 0 and 1, got 1.0"),
        (DataConfig, {"synthetic": -1}, "synthetic needs at least 0, got -1"),
        (DataConfig, {"largest_gb": 0}, "largest_gb is a number of GB above 0, got 0"),
        (DataConfig, {"largest_gb": float("nan")}, "largest_gb is a number of GB above 0, got nan"),
        (DataConfig, {"largest_gb": float("inf")}, "largest_gb is a number of GB above 0, got inf"),
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


@pytest.mark.parametrize("preset", PRESETS)
def test_only_the_cells_are_drawn_where_no_images_are_given(preset, tmp_path):
    config = PRESETS[preset]
    assert config.data.images is None
    if preset == "cells":
        config.data.check_source()
        return
    for go in (loop.run, lambda config, _, **named: learn_one_batch(config, **named)):
        with pytest.raises(InputError, match=r"no images to train on; .* images .* masks.*synthe"):
            go(config, tmp_path / "run", progress=quiet())
    assert not (tmp_path / "run").exists()
    replace(config, data=replace(config.data, synthetic=2)).data.check_source()
