"""A run goes on in the other framework as if it had stayed, through files or in memory."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
import torch

import unet_jax.recipe
import unet_torch.recipe
from parity_tests.compiling import CHEAP_FLAGS
from unet_jax.training_state import from_training_state, to_training_state
from unet_parity import jax_twin, training
from unet_parity.oracle import random_tensors
from unet_spec import InputError, UNetConfig, safetensors_file, training_state, weight_file
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_torch import training_state as torch_state
from unet_torch.weights import from_weights

# more threads than processors make torch's batch norm a hundred times slower
torch.set_num_threads(1)

NET = UNetConfig(widths=(3, 4), norm="batch", classes=3)
RECIPES = {
    "sgd": Recipe(Optimizer("sgd", lr=0.05, momentum=0.9, dampening=0.1, clip_norm=1.0)),
    "adamw, cosine": Recipe(Optimizer(), Schedule("cosine")),
    "two groups": Recipe(Optimizer(weight_decay=0.1, undecayed=("vectors",)), Schedule("cosine")),
    "adam, one cycle": Recipe(Optimizer("adam"), Schedule("one_cycle", max_lr=1e-2)),
    "rmsprop": Recipe(Optimizer("rmsprop", momentum=0.5, centered=True, eps=1e-4)),
    "plateau": Recipe(
        Optimizer("sgd", lr=0.05, momentum=0.9),
        Schedule("plateau", patience=1, cooldown=1, factor=0.5, every=2),
    ),
}
LEG, STEPS = 20, 60
BOUND = training.BOUND
compiled_gradients = functools.cache(training.jax_gradients)


def start(recipe):
    tensors = random_tensors(NET, seed=1)
    wide = {n: t if t.dtype.kind == "i" else t.astype(np.float64) for n, t in tensors.items()}
    recipe = recipe.for_steps(STEPS)
    optimizer = unet_jax.recipe.build(recipe)
    with jax.enable_x64(True):
        params, stats = jax_twin.jax_arrays(NET, wide, dtype="float64")
        return to_training_state(NET, recipe, params, stats, optimizer.init(params))


def batches(state, steps):
    return [training.random_batch(NET, seed=3, step=state.step + s) for s in range(steps)]


def in_torch(state, steps):
    """The run after some more steps in torch."""
    model = from_weights(state.weights).requires_grad_().train()
    optimizer, scheduler = unet_torch.recipe.build(state.recipe, model.named_parameters())
    torch_state.restore(state, model, optimizer, scheduler)
    for step, batch in enumerate(batches(state, steps), start=state.step):
        optimizer.zero_grad()
        loss = training.torch_loss(model, batch)
        loss.backward()
        unet_torch.recipe.advance(state.recipe, optimizer, scheduler, step=step, value=loss.item())
    return torch_state.state_of(
        model, optimizer, scheduler, recipe=state.recipe, step=state.step + steps
    )


def in_jax(state, steps):
    """The run after some more steps in JAX."""
    with jax.enable_x64(True):
        params, stats, moments = from_training_state(state)
        move = jax.jit(unet_jax.recipe.make_update(unet_jax.recipe.build(state.recipe)))
        differentiate = compiled_gradients(NET, "float64")
        for batch in batches(state, steps):
            loss, stats, gradients = differentiate(
                params, stats, *training.jax_batch(batch, dtype="float64")
            )
            params, moments = move(params, moments, gradients, loss)
        return to_training_state(NET, state.recipe, params, stats, moments)


def apart(a, b):
    """The largest relative difference of any kind of tensor, and of the learning rate."""
    assert (a.step, a.scheduler.keys()) == (b.step, b.scheduler.keys())
    groups = [(a.weights.tensors, b.weights.tensors)]
    groups += [(a.slots[slot], b.slots[slot]) for slot in a.recipe.slots]
    worst = [abs(a.scheduler["lr"] - b.scheduler["lr"]) / a.recipe.optimizer.lr]
    for one, other in groups:
        scale = max(np.abs(t).max() for t in one.values())
        worst += [np.abs(one[name] - other[name]).max() / scale for name in one]
    return max(worst)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_that_changes_the_framework_twice_equals_runs_that_never_do(recipe, tmp_path):
    begin = start(recipe)
    path = tmp_path / "a.safetensors"
    training_state.write(path, in_torch(begin, LEG))
    torch_state.write(tmp_path / "b.pt", in_jax(training_state.read(path), LEG))
    changed = in_torch(torch_state.read(tmp_path / "b.pt"), LEG)
    assert changed.step == STEPS
    assert apart(in_torch(begin, STEPS), changed) <= BOUND
    assert apart(in_jax(begin, STEPS), changed) <= BOUND
    moved = training._norm([changed.weights.tensors[n] - begin.weights.tensors[n]
                            for n in changed.slots[recipe.slots[0]]])  # fmt: skip
    assert moved > 0.01, "a run that stands still proves nothing"


class Theirs:
    """A run as people write it: AdamW with two groups and cosine, whatever the recipe says."""

    def __init__(self, state, *, vectors_first=False):
        self.model = from_weights(state.weights).requires_grad_().train()
        self.names = [name for name, _ in self.model.named_parameters()]
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in self.model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer: Any = torch.optim.AdamW(groups[::-1] if vectors_first else groups, lr=1e-2)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)

    def run(self, steps, *, first):
        for step in range(first, first + steps):
            self.optimizer.zero_grad()
            training.torch_loss(
                self.model, training.random_batch(NET, seed=3, step=step)
            ).backward()
            self.optimizer.step()
            self.scheduler.step()

    def to_run(self):
        """The run and its groups, by nothing but the order of the parameters and the states."""
        tensors = {n: t.detach().numpy().copy() for n, t in self.model.state_dict().items()}
        return torch_state.from_states(
            WeightFile(NET, tensors),
            self.names,
            self.optimizer.state_dict(),
            self.scheduler.state_dict(),
        )


@pytest.mark.parametrize("vectors_first", [False, True], ids=["weights first", "vectors first"])
def test_two_groups_of_plain_torch_go_through_jax_and_back_as_if_they_had_stayed(vectors_first):
    begin = start(RECIPES["two groups"])
    alone = Theirs(begin, vectors_first=vectors_first)
    alone.run(STEPS, first=0)
    first = Theirs(begin, vectors_first=vectors_first)
    first.run(LEG, first=0)
    state, groups = first.to_run()
    assert state.recipe.optimizer == Optimizer(lr=1e-2, weight_decay=0.1, undecayed=("vectors",))
    moved = in_jax(state, LEG)
    last = Theirs(moved, vectors_first=vectors_first)
    optimizer, scheduler = torch_state.to_states(moved, groups, first.scheduler.state_dict())
    before = last.optimizer.state_dict()["param_groups"]
    assert optimizer["param_groups"] == [{**group, "lr": moved.scheduler["lr"]} for group in before]
    last.optimizer.load_state_dict(optimizer)
    last.scheduler.load_state_dict(scheduler)
    last.run(LEG, first=2 * LEG)
    assert apart(alone.to_run()[0], last.to_run()[0]) <= BOUND
    assert last.scheduler.state_dict().keys() == alone.scheduler.state_dict().keys()
    assert len(last.scheduler.get_last_lr()) == 2
    # a weight decay on everything would be seen
    decayed = replace(state.recipe.optimizer, undecayed=())
    wrong = replace(state, recipe=replace(state.recipe, optimizer=decayed))
    assert apart(in_jax(wrong, LEG), moved) > 1e6 * BOUND


def test_the_settings_of_param_groups_and_schedulers_come_back_as_they_were():
    begin = start(RECIPES["two groups"])
    theirs = Theirs(begin, vectors_first=True)
    for group, name in zip(theirs.optimizer.param_groups, ("vectors", "weights"), strict=True):
        group |= {"name": name, "fused": None, "foreach": False}
    theirs.run(2, first=0)
    state, groups = theirs.to_run()
    scheduler = {**theirs.scheduler.state_dict(), "verbose": False}
    plain, of_scheduler = torch_state.to_states(state, groups, scheduler)
    expected = theirs.optimizer.state_dict()
    assert plain["param_groups"] == expected["param_groups"]
    assert [[*group] for group in plain["param_groups"]] == [
        [*group] for group in expected["param_groups"]
    ]
    assert of_scheduler == scheduler
    assert plain["state"].keys() == expected["state"].keys()
    for number, slots in expected["state"].items():
        assert plain["state"][number].keys() == slots.keys()
        for slot, tensor in slots.items():
            assert torch.equal(plain["state"][number][slot], tensor)


def test_a_run_that_left_its_scheduler_out_has_none_to_give_back():
    theirs = Theirs(start(RECIPES["two groups"]))
    theirs.run(2, first=0)
    tensors = {n: t.detach().numpy().copy() for n, t in theirs.model.state_dict().items()}
    scheduler = theirs.scheduler.state_dict()
    state, groups = torch_state.from_states(
        WeightFile(NET, tensors), theirs.names, theirs.optimizer.state_dict(), scheduler,
        without_scheduler=True,
    )  # fmt: skip
    assert state.recipe.schedule == Schedule()
    plain, none = torch_state.to_states(in_jax(state, 2), groups, scheduler)
    assert none is None
    rates = [group["lr"] for group in plain["param_groups"]]
    assert rates == [theirs.optimizer.param_groups[0]["lr"]] * 2


def test_a_run_with_another_optimizer_by_now_goes_back_with_the_groups_of_its_recipe():
    theirs = Theirs(start(RECIPES["two groups"]))
    theirs.run(1, first=0)
    _, groups = theirs.to_run()
    other = in_torch(start(RECIPES["sgd"]), 1)
    plain, scheduler = torch_state.to_states(other, groups, theirs.scheduler.state_dict())
    assert [len(group["params"]) for group in plain["param_groups"]] == [len(theirs.names)]
    assert plain["param_groups"][0]["momentum"] == 0.9
    torch.optim.SGD(theirs.model.parameters(), momentum=0.9).load_state_dict(plain)
    assert scheduler is None


def test_a_plateau_of_two_groups_goes_back_with_a_smallest_rate_for_each():
    theirs = Theirs(start(RECIPES["two groups"]))
    theirs.run(2, first=0)
    theirs.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs.optimizer, patience=0, min_lr=1e-3
    )
    theirs.scheduler.step(1.0)
    theirs.scheduler.step(2.0)
    state, groups = theirs.to_run()
    values = {**state.scheduler, "best": 0.5, "lr": 1e-3}
    plain, scheduler = torch_state.to_states(
        replace(state, scheduler=values), groups, theirs.scheduler.state_dict()
    )
    assert scheduler is not None
    assert (scheduler["min_lrs"], scheduler["_last_lr"]) == ([1e-3] * 2, [1e-3] * 2)
    assert (scheduler["best"], scheduler["last_epoch"]) == (0.5, 2)
    again = Theirs(start(RECIPES["two groups"]))
    again.optimizer.load_state_dict(plain)
    again.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(again.optimizer)
    again.scheduler.load_state_dict(scheduler)
    again.scheduler.step(0.4)
    assert again.scheduler.get_last_lr() == [1e-3] * 2


@pytest.mark.parametrize("undecayed", [(), ("vectors",)], ids=["one group", "two groups"])
def test_a_recipe_with_another_weight_decay_than_the_groups_is_refused(undecayed):
    state = in_torch(start(RECIPES["two groups"]), 1)
    model = from_weights(state.weights).requires_grad_()
    optimizer, scheduler = unet_torch.recipe.build(state.recipe, model.named_parameters())
    torch_state.restore(state, model, optimizer, scheduler)
    wrong = replace(state.recipe.optimizer, undecayed=undecayed)
    given = replace(state.recipe, optimizer=wrong)
    if undecayed:
        assert torch_state.state_of(model, optimizer, scheduler, recipe=given).recipe == given
        return
    with pytest.raises(InputError, match=r"has a weight decay of 0 for .*, and the recipe 0\.1"):
        torch_state.state_of(model, optimizer, scheduler, recipe=given)


def test_another_programs_names_in_the_groups_are_ours_by_a_table():
    theirs = Theirs(start(RECIPES["two groups"]))
    theirs.run(1, first=0)
    table = {f"module.body.{number}": name for number, name in enumerate(theirs.names)}
    ours = {name: number for number, name in enumerate(theirs.names)}
    names = {id(p): f"body.{ours[n]}" for n, p in theirs.model.named_parameters()}
    for group in theirs.optimizer.param_groups:
        group["params"] = group["params"][::-1]  # which the order and the shapes would not tell
        group["param_names"] = [names[id(p)] for p in group["params"]]
    tensors = {n: t.detach().numpy().copy() for n, t in theirs.model.state_dict().items()}
    states = theirs.optimizer.state_dict(), theirs.scheduler.state_dict()
    state, groups = torch_state.from_states(
        WeightFile(NET, tensors), theirs.names, *states, ours_by_theirs=table
    )
    assert groups[0].settings["param_names"][0].startswith("body.")
    for name, parameter in theirs.model.named_parameters():
        expected = theirs.optimizer.state[parameter]["exp_avg"].numpy()
        np.testing.assert_array_equal(state.slots["exp_avg"][name], expected)


@pytest.mark.parametrize("optimizer", [Optimizer("adam"), Optimizer("sgd", momentum=0.5)])
def test_a_checkpoint_whose_schedule_is_left_out_keeps_its_rate_and_momentum(optimizer):
    state = in_torch(start(Recipe(optimizer, Schedule("one_cycle", max_lr=1e-2))), 3)
    left = training_state.leave_out_schedule(state)
    now = state.scheduler
    assert left.scheduler == {"lr": now["lr"], "last_epoch": 3}
    constant = left.recipe.optimizer
    assert (left.recipe.schedule, constant.lr) == (Schedule(), now["lr"])
    first = constant.momentum if constant.name == "sgd" else constant.betas[0]
    assert first == now["momentum"] not in (0.5, 0.9)
    # the next step, whose rate and momentum are those of now, is the same
    following, alike = in_jax(state, 1), in_jax(left, 1)
    same = replace(following, recipe=alike.recipe, scheduler=alike.scheduler)
    assert apart(same, alike) <= BOUND


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_files_there_and_back_are_the_same_bytes(recipe, tmp_path):
    state = in_torch(start(recipe), 2)
    average = {n: t * 0.5 for n, t in state.weights.tensors.items() if t.dtype.kind == "f"}
    first, second = tmp_path / "a.safetensors", tmp_path / "c.safetensors"
    training_state.write(first, replace(state, average=average, devices="one of ours"))
    torch_state.write(tmp_path / "b.pt", training_state.read(first))
    torch_state.write(second, torch_state.read(tmp_path / "b.pt"))
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "1.safetensors"
    training_state.write(path, in_torch(start(RECIPES["adamw, cosine"]), 1))
    return path


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def _write_card_of_another_net(path):
    with safetensors.safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["unet"])
    card["config"]["widths"] = [3, 5]
    safetensors_file.write(path, tensors, card, dtype="float64")


def _drop_a_slot(path):
    with safetensors.safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["unet"])
    del tensors["exp_avg/out.bias"]
    safetensors_file.write(path, tensors, card, dtype="float64")


def _write_weights_alone(path):
    weight_file.write(path, weight_file.read(path))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "not a whole"),
        (_write_card_of_another_net, "mis-shaped"),
        (_drop_a_slot, "missing: exp_avg/out.bias"),
        (Path.unlink, "no such file"),
        (_write_weights_alone, "a weight file, without an optimizer; a checkpoint is needed"),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, damage, says):
    damage(checkpoint)
    with pytest.raises(InputError, match=says) as caught:
        training_state.read(checkpoint)
    assert str(caught.value).startswith(f"{checkpoint}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_means_its_newest_checkpoint(checkpoint, tmp_path):
    run = tmp_path / "RUN"
    run.mkdir()
    with pytest.raises(InputError, match="a folder without a checkpoint"):
        training_state.read(run)
    (run / "checkpoints").mkdir()
    state = training_state.read(checkpoint)
    for step in (2, 10):
        scheduler = {**state.scheduler, "last_epoch": step}
        later = replace(state, step=step, scheduler=scheduler)
        training_state.write(run / "checkpoints" / f"{step}.safetensors", later)
    assert training_state.read(run).step == 10
    assert torch_state.read(run / "checkpoints").step == 10


def test_an_average_that_does_not_fit_is_named():
    state = start(RECIPES["adamw, cosine"])
    with pytest.raises(InputError, match=r"missing: average/.*unexpected: average/head"):
        replace(state, average={"head": np.zeros(3)})


def test_slots_that_do_not_fit_are_named():
    state = start(RECIPES["adamw, cosine"])
    one = dict(state.slots["exp_avg"])
    one["out.bias"] = np.zeros(7)
    del one["neck.conv.0.bias"]
    slots = {**state.slots, "exp_avg": one, "max_exp_avg": {}}
    with pytest.raises(InputError) as caught:
        TrainingState(state.weights, state.recipe, 0, slots, state.scheduler)
    assert "missing: exp_avg/neck.conv.0.bias" in str(caught.value)
    assert "exp_avg/out.bias (7,) instead of (3,)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": -1}, "step is a number"),
        ({"scheduler": {"lr": 0.1}}, "scheduler has the keys lr, last_epoch"),
        ({"scheduler": {"lr": 0.1, "last_epoch": 5}}, "does not fit step=0"),
        ({"scheduler": {"lr": -0.1, "last_epoch": 0}}, "scheduler.lr"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        replace(start(RECIPES["adamw, cosine"]), **change)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: (torch.optim.Adam(p), None), "its optimizer is adamw, the given one Adam"),
        (lambda p: (torch.optim.AdamW(p), None), "its schedule is cosine, the given one NoneType"),
        (lambda p: (torch.optim.AdamW(list(p)[:2]), None), "its schedule is cosine"),
    ],
)
def test_objects_that_do_not_fit_the_run_are_refused_untouched(checkpoint, make, says):
    model = unet_torch.UNet(NET).double()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        torch_state.load(checkpoint, model, *make(model.parameters()))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_optimizer_whose_groups_are_not_those_of_the_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    training_state.write(path, in_torch(start(RECIPES["two groups"]), 1))
    model = unet_torch.UNet(NET).double()
    optimizer: Any = torch.optim.AdamW(model.parameters())
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with pytest.raises(InputError, match="needs a param group with weight decay and one without"):
        torch_state.load(path, model, optimizer, scheduler)
    # what is advised
    recipe = training_state.read(path).recipe
    optimizer, scheduler = unet_torch.recipe.build(recipe, model.named_parameters())
    torch_state.load(path, model, optimizer, scheduler)
    training_state.write(path, in_torch(start(RECIPES["adamw, cosine"]), 1))
    with pytest.raises(InputError, match="the given optimizer needs one param group, as the run"):
        torch_state.load(path, model, optimizer, scheduler)


def test_an_undecayed_tensor_that_the_net_does_not_have_is_refused():
    state = start(RECIPES["two groups"])
    optimizer = replace(state.recipe.optimizer, undecayed=("head.weight",))
    with pytest.raises(InputError, match=r"undecayed names head\.weight, which is no trained"):
        replace(state, recipe=replace(state.recipe, optimizer=optimizer))


def test_another_precision_is_refused(checkpoint):
    model = unet_torch.UNet(NET)
    optimizer, scheduler = unet_torch.recipe.build(RECIPES["adamw, cosine"].for_steps(STEPS),
                                                   model.named_parameters())  # fmt: skip
    with pytest.raises(InputError, match=r"use model\.double\(\) first"):
        torch_state.load(checkpoint, model, optimizer, scheduler)


BATCHES = """
import sys, json
import numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
batches = [np.load(folder / f"batch_{step}.npz") for step in range(*map(int, sys.argv[2:4]))]
"""
STEP_IN_TORCH = """
    optimizer.zero_grad()
    logits = model(torch.tensor(batch["x"]))
    torch.nn.functional.cross_entropy(logits, torch.tensor(batch["truth"])).backward()
    optimizer.step()
