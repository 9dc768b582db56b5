"""RUN/ as a folder: the names of its files, how a run begins there, and whether it may resume."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from unet_spec import InputError, training_state
from unet_spec.errors import ConfigError
from unet_spec.fields import check_types
from unet_spec.files import atomic_write, refuse_existing
from unet_spec.plain_json import read_json
from unet_spec.training_state import TrainingState

from ..config import TrainConfig, to_plain
from ..input.dataset import Dataset, Identities
from ..input.identity import Identity

CONFIG = "config.json"
DATA = "data.json"
START = "start.json"
CHECKPOINTS = training_state.CHECKPOINTS
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
PICTURES = "pictures"
PAGE = "report.html"
AUGMENTED = "augmented.png"
LOCK = ".lock"

MAX_NAMES = 5  # names in a sentence

# all else is part of what the weights are a function of
MAY_CHANGE = (
    "preset",
    "data.images",
    "data.masks",
    "data.split",
    "data.cache_gb",
    "data.largest_gb",
    "data.validation_images",
    "data.validation_masks",
    "data.synthetic",  # data.json says which images there are
    "validate_every",
    "checkpoint_every",
    "keep",
    "patience",
    "mesh",
)


def may_resume(out: Path) -> bool:
    """Return whether a run there has a checkpoint; one without has nothing to lose.

    Raises:
        InputError: something is there that is no run, or a run whose weights would be lost.
    """
    if training_state.list_steps(out / CHECKPOINTS):
        return True
    if (out / WEIGHTS).exists() or (out / BEST).exists():
        raise InputError(
            f"{out}: it holds weights, and no checkpoint from which their run could go on; name "
            "another --out, or remove it first"
        )
    if not (out / CONFIG).exists() and not _is_empty(out):
        refuse_existing(out, why="exists, and holds no run")
    return False


def has_begun(out: Path) -> bool:
    """Return whether a run has begun there, with or without a checkpoint."""
    return (out / CONFIG).exists()


def _is_empty(out: Path) -> bool:
    """Return whether a folder holds nothing but what a beginning that was killed has left."""
    return out.is_dir() and all(
        path.name == LOCK or path.name.startswith(f".{CONFIG}.") for path in out.iterdir()
    )


def write_beginning(
    out: Path, config: TrainConfig, *, dataset: Dataset, started: Mapping[str, Any]
) -> None:
    """Write what the run is, in place of what a run without a checkpoint has left there.

    A kill leaves a run without a checkpoint, which the next command replaces in the same way.

    Args:
        out: the folder, which `lock_run` has made.
        dataset: its images.
        started: what `beginning.describe_start` gives.
    """
    for name, content in (
        (CONFIG, to_plain(config)),  # first: it says that this folder is a run
        (DATA, dataset.to_plain()),
        (START, dict(started)),
    ):
        with atomic_write(out / name) as stream:
            stream.write(_json(content))
    (out / AUGMENTED).unlink(missing_ok=True)  # of another config, perhaps


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Let nobody else train in this folder while the block runs; make it where it is missing.

    However this process ends, the next one may train there. If nothing was written into the
    folder, nothing of it is left, except an empty folder that was there before.

    Raises:
        InputError: somebody does.
    """
    is_new = not out.exists()
    with _open_lock(out):
        try:
            yield
        finally:
            # while it is locked: whoever opens it from here on makes a new one
            (out / LOCK).unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it holds something
                    out.rmdir()


def _open_lock(out: Path) -> BinaryIO:
    """Return RUN/.lock, locked.

    Raises:
        InputError: another process holds it.
    """
    path = out / LOCK
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+b")  # NFS locks only what is open for writing
        except (FileNotFoundError, FileExistsError):
            if os.path.lexists(out) and not out.is_dir():
                raise  # it is a file, or a link to nothing
            continue  # another owner of the lock has just removed the folder
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise InputError(
                f"{out}: another command is training there; wait for it, or name another --out"
            ) from error
        except OSError:
            return stream  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
        stream.close()  # its owner has removed the file that was opened here


def remove_leftovers(out: Path) -> None:
    """Remove what kills have left of files that were being written."""
    for folder in (out, out / CHECKPOINTS, out / PICTURES):
        for path in folder.glob(".*.????????"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def describe_identity(config: TrainConfig, dataset: Dataset) -> str:
    """Return what all processes of a run must have in common."""
    config = replace(config, mesh=replace(config.mesh, process=None))
    names = [dataset.training.names, dataset.validation.names]
    files = {name: (one.bytes, one.sha256) for name, one in dataset.identities.items()}
    return json.dumps([to_plain(config), names, files])


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


def compare_with_beginning(out: Path, config: TrainConfig, dataset: Dataset) -> list[str]:
    """Return what differs from the command that began the run, in words.

    A run may go on with other devices, paths and intervals.

    Raises:
        InputError: it differs in something that the weights depend on, or the images do.
    """
    # a field that an older version did not have, it used as the default of today
    beginning = _fill_in(read_config(out), json.loads(_json(to_plain(TrainConfig()))))
    changed = dict(_iterate_differences(beginning, json.loads(_json(to_plain(config)))))
    if config.loss.balance:  # they come from the images
        changed.pop("loss.class_weights", None)
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
    if other := _describe_changed_files(read_identities(out), dataset.identities):
        raise InputError(
            f"{out}: the images or masks are not those with which the run there began ({other}); "
            "bring them back, or name another --out"
        )
    sides, data = (dataset.training.names, dataset.validation.names), _read(out / DATA)
    if sides != (data.get("training"), data.get("validation")):
        raise InputError(
            f"{out}: other images are held out, or to train on, than in the run there; bring back "
            "those with which it began, or name another --out"
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


def read_identities(out: Path) -> dict[str, Identity]:
    """Return which files the run in a folder began with.

    Raises:
        InputError: it cannot be read.
    """
    files = _read(out / DATA).get("files")
    try:
        if not isinstance(files, dict):
            raise InputError("files is no object")
        identities = {name: Identity(**plain) for name, plain in files.items()}
        for identity in identities.values():
            check_types(identity)
        return identities
    except (TypeError, InputError) as error:
        raise _refuse_beginning(out / DATA, "its files are missing") from error


def _describe_changed_files(old: Identities, new: Identities) -> str:
    """Return which files are gone, new or changed, in words."""
    both = old.keys() & new.keys()
    kinds = {
        "gone": old.keys() - new.keys(),
        "new": new.keys() - old.keys(),
        "changed": {name for name in both if not old[name].is_same(new[name])},
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
