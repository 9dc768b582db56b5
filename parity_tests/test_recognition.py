"""Checkpoints that other people's torch loops wrote are recognised, or refused by name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import unet_torch
import unet_torch.recipe
from unet_parity import training
from unet_spec import InputError, UNetConfig
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_torch import training_state as torch_state

NET = UNetConfig(widths=(3, 4), norm="batch", classes=3)


FOREIGN = {
    "sgd": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        None,
        Recipe(Optimizer("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)),
    ),
    "adam, step": (
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
        Recipe(Optimizer("adam", lr=0.1, weight_decay=0.0),
               Schedule("step", step_size=2, gamma=0.5)),
    ),
    "adamw, cosine": (
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
        Recipe(Optimizer("adamw", lr=0.1, weight_decay=0.01), Schedule("cosine", T_max=9)),
    ),
    "rmsprop, one cycle": (
        lambda p: torch.optim.RMSprop(p, momentum=0.9),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=30, three_phase=True),
        Recipe(
            Optimizer("rmsprop", lr=0.1 / 25, momentum=0.95, weight_decay=0.0),
            Schedule("one_cycle", max_lr=0.1, total_steps=30, three_phase=True),
        ),
    ),
    "adam, plateau": (
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, "max", patience=3, min_lr=0.01),
        Recipe(Optimizer("adam", lr=0.1, weight_decay=0.0),
               Schedule("plateau", mode="max", patience=3, min_lr=0.01)),
    ),
}  # fmt: skip


def foreign(tmp_path, make_optimizer, make_scheduler, *, steps=4, every=1):
    """A checkpoint as torch users write it, after some steps."""
    torch.manual_seed(0)
    model = unet_torch.UNet(NET)
    optimizer = make_optimizer(model.parameters())
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    for step in range(steps):
        optimizer.zero_grad()
        loss = training.torch_loss(model, training.random_batch(NET, seed=0, step=step))
        loss.backward()
        optimizer.step()
        if scheduler is not None and (step + 1) % every == 0:
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([loss.item()] if plateau else []))
    content = {"model_state_dict": model.state_dict(), "epoch": 1,
               "optimizer_state_dict": optimizer.state_dict()}  # fmt: skip
    if scheduler is not None:
        content["lr_scheduler"] = scheduler.state_dict()
    torch.save(content, tmp_path / "run.pt")
    return content


@pytest.mark.parametrize(("optimizer", "scheduler", "recipe"), FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_of_plain_torch_is_recognised_and_restored(
    tmp_path, optimizer, scheduler, recipe
):
    content = foreign(tmp_path, optimizer, scheduler)
    state = torch_state.read(tmp_path / "run.pt", config=NET)
    assert state.recipe == recipe
    model = unet_torch.UNet(NET)
    given, schedule = unet_torch.recipe.build(state.recipe, model.named_parameters())
    torch_state.load(tmp_path / "run.pt", model, given, schedule)
    theirs, ours = content["optimizer_state_dict"], given.state_dict()
    assert theirs["state"].keys() == ours["state"].keys()
    for index, slots in theirs["state"].items():
        kept = {name: value for name, value in slots.items() if value is not None}
        assert kept.keys() == ours["state"][index].keys()
        for name, value in kept.items():
            torch.testing.assert_close(ours["state"][index][name], value, rtol=0, atol=0)
    assert ours["param_groups"][0]["lr"] == theirs["param_groups"][0]["lr"]
    if schedule is not None:
        after, before = schedule.state_dict(), content["lr_scheduler"]
        assert after.keys() == before.keys()
        for name, value in before.items():
            assert after[name] == value, name


def split(parameters, *, decay=0.01):
    """The usual two groups: no weight decay on biases and norms."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


HABITS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "weights first": (lambda m: split(m.parameters()), ("vectors",)),
    "vectors first": (lambda m: split(m.parameters())[::-1], ("vectors",)),
    "named": (
        lambda m: [{"params": list(m.up_1.named_parameters(prefix="module.up_1"))},
                   {"params": [("module." + n, p) for n, p in m.named_parameters()
                               if not n.startswith("up_1.")], "weight_decay": 0.0}],
        tuple(n for n, _ in unet_torch.UNet(NET).named_parameters() if not n.startswith("up_1.")),
    ),
    "out by itself": (
        lambda m: [{"params": m.out.parameters(), "weight_decay": 0.0, "name": "head"},
                   {"params": [p for n, p in m.named_parameters() if not n.startswith("out")],
                    "name": "body"}],
        ("out.weight", "out.bias"),
    ),
    "parts of one kind": (
        lambda m: [{"params": m.up_1.up.parameters()},
                   {"params": [p for n, p in m.named_parameters()
                               if not n.startswith("up_1.up.")]}],
        (),
    ),
}  # fmt: skip


