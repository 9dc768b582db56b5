"""A checkpoint: one .safetensors file of a run at one step, which either framework resumes.

It is a weight file (`unet_spec.weight_file`) with more in it, all of it in torch's layout:

| tensors          | what they are                                        |
|------------------|------------------------------------------------------|
| `NAME`           | the weights and statistics, as in a `state_dict`     |
| `exp_avg/NAME`   | the optimizer's, under torch's names of its slots    |
| `average/NAME`   | the running average of the weights, if the run keeps one |

and its card has one entry more, `training`: `recipe`, `step`, `scheduler` and `devices`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unet_spec import safetensors_file, weight_file
from unet_spec.errors import InputError
from unet_spec.fields import from_json
from unet_spec.narrowing import refuse_not_finite
from unet_spec.parameters import Parameter, Tensors, parameters
from unet_spec.recipe import Recipe
from unet_spec.safetensors_file import NotWholeError
from unet_spec.weight_file import WeightFile

CHECKPOINTS = "checkpoints"  # the folder in which `unet train` keeps them inside its RUN/
AVERAGE = "average"

Scheduler = Mapping[str, float]


@dataclass(frozen=True)
class TrainingState:
    """Weights, and all that the next step needs besides a batch.

    Attributes:
        weights: of the step.
        recipe: complete (`recipe.for_steps`).
        step: number of steps done.
        slots: by torch's name (`exp_avg`, ...) the tensors of all trained parameters, in torch's
            layout; those of a run at step 0 are zeros.
        scheduler: plain values: `lr` and `last_epoch`; with `plateau` also `best`,
            `num_bad_epochs` and `cooldown_counter`; where `one_cycle` moves it, `momentum`.
        average: the running average of the weights and of batch norm's statistics, under their
            names; {} where the run keeps none.
        devices: what computed it, in words, and thus what its bits depend on; "" where unknown.
    """

    weights: WeightFile
    recipe: Recipe
    step: int
    slots: Mapping[str, Tensors] = field(default_factory=dict)
    scheduler: Scheduler = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    devices: str = ""

    def __post_init__(self) -> None:
        self.recipe.check_complete()
        self.recipe.optimizer.check_names(p.name for p in trained(self.weights))
        if type(self.step) is not int or self.step < 0:
            raise InputError(f"step is a number of at least 0, got {self.step!r}")
        _check_tensors(self.weights, self.recipe, self.slots, self.average)
        for prefix, group in _groups(self.slots, self.average).items():
            named = {f"{prefix}/{name}": tensor for name, tensor in group.items()}
            refuse_not_finite(named, what="the tensors beside the weights")
        _check_scheduler(self.recipe, self.step, self.scheduler)
        in_order = {
            slot: {p.name: self.slots[slot][p.name] for p in trained(self.weights)}
            for slot in self.recipe.slots
        }
        object.__setattr__(self, "slots", in_order)

    @property
    def dtype(self) -> str:
        """Return the type of the weights, float64 or float32."""
        kinds = {str(self.weights.tensors[p.name].dtype) for p in trained(self.weights)}
        return "float64" if kinds == {"float64"} else "float32"

    @property
    def weights_that_predict(self) -> WeightFile:
        """The running average, where there is one, and else the weights of the step."""
        tensors = {**self.weights.tensors, **self.average}
        return dataclasses.replace(self.weights, tensors=tensors)


def leave_out_schedule(state: TrainingState) -> TrainingState:
    """Return a run whose learning rate and momentum stay where they are now."""
    optimizer, now = state.recipe.optimizer, state.scheduler
    optimizer = dataclasses.replace(optimizer, lr=max(now["lr"], 0.0))
    if "momentum" in now and optimizer.name in ("adam", "adamw"):
        optimizer = dataclasses.replace(optimizer, betas=(now["momentum"], optimizer.betas[1]))
    elif "momentum" in now:
        optimizer = dataclasses.replace(optimizer, momentum=now["momentum"])
    values = {"lr": optimizer.lr, "last_epoch": state.step}
    return dataclasses.replace(state, recipe=Recipe(optimizer), scheduler=values)


def scheduler_keys(recipe: Recipe) -> tuple[str, ...]:
    """The plain values that a recipe's scheduler is in the middle of a run."""
    keys = ["lr", "last_epoch"]
    if recipe.schedule.name == "plateau":
        keys += ["best", "num_bad_epochs", "cooldown_counter"]
    if recipe.schedule.cycles_momentum:
        keys.append("momentum")
    return tuple(keys)


