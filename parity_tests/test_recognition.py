"""Checkpoints that other people's torch loops wrote are recognised, or refused by name."""

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
                                     for i, q in enumerate(p)]), None, "different settings"),
        (lambda p: torch.optim.Adam([{"params": [q]} for q in p]), None, "without names"),
        (lambda p: torch.optim.Adam(list(p)[:3]), None, "moves 3 parameters"),
        (torch.optim.Adam, lambda o: lr_scheduler.LambdaLR(o, lambda e: 1.0), "none of StepLR"),
        (torch.optim.Adam, lambda o: lr_scheduler.ExponentialLR(o, 0.9), "none of StepLR"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), lambda o: lr_scheduler.StepLR(o, 2),
         "save the number beside it"),
    ],
    ids=["amsgrad", "maximize", "nadam", "radam", "adagrad", "groups", "many groups", "frozen",
         "lambda", "exponential", "sgd uncounted"],
)  # fmt: skip
def test_what_a_recipe_cannot_say_is_refused_in_one_sentence(tmp_path, optimizer, scheduler, says):
    foreign(tmp_path, optimizer, scheduler, steps=1)
    with pytest.raises(InputError, match=says) as caught:
        torch_state.read(tmp_path / "run.pt", config=NET)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("run.pt") == 1
