"""Weights and whole runs from one kind of file to another."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_convert import foreign
from unet_convert.evidence import Evidence
from unet_convert.foreign import Recognition
from unet_spec import (
    InputError,
    Preprocessing,
    UNetConfig,
    narrowing,
    safetensors_file,
    training_state,
    weight_file,
)
from unet_spec.environment import need
from unet_spec.errors import ConfigError
from unet_spec.files import refuse_existing
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names, show

OF_TORCH = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".sav", ".tar")
"""A target whose name ends so is written as `torch.save` does; a source is read by its content."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        content: weights, or a run with its optimizer.
        recognition: of a foreign file, how it is known which net it holds.
        notes: what else a person should know, in sentences.
    """

    source: Path
    target: Path
    content: TrainingState | WeightFile
    recognition: Recognition | None
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> WeightFile:
        """The weights that were written."""
        return weights_of(self.content)

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
            result = f"all {count} tensors of the net"
        known = [] if self.recognition is None else self.recognition.sentences()
        lines = [*known, *self.notes, f"{self.source} -> {self.target}: {result}"]
        return [show(line) for line in lines]

    def to_json(self) -> dict[str, Any]:
        """The report of `unet convert --json`."""
        report = {
            "source": str(self.source),
            "target": str(self.target),
            "tensors": len(self.weights.tensors),
            "config": dataclasses.asdict(self.weights.config),
            "assumed": self.recognition is not None and self.recognition.search is None,
        }
        if self.recognition is not None:
            report["recognition"] = self.recognition.to_json()
        if isinstance(self.content, TrainingState):
            recipe = dataclasses.asdict(self.content.recipe)
            report |= {"recipe": recipe, "step": self.content.step}
        return report


def weights_of(content: TrainingState | WeightFile) -> WeightFile:
    """Return the weights of a file's content."""
    return content.weights if isinstance(content, TrainingState) else content


