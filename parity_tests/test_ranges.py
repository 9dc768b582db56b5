"""Every number of every config has a range: what is out of it is refused by its name, and with
what is in it a run really begins."""

import dataclasses
import math
import typing
from dataclasses import replace

import jax
import numpy as np
import pytest

from parity_tests.tiny import quiet
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_spec.ranges import MOST_STEPS, SMALLEST, Range, find_ranges
from unet_spec.recipe import Optimizer, Schedule
from unet_train.config import (
    CELLS,
    AugmentConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    TrainConfig,
)
from unet_train.input.crops import cut_batch
from unet_train.setup import make_setup
from unet_train.step import compile_steps

# what a part needs for one of its fields to count
BASES: dict[type, list[dict[str, typing.Any]]] = {
    Optimizer: [{"name": name} for name in ("sgd", "adam", "adamw", "rmsprop")],
    Schedule: [
        {"name": "step", "step_size": 1},
        {"name": "cosine"},
        {"name": "one_cycle", "max_lr": 1.0},
        {"name": "plateau"},
    ],
}
PARTS = (UNetConfig, DataConfig, AugmentConfig, Preprocessing, LossConfig, Optimizer, Schedule,
         MeshConfig, TrainConfig)  # fmt: skip
HUGE = (10**30, 1e258, math.inf, -math.inf, math.nan)
SMALL = (-1, 0, 1e-320, 1e-40)


def list_numbers():
    """Every field of a number, with its config, its type and the type of the number."""
    for part in PARTS:
        plain, annotated = (
            typing.get_type_hints(part),
            typing.get_type_hints(part, None, None, True),
        )
        for name, kind in plain.items():
            (number,) = {int, float} & {kind, *typing.get_args(kind)} or (None,)
            if number is not None and kind is not bool:
                yield part, name, annotated[name], number


NUMBERS = [*list_numbers()]
IDS = [f"{part.__name__}.{name}" for part, name, *_ in NUMBERS]


def make(part, name, value, kind):
    """A part of a config with one value, or the sentence that refuses it."""
    several = typing.get_origin(kind) is tuple
    items = {"widths": (2, value), "betas": (0.9, value)}.get(name, (value, value))
    for base in BASES.get(part, [{}]):
        try:
            return part(**{**base, name: items if several else value})
        except InputError as error:
            sentence = str(error)
        if "does not use" not in sentence:
            break
    return sentence


def test_the_configs_of_a_run_are_all_here():
    assert len(NUMBERS) > 70
    hints = typing.get_type_hints(TrainConfig).values()
    assert {*PARTS} == {TrainConfig, *(kind for kind in hints if dataclasses.is_dataclass(kind))}


@pytest.mark.parametrize(("part", "name", "kind", "number"), NUMBERS, ids=IDS)
def test_a_number_has_a_finite_range_and_what_is_out_of_it_is_refused(part, name, kind, number):
    (allowed,) = {*find_ranges(kind)}
    low, high = max(allowed.least, allowed.above), min(allowed.most, allowed.below)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert high <= (MOST_STEPS if number is int and name != "seed" else 1e25) or name == "seed"
    for value in HUGE:
        refusal = make(part, name, value, kind)
        assert isinstance(refusal, str), value
        assert name in refusal
        assert "got" in refusal
    for value in SMALL:
        made = make(part, name, value, kind)
        if isinstance(made, str):
            assert name in made
        else:
            assert value in (-1, 0)
            assert allowed.find_fault(value) is None
    if number is int:
        assert "is of type" in make(part, name, 1.5, kind) or "holds ints" in make(
            part, name, 1.5, kind
        )


@pytest.mark.parametrize(
    ("allowed", "refused", "taken"),
    [
        (Range(0, 5), (-1, 5.1, math.nan), (0, 5, 2.5, SMALLEST)),
        (Range(0, 5), (1e-320, -1e-320, SMALLEST / 2), (1e-30,)),
        (Range(above=0, below=1, rule="is a part"), (0, 1, 1 - 1e-9, 1e-50), (1 - 1e-6, 0.5)),
        (Range(1, 4), (0, 5, 10**400), (1, 4)),
    ],
    ids=["closed", "zero in float32", "open", "whole"],
)
def test_a_range_is_kept_also_in_float32(allowed, refused, taken):
    assert [value for value in refused if allowed.find_fault(value) is None] == []
    assert [value for value in taken if allowed.find_fault(value) is not None] == []


