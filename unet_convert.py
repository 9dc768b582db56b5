"""`unet convert`: weights and whole runs from one kind of file to another."""

import dataclasses
from pathlib import Path
from typing import Any

from unet_spec import (
    InputError,
    UNetConfig,
    dialects,
    safetensors_file,
    training_state,
    weight_file,
)
from unet_spec.environment import need
from unet_spec.errors import ConfigError
from unet_spec.files import refuse_existing
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

OF_TORCH = (".pt", ".pth")
SUFFIXES = (*OF_TORCH, ".safetensors")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        content: weights, or a run with its optimizer.
        assumed: axes of the net that the source does not show, as they were given; "" for none.
    """

    source: Path
    target: Path
    content: TrainingState | WeightFile
    assumed: str

    @property
    def weights(self) -> WeightFile:
        """The weights that were written."""
        return self.content.weights if isinstance(self.content, TrainingState) else self.content

    def sentences(self) -> list[str]:
        """What happened, for people."""
        state = self.content
        if isinstance(state, TrainingState):
            count = len(state.weights.tensors) + sum(map(len, state.slots.values()))
            optimizer, schedule = state.recipe.optimizer, state.recipe.schedule
            result = (
                f"{count + len(state.average)} tensors of {optimizer.name} with a {schedule.name} "
                f"schedule at step {state.step}, learning rate {state.scheduler['lr']:.3g}; "
                f"clip_norm={optimizer.clip_norm}, every={schedule.every}"
            )
        else:
            count = len(state.tensors)
            result = f"{count} tensors read, {count} written, none left over"
        lines = [f"{self.source} -> {self.target}: {result}"]
        if self.assumed:
            lines.append(f"not in the tensors, taken from the flags: {self.assumed}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The report of `unet convert --json`."""
        report = {
            "source": str(self.source),
            "target": str(self.target),
            "tensors": len(self.weights.tensors),
            "config": dataclasses.asdict(self.weights.config),
            "assumed": bool(self.assumed),
        }
        if isinstance(self.content, TrainingState):
            recipe = dataclasses.asdict(self.content.recipe)
            report |= {"recipe": recipe, "step": self.content.step}
        return report


def convert(
    source: Path,
    target: Path,
    *,
    config: UNetConfig,
    dtype: str = "float32",
    weights_only: bool = False,
) -> Conversion:
    """Convert weights, or a run with its optimizer, into a file of the kind of the target's name.

    Args:
        source: a .pt, .pth or .safetensors, or a RUN, of which the newest checkpoint counts.
        target: a .pt, .pth or .safetensors that does not exist.
        config: the axes that no tensor shows.
        dtype: of the weights in a .safetensors target; a run stays in its own.
        weights_only: leave out the optimizer of a run, and take its averaged weights.

    Raises:
        InputError: a target that exists, a source that does not fit; nothing is written.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    for path in (source, target):
        if path.suffix not in SUFFIXES and not (path == source and path.is_dir()):
            raise InputError(f"{path}: the suffix is .pt, .pth or .safetensors")
    refuse_existing(target)
    content, assumed = read(source, config, weights_only=weights_only)
    if isinstance(content, TrainingState) and dtype not in ("float32", content.dtype):
        raise InputError(f"{source}: the run is in {content.dtype} and stays so; leave out --dtype")
    _write(target, content, dtype=dtype)
    axes = content.weights.config if isinstance(content, TrainingState) else content.config
    return Conversion(
        source, target, content, dialects.describe_assumptions(axes) if assumed else ""
    )


def read(
    source: Path, config: UNetConfig, *, weights_only: bool = False
) -> tuple[TrainingState | WeightFile, bool]:
    """Return what a source holds, and whether axes of its config were taken from `config`.

    Args:
        weights_only: return the weights of a run, averaged where it keeps an average.

    Raises:
        InputError: it cannot be read, or says otherwise than `config`.
    """
    if source.suffix in OF_TORCH:
        content, assumed = _read_torch(source, config, weights_only=weights_only)
    else:
        content, assumed = _read_ours(source, config)
    if weights_only and isinstance(content, TrainingState):
        content = content.weights_that_predict
    if not assumed:
        weights = content.weights if isinstance(content, TrainingState) else content
        refuse_contradiction(config, weights.config, source=source)
    return content, assumed


def _read_ours(source: Path, config: UNetConfig) -> tuple[TrainingState | WeightFile, bool]:
    if source.is_dir():
        return training_state.read(source), False
    if safetensors_file.read_card(source) is not None:
        return training_state.read_either(source), False
    _, tensors = safetensors_file.read(source)
    axes = dialects.infer_config(tensors, given=config, source=str(source))
    return WeightFile(axes, tensors), True


def _read_torch(
    source: Path, config: UNetConfig, *, weights_only: bool
) -> tuple[TrainingState | WeightFile, bool]:
    need("torch")
    from unet_torch import checkpoint
    from unet_torch import training_state as torch_state

    content = checkpoint.read_content(source)
    if torch_state.knows_config(content):
        return torch_state.from_content(content, config, source=source), False
    if torch_state.holds_optimizer(content) and not weights_only:
        try:
            return torch_state.from_content(content, config, source=source), True
        except InputError as error:
            raise InputError(f"{error}; --weights-only takes its weights alone") from error
    tensors = checkpoint.select_tensors(content, source=str(source))
    axes = dialects.infer_config(tensors, given=config, source=str(source))
    return WeightFile(axes, tensors), True


def _write(target: Path, content: TrainingState | WeightFile, *, dtype: str) -> None:
    if target.suffix == ".safetensors":
        if isinstance(content, TrainingState):
            training_state.write(target, content)
        else:
            weight_file.write(target, content, dtype=dtype)
        return
    need("torch")
    from unet_torch import checkpoint
    from unet_torch import training_state as torch_state

    if isinstance(content, TrainingState):
        torch_state.write(target, content)
    else:
        checkpoint.write(target, content.tensors)


def refuse_contradiction(given: UNetConfig, config: UNetConfig, *, source: Path | None) -> None:
    """Refuse flags that say otherwise than a file."""
    default = UNetConfig()
    for field in dataclasses.fields(given):
        flag, value = getattr(given, field.name), getattr(config, field.name)
        if flag not in (value, getattr(default, field.name)):
            raise ConfigError(
                UNetConfig,
                f"{{source}}: its config says {field.name}={{of_file}}, not {{flag}}; leave out "
                f"{{{field.name}}}",
                source=source,
                of_file=value,
                flag=flag,
            )