"""
IN_TORCH = (
    BATCHES
    + """
import torch, unet_torch
from unet_spec import UNetConfig
from unet_torch import training_state
torch.set_num_threads(1)
model = unet_torch.UNet(UNetConfig(**json.loads(sys.argv[5])))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
training_state.load(folder / sys.argv[4], model, optimizer, scheduler)
model.train()
for batch in batches:"""
    + STEP_IN_TORCH
    + """
    scheduler.step()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict()}, folder / sys.argv[6])
assert not {"jax", "jaxlib", "flax", "optax"} & sys.modules.keys()
"""
)
IN_JAX = (
    BATCHES
    + """
import jax, optax, unet_jax, unet_jax.recipe
from unet_jax.training_state import from_training_state, to_training_state
from unet_spec import training_state
state = training_state.read(folder / "3.safetensors")
config = state.weights.config
params, stats, moments = from_training_state(state)
optimizer = unet_jax.recipe.build(state.recipe)
apply = unet_jax.functional(config).apply

@jax.jit
def step(params, stats, moments, x, truth):
    def loss(params):
        logits, new = apply(params, x, stats, train=True)
        chosen = jax.nn.one_hot(truth, config.classes)
        return -(chosen * jax.nn.log_softmax(logits)).sum(-1).mean(), new
    gradients, new = jax.grad(loss, has_aux=True)(params)
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), new, moments

