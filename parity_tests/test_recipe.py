"""A recipe says what it means, refuses what it cannot mean, and survives its JSON."""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from torch.optim import lr_scheduler

import unet_jax.recipe
import unet_torch.recipe
from unet_spec import InputError
from unet_spec.recipe import Optimizer, Recipe, Schedule

unchecked: Any = Optimizer  # for values that mypy would refuse before we can

EXAMPLES = {
    "default": Recipe(),
    "paper": Recipe(Optimizer("sgd", lr=0.1, momentum=0.99, nesterov=True)),
    "two groups": Recipe(Optimizer(undecayed=("vectors", "out.weight"))),
    "cosine": Recipe(Optimizer("adam", betas=(0.8, 0.9)), Schedule("cosine", T_max=7)),
    "one cycle": Recipe(
        Optimizer("rmsprop", centered=True, clip_norm=1.0),
        Schedule("one_cycle", max_lr=0.1, total_steps=20, three_phase=True),
    ),
    "plateau": Recipe(Optimizer("sgd"), Schedule("plateau", mode="max", every=3)),
}


@pytest.mark.parametrize("recipe", EXAMPLES.values(), ids=EXAMPLES)
def test_json_there_and_back_is_the_same_recipe(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Optimizer("sgd", betas=(0.8, 0.9)), "sgd does not use betas=(0.8, 0.9)"),
        (lambda: Optimizer("adam", momentum=0.9), "adam does not use momentum=0.9"),
        (lambda: Optimizer("sgd", nesterov=True), "nesterov needs momentum"),
        (lambda: Optimizer("sgd", momentum=0.9, dampening=0.1, nesterov=True), "dampening 0"),
        (lambda: Recipe(Optimizer("sgd", dampening=0.1)), "dampening=0.1 needs optimizer.momentum"),
        (lambda: Optimizer(lr=-1.0), "lr needs at least 0, got -1.0"),
        (lambda: Optimizer(lr=float("nan")), "lr is a finite number"),
        (lambda: Optimizer(betas=(0.9, 1.0)), "betas holds two numbers in [0, 1)"),
        (lambda: unchecked(betas=(0.9,)), "betas holds floats"),
        (lambda: Optimizer(clip_norm=0.0), "clip_norm is a number above 0"),
        (
            lambda: unchecked(weight_decay="a"),
            "weight_decay is of type float or None, got 'a'",
        ),
        (lambda: unchecked("lion"), "name is one of sgd, adam, adamw, rmsprop"),
        (lambda: unchecked(undecayed="vectors"), "undecayed holds strs"),
        (
            lambda: Optimizer("sgd", undecayed=("vectors",)),
            "undecayed=('vectors',) needs weight_decay above 0; give it, or leave out undecayed",
        ),
        (
            lambda: Optimizer(undecayed=("vectors", "b")).check_names(["a"]),
            "undecayed names b, which is no trained tensor of this net; give names of its weight "
            "file, or the word vectors",
        ),
        (lambda: Schedule("step"), "name=step needs step_size"),
        (lambda: Schedule("one_cycle"), "name=one_cycle needs max_lr"),
        (lambda: Schedule("cosine", gamma=0.5), "cosine does not use gamma=0.5"),
        (lambda: Schedule(every=2), "constant does not use every=2"),
        (lambda: Schedule("plateau", factor=1.0), "factor is a number in [0, 1), got 1.0"),
        (lambda: Schedule("one_cycle", max_lr=1.0, pct_start=2.0), "pct_start is a part"),
        (lambda: Schedule("one_cycle", max_lr=1.0, pct_start=0.1, total_steps=10), "no step"),
        (lambda: Schedule("cosine", T_max=0), "T_max needs at least 1, got 0"),
        (lambda: Schedule("one_cycle", max_lr=float("inf")), "max_lr is a finite number, got inf"),
        (lambda: Schedule("plateau", threshold=float("nan")), "threshold is a finite number"),
        (lambda: Recipe.from_json('{"optimizer": {"learning_rate": 1}}'), "learning_rate"),
        (lambda: Recipe.from_json('{"optimizer": 3}'), "a JSON object is needed"),
        (lambda: Recipe.from_json("{"), "not JSON"),
        (lambda: Recipe(schedule=Schedule("cosine")).check_complete(), "T_max is not known"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(make, names):
    with pytest.raises(InputError) as caught:
        make()
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_length_of_the_run_fills_what_was_left_open():
    assert Schedule("cosine", every=4).for_steps(10).T_max == 3
    assert Schedule("one_cycle", max_lr=1.0).for_steps(50).total_steps == 50
    assert Schedule("cosine", T_max=7).for_steps(50).T_max == 7
    assert Recipe().for_steps(50) == Recipe()


@pytest.mark.parametrize("name", unet_torch.recipe.KINDS)
def test_the_default_weight_decay_is_torchs(name):
    of_torch = inspect.signature(unet_torch.recipe.KINDS[name]).parameters["weight_decay"]
    assert Optimizer(name).decay == of_torch.default


@pytest.mark.parametrize("name", unet_torch.recipe.SCHEDULERS)
def test_the_fields_of_a_schedule_have_torchs_names_and_defaults(name):
    signature = inspect.signature(unet_torch.recipe.SCHEDULERS[name]).parameters
    fields = {f.name: f.default for f in dataclasses.fields(Schedule)}
    for argument in unet_torch.recipe.SCHEDULER_ARGUMENTS[name]:
        of_torch = signature[argument].default
        ours = fields[argument]
        assert ours == (None if of_torch is inspect.Parameter.empty else of_torch), argument


@pytest.mark.parametrize("name", unet_torch.recipe.KINDS)
def test_the_fields_of_an_optimizer_have_torchs_defaults_but_for_the_rate(name):
    signature = inspect.signature(unet_torch.recipe.KINDS[name]).parameters
    fields = {f.name: f.default for f in dataclasses.fields(Optimizer)}
    for argument in unet_torch.recipe.OPTIMIZER_ARGUMENTS[name]:
        assert argument == "lr" or fields[argument] == signature[argument].default


@pytest.mark.parametrize("recipe", EXAMPLES.values(), ids=EXAMPLES)
def test_the_slots_are_those_that_torch_keeps(recipe):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer, _ = unet_torch.recipe.build(recipe, [("out.weight", parameter)])
    parameter.grad = torch.ones(3)
    optimizer.step()
    kept = {name for name, value in optimizer.state[parameter].items() if name != "step"}
    assert kept == set(recipe.slots)


def test_the_weight_decay_of_a_tensor_is_0_by_its_name_or_for_all_vectors():
    named = Optimizer(weight_decay=0.1, undecayed=("a", "c"))
    assert [named.decay_of(name, ndim=4) for name in "abc"] == [0.0, 0.1, 0.0]
    vectors = Optimizer(weight_decay=0.1, undecayed=("vectors",))
    assert [vectors.decay_of("a", ndim=ndim) for ndim in (1, 4)] == [0.0, 0.1]


def test_torch_gets_a_param_group_for_each_weight_decay_and_one_where_there_is_one():
    named = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2, 2)),
             "c": torch.nn.Parameter(torch.ones(2, 3))}  # fmt: skip
    recipe = Recipe(Optimizer(weight_decay=0.1, undecayed=("vectors", "c")))
    optimizer, _ = unet_torch.recipe.build(recipe, named.items())
    groups = [(g["weight_decay"], g["param_names"]) for g in optimizer.param_groups]
    assert groups == [(0.1, ["b"]), (0.0, ["a", "c"])]
    one, _ = unet_torch.recipe.build(Recipe(), named.items())
    plain = torch.optim.AdamW(named.values(), lr=1e-3)
    assert one.state_dict() == plain.state_dict()


