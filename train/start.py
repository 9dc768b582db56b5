"""Where a run starts from: a weight file, or a run in the middle, of either framework."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.training_state import from_training_state
from unet_spec import InputError, Preprocessing, UNetConfig, layout, training_state, weight_file
from unet_spec.errors import ConfigError
from unet_spec.fields import from_json
from unet_spec.parameters import parameters
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

from . import run_folder
from .config import PRESETS, TrainConfig
from .step import State, to_average


def read(path: Path) -> TrainingState | WeightFile:
    """What `config.start` names: a folder with a training state, or a weight file."""
    if path.is_dir():
        inside = path / training_state.LAST
        return training_state.read(inside if inside.is_dir() else path)
    return weight_file.read(path)


def known(config: TrainConfig, *, run: Path | None = None) -> dict[str, Any]:
    """What `config.start` says of a run that goes on from it: its net and preprocessing, and the
    recipe of a run in the middle. Empty where the config has no start.

    Args:
        run: a folder in which that run has begun; then it is asked, and the start may be gone.

    Raises:
        InputError: a start that cannot be read, or is at the last step already.
    """
    if config.start is None:
        return {}
    if run is not None:
        plain = run_folder.read_config(run)
        kinds: dict[str, type] = {
            "net": UNetConfig,
            "preprocessing": Preprocessing,
            "optimizer": Optimizer,
            "schedule": Schedule,
        }
        told: dict[str, Any] = {
            name: from_json(kind, json.dumps(plain.get(name))) for name, kind in kinds.items()
        }
        told["class_names"] = tuple(plain.get("class_names", ()))
        return {name: told[name] for name in run_folder.read_started(run).get("told", ())}
    source = read(config.start)
    weights = source.weights if isinstance(source, TrainingState) else source
    told = {"net": weights.config, "preprocessing": weights.preprocessing}
    if weights.class_names:
        told["class_names"] = weights.class_names
    if isinstance(source, TrainingState):
        recipe = _with_clip(source.recipe, config)
        told |= {"optimizer": recipe.optimizer, "schedule": recipe.schedule}
        if source.step >= config.steps:
            raise ConfigError(
                config,
                "{start_file}: it is at step {reached} already, and {steps=}; give the step at "
                "which the run shall end",
                start_file=config.start,
                reached=source.step,
            )
    return told


def adopted(config: TrainConfig, told: dict[str, Any]) -> TrainConfig:
    """The config with what its start says.

    Raises:
        InputError: a flag that says otherwise, or does not fit the start's net.
    """
    usual = PRESETS.get(config.preset, TrainConfig())
    for name, value in told.items():
        _refuse_contradiction(name, getattr(config, name), value, getattr(usual, name))
    config = replace(config, **told)
    config.check_net()
    return config


def fingerprint(path: Path | None) -> str | None:
    """Hash of the files that `read` reads."""
    if path is None:
        return None
    place = path / training_state.LAST
    place = place if place.is_dir() else path
    digest = hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def refuse_changed(path: Path, *, run: Path) -> None:
    """Refuse another start than the one that a run began with.

    Raises:
        InputError: it is another.
    """
    if run_folder.read_started(run).get("sha256") != fingerprint(path):
        raise InputError(
            f"{path}: the run in {run} has no checkpoint yet, and this is not the start with which "
            "it began; bring that back, or name another --out"
        )


def state_from(config: TrainConfig, source: TrainingState | WeightFile, fresh: State) -> State:
    """The state that a run begins with; `fresh` is that of step 0."""
    if isinstance(source, TrainingState):
        known = replace(source, recipe=config.recipe)
        params, stats, optimizer = from_training_state(known)
        step = jnp.asarray(source.step, jnp.int32)
    else:
        arrays = {n: jnp.asarray(a) for n, a in layout.to_jax(config.net, source.tensors).items()}
        trained = {p.name for p in parameters(config.net) if p.trained}
        params = {name: a for name, a in arrays.items() if name in trained}
        stats = {name: a for name, a in arrays.items() if name not in trained}
        optimizer, step = fresh.optimizer, fresh.step
    ema = to_average(params, stats) if config.ema else {}
    # in the types of the run: a file may hold float64
    return jax.tree.map(
        lambda ours, theirs: jax.device_put(theirs.astype(ours.dtype), ours.sharding),
        fresh,
        fresh._replace(params=params, stats=stats, optimizer=optimizer, ema=ema, step=step),
    )


def _with_clip(recipe: Recipe, config: TrainConfig) -> Recipe:
    """The recipe, with the clipping of the flags where the file knows of none: a torch checkpoint
    does not hold it."""
    if recipe.optimizer.clip_norm is not None or config.optimizer.clip_norm is None:
        return recipe
    clipped = replace(recipe.optimizer, clip_norm=config.optimizer.clip_norm)
    return replace(recipe, optimizer=clipped)


def _refuse_contradiction(name: str, given: Any, known: Any, usual: Any) -> None:
    """Refuse a value that is neither the source's nor the preset's own."""
    if dataclasses.is_dataclass(given):
        for field in dataclasses.fields(given):
            parts = (getattr(value, field.name) for value in (given, known, usual))
            _refuse_contradiction(f"{name}.{field.name}", *parts)
    elif given not in (known, usual):
        raise ConfigError(
            TrainConfig,
            f"the start has {name}={{known}}, not {{given}}; leave out {{{name}}}",
            known=known,
            given=given,
        )
