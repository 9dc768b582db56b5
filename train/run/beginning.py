"""Where a run begins: at drawn weights, or at `config.start`: a weight file, or a run's checkpoint
of either framework."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_spec import InputError, Preprocessing, UNetConfig, training_state
from unet_spec.errors import ConfigError
from unet_spec.fields import from_json
from unet_spec.origin import Origin
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

from ..config import PRESETS, TrainConfig
from . import folder as run_folder

# what a start may say of a config, and as what
KINDS: dict[str, type] = {
    "net": UNetConfig,
    "preprocessing": Preprocessing,
    "optimizer": Optimizer,
    "schedule": Schedule,
}


def read_start(path: Path) -> TrainingState | WeightFile:
    """Return what `config.start` names: the newest checkpoint of a RUN, or what a file holds.

    Raises:
        InputError: it cannot be read.
    """
    return training_state.read(path) if path.is_dir() else training_state.read_either(path)


def read_start_settings(config: TrainConfig, *, run: Path | None = None) -> dict[str, Any]:
    """Return the fields of the config that its start settles: the net and preprocessing, and from
    a checkpoint optimizer and schedule too. Empty where the config has no start.

    Args:
        run: the folder of that run if it resumes; then its files say it, and the start may be gone.

    Raises:
        InputError: a start that cannot be read, or is at the last step already.
    """
    if config.start is None:
        return {}
    if run is not None:
        return _settings_of_run(run)
    source = read_start(config.start)
    weights = source.weights if isinstance(source, TrainingState) else source
    settings: dict[str, Any] = {"net": weights.config, "preprocessing": weights.preprocessing}
    if weights.class_names:
        settings["class_names"] = weights.class_names
    if isinstance(source, TrainingState):
        recipe = _add_clipping(source.recipe, config)
        settings |= {"optimizer": recipe.optimizer, "schedule": recipe.schedule}
        if recipe.schedule.name == "plateau" and recipe.schedule.mode == "max":
            raise InputError(
                f"{config.start}: its plateau waits for a value that rises, and here plateau "
                "watches the loss of each batch, which falls; begin with another schedule from its "
                f"weights alone: unet convert {config.start} NEW.safetensors --weights-only"
            )
        if source.step >= config.steps:
            raise ConfigError(
                config,
                "{start_file}: it is at step {reached} already, and {steps=}; give the step at "
                "which the run shall end",
                start_file=config.start,
                reached=source.step,
            )
    return settings


def _settings_of_run(run: Path) -> dict[str, Any]:
    plain, names = run_folder.read_config(run), run_folder.read_started(run)["settings"]
    try:
        settings: dict[str, Any] = {
            name: from_json(kind, json.dumps(plain.get(name))) for name, kind in KINDS.items()
        }
        settings["class_names"] = tuple(plain.get("class_names", ()))
        return {name: settings[name] for name in names}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{run / run_folder.CONFIG}: it should say how the run began, and does not ({error}); "
            "bring it back from a copy, or name another --out"
        ) from error


def read_origin(start: Path | None, *, run: Path | None = None) -> Origin | None:
    """Return the names that another program has for the tensors of a start, where it has any.

    Args:
        run: as in `read_start_settings`.
    """
    if run is not None:
        plain = run_folder.read_started(run).get("origin")
        return None if plain is None else Origin.from_plain(plain)
    if start is None:
        return None
    source = read_start(start)
    return (source.weights if isinstance(source, TrainingState) else source).origin


def describe_start(settings: Iterable[str], origin: Origin | None) -> dict[str, Any]:
    """Return what a run writes down of its start, as plain values.

    Args:
        settings: names of the fields that it settled.
    """
    return {
        "settings": sorted(settings),
        "origin": None if origin is None else origin.to_plain(),
    }


def apply_start(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """Return the config with the settings of its start.

    Raises:
        InputError: a flag that says otherwise, or does not fit the start's net.
    """
    preset = PRESETS.get(config.preset, TrainConfig())
    for name, value in settings.items():
        _refuse_contradiction(name, getattr(config, name), value, getattr(preset, name))
    config = replace(config, **settings)
    config.check_net()
    return config


def _add_clipping(recipe: Recipe, config: TrainConfig) -> Recipe:
    """Return the recipe, with the clipping of the flags if the file has none: torch does not save
    it."""
    if recipe.optimizer.clip_norm is not None or config.optimizer.clip_norm is None:
        return recipe
    clipped = replace(recipe.optimizer, clip_norm=config.optimizer.clip_norm)
    return replace(recipe, optimizer=clipped)


def _refuse_contradiction(name: str, given: Any, of_start: Any, of_preset: Any) -> None:
    """Refuse a value that is neither the start's nor the preset's own."""
    if dataclasses.is_dataclass(given):
        for field in dataclasses.fields(given):
            parts = (getattr(value, field.name) for value in (given, of_start, of_preset))
            _refuse_contradiction(f"{name}.{field.name}", *parts)
    elif given not in (of_start, of_preset):
        raise ConfigError(
            TrainConfig,
            f"the start has {name}={{of_start}}, not {{given}}; leave out {{{name}}}",
            of_start=of_start,
            given=given,
        )