for batch in batches:
    x = batch["x"].transpose(0, 2, 3, 1)
    params, stats, moments = step(params, stats, moments, x, batch["truth"])
after = to_training_state(config, state.recipe, params, stats, moments)
training_state.write(folder / "6.safetensors", after)
assert not {"torch", "unet_torch"} & sys.modules.keys()
"""
)


def test_two_processes_share_nothing_but_files(tmp_path):
    """torch, JAX, torch: each in its own process, and `unet convert` between them."""
    net = replace(NET, norm="group", groups=1)
    recipe = Recipe(Optimizer(lr=1e-2, weight_decay=1e-2), Schedule("cosine", T_max=9))
    weights = WeightFile(net, random_tensors(net, seed=1))
    zeros = training_state.zeros(weights, recipe)
    begin = TrainingState(weights, recipe, 0, zeros, {"lr": 1e-2, "last_epoch": 0})
    torch_state.write(tmp_path / "begin.pt", begin)
    for step in range(9):
        batch = training.random_batch(net, seed=0, step=step)
        np.savez(tmp_path / f"batch_{step}.npz", x=batch.x, truth=batch.truth)

    def process(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            env={**os.environ, "XLA_FLAGS": CHEAP_FLAGS},
        )
        assert done.returncode == 0, done.stderr

    plain = json.dumps(dataclasses.asdict(net))
    flags = ("--config.norm", "group", "--config.groups", 1)
    process("-c", IN_TORCH, tmp_path, 0, 3, "begin.pt", plain, "run.pt")
    process("-m", "unet_cli", "convert", "run.pt", "3.safetensors", *flags)
    process("-c", IN_JAX, tmp_path, 3, 6)
    process("-m", "unet_cli", "convert", "6.safetensors", "run2.pt")
    process("-c", IN_TORCH, tmp_path, 6, 9, "run2.pt", plain, "end.pt")
    process("-c", IN_TORCH, tmp_path, 0, 9, "begin.pt", plain, "alone.pt")
    end, alone = (torch_state.read(tmp_path / name, config=net) for name in ("end.pt", "alone.pt"))
    # float32: two runs in torch with sums in another order are as far apart
    assert apart(alone, end) <= 1e-4


WITH_STOCK_SAFETENSORS = (
    BATCHES
    + """