def convert(
    source: Path,
    target: Path,
    *,
    evidence: Evidence = Evidence(),
    dtype: str = "float32",
    weights_only: bool = False,
    without_scheduler: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Conversion:
    """Convert weights, or a run with its optimizer, into a file of the kind of the target's name.

    A target for PyTorch has the names, the order and the form of the file that the net once came
    from; a net that came from nowhere has the slides' names.

    Args:
        source: a file of PyTorch or .safetensors, whatever its name, or a RUN, of which the newest
            checkpoint counts.
        target: a file that does not exist, for PyTorch if its name ends in one of `OF_TORCH`.
        evidence: what says which net a foreign file holds.
        dtype: of the weights in a .safetensors target; a run stays in its own.
        weights_only: leave out the optimizer of a run, and take its averaged weights.
        without_scheduler: leave out the scheduler of a foreign run; its learning rate stays.
        say: is called with a line when something takes a while.

    Raises:
        InputError: a target that exists, a source that does not fit; nothing is written.
    """
    refuse_existing(target)
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
    content, recognition, notes = read(
        source,
        evidence,
        weights_only=weights_only,
        without_scheduler=without_scheduler,
        say=say,
    )
    if dtype != "float32" and target.suffix in OF_TORCH:
        raise InputError(
            f"{target}: a file for PyTorch has the types that its net came in; leave out --dtype"
        )
    if isinstance(content, TrainingState) and dtype not in ("float32", content.dtype):
        raise InputError(f"{source}: the run is in {content.dtype} and stays so; leave out --dtype")
    try:
        notes = (*notes, *_write(target, content, dtype=dtype))
    except InputError as error:
        if str(error).startswith(f"{target}: "):
            raise
        raise InputError(f"{source}: {error}") from error  # values that the target cannot hold
    return Conversion(source, target, content, recognition, notes)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a file is, in sentences."""

    source: Path
    lines: tuple[str, ...]

    def sentences(self) -> list[str]:
        return [show(line) for line in self.lines]

    def to_json(self) -> dict[str, Any]:
        return {"source": str(self.source), "lines": list(self.lines)}


def explain(
    source: Path, evidence: Evidence, *, say: Callable[[str], None] = lambda text: None
) -> Explanation:
    """Say what a file or a RUN is; nothing is written.

    Raises:
        InputError: it cannot be read, or holds no U-Net of `UNetConfig`, with the reason.
    """
    if evidence.recorded is not None or evidence.reference is not None:
        _, recognition, notes = read(source, evidence, say=say)
        if recognition is not None:
            return Explanation(source, (f"{source}:", *recognition.sentences(), *notes))
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    if source.is_dir():
        return Explanation(source, tuple(_explain_ours(source, training_state.read(source))))
    if not _is_of_torch(source):
        if safetensors_file.read_card(source) is not None:
            return Explanation(
                source, tuple(_explain_ours(source, training_state.read_either(source)))
            )
        _, tensors = safetensors_file.read(source)
        return Explanation(
            source, tuple(foreign.explain(tensors, source=source, evidence=evidence))
        )
    need("torch")
    from unet_torch import checkpoint

    opened = checkpoint.read(source)
    lines = foreign.explain(opened.tensors, source=source, evidence=evidence, ties=opened.ties)
    if opened.optimizer is not None:
        lines.append("beside it: the state of an optimizer, so JAX can go on with the run")
    if opened.scheduler is not None:
        lines.append("beside it: the state of a scheduler")
    return Explanation(source, tuple(lines))


def _explain_ours(source: Path, content: TrainingState | WeightFile) -> list[str]:
    weights = weights_of(content)
    lines = [f"{source}: {foreign.describe_net(weights.config)}"]
    if isinstance(content, TrainingState):
        recipe = content.recipe
        lines.append(
            f"a run at step {content.step}, with {recipe.optimizer.name} and the schedule "
            f"{recipe.schedule.name}"
        )
    else:
        lines.append("a weight file of this project")
    if weights.origin is not None and weights.origin.names:
        lines.append(f"it came from a file with names such as {weights.origin.names[0][0]}")
    return lines


def _is_of_torch(source: Path) -> bool:
    return source.suffix in OF_TORCH or weight_file.is_torch_file(source)


def read(
    source: Path,
    evidence: Evidence = Evidence(),
    *,
    weights_only: bool = False,
    without_scheduler: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[TrainingState | WeightFile, Recognition | None, tuple[str, ...]]:
    """Return what a source holds, how a foreign one was recognised, and notes.

    Args:
        weights_only: return the weights of a run, averaged where it keeps an average.

    Raises:
        InputError: it cannot be read, or says otherwise than the evidence.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    content: TrainingState | WeightFile
    recognition: Recognition | None = None
    notes: tuple[str, ...] = ()
    if source.is_dir():
        content = _read_ours(training_state.newest_path(source), weights_only=weights_only)
    elif _is_of_torch(source):
        content, recognition, notes = _read_torch(
            source, evidence, weights_only=weights_only, without_scheduler=without_scheduler,
            say=say,
        )  # fmt: skip
    elif safetensors_file.read_card(source) is not None:
        content = _read_ours(source, weights_only=weights_only)
    else:
        _, tensors = safetensors_file.read(source)
        recognition = foreign.recognise(tensors, source=source, evidence=evidence, say=say)
        content = recognition.weights
    if weights_only and isinstance(content, TrainingState):
        content = content.weights_that_predict
    elif without_scheduler and isinstance(content, TrainingState):
        content = training_state.leave_out_schedule(content)
    if recognition is None:
        if evidence.preprocessing != Preprocessing():
            raise InputError(f"{source}: it says its preprocessing itself; leave out those flags")
        refuse_contradiction(evidence.config, weights_of(content).config, source=source)
    return content, recognition, notes


def _read_ours(path: Path, *, weights_only: bool) -> TrainingState | WeightFile:
    """Return what a .safetensors file of this project holds; of a run, its weights alone where
    they are asked for: then it does not matter what its optimizer holds."""
    return weight_file.read(path) if weights_only else training_state.read_either(path)


def _read_torch(
    source: Path,
    evidence: Evidence,
    *,
    weights_only: bool,
    without_scheduler: bool,
    say: Callable[[str], None],
) -> tuple[TrainingState | WeightFile, Recognition | None, tuple[str, ...]]:
    need("torch")
    from unet_torch import checkpoint, foreign_run
    from unet_torch import training_state as torch_state

    opened = checkpoint.read(source)
    if torch_state.knows_config(opened.content) and weights_only:
        return torch_state.weights_from_content(opened.content, source=source), None, ()
    if torch_state.knows_config(opened.content):
        content = torch_state.from_content(
            opened.content, evidence.config, source=source, without_scheduler=without_scheduler
        )
        beside = torch_state.list_beside(opened.content)
        notes = [f"left out, not of the run: {list_names(beside, 4)}"] if beside else []
        return content, None, tuple(notes)
    recognition = foreign.recognise(
        opened.tensors, source=source, evidence=evidence, checkpoint=opened, say=say
    )
    if weights_only or opened.optimizer is None:
        return recognition.weights, recognition, ()
    try:
        state, notes = foreign_run.read(
            opened, recognition.weights, recognition.parameters, without_scheduler=without_scheduler
        )
    except InputError as error:
        raise InputError(f"{source}: {error}; --weights-only takes its weights alone") from error
    return state, recognition, tuple(notes)


def _write(target: Path, content: TrainingState | WeightFile, *, dtype: str) -> list[str]:
    """Write the target, and return notes about it."""
    if target.suffix not in OF_TORCH:
        if isinstance(content, TrainingState):
            training_state.write(target, content)
        else:
            weight_file.write(target, content, dtype=dtype)
            return _note_losses(content, dtype)
        return []
    need("torch")
    from unet_torch import checkpoint, foreign_run
    from unet_torch import training_state as torch_state

    if not foreign.is_plain(weights_of(content).origin):
        return foreign_run.write(target, content)
    if isinstance(content, TrainingState):
        torch_state.write(target, content)
    else:
        checkpoint.write(target, content.tensors)
    return []


def _note_losses(weights: WeightFile, dtype: str) -> list[str]:
    """Say which values the type of a file keeps with fewer digits, or makes 0."""
    floats = narrowing.list_floats(weights.tensors)
    floats = {name: t for name, t in floats.items() if str(t.dtype) != dtype}
    narrowed = {name: narrowing.narrow(name, t, dtype) for name, t in floats.items()}
    sentence = narrowing.describe_losses(floats, narrowed, dtype)
    return [sentence] if sentence else []


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