def write(path: Path | str, state: TrainingState) -> None:
    """Write the file whole or not at all, in the precision of the run.

    Raises:
        InputError: the folder does not exist.
    """
    training = {
        "recipe": dataclasses.asdict(state.recipe),
        "step": state.step,
        "scheduler": {name: _to_json(value) for name, value in state.scheduler.items()},
        "devices": state.devices,
    }
    tensors = dict(state.weights.tensors)
    for prefix, group in _groups(state.slots, state.average).items():
        tensors |= {f"{prefix}/{name}": tensor for name, tensor in group.items()}
    card = {**weight_file.make_card(state.weights), "training": training}
    safetensors_file.write(Path(path), tensors, card, dtype=state.dtype)


def read(path: Path | str) -> TrainingState:
    """The run in a checkpoint, or in the newest whole one of a run's folder.

    Raises:
        NotWholeError: missing, cut short, or with other bytes than were written.
        InputError: no checkpoint, of a newer version, or with tensors that do not fit its card.
    """
    path = Path(path)
    either = read_either(newest_path(path) if path.is_dir() else path)
    if isinstance(either, WeightFile):
        raise InputError(
            f"{path}: a weight file, without an optimizer; a checkpoint is needed, such as those "
            f"in RUN/{CHECKPOINTS}"
        )
    return either


def read_either(path: Path) -> TrainingState | WeightFile:
    """What a .safetensors file of this project holds: a run, or weights alone.

    Raises:
        InputError: as `read` and `weight_file.read`.
    """
    weight_file.refuse_torch_file(path)
    card, tensors = safetensors_file.read(path)
    if card is None:
        return weight_file.read(path)  # which says what to do
    if "training" not in card:
        return weight_file.from_card(card, tensors, source=path)
    groups = _split_groups(tensors)
    weights = weight_file.from_card(card, groups.pop("", {}), source=path)
    average = groups.pop(AVERAGE, {})
    try:
        training = card["training"]
        recipe = from_json(Recipe, json.dumps(training["recipe"]))
        scheduler = {name: _from_json(value) for name, value in training["scheduler"].items()}
        return TrainingState(
            weights, recipe, training["step"], groups, scheduler, average, training["devices"]
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error!r})") from error


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of one step in a folder of checkpoints."""
    return folder / f"{step}.safetensors"


def list_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint there, whole or not, the oldest first."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    matches = (re.fullmatch(r"([0-9]+)\.safetensors", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def check_whole(path: Path) -> None:
    """Refuse a checkpoint whose bytes are not those that were written.

    Raises:
        NotWholeError: they are not, or nothing in the file says so.
        InputError: of a newer version.
    """
    card = safetensors_file.read_card(path)
    if card is None or "sha256" not in card:
        raise NotWholeError(f"{path}: it has no sha256, and every checkpoint is written with one")


def read_newest(folder: Path, *, say: Callable[[str], None]) -> TrainingState | None:
    """The newest whole checkpoint in a folder of checkpoints, or None where there is none at all.

    Args:
        say: is given a sentence for each one that is skipped.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    path = _newest_whole(folder, say=say)
    return None if path is None else read(path)


def newest_path(path: Path) -> Path:
    """The file of the newest whole checkpoint of a run, or of a folder of checkpoints.

    Raises:
        InputError: there is none.
    """
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    newest = _newest_whole(folder, say=lambda _: None)
    if newest is None:
        raise InputError(
            f"{path}: a folder without a checkpoint; name the RUN of `unet train`, or a file"
        )
    return newest


