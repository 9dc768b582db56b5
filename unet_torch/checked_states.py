"""The `state_dict`s of a file's optimizer and scheduler, checked before anything counts with them.

`torch.load` gives whatever a file holds: a step that is infinite, a list in the place of a learning
rate, a tensor in the place of a flag. What a recipe has is checked once more by its own fields.
"""

import math
from typing import Any, NoReturn

import numpy as np
import torch

from unet_spec import InputError
from unet_spec.ranges import MOST_STEPS
from unet_spec.wording import shorten, show_value

_MOST_GROUPS = 1000
_MOST_PARAMETERS = 20_000
_NUMBERS = (
    "lr", "weight_decay", "momentum", "dampening", "eps", "alpha", "initial_lr", "max_lr", "min_lr",
    "max_momentum", "base_momentum", "gamma", "eta_min", "factor", "threshold",
)  # fmt: skip
_FLAGS = (
    "nesterov", "centered", "amsgrad", "maximize", "decoupled_weight_decay", "cycle_momentum",
)  # fmt: skip
_HOW_TO_RUN = ("foreach", "fused", "capturable", "differentiable")
_COUNTS = ("last_epoch", "num_bad_epochs", "cooldown_counter", "total_steps")
_LISTS = ("betas", "base_lrs", "min_lrs", "_last_lr")
_LONGEST_VALUE = 100  # characters of a value in a sentence


def check_optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the state of an optimizer with plain numbers in place of tensors of one value.

    Raises:
        InputError: naming what has another type, or is out of its range.
    """
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
        _refuse("its optimizer", optimizer, "a dict with state and param_groups")
    groups, states = optimizer["param_groups"], optimizer["state"]
    if not isinstance(groups, list) or not 0 < len(groups) <= _MOST_GROUPS:
        _refuse("its optimizer: param_groups", groups, f"a list of 1 to {_MOST_GROUPS} dicts")
    if not isinstance(states, dict):
        _refuse("its optimizer: state", states, "a dict")
    checked = [_check_group(f"param_groups.{n}", group) for n, group in enumerate(groups)]
    numbers = [number for group in checked for number in group["params"]]
    if len({*numbers}) < len(numbers):
        raise InputError("its optimizer: param_groups name a parameter twice")
    slots = {number: _check_slots(f"state.{number}", states[number]) for number in numbers
             if number in states}  # fmt: skip
    return {**optimizer, "param_groups": checked, "state": slots}


def check_step(step: int | None) -> None:
    """Refuse a number of steps that no run counts.

    Raises:
        InputError: it is too large, or below 0.
    """
    if step is not None:
        _check_count("its number of steps", step)


def check_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return the state of a scheduler with plain numbers in place of tensors of one value.

    Raises:
        InputError: as `check_optimizer`.
    """
    if not isinstance(scheduler, dict) or "last_epoch" not in scheduler:
        _refuse("its scheduler", scheduler, "a dict with last_epoch")
    checked = {name: _check("its scheduler", name, v) for name, v in scheduler.items()}
    if "best" in checked:  # infinite before the first value
        best = checked["best"] = _to_plain(checked["best"])
        if type(best) not in (int, float) or math.isnan(best):
            _refuse("its scheduler: best", best, "a number")
    if "_schedule_phases" in checked:
        phases = checked["_schedule_phases"]
        if not isinstance(phases, list | tuple) or len(phases) not in (2, 3):
            _refuse("its scheduler: _schedule_phases", phases, "a list of two or three dicts")
        for phase in phases:
            if not isinstance(phase, dict) or not _is_number(phase.get("end_step")):
                _refuse("its scheduler: _schedule_phases", phase, "a dict with end_step")
    return checked


def _check_group(place: str, group: Any) -> dict[str, Any]:
    where = f"its optimizer: {place}"
    if not isinstance(group, dict) or not {"params", "lr"} <= group.keys():
        _refuse(where, group, "a dict with params and lr")
    numbers = group["params"]
    if not isinstance(numbers, list | tuple) or len(numbers) > _MOST_PARAMETERS:
        _refuse(f"{where}.params", numbers, "a list of numbers")
    if wrong := [number for number in numbers if type(number) is not int or number < 0]:
        _refuse(f"{where}.params", wrong[0], "a list of numbers from 0 on")
    names = group.get("param_names", [])
    if not isinstance(names, list | tuple) or not all(type(name) is str for name in names):
        _refuse(f"{where}.param_names", names, "a list of texts")
    checked = {name: _check(where, name, value) for name, value in group.items()}
    for name, value in checked.items():
        items = value if isinstance(value, list | tuple) else (value,)
        for item in items:
            is_number = type(item) in (int, float)
            if not (_is_number(item) if is_number else item is None or type(item) in (bool, str)):
                _refuse(f"{where}: {name}", item, "a plain value")
    return checked


def _check_slots(place: str, slots: Any) -> dict[str, Any]:
    """Return what an optimizer keeps of one parameter, with its step as a plain number."""
    if not isinstance(slots, dict):
        _refuse(f"its optimizer: {place}", slots, "a dict")
    if "step" not in slots:
        return slots
    return {**slots, "step": _check_count(f"its optimizer: {place}.step", slots["step"])}


def _check(where: str, name: Any, value: Any) -> Any:
    """Return the value of a setting, checked if it has a known name."""
    if type(name) is not str:
        _refuse(f"{where}: the name of a setting", name, "a text")
    place, plain = f"{where}: {name}", _to_plain(value)
    if name in _NUMBERS and not _is_number(plain):
        _refuse(place, plain, "a finite number")
    if name in _FLAGS and type(plain) is not bool:
        _refuse(place, plain, "True or False")
    if name in _HOW_TO_RUN and plain is not None and type(plain) is not bool:
        _refuse(place, plain, "True, False or None")
    if name in _COUNTS:
        return _check_count(place, plain)
    if name in _LISTS:
        if not isinstance(value, list | tuple) or not value:
            _refuse(place, value, "a list of numbers")
        numbers = [_to_plain(number) for number in value]
        for number in numbers:
            if not _is_number(number):
                _refuse(place, number, "a list of finite numbers")
        if name == "betas" and len(numbers) != 2:
            _refuse(place, numbers, "two numbers")
        return type(value)(numbers) if type(value) in (list, tuple) else numbers
    return plain


def _check_count(place: str, value: Any) -> int:
    """Return a number of steps; torch keeps it as a float, or as a tensor of one value."""
    plain = _to_plain(value)
    if not _is_number(plain) or plain != int(plain) or not 0 <= plain <= MOST_STEPS:
        _refuse(place, plain, f"a whole number from 0 to {MOST_STEPS}")
    return int(plain)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300


def _to_plain(value: Any) -> Any:
    """Return a tensor of one real value, or a number of numpy, as Python's own number."""
    if isinstance(value, np.generic):
        return value.item()
    is_one = isinstance(value, torch.Tensor) and value.ndim < 2 and value.numel() == 1
    if is_one and not value.is_complex():
        return value.item()
    return value


def _refuse(place: str, value: Any, needed: str) -> NoReturn:
    shown = show_value(value) if type(value) in (int, float, bool) else type(value).__name__
    if isinstance(value, str):
        shown = repr(value)
    if isinstance(value, torch.Tensor):
        shown = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    raise InputError(f"{place} is {shorten(shown, _LONGEST_VALUE)}, and {needed} is needed")
