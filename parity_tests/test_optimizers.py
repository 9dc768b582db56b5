"""torch's optimizers and ours move the same parameters by the same amounts."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import unet_jax.recipe
import unet_torch.recipe
from unet_parity import optimizers
from unet_spec.recipe import Optimizer, Recipe, Schedule

CASES = optimizers.cases(50)


@cache
def table():
    return optimizers.optimizer_table()


def distance(case, *, steps=50):
    """Of ours from torch's, in one case of the table."""
    recipe, _ = CASES[case]
    return optimizers.relative_distance(
        optimizers.step_torch(recipe, steps=steps, seed=0),
        optimizers.step_jax(unet_jax.recipe.build(recipe), steps=steps, seed=0),
    )


def test_every_recipe_moves_as_torchs_does():
    assert [(row.optimizer, row.schedule) for row in table()] == list(CASES)
    assert optimizers.list_problems(table()) == ()


def test_stock_optax_does_not_move_as_torchs_does():
    """Where the rows of the table would agree anyway, they would prove nothing."""
    assert sum(row.stock > 10 * optimizers.BOUND for row in table()) >= 10


@pytest.mark.parametrize("undecayed", [("kernel",), ("bias",), ("kernel", "bias"), ("vectors",)])
def test_the_tensors_that_are_not_decayed_are_the_same_in_both(undecayed):
    recipe = Recipe(Optimizer("sgd", lr=0.02, weight_decay=0.1, undecayed=undecayed))
    moved = {
        name: optimizers.step_torch(one, steps=20, seed=0)
        for name, one in {
            "some": recipe,
            "all": replace(recipe, optimizer=replace(recipe.optimizer, undecayed=())),
        }.items()
    }
    ours = optimizers.step_jax(unet_jax.recipe.build(recipe), steps=20, seed=0)
    assert optimizers.relative_distance(moved["some"], ours) <= optimizers.BOUND
    assert optimizers.relative_distance(moved["all"], ours) > 1e6 * optimizers.BOUND


