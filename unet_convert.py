"""`unet convert`: weights and whole runs from one kind of file to another."""

import dataclasses
from pathlib import Path
from typing import Any

from unet_spec import InputError, UNetConfig, dialects, training_state, weight_file
from unet_spec.environment import need
from unet_spec.files import refuse_existing
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

FILES = (".pt", ".pth", ".safetensors")


def convert(source: Path, target: Path, *, config: UNetConfig, dtype: str) -> dict[str, Any]:
    """What was read and written, after it was; a folder is a run, a file weights or a run.

    Args:
        config: the axes that no tensor shows.
        dtype: of the tensors in a .safetensors target.

    Raises:
        InputError: a target that exists, a source that does not fit; nothing is written.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    run = source.is_dir() or target.suffix == ""
    for path in (source, target):
        if path.suffix not in FILES and not (run and (path.is_dir() or path == target)):
            raise InputError(f"{path}: the suffix is .pt, .pth or .safetensors")
    refuse_existing(target)
    if run:
        return _run(source, target, config=config, dtype=dtype)
    weights, assumed = read_weights(source, config)
    if target.suffix == ".safetensors":
        weight_file.write(target, weights, dtype=dtype)
    else:
        need("torch")
        from unet_torch import checkpoint

        checkpoint.write(target, weights.tensors)
    count = len(weights.tensors)
    print(f"{source} -> {target}: {count} tensors read, {count} written, none left over")
    return _told(source, target, weights, assumed=assumed)


def read_weights(source: Path, config: UNetConfig) -> tuple[WeightFile, bool]:
    """A source, and whether its config was partly assumed."""
    if source.suffix == ".safetensors":
        metadata, tensors = weight_file.read_safetensors(source)
        if "unet" in metadata:
            weights = weight_file.read(source)
            refuse_contradiction(config, weights.config, source=source)
            return weights, False
    else:
        need("torch")
        from unet_torch import checkpoint, training_state

        content = checkpoint.read_content(source)
        if training_state.holds_optimizer(content):
            print(f"{source}: its optimizer is left out; name a folder as target to keep it")
        if training_state.knows_config(content):
            weights = training_state.read(source).weights
            refuse_contradiction(config, weights.config, source=source)
            return weights, False
        tensors = checkpoint.select_tensors(content, source=str(source))
    found = dialects.infer_config(tensors, given=config, source=str(source))
    return WeightFile(found, tensors), True


def refuse_contradiction(given: UNetConfig, found: UNetConfig, *, source: Path | None) -> None:
    """Refuse flags that say otherwise than a file."""
    default = UNetConfig()
    for field in dataclasses.fields(given):
        told, seen = getattr(given, field.name), getattr(found, field.name)
        if told not in (seen, getattr(default, field.name)):
            raise InputError(
                f"{source}: its config says {field.name}={seen}, not {told}; "
                f"leave out --config.{field.name.replace('_', '-')}"
            )


def _run(source: Path, target: Path, *, config: UNetConfig, dtype: str) -> dict[str, Any]:
    pair = sorted((source, target), key=lambda path: path.suffix in (".pt", ".pth"))
    if pair[0].suffix == ".safetensors" or pair[1].suffix not in (".pt", ".pth"):
        raise InputError(
            f"{source} -> {target}: a run goes from a .pt to a folder or from a folder to a .pt; "
            f"the weights in a folder are in {training_state.WEIGHTS}"
        )
    need("torch")
    from unet_torch import checkpoint
    from unet_torch import training_state as torch_state

    if (source / training_state.LAST).is_dir():
        source = source / training_state.LAST
    state = torch_state.read(source, config=config)
    assumed = source == pair[1] and not torch_state.knows_config(checkpoint.read_content(source))
    refuse_contradiction(config, state.weights.config, source=source)
    if dtype not in ("float32", state.dtype):
        raise InputError(f"{source}: the run is in {state.dtype} and stays so; leave out --dtype")
    torch_state.write(target, state)
    print(_sentence(source, target, state))
    recipe = {"recipe": dataclasses.asdict(state.recipe), "step": state.step}
    return {**_told(source, target, state.weights, assumed=assumed), **recipe}


def _sentence(source: Path, target: Path, state: TrainingState) -> str:
    count = len(state.weights.tensors) + sum(len(slot) for slot in state.slots.values())
    optimizer, schedule = state.recipe.optimizer, state.recipe.schedule
    return (
        f"{source} -> {target}: {count} tensors of {optimizer.name} with a {schedule.name} "
        f"schedule at step {state.step}, learning rate {state.scheduler['lr']:.3g}; "
        f"clip_norm={optimizer.clip_norm}, every={schedule.every}"
    )


def _told(source: Path, target: Path, weights: WeightFile, *, assumed: bool) -> dict[str, Any]:
    if assumed:
        axes = dialects.describe_assumptions(weights.config)
        print(f"not in the tensors, taken from the flags: {axes}")
    return {
        "source": str(source),
        "target": str(target),
        "tensors": len(weights.tensors),
        "config": dataclasses.asdict(weights.config),
        "assumed": assumed,
    }