import torch, unet_torch
from safetensors import safe_open
from unet_spec import UNetConfig
torch.set_num_threads(1)
with safe_open(folder / sys.argv[4], framework="pt") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    training = json.loads(file.metadata()["unet"])["training"]
model = unet_torch.UNet(UNetConfig(**json.loads(sys.argv[5])))
model.load_state_dict({name: t for name, t in tensors.items() if "/" not in name})
optimizer = torch.optim.AdamW(model.parameters(), lr=training["scheduler"]["lr"])
moments = {}
for index, (name, _) in enumerate(model.named_parameters()):
    slots = {slot: tensors[f"{slot}/{name}"] for slot in ("exp_avg", "exp_avg_sq")}
    moments[index] = {"step": torch.tensor(float(training["step"])), **slots}
optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
model.train()
for batch in batches:"""
    + STEP_IN_TORCH
    + """
torch.save(model.state_dict(), folder / sys.argv[6])
assert not {"jax", "unet_spec.training_state", "unet_torch.training_state"} & sys.modules.keys()
"""
)


def test_a_torch_process_goes_on_from_a_checkpoint_of_unet_train_with_stock_safetensors(
    run, tmp_path
):
    """The same bits as with `unet_torch.training_state`."""
    state = training_state.read(run[0])
    assert state.recipe.optimizer.name == "adamw"
    net = replace(state.weights.config, dropout=0.0)  # which would draw other masks
    constant = Recipe(state.recipe.optimizer, Schedule())
    values = {"lr": 1e-3, "last_epoch": state.step}
    state = replace(
        state, weights=replace(state.weights, config=net), recipe=constant, scheduler=values
    )
    training_state.write(tmp_path / "6.safetensors", state)
    for step in range(6, 9):
        batch = training.random_batch(net, seed=0, step=step)
        np.savez(tmp_path / f"batch_{step}.npz", x=batch.x, truth=batch.truth)
    plain = json.dumps(dataclasses.asdict(net))
    arguments = [tmp_path, 6, 9, "6.safetensors", plain, "end.pt"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_STOCK_SAFETENSORS, *map(str, arguments)],
        cwd=tmp_path, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    model = unet_torch.UNet(net)
    optimizer, scheduler = unet_torch.recipe.build(constant, model.named_parameters())
    torch_state.load(tmp_path / "6.safetensors", model, optimizer, scheduler)
    model.train()
    for step in range(6, 9):
        batch = np.load(tmp_path / f"batch_{step}.npz")
        optimizer.zero_grad()
        logits = model(torch.tensor(batch["x"]))
        torch.nn.functional.cross_entropy(logits, torch.tensor(batch["truth"])).backward()
        optimizer.step()
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    before = state.weights.tensors
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, end[name]), name
    assert (before["out.bias"] != end["out.bias"].numpy()).any()