def test_torch_gets_parameters_without_names_where_no_name_counts():
    net = torch.nn.Linear(2, 3)
    ours, schedule = unet_torch.recipe.build(Recipe(), net.parameters())
    assert schedule is None
    assert ours.state_dict() == torch.optim.AdamW(net.parameters(), lr=1e-3).state_dict()
    with pytest.raises(InputError, match=r"undecayed goes by .* give model\.named_parameters"):
        unet_torch.recipe.build(Recipe(Optimizer(undecayed=("vectors",))), net.parameters())


def test_an_optimizer_whose_undecayed_names_no_tensor_is_refused_by_both():
    recipe = Recipe(Optimizer(undecayed=("head",)))
    with pytest.raises(InputError, match="undecayed names head, which is no trained tensor"):
        unet_torch.recipe.build(recipe, [("a", torch.nn.Parameter(torch.ones(3)))])
    with pytest.raises(InputError, match="undecayed names head, which is no trained tensor"):
        unet_jax.recipe.build(recipe).init({"a": jnp.ones(3)})


def test_torchs_objects_are_torchs_own():
    optimizer, scheduler = unet_torch.recipe.build(
        EXAMPLES["one cycle"], [("a", torch.nn.Parameter(torch.ones(3)))]
    )
    assert type(optimizer) is torch.optim.RMSprop
    assert type(scheduler) is lr_scheduler.OneCycleLR
