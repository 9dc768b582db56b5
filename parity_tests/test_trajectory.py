"""Whole runs of both twins stay together, and a run that does not is told."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import unet_jax.recipe
from unet_parity import training
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig
from unet_spec.recipe import Optimizer, Recipe, Schedule

# more threads than processors make torch's batch norm a hundred times slower
torch.set_num_threads(1)

NET = UNetConfig(widths=(3, 4), norm="batch", classes=3, dropout=0.3)
PLAIN = UNetConfig(widths=(3, 4), in_channels=2)
RECIPES = {
    "sgd": Recipe(Optimizer("sgd", lr=0.05, momentum=0.9)),
    "adamw, cosine": Recipe(Optimizer(), Schedule("cosine")),
    "adam, one cycle": Recipe(Optimizer("adam"), Schedule("one_cycle", max_lr=1e-2)),
    "rmsprop, plateau": Recipe(Optimizer("rmsprop"), Schedule("plateau", patience=1)),
}


def run(config, recipe, *, steps, dtype="float64", size=None):
    return training.train_side_by_side(
        config, random_tensors(config, seed=1), recipe, steps=steps, dtype=dtype, size=size
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_fifty_steps_of_jax_equal_fifty_of_torch(recipe):
    result = run(NET, recipe, steps=50)
    assert len(result.parameters) == len(result.torch_losses) == len(result.statistics) == 50
    assert training.list_problems(result) == ()
    np.testing.assert_allclose(result.jax_losses, result.torch_losses, rtol=training.BOUND)


def test_steps_of_a_single_channel_stay_together():
    single = replace(NET, classes=1, dropout=0.0)
    batch = training.random_batch(single, seed=0, step=0)
    assert {*np.unique(batch.truth)} == {0, 1}
    result = run(single, RECIPES["adamw, cosine"], steps=10)
    assert training.list_problems(result) == ()
    assert min(result.torch_losses) > 0.1, "a loss of 0 is that of a single class"
    np.testing.assert_allclose(result.jax_losses, result.torch_losses, rtol=training.BOUND)


@pytest.mark.parametrize("recipe", [RECIPES["adamw, cosine"], RECIPES["sgd"]], ids=["adamw", "sgd"])
def test_in_float32_jax_is_as_far_from_torch_as_each_from_itself(optimised, recipe):
    # of fewer pixels, two images reversed may be added up in the same order
    result = run(PLAIN, recipe, steps=20, dtype="float32", size=(16, 16))
    assert training.list_problems(result) == ()
    assert max(result.torch_yardstick) > 0, "a yardstick of length 0 measures nothing"
    assert max(result.jax_yardstick) > 0
    assert result.statistics == []


def test_a_trajectory_is_plain_json():
    result = run(PLAIN, RECIPES["sgd"], steps=2)
    assert training.Trajectory(**json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_a_batch_is_a_function_of_seed_and_step():
    one, same, other = (
        training.random_batch(NET, seed=seed, step=step) for seed, step in ((1, 2), (1, 2), (2, 1))
    )
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.truth, same.truth)
    assert not np.array_equal(one.x, other.x)


def test_the_batch_reversed_twice_is_the_batch():
    batch = training.random_batch(NET, seed=0, step=0)
    np.testing.assert_array_equal(batch.reverse().reverse().x, batch.x)
    assert not np.array_equal(batch.reverse().x, batch.x)
    for mask, turned in zip(batch.keep, batch.reverse().keep, strict=True):
        assert mask is not None
        assert turned is not None
        np.testing.assert_array_equal(turned[::-1], mask)


def test_a_product_and_a_sum_that_are_rounded_as_one_are_told(optimised, monkeypatch):
    """As XLA does unless it is kept from it: only what is compiled as for users shows it."""
    monkeypatch.setattr(unet_jax.recipe, "_shrink", lambda parameter, factor: parameter * factor)
    result = run(PLAIN, RECIPES["adamw, cosine"], steps=50, dtype="float32")
    (problem,) = training.list_problems(result)
    assert problem.startswith("in float32")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_planted_bug_in_the_optimizer_is_told(monkeypatch, dtype):
    """A learning rate that is off by a thousandth."""
    true = unet_jax.recipe._sgd

    def rule(optimizer, gradient, parameter, slots, now):
        return true(optimizer, gradient, parameter, slots, now._replace(lr=now.lr * 1.001))

    monkeypatch.setitem(unet_jax.recipe._RULES, "sgd", rule)
    (problem,) = training.list_problems(run(PLAIN, RECIPES["sgd"], steps=10, dtype=dtype))
    assert problem.startswith(("after 10 steps in float64", "in float32"))


def test_statistics_out_of_bounds_are_told():
    result = run(NET, RECIPES["sgd"], steps=2)
    (problem,) = training.list_problems(replace(result, statistics=[0.0, 1.0]))
    assert "statistics are 1.0e+00" in problem


def test_what_is_not_a_number_is_told():
    result = run(PLAIN, RECIPES["sgd"], steps=1)
    assert training.list_problems(replace(result, parameters=[float("nan")]))
    short = replace(result, dtype="float32", torch_yardstick=[1.0], jax_yardstick=[1.0])
    assert training.list_problems(replace(short, parameters=[float("nan")]))