@pytest.mark.parametrize(
    ("part", "name", "value", "sentence"),
    [
        (TrainConfig, "steps", 10**30, "steps needs at most 1000000000, because steps are counted "
         "in 32 bits, got 1000000000000000000000000000000"),
        (DataConfig, "batch", 10**20, "batch needs at most 1048576, got 100000000000000000000"),
        (DataConfig, "synthetic", 10**12, "synthetic needs at most 10000, because they are drawn "
         "before the first step, got 1000000000000"),
        (Optimizer, "lr", math.inf, "lr is a finite number, got inf"),
        (Optimizer, "eps", 1e-60, "eps is 0 or at least 1.2e-38, because a run computes in "
         "float32, got 1e-60"),
        (Optimizer, "betas", 1 - 1e-12, "betas holds two numbers in [0, 1) also in float32, in "
         "which a run computes, got (0.9, 0.999999999999)"),
        (Schedule, "div_factor", math.inf, "div_factor is a number from 1e-6 to 1e25, got inf"),
        (UNetConfig, "in_channels", 2**20_000, "in_channels needs at most 65536, got an integer "
         "of 20001 bits"),
        (Preprocessing, "channels", 2**40, "channels are numbered from 0 to 65535, got "
         "(1099511627776, 1099511627776)"),
    ],
    ids=["steps", "batch", "synthetic", "lr", "eps", "betas", "div_factor", "bits", "channels"],
)  # fmt: skip
def test_the_sentence_names_the_field_the_range_and_the_reason(part, name, value, sentence):
    kind = typing.get_type_hints(part)[name]
    assert make(part, name, value, kind) == sentence


TINY = replace(
    CELLS,
    net=UNetConfig(widths=(2, 4), dropout=0.5, activation="leaky_relu"),
    data=DataConfig(synthetic=2, batch=1, crop_px=16),
    mesh=MeshConfig(data=1),
    schedule=Schedule(),
)


def at_end(part, end, **others):
    """A part with every number at one end of its range."""
    values = dict(others)
    for owner, name, kind, number in NUMBERS:
        if owner is part and name not in others:
            (allowed,) = {*find_ranges(kind)}
            value = getattr(allowed, end)
            if math.isfinite(value) and typing.get_origin(kind) is not tuple:
                values[name] = number(value)
    return part(**values)


ENDS = {
    "augmented most": {"augment": at_end(AugmentConfig, "most")},
    "weighed most": {"loss": at_end(LossConfig, "most", ignore_index=255)},
    "weighed least": {
        "loss": at_end(LossConfig, "least", cross_entropy=1.0, ignore_index=0, border_w0=10.0)
    },
    "unlike classes": {"loss": LossConfig(class_weights=(1e15, 0.0))},
    "steepest": {"net": replace(TINY.net, negative_slope=-100.0)},
    "smallest rate": {"optimizer": Optimizer(lr=SMALLEST, eps=SMALLEST, clip_norm=SMALLEST)},
    "largest rate": {
        "optimizer": Optimizer(
            lr=1e6, eps=1e6, weight_decay=1e6, clip_norm=1e25, betas=(0.9999999, 0.9999999)
        )
    },
    "eps of 0": {"optimizer": Optimizer("rmsprop", eps=0.0, alpha=1.0, momentum=1.0)},
    "dampened wholly": {"optimizer": Optimizer("sgd", momentum=1.0, dampening=1.0)},
    "longest step": {"schedule": Schedule("step", step_size=MOST_STEPS, gamma=1e6)},
    "longest scheduler": {"schedule": Schedule("step", step_size=1, every=MOST_STEPS)},
    "longest cosine": {"steps": MOST_STEPS, "schedule": Schedule("cosine", eta_min=1e6)},
    "longest cycle": {
        "steps": MOST_STEPS,
        "schedule": Schedule("one_cycle", max_lr=1e6, div_factor=1e25, final_div_factor=1e-6),
    },
    "steepest cycle": {
        "schedule": Schedule("one_cycle", max_lr=1e6, div_factor=1e-6, final_div_factor=1e-6)
    },
    "longest plateau": {
        "schedule": Schedule(
            "plateau", threshold=-1e6, patience=MOST_STEPS, cooldown=MOST_STEPS, min_lr=1e6, eps=1e6
        )
    },
    "longest average": {"ema": 0.9999999, "seed": 2**32 - 1},
}


@pytest.mark.parametrize("ends", ENDS)
def test_a_run_begins_at_the_ends_of_the_ranges(ends):
    config = replace(TINY, **ENDS[ends])
    setup = make_setup(config, quiet())
    config = setup.config
    steps = compile_steps(config, setup.placement)
    batch = cut_batch(
        setup.dataset.training,
        0,
        data=config.data,
        net=config.net,
        seed=config.seed,
        rows=slice(0, 1),
    )
    crops = setup.placement.put(batch, batch=1)
    state, metrics = steps.step(steps.init(), crops)
    assert np.isfinite(float(metrics.lr))
    assert jax.tree.leaves(state)