def test_the_watched_value_lowers_the_learning_rate_several_times():
    for case in (case for case in CASES if case[1].startswith("plateau")):
        recipe, _ = CASES[case]
        optimizer, scheduler = unet_torch.recipe.build(
            recipe, [("a", torch.nn.Parameter(torch.ones(1)))]
        )
        rates = set()
        for step in range(50):
            unet_torch.recipe.advance(
                recipe, optimizer, scheduler, step=step, value=optimizers.plateau_value(step)
            )
            rates.add(optimizer.param_groups[0]["lr"])
        assert len(rates) > 2, case


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Optimizer("sgd", lr=0.25)),
        Recipe(Optimizer("sgd", lr=0.25, momentum=0.5, dampening=0.25)),
        Recipe(Optimizer("sgd", lr=0.5, momentum=0.5, nesterov=True)),
        Recipe(Optimizer("sgd", lr=0.5, weight_decay=0.5)),
        Recipe(Optimizer("sgd", lr=0.5), Schedule("step", step_size=2, gamma=0.5)),
    ],
    ids=["plain", "dampening", "nesterov", "decay", "step"],
)
def test_sgd_in_halves_equals_torchs_in_every_bit(recipe):
    rng = np.random.default_rng(0)
    start = rng.integers(-8, 8, (5, 3)).astype(np.float32)
    leaf = torch.nn.Parameter(torch.tensor(start))
    optimizer, scheduler = unet_torch.recipe.build(recipe, [("a", leaf)])
    ours = unet_jax.recipe.build(recipe)
    params, state = jnp.asarray(start), ours.init(jnp.asarray(start))
    for step in range(6):
        gradient = rng.integers(-8, 8, (5, 3)).astype(np.float32)
        leaf.grad = torch.tensor(gradient)
        unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step)
        updates, state = jax.jit(ours.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(leaf.detach().numpy(), params)
    assert len(np.unique(params)) > 8


SCHEDULES = {
    "step": Schedule("step", step_size=3, gamma=0.3),
    "step, every 4": Schedule("step", step_size=2, every=4),
    "cosine, and past its end": Schedule("cosine", T_max=9, eta_min=0.01),
    "one cycle": Schedule("one_cycle", max_lr=0.3, total_steps=30),
    "one cycle, linear": Schedule("one_cycle", max_lr=0.3, total_steps=30, pct_start=0.25,
                                  anneal_strategy="linear"),
    "one cycle, three phases": Schedule("one_cycle", max_lr=0.3, total_steps=30,
                                        three_phase=True),
    "one cycle, no rise": Schedule("one_cycle", max_lr=0.3, total_steps=30, pct_start=0.0),
    "one cycle, every 3": Schedule("one_cycle", max_lr=0.3, total_steps=10, every=3),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    ("x64", "bound"), [(True, 1e-13), (False, 1e-5)], ids=["float64", "float32"]
)
def test_learning_rate_and_momentum_are_torchs_at_every_step(schedule, x64, bound):
    recipe = Recipe(Optimizer("adam", lr=0.1), schedule)
    leaf = torch.nn.Parameter(torch.ones(1))
    leaf.grad = torch.ones(1)
    optimizer, scheduler = unet_torch.recipe.build(recipe, [("a", leaf)])
    with jax.enable_x64(x64):
        ours = unet_jax.recipe.build(recipe)
        params = jnp.ones(1)
        state = ours.init(params)
        update = jax.jit(ours.update)
        for step in range(30):
            group = optimizer.param_groups[0]
            rate = float(unet_jax.recipe.learning_rate(state))
            assert math.isclose(rate, group["lr"], rel_tol=bound, abs_tol=bound * 1e-3), step
            beta = float(unet_jax.recipe.momentum(recipe, state))
            assert math.isclose(beta, group["betas"][0], rel_tol=bound), step
            unet_torch.recipe.advance(recipe, optimizer, scheduler, step=step)
            _, state = update(jnp.ones(1), state, params)


def test_a_plateau_without_a_value_keeps_still():
    recipe = Recipe(Optimizer("sgd", lr=0.5), Schedule("plateau", patience=0))
    ours = unet_jax.recipe.build(recipe)
    state = ours.init(jnp.ones(1))
    for value in (1.0, None, 2.0, None, None):
        _, state = ours.update(jnp.ones(1), state, jnp.ones(1), value=value)
    assert int(state.plateau.last_epoch) == 2
    assert math.isclose(float(unet_jax.recipe.learning_rate(state)), 0.05, rel_tol=1e-6)


def test_the_state_can_be_donated_and_the_step_is_compiled_once():
    ours = unet_jax.recipe.build(Recipe(schedule=Schedule("plateau")))
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    traces = []

    def traced(gradients, state, params, value):
        """JAX runs this when it compiles, and not when it computes."""
        traces.append(value)
        return ours.update(gradients, state, params, value=value)

    update = jax.jit(traced, donate_argnums=1)
    state = jax.jit(ours.init)(params)
    for _ in range(3):
        _, state = update(params, state, params, 1.0)
    assert int(state.step) == 3
    assert len(traces) == 1
    assert set(state.slots) == {"exp_avg", "exp_avg_sq"}
    assert {a.dtype for a in jax.tree.leaves(state.slots)} == {np.dtype("float32")}


def test_half_precision_parameters_stay_so():
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    ours = unet_jax.recipe.build(Recipe())
    updates, state = ours.update(params, ours.init(params), params)
    assert {a.dtype for a in jax.tree.leaves((updates, state.slots))} == {jnp.dtype("bfloat16")}


def _eps_inside_the_root(monkeypatch):
    def rule(optimizer, gradient, parameter, slots, now):
        rest = 1 - optimizer.alpha
        square = slots["square_avg"] * optimizer.alpha + gradient**2 * rest
        return -now.lr * gradient / jnp.sqrt(square + optimizer.eps), {"square_avg": square}

    monkeypatch.setitem(unet_jax.recipe._RULES, "rmsprop", rule)


def _clipping_without_its_millionth(monkeypatch):
    monkeypatch.setattr(
        unet_jax.recipe,
        "clip_gradients",
        lambda g, most: optax.clip_by_global_norm(most).update(g, optax.EmptyState())[0],
    )


def _plateau_one_step_early(monkeypatch):
    true = unet_jax.recipe._step_plateau
    monkeypatch.setattr(
        unet_jax.recipe,
        "_step_plateau",
        lambda schedule, *rest: true(replace(schedule, patience=schedule.patience - 1), *rest),
    )


def _adam_without_bias_correction(monkeypatch):
    monkeypatch.setattr(unet_jax.recipe, "_bias_correction", lambda beta, step: jnp.ones(()))


def _momentum_not_cycled(monkeypatch):
    monkeypatch.setattr(
        unet_jax.recipe, "_cycle_momentum", lambda recipe, state: 0.95 + 0 * state.lr
    )


def _decay_coupled(monkeypatch):
    def rule(optimizer, *rest):
        return unet_jax.recipe._adam(replace(optimizer, name="adam"), *rest)

    monkeypatch.setitem(unet_jax.recipe._RULES, "adamw", rule)


def _decay_on_all(monkeypatch):
    true = unet_jax.recipe._jit_rules
    monkeypatch.setattr(
        unet_jax.recipe,
        "_jit_rules",
        lambda optimizer: dict.fromkeys((0.0, optimizer.decay), true(optimizer)[optimizer.decay]),
    )


def _rate_before_momentum(monkeypatch):
    def rule(optimizer, gradient, parameter, slots, now):
        buffer = slots["momentum_buffer"] * optimizer.momentum + gradient * now.lr
        return -buffer, {"momentum_buffer": buffer}

    monkeypatch.setitem(unet_jax.recipe._RULES, "sgd", rule)


def _first_gradient_dampened(monkeypatch):
    true = unet_jax.recipe._sgd
    monkeypatch.setitem(
        unet_jax.recipe._RULES,
        "sgd",
        lambda o, g, p, slots, now: true(o, g, p, slots, now._replace(step=now.step + 1)),
    )


@pytest.mark.parametrize(
    ("plant", "case"),
    [
        (_eps_inside_the_root, ("rmsprop", "constant")),
        (_clipping_without_its_millionth, ("sgd, clipped", "constant")),
        (_plateau_one_step_early, ("adam", "plateau")),
        (_adam_without_bias_correction, ("adam", "constant")),
        (_momentum_not_cycled, ("sgd, momentum", "one cycle")),
        (_momentum_not_cycled, ("adam", "one cycle")),
        (_decay_coupled, ("adamw", "constant")),
        (_decay_on_all, ("adamw, biases not decayed", "constant")),
        (_rate_before_momentum, ("sgd, momentum", "step")),
        (_first_gradient_dampened, ("sgd, dampening", "constant")),
    ],
)
def test_a_planted_bug_is_far_out_of_bounds(monkeypatch, plant, case):
    plant(monkeypatch)
    assert distance(case) > 100 * optimizers.BOUND
