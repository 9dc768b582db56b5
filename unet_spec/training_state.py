"""RUN/: a run in the middle, which either framework goes on with.

Two files: `weights.safetensors`, an ordinary weight file, and `training_state.safetensors`, whose
tensors are the optimizer's, `exp_avg/down_1.conv.conv.0.weight`, in torch's layout. Its metadata
has one entry, `unet_training`: JSON with `version`, `recipe`, `step`, `scheduler` and `weights`,
the hash of the weight file that it belongs to.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy

from unet_spec import weight_file
from unet_spec.errors import InputError
from unet_spec.fields import from_json
from unet_spec.files import atomic_write, atomic_write_folder
from unet_spec.parameters import Parameter, Tensors, parameters
from unet_spec.recipe import Recipe
from unet_spec.weight_file import WeightFile

VERSION = 1
WEIGHTS = "weights.safetensors"
STATE = "training_state.safetensors"
LAST = "last"  # where `unet train` keeps the pair inside its RUN/

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
    """

    weights: WeightFile
    recipe: Recipe
    step: int
    slots: Mapping[str, Tensors] = field(default_factory=dict)
    scheduler: Scheduler = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe.check_complete()
        if type(self.step) is not int or self.step < 0:
            raise InputError(f"step is a number of at least 0, got {self.step!r}")
        _check_slots(self.weights, self.recipe, self.slots)
        _check_scheduler(self.recipe, self.step, self.scheduler)
        in_order = {
            slot: {p.name: self.slots[slot][p.name] for p in trained(self.weights)}
            for slot in self.recipe.slots
        }
        object.__setattr__(self, "slots", in_order)

    @property
    def dtype(self) -> str:
        """float64 or float32: what the weights are kept in."""
        kinds = {str(self.weights.tensors[p.name].dtype) for p in trained(self.weights)}
        return "float64" if kinds == {"float64"} else "float32"


def scheduler_keys(recipe: Recipe) -> tuple[str, ...]:
    """The plain values that a recipe's scheduler is in the middle of a run."""
    plateau = ("best", "num_bad_epochs", "cooldown_counter")
    return (
        "lr",
        "last_epoch",
        *(plateau if recipe.schedule.name == "plateau" else ()),
        *(("momentum",) if recipe.schedule.cycles_momentum else ()),
    )


def write(folder: Path | str, state: TrainingState) -> None:
    """Write both files, each whole or not at all, in the precision of the run; existing ones are
    replaced. A crash between the two leaves a pair that `read` refuses."""
    with atomic_write_folder(Path(folder)) as inside:
        weight_file.write(inside / WEIGHTS, state.weights, dtype=state.dtype)
        write_beside(inside, state)


def write_beside(folder: Path, state: TrainingState) -> None:
    """Write the training state beside the weight file of the same step, which is there."""
    metadata = {
        "version": VERSION,
        "recipe": dataclasses.asdict(state.recipe),
        "step": state.step,
        "scheduler": {name: _plain(value) for name, value in state.scheduler.items()},
        "weights": _hash(folder / WEIGHTS),
    }
    # the buffer is taken as it lies, so that a transposed view would be scrambled, silently
    tensors = {
        f"{slot}/{name}": np.ascontiguousarray(tensor, state.dtype).reshape(tensor.shape)
        for slot, group in state.slots.items()
        for name, tensor in group.items()
    }
    with atomic_write(folder / STATE) as stream:
        card = {"unet_training": json.dumps(metadata, sort_keys=True)}
        stream.write(safetensors.numpy.save(tensors, card))


def read(folder: Path | str) -> TrainingState:
    """The run in a folder, checked: the slots of its recipe and net, each of its shape.

    Raises:
        InputError: damaged, of a newer version, of another net, or two files of unlike steps.
    """
    folder = Path(folder)
    path = folder / STATE
    weights = weight_file.read(folder / WEIGHTS)
    metadata, tensors = weight_file.read_safetensors(path)
    if "unet_training" not in metadata:
        raise InputError(f"{path}: a safetensors file, but not of a training state")
    try:
        card = json.loads(metadata["unet_training"])
        if card["version"] > VERSION:
            raise InputError(f"format version {card['version']}, known up to {VERSION}: update")
        if card["weights"] != _hash(folder / WEIGHTS):
            raise InputError(
                f"it does not belong to the {WEIGHTS} beside it (another step or net); "
                "take both files of one moment"
            )
        recipe = from_json(Recipe, json.dumps(card["recipe"]))
        scheduler = {name: _number(value) for name, value in card["scheduler"].items()}
        return TrainingState(weights, recipe, card["step"], _nested(tensors), scheduler)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error!r})") from error


def zeros(weights: WeightFile, recipe: Recipe) -> dict[str, dict[str, np.ndarray]]:
    """The slots before the first step."""
    return {
        slot: {p.name: np.zeros_like(weights.tensors[p.name]) for p in trained(weights)}
        for slot in recipe.slots
    }


def _check_slots(weights: WeightFile, recipe: Recipe, slots: Mapping[str, Tensors]) -> None:
    shapes = {f"{slot}/{p.name}": tuple(p.shape) for slot in recipe.slots for p in trained(weights)}
    found = {f"{slot}/{name}": t for slot, group in slots.items() for name, t in group.items()}
    kinds = {
        "missing": [name for name in shapes if name not in found],
        "unexpected": sorted(found.keys() - shapes.keys()),
        "mis-shaped": [
            f"{name} {tuple(found[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in found and tuple(found[name].shape) != shape
        ],
        "no floats": [name for name in shapes if name in found and found[name].dtype.kind != "f"],
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
    if not (0 <= scheduler["lr"] < math.inf):
        raise InputError(f"scheduler.lr is a finite number of at least 0, got {scheduler['lr']}")
    epoch = step // recipe.schedule.every
    if recipe.schedule.name != "plateau" and scheduler["last_epoch"] != epoch:
        raise InputError(
            f"scheduler.last_epoch={scheduler['last_epoch']} does not fit step={step} with "
            f"every={recipe.schedule.every}, which make {epoch}"
        )


def trained(weights: WeightFile) -> list[Parameter]:
    """The parameters of a weight file that an optimizer moves."""
    return [p for p in parameters(weights.config) if p.trained]


def _nested(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    slots: dict[str, dict[str, np.ndarray]] = {}
    for full, tensor in tensors.items():
        slot, _, name = full.partition("/")
        slots.setdefault(slot, {})[name] = tensor
    return slots


def _plain(value: float) -> float | str:
    """JSON has no infinity, which the best value is at the start."""
    return value if math.isfinite(value) else str(value)


def _number(value: float | str) -> float:
    if isinstance(value, str):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, got {value!r}")
    return value


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
