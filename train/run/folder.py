"""RUN/ as a folder: the names of its files, how a run begins there, and whether it may resume."""

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from unet_spec import InputError, training_state
from unet_spec.errors import ConfigError
from unet_spec.fields import check_types, from_json
from unet_spec.files import (
    atomic_write,
    check_place,
    open_plain,
    refuse_existing,
    temporary_prefix,
)
from unet_spec.origin import Origin
from unet_spec.plain_json import read_json
from unet_spec.training_state import TrainingState

from ..config import DataConfig, TrainConfig, to_plain
from ..input.dataset import Dataset, Identities
from ..input.identity import Identity

CONFIG = "config.json"
DATA = "data.json"
START = "start.json"
CHECKPOINTS = training_state.CHECKPOINTS
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
PICTURES = "pictures"
PAGE = "report.html"
AUGMENTED = "augmented.png"
LOCK = ".lock"

FILES = (CONFIG, DATA, START, WEIGHTS, BEST, METRICS, PAGE, AUGMENTED, LOCK)
FOLDERS = (CHECKPOINTS, TENSORBOARD, PICTURES)
WRITTEN_IN_PLACE = (METRICS, LOCK)  # what would go through a link; all else is replaced

MAX_NAMES = 5  # names in a sentence
MAX_SHOWN = 200  # characters of a reason or a value in a sentence
MOST_BYTES = 256 * 2**20  # of a file of JSON; a million images take up about 150 MiB
TRIES = 1000  # to lock a folder that others remove

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
        InputError: something is there that is no run, or a run whose weights would be lost; or
            the files of a run cannot be read and written there.
    """
    check_place(out)
    if out.is_dir():
        _check_files(out)
    if training_state.list_steps(out / CHECKPOINTS):
        return True
    if (out / WEIGHTS).exists() or (out / BEST).exists():
        raise InputError(
            f"{out}: it holds weights, and no checkpoint from which their run could go on; name "
            "another --out, or remove it first"
        )
    if has_begun(out):
        read_config(out)  # another program may have a file of this name, and it is not replaced
    elif not _is_empty(out):
        refuse_existing(out, why="exists, and holds no run")
    return False


def _check_files(out: Path) -> None:
    """Refuse a folder in which something else has the name of a file that the run writes.

    Raises:
        InputError: a folder, a pipe or a link is there, or this user may not read or write it.
    """
    pictures = out / PICTURES
    names = [out / name for name in FILES]
    names += [path for path in (out / CHECKPOINTS, pictures) if path.is_dir()
              for path in path.glob("[0-9]*")]  # fmt: skip
    for path in names:
        if path.is_symlink() and path.name in WRITTEN_IN_PLACE:
            raise InputError(f"{path}: a link, through which a run does not write; remove it")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no file"
            raise InputError(
                f"{path}: {kind}, and the run has a file of this name; move it away, or name "
                "another --out"
            )
        if path.is_file() and not os.access(path, os.R_OK, effective_ids=True):
            raise InputError(f"{path}: it cannot be read; give it back its permissions")
    for path in (out, *(out / name for name in FOLDERS)):
        if path != out and path.is_symlink():
            raise InputError(
                f"{path}: a link, and a run writes and removes files there; move the folder itself "
                "into its place"
            )
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(
                f"{path}: no folder, and the run has a folder of this name; move it away, or name "
                "another --out"
            )
        if path.is_dir() and not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise InputError(
                f"{path}: it cannot be read and written; give it back its permissions, or name "
                "another --out"
            )
    metrics = out / METRICS
    if metrics.exists() and not os.access(metrics, os.W_OK, effective_ids=True):
        raise InputError(f"{metrics}: it cannot be written; give it back its permissions")


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
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    with _open_lock(out):
        try:
            yield
        finally:
            # while it is locked: whoever opens it from here on makes a new one
            (out / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something
                for folder in missing:
                    folder.rmdir()


def _open_lock(out: Path) -> BinaryIO:
    """Return RUN/.lock, locked.

    Raises:
        InputError: another process holds it.
    """
    path = out / LOCK
    for tries in range(TRIES):
        try:
            out.mkdir(parents=True, exist_ok=True)
            # NFS locks only what is open for writing
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, FileExistsError):
            if tries == TRIES - 1 or (os.path.lexists(out) and not out.is_dir()):
                raise  # it is a file, or a link to nothing
            continue  # another owner of the lock has just removed the folder
        stream = os.fdopen(handle, "r+b", buffering=0)
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
    raise InputError(f"{out}: other commands come and go there; wait for them")


def remove_leftovers(out: Path) -> None:
    """Remove what kills have left of files that were being written."""
    of_run = "|".join(re.escape(temporary_prefix(name)) for name in FILES)
    patterns = {
        out: f"({of_run})[a-z0-9_]{{8}}",
        out / CHECKPOINTS: r"\.[0-9]+\.safetensors\.[a-z0-9_]{8}",
        out / PICTURES: r"\.[0-9]+_.*\.[a-z0-9_]{8}",
    }
    for folder, pattern in patterns.items():
        for path in folder.glob(".*"):
            if re.fullmatch(pattern, path.name) and path.is_file():
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
        InputError: it cannot be read, or is no config of a run.
    """
    plain = _read(out / CONFIG)
    try:
        if missing := [name for name in ("net", "data", "steps") if name not in plain]:
            raise InputError(f"{', '.join(missing)} is missing")
        _check_config(plain)
    except (InputError, TypeError) as error:  # a list where a number is compared, for example
        raise _refuse_beginning(out / CONFIG, str(error)) from error
    return plain