def _newest_whole(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    steps = list_steps(folder)
    for step in reversed(steps):
        path = checkpoint_path(folder, step)
        try:
            check_whole(path)
        except NotWholeError as error:
            say(f"this checkpoint is skipped: {error}")
        else:
            return path
    if steps:
        raise InputError(
            f"{folder}: none of the checkpoints there is whole; bring one back from a copy, or "
            f"remove {folder} to begin again"
        )
    return None


def zeros(weights: WeightFile, recipe: Recipe) -> dict[str, dict[str, np.ndarray]]:
    """The slots before the first step."""
    return {
        slot: {p.name: np.zeros_like(weights.tensors[p.name]) for p in trained(weights)}
        for slot in recipe.slots
    }


def _check_tensors(
    weights: WeightFile, recipe: Recipe, slots: Mapping[str, Tensors], average: Tensors
) -> None:
    """Refuse tensors beside the weights that do not fit them: all that is wrong in one sentence."""
    expected = {slot: {p.name: tuple(p.shape) for p in trained(weights)} for slot in recipe.slots}
    if average:
        floats = (p for p in parameters(weights.config) if p.kind != "count")
        expected[AVERAGE] = {p.name: tuple(p.shape) for p in floats}
    shapes = {
        f"{group}/{name}": s for group, names in expected.items() for name, s in names.items()
    }
    tensors = {
        f"{prefix}/{name}": tensor
        for prefix, group in _groups(slots, average).items()
        for name, tensor in group.items()
    }
    present = {name: tensors[name] for name in shapes if name in tensors}
    kinds = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": sorted(tensors.keys() - shapes.keys()),
        "mis-shaped": [
            f"{name} {tuple(tensor.shape)} instead of {shapes[name]}"
            for name, tensor in present.items()
            if tuple(tensor.shape) != shapes[name]
        ],
        "no floats": [name for name, tensor in present.items() if tensor.dtype.kind != "f"],
    }
    if any(kinds.values()):
        listed = "; ".join(
            f"{kind}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for kind, names in kinds.items()
            if names
        )
        raise InputError(
            f"the slots do not fit the net and {recipe.optimizer.name} ({listed}); "
            "nothing was loaded"
        )


def _check_scheduler(recipe: Recipe, step: int, scheduler: Scheduler) -> None:
    keys = scheduler_keys(recipe)
    if set(scheduler) != set(keys):
        raise InputError(f"scheduler has the keys {', '.join(keys)}, got {', '.join(scheduler)}")
    epoch = step // recipe.schedule.every
    # torch's OneCycleLR ends a step before its last value, which lies below 0 where it falls
    # linearly; no step uses that value
    has_ended = recipe.schedule.name == "one_cycle" and epoch == recipe.schedule.total_steps
    if not ((scheduler["lr"] >= 0 or has_ended) and math.isfinite(scheduler["lr"])):
        raise InputError(f"scheduler.lr is a finite number of at least 0, got {scheduler['lr']}")
    if recipe.schedule.name != "plateau" and scheduler["last_epoch"] != epoch:
        raise InputError(
            f"scheduler.last_epoch={scheduler['last_epoch']} does not fit step={step} with "
            f"every={recipe.schedule.every}, which make {epoch}"
        )


def trained(weights: WeightFile) -> list[Parameter]:
    """The parameters of a weight file that an optimizer moves."""
    return [p for p in parameters(weights.config) if p.trained]


def _groups(slots: Mapping[str, Tensors], average: Tensors) -> dict[str, Tensors]:
    """The tensors beside the weights, by the prefix that they have in a file."""
    return {**slots, AVERAGE: average} if average else dict(slots)


def _split_groups(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of a file by their prefix, which is "" for the weights."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for full, tensor in tensors.items():
        prefix, _, name = full.rpartition("/")
        groups.setdefault(prefix, {})[name] = tensor
    return groups


def _to_json(value: float) -> float | str:
    """JSON has no infinity, which the best value is at the start."""
    return value if math.isfinite(value) else str(value)


def _from_json(value: Any) -> float:
    if isinstance(value, str):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, got {value!r}")
    return value
