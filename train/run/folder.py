"""RUN/ as a folder: the names of its files, how a run begins there, and whether it may resume."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_spec import InputError, training_state
from unet_spec.errors import ConfigError
from unet_spec.files import atomic_write, atomic_write_folder, refuse_existing
from unet_spec.plain_json import read_json
from unet_spec.training_state import TrainingState

from ..config import TrainConfig, to_plain
from ..input.samples import Sample

CONFIG = "config.json"
DATA = "data.json"
START = "start.json"
CHECKPOINTS = training_state.CHECKPOINTS
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
PICTURES = "pictures"
PAGE = "report.html"
AUGMENTED = "augmented.png"

MAX_NAMES = 5  # names in a sentence

# all else is part of what the weights are a function of
MAY_CHANGE = (
    "preset",
    "data.images",
    "data.masks",
    "validate_every",
    "checkpoint_every",
    "keep",
    "patience",
    "mesh",
)


def is_run(out: Path) -> bool:
    """Return whether a run has begun there."""
    return (out / CONFIG).exists()


Fingerprints = dict[str, str]  # sha256 of each sample, by its name


def write_beginning(
    out: Path, config: TrainConfig, *, fingerprints: Fingerprints, started: Mapping[str, Any]
) -> None:
    """Write what the run is.

    A kill leaves all of it or nothing, except if `out` is there and empty: it may be a mount point,
    and is not replaced.

    Args:
        fingerprints: of its samples.
        started: what `beginning.describe_start` gives.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    refuse_existing(out)
    with nullcontext(out) if out.is_dir() else atomic_write_folder(out) as folder:
        for name, content in (
            (DATA, {"samples": fingerprints}),
            (START, dict(started)),
            (CONFIG, to_plain(config)),
        ):
            with atomic_write(folder / name) as stream:
                stream.write(_json(content))


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Let nobody else train in this run while the block runs.

    However this process ends, the next one may train there.

    Raises:
        InputError: somebody does.
    """
    with (out / CONFIG).open("r+b") as stream:  # NFS locks only what is open for writing
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{out}: another command is training there; wait for it, or name another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


def remove_leftovers(out: Path) -> None:
    """Remove what kills have left of files that were being written."""
    for folder in (out, out / CHECKPOINTS, out / PICTURES):
        for path in folder.glob(".*.????????"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def describe_identity(config: TrainConfig, fingerprints: Fingerprints) -> str:
    """Return what all processes of a run must have in common."""
    mesh = replace(config.mesh, process=None)
    return json.dumps([to_plain(replace(config, mesh=mesh)), fingerprints])


def list_changes(old: TrainConfig, new: TrainConfig) -> list[tuple[str, Any]]:
    """Return the names and new values of the fields that differ."""
    return [(name, pair[1]) for name, pair in _iterate_differences(to_plain(old), to_plain(new))]


def read_config(out: Path) -> dict[str, Any]:
    """Return the config that `write_beginning` wrote, as plain values.

    Raises:
        InputError: it cannot be read.
    """
    return _read(out / CONFIG)


def read_started(out: Path) -> dict[str, Any]:
    """Return what `write_beginning` wrote of the start.

    Raises:
        InputError: it cannot be read.
    """
    started = _read(out / START)
    settings, origin = started.get("settings"), started.get("origin")
    if not isinstance(settings, list) or not isinstance(origin, dict | None):
        raise _refuse_beginning(out / START, "its settings or its origin are missing")
    return started


def compare_with_beginning(out: Path, config: TrainConfig, fingerprints: Fingerprints) -> list[str]:
    """Return what differs from the command that began the run, in words.

    A run may go on with other devices, paths and intervals.

    Raises:
        InputError: it differs in something that the weights depend on, or the images do.
    """
    # a field that an older version did not have, it used as the default of today
    beginning = _fill_in(read_config(out), json.loads(_json(to_plain(TrainConfig()))))
    changed = dict(_iterate_differences(beginning, json.loads(_json(to_plain(config)))))
    if config.schedule == config.schedule.for_steps(config.steps):
        free: tuple[str, ...] = (*MAY_CHANGE, "steps")  # the schedule does not depend on it
    else:
        free = MAY_CHANGE
    fixed = {
        name: pair
        for name, pair in changed.items()
        if not any(name == one or name.startswith(f"{one}.") for one in free)
    }
    if fixed:
        listed = "; ".join(f"{{{name}}} was {{was {name}}}, now {{now {name}}}" for name in fixed)
        longer = "; its schedule ends at the last step" if "steps" in fixed else ""
        values = {f"was {name}": old for name, (old, _) in fixed.items()}
        values |= {f"now {name}": new for name, (_, new) in fixed.items()}
        raise ConfigError(
            config,
            f"{{out}}: the run there cannot go on with another config ({listed}{longer}); give "
            "the values that it began with, or name another --out, which may take its weights by "
            "{start}",
            out=out,
            **values,
        )
    samples = _read(out / DATA).get("samples")
    if not isinstance(samples, dict):
        raise _refuse_beginning(out / DATA, "its samples are missing")
    if other := _describe_changed_samples(samples, fingerprints):
        raise InputError(
            f"{out}: the images or masks are not those with which the run there began ({other}); "
            "bring them back, or name another --out"
        )
    return [f"{name} was {old}, now {new}" for name, (old, new) in changed.items()]


def refuse_other_run(out: Path, checkpoint: TrainingState, config: TrainConfig) -> None:
    """Refuse a checkpoint that is not one of this run.

    Raises:
        InputError: it has another net, recipe or average.
    """
    ours = {"net": config.net, "recipe": config.recipe, "average": config.ema > 0}
    theirs = {
        "net": checkpoint.weights.config,
        "recipe": checkpoint.recipe,
        "average": bool(checkpoint.average),
    }
    if unlike := [name for name, value in ours.items() if theirs[name] != value]:
        raise InputError(
            f"{out / CHECKPOINTS}: the checkpoint of step {checkpoint.step} is of another run "
            f"(other {', '.join(unlike)}); bring back that of this run, or remove it"
        )


def fingerprint_samples(samples: Sequence[Sample]) -> Fingerprints:
    """Return the sha256 of image and mask of each sample, by its name."""
    return {sample.name: _fingerprint(sample) for sample in samples}


def _fingerprint(sample: Sample) -> str:
    digest = hashlib.sha256(f"{sample.image.shape} {sample.image.dtype}".encode())
    for array in (sample.image, sample.mask, sample.objects):
        if array is not None:
            digest.update(array.tobytes())
    return digest.hexdigest()


def _describe_changed_samples(old: Fingerprints, new: Fingerprints) -> str:
    """Return what is gone, new or changed, in words."""
    both = old.keys() & new.keys()
    kinds = {
        "gone": old.keys() - new.keys(),
        "new": new.keys() - old.keys(),
        "changed": {name for name in both if old[name] != new[name]},
    }
    return "; ".join(
        f"{kind}: {', '.join(sorted(names)[:MAX_NAMES])}"
        + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
        for kind, names in kinds.items()
        if names
    )


def _iterate_differences(
    old: Any, new: Any, path: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _iterate_differences(
                old.get(name), new.get(name), f"{path}.{name}".lstrip(".")
            )
    elif old != new:
        yield path, (old, new)


def _fill_in(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values, with the defaults of those that are missing."""
    parts = {
        name: _fill_in(values[name], value)
        for name, value in defaults.items()
        if isinstance(value, dict) and isinstance(values.get(name), dict)
    }
    return {**defaults, **values, **parts}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path.read_text())
        if isinstance(content, dict):
            return content
        reason = "it holds no names and values"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise _refuse_beginning(path, reason)


def _refuse_beginning(path: Path, reason: str) -> InputError:
    """Return the error of a file that does not say how a run began."""
    return InputError(
        f"{path}: it should say how the run began, and cannot be read ({reason}); bring it back "
        "from a copy, or name another --out (of several processes, one that all of them see)"
    )


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=2).encode() + b"\n"