def _check_config(plain: Mapping[str, Any]) -> None:
    """Refuse plain values of which no config can be made."""
    parts: dict[str, Any] = {"": plain, "data": plain["data"]}
    for name, kind in (("", TrainConfig), ("data", DataConfig)):
        if not isinstance(parts[name], dict):
            raise InputError(f"{name} is an object, got {parts[name]!r}")
        parts[name] = dict(parts[name])
        for field in fields(kind):
            if field.type == Path | None:
                value = parts[name].pop(field.name, None)
                if not isinstance(value, str | None):
                    raise InputError(f"{field.name} is the name of a file, got {value!r}")
    from_json(TrainConfig, json.dumps({**parts[""], "data": parts["data"]}))


def read_started(out: Path) -> dict[str, Any]:
    """Return what `write_beginning` wrote of the start.

    Raises:
        InputError: it cannot be read.
    """
    started = _read(out / START)
    if "settings" not in started or "origin" not in started:
        raise _refuse_beginning(out / START, "its settings or its origin are missing")
    settings, origin = started["settings"], started["origin"]
    names = {field.name for field in fields(TrainConfig)}
    if not (isinstance(settings, list) and all(type(s) is str and s in names for s in settings)):
        raise _refuse_beginning(out / START, f"settings are names of settings, got {settings!r}")
    if origin is not None:
        try:
            Origin.from_plain(origin)
        except InputError as error:
            raise _refuse_beginning(out / START, str(error)) from error
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
        values = {f"was {name}": _shorten(old) for name, (old, _) in fixed.items()}
        values |= {f"now {name}": _shorten(new) for name, (_, new) in fixed.items()}
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
    data = _read(out / DATA)
    for side in ("training", "validation"):
        names = data.get(side)
        if not (isinstance(names, list) and all(type(name) is str for name in names)):
            raise _refuse_beginning(out / DATA, f"{side} are names of images, got {names!r}")
    if (dataset.training.names, dataset.validation.names) != (data["training"], data["validation"]):
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
        with open_plain(path, most_bytes=MOST_BYTES) as stream:
            content = read_json(stream.read().decode())
        if isinstance(content, dict):
            return content
        reason = "it holds no names and values"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise _refuse_beginning(path, reason)


def _refuse_beginning(path: Path, reason: str) -> InputError:
    """Return the error of a file that does not say how a run began."""
    return InputError(
        f"{path}: it should say how the run began, and cannot be read ({_shorten(reason)}); "
        "bring it back from a copy, or name another --out (of several processes, one that all of "
        "them see)"
    )


def _shorten(value: Any) -> str:
    """Return the beginning of what a file may say at any length."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=2).encode() + b"\n"