def moved_in_groups(make_groups, tmp_path):
    """A net and its AdamW with these groups after some steps, and a file of both."""
    torch.manual_seed(0)
    model = unet_torch.UNet(NET)
    optimizer = torch.optim.AdamW(make_groups(model), lr=0.1, weight_decay=0.01)
    for step in range(3):
        optimizer.zero_grad()
        training.torch_loss(model, training.random_batch(NET, seed=0, step=step)).backward()
        optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "run.pt")
    return model, optimizer


@pytest.mark.parametrize(("make_groups", "undecayed"), HABITS.values(), ids=HABITS)
def test_param_groups_are_read_with_the_moments_of_each_parameter(make_groups, undecayed, tmp_path):
    model, optimizer = moved_in_groups(make_groups, tmp_path)
    state = torch_state.read(tmp_path / "run.pt", config=NET)
    assert state.recipe.optimizer.undecayed == undecayed
    assert state.recipe.optimizer.decay == 0.01
    for name, parameter in model.named_parameters():
        for slot in ("exp_avg", "exp_avg_sq"):
            expected = optimizer.state[parameter][slot].numpy()
            np.testing.assert_array_equal(state.slots[slot][name], expected, err_msg=name)


def ambiguous(model):
    """Norms' weights are decayed and biases are not, and all have the same shapes."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n.endswith("weight")]},
        {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
    ]


def test_groups_of_equal_shapes_are_refused_until_the_advice_is_followed(tmp_path):
    model, optimizer = moved_in_groups(ambiguous, tmp_path)
    with pytest.raises(InputError, match="which of them holds which parameter is not certain") as e:
        torch_state.read(tmp_path / "run.pt", config=NET)
    advice = str(e.value).partition("optimizer.state_dict(): ")[2]
    first, _, second = advice.partition("; ")
    exec(f"{first}\n{second}", {"model": model, "optimizer": optimizer})
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "run.pt")
    state = torch_state.read(tmp_path / "run.pt", config=NET)
    biases = tuple(n for n, _ in model.named_parameters() if n.endswith("bias"))
    assert state.recipe.optimizer.undecayed == biases
    for name, parameter in model.named_parameters():
        expected = optimizer.state[parameter]["exp_avg"].numpy()
        np.testing.assert_array_equal(state.slots["exp_avg"][name], expected, err_msg=name)


def test_groups_in_an_order_that_is_not_the_models_are_refused(tmp_path):
    moved_in_groups(
        lambda m: [{"params": list(m.parameters())[-2::-1]}, {"params": [m.out.bias]}],
        tmp_path,
    )
    with pytest.raises(InputError, match="are not those of the net in the order"):
        torch_state.read(tmp_path / "run.pt", config=NET)


@pytest.mark.parametrize(
    ("done", "last_epoch", "beside", "says"),
    [
        (4, 4, {}, 1),
        (4, 2, {}, 2),
        (4, 4, {"scaler": {"scale": 65536.0}}, 1),
        (4, 2, {"scaler": {"scale": 65536.0}, "step": 4}, 2),
        (4, 2, {"scaler": {"scale": 65536.0}}, "GradScaler, whose state is in the file, skips"),
        (4, 2, {"scaler": {"scale": 65536.0}, "step": 6}, "GradScaler, whose state is in the file"),
        (4, 2, {"scaler": {}}, 2),  # of a GradScaler that is switched off
        (4, 5, {}, "did 5 steps and its optimizer 4, as where AMP's GradScaler skips steps"),
        (4, 3, {}, "which is no whole number for each, as in the middle of an epoch; save it"),
        (4, 0, {}, "which is no whole number for each"),
    ],
    ids=["each", "epoch", "scaled, each", "scaled, counted", "scaled, uncounted", "scaled, skipped",
         "unscaled", "skipped", "middle", "first epoch"],
)  # fmt: skip
def test_steps_that_amp_skips_are_said_where_the_schedule_depends_on_them(
    tmp_path, done, last_epoch, beside, says
):
    content = foreign(tmp_path, torch.optim.Adam, lambda o: lr_scheduler.StepLR(o, 2), steps=done)
    content["lr_scheduler"]["last_epoch"] = last_epoch
    content |= beside

    def read(**options):
        return torch_state.from_content(content, NET, source=tmp_path / "run.pt", **options)

    if isinstance(says, int):
        assert read().recipe.schedule.every == says
        return
    with pytest.raises(InputError, match=says) as refusal:
        read()
    assert "leave the scheduler out with --without-scheduler" in str(refusal.value)
    constant = read(without_scheduler=True)
    assert (constant.recipe.schedule, constant.step) == (Schedule(), done)


def test_a_plateau_that_waits_for_a_rising_value_is_refused_for_jax_and_not_for_torch(tmp_path):
    optimizer, scheduler, recipe = FOREIGN["adam, plateau"]
    content = foreign(tmp_path, optimizer, scheduler)
    assert torch_state.read(tmp_path / "run.pt", config=NET).recipe == recipe
    with pytest.raises(InputError, match="waits for a value that rises") as refusal:
        torch_state.from_content(content, NET, source=tmp_path / "run.pt")
    assert "plateau in `unet train` watches the loss" in str(refusal.value)
    state = torch_state.from_content(
        content, NET, source=tmp_path / "run.pt", without_scheduler=True
    )
    assert (state.recipe.schedule, state.scheduler["lr"]) == (Schedule(), 0.1)


def test_what_changes_on_the_way_to_jax_is_said(tmp_path):
    content = foreign(tmp_path, torch.optim.Adam, lr_scheduler.ReduceLROnPlateau)
    state = torch_state.from_content(content, NET, source=tmp_path / "run.pt")
    best = content["lr_scheduler"]["best"]
    (of_plateau, of_scaler) = torch_state.describe_changes(state, scaler={"scale": 1.0})
    assert of_plateau.startswith(f"the best value that its plateau saw is {best:.4g}; plateau in")
    assert of_scaler.startswith("AMP's GradScaler is not used: ")
    constant = torch_state.from_content(
        content, NET, source=tmp_path / "run.pt", without_scheduler=True
    )
    assert torch_state.describe_changes(constant, without_scheduler=True) == [
        "the scheduler is left out: the learning rate stays at 0.001"
    ]


@pytest.mark.parametrize("kind", ["sgd, one cycle", "adam, one cycle", "cosine", "lambda"])
def test_without_its_scheduler_a_run_keeps_its_rate_and_momentum(tmp_path, kind):
    """Of any scheduler, also of one that no recipe has."""
    rates: dict[str, Any] = {
        "sgd, one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        "adam, one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
        "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    }
    content = foreign(
        tmp_path,
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9) if "sgd" in kind else torch.optim.Adam(p),
        rates[kind],
    )
    state = torch_state.from_content(
        content, NET, source=tmp_path / "run.pt", without_scheduler=True
    )
    group = content["optimizer_state_dict"]["param_groups"][0]
    assert state.recipe.schedule == Schedule()
    assert state.recipe.optimizer.lr == state.scheduler["lr"] == group["lr"] != group["initial_lr"]
    if "sgd" in kind:
        assert state.recipe.optimizer.momentum == group["momentum"] != 0.9
    else:
        assert state.recipe.optimizer.betas == tuple(group["betas"])


def test_a_rate_whose_scheduler_is_not_in_the_file_is_the_one_of_now(tmp_path):
    content = foreign(tmp_path, torch.optim.Adam, lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5))
    del content["lr_scheduler"]
    torch.save(content, tmp_path / "run.pt")
    state = torch_state.read(tmp_path / "run.pt", config=NET)
    assert state.recipe.optimizer.lr == state.scheduler["lr"] == 1e-3 * 0.5**4


def test_steps_of_an_epoch_are_told_by_the_two_counts(tmp_path):
    foreign(tmp_path, torch.optim.Adam, lambda o: lr_scheduler.StepLR(o, 2), every=2)
    state = torch_state.read(tmp_path / "run.pt", config=NET)
    assert state.recipe.schedule == Schedule("step", step_size=2, every=2)


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "says"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), None, "amsgrad=True"),
        (lambda p: torch.optim.SGD(p, maximize=True), None, "maximize=True"),
        (torch.optim.NAdam, None, "none of SGD"),
        (torch.optim.RAdam, None, "none of SGD"),
        (torch.optim.Adagrad, None, "none of SGD"),
        (lambda p: torch.optim.Adam([{"params": [q], "lr": 0.1 + 0.1 * (i > 3)}
                                     for i, q in enumerate(p)]), None, "differ in lr .0.1 and 0.2"),
        (lambda p: torch.optim.AdamW([{"params": [q], "weight_decay": 0.1 * (i % 3)}
                                      for i, q in enumerate(p)]), None,
         "weight decays 0.1 and 0.2, and a recipe has one besides 0"),
        (lambda p: torch.optim.Adam([{"params": [q]} for q in p]), None, "is not certain"),
        (lambda p: torch.optim.SGD(split(p)), None, "is not certain"),
        (lambda p: torch.optim.Adam(list(p)[:3]), None, "moves 3 parameters"),
        (torch.optim.Adam, lambda o: lr_scheduler.LambdaLR(o, lambda e: 1.0), "none of StepLR"),
        (torch.optim.Adam, lambda o: lr_scheduler.ExponentialLR(o, 0.9), "none of StepLR"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), lambda o: lr_scheduler.StepLR(o, 2),
         "save the number of steps beside it"),
    ],
    ids=["amsgrad", "maximize", "nadam", "radam", "adagrad", "rates", "decays",
         "many groups", "sgd in groups", "frozen",
         "lambda", "exponential", "sgd uncounted"],
)  # fmt: skip
def test_what_a_recipe_cannot_say_is_refused_in_one_sentence(tmp_path, optimizer, scheduler, says):
    foreign(tmp_path, optimizer, scheduler, steps=1)
    with pytest.raises(InputError, match=says) as caught:
        torch_state.read(tmp_path / "run.pt", config=NET)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("run.pt") == 1
