"""RUN/: what a run leaves there, and whether the same command may go on in it."""

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
from unet_spec.files import atomic_write, atomic_write_folder, refuse_existing

from .config import TrainConfig, to_plain
from .data import Sample

CONFIG = "config.json"
DATA = "data.json"
START = "start.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
LAST = training_state.LAST
PICTURES = "pictures"
PAGE = "report.html"
AUGMENTED = "augmented.png"

SHOWN = 5  # names in a sentence

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
    """Whether a run has begun there."""
    return (out / CONFIG).exists()


Fingerprints = dict[str, str]  # sha256 of each sample, by its name


def begin(
    out: Path, config: TrainConfig, *, shown: Fingerprints, started: Mapping[str, Any]
) -> None:
    """Write what the run is; a kill leaves all of it or nothing, but where `out` is there and
    empty, which may be a mount point: that is not replaced.

    Args:
        shown: of its samples.
        started: `told`, the names of what `config.start` said of the config, and its `sha256`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    refuse_existing(out)
    with nullcontext(out) if out.is_dir() else atomic_write_folder(out) as folder:
        for name, content in (
            (DATA, {"samples": shown}),
            (START, dict(started)),
            (CONFIG, to_plain(config)),
        ):
            with atomic_write(folder / name) as stream:
                stream.write(_json(content))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else trains in a run meanwhile; however this process ends, the next one may.

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


def clear(out: Path) -> None:
    """Remove what kills have left of files that were being written."""
    for folder in (out, out / LAST, out / PICTURES):
        for path in folder.glob(".*.????????"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def identity(config: TrainConfig, shown: Fingerprints) -> str:
    """What all processes of a run must have in common."""
    mesh = replace(config.mesh, process=None)
    return json.dumps([to_plain(replace(config, mesh=mesh)), shown])


def changes(old: TrainConfig, new: TrainConfig) -> list[tuple[str, Any]]:
    """Names and new values of what differs."""
    return [(name, pair[1]) for name, pair in _differences(to_plain(old), to_plain(new))]


def read_config(out: Path) -> dict[str, Any]:
    """What `begin` wrote of the config.

    Raises:
        InputError: it cannot be read.
    """
    return _read(out / CONFIG)


def read_started(out: Path) -> dict[str, Any]:
    """What `begin` wrote of the start.

    Raises:
        InputError: it cannot be read.
    """
    return _read(out / START)


def check(out: Path, config: TrainConfig, shown: Fingerprints) -> list[str]:
    """What this command says otherwise than the one that began the run, in words; a run goes on
    with other devices, paths and intervals.

    Raises:
        InputError: it differs in something that the weights depend on, or the images do.
    """
    # what an older version did not know, it did as the default of today
    began = _filled(read_config(out), json.loads(_json(to_plain(TrainConfig()))))
    changed = dict(_differences(began, json.loads(_json(to_plain(config)))))
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
        listed = "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in fixed.items())
        longer = "; its schedule ends at the last step" if "steps" in fixed else ""
        raise InputError(
            f"{out}: the run there cannot go on with another config ({listed}{longer}); give "
            "the values that it began with, or name another --out, which may take its weights by "
            "--start"
        )
    if other := _other(_read(out / DATA).get("samples") or {}, shown):
        raise InputError(
            f"{out}: the images or masks are not those with which the run there began ({other}); "
            "bring them back, or name another --out"
        )
    return [f"{name} was {old}, now {new}" for name, (old, new) in changed.items()]


def fingerprints(samples: Sequence[Sample]) -> Fingerprints:
    """Hashes of image and mask of all samples."""
    return {sample.name: _fingerprint(sample) for sample in samples}


def _fingerprint(sample: Sample) -> str:
    digest = hashlib.sha256(f"{sample.image.shape} {sample.image.dtype}".encode())
    for array in (sample.image, sample.mask, sample.objects):
        if array is not None:
            digest.update(array.tobytes())
    return digest.hexdigest()


def _other(began: Fingerprints, now: Fingerprints) -> str:
    """What is gone, new or changed, in words."""
    both = began.keys() & now.keys()
    kinds = {
        "gone": began.keys() - now.keys(),
        "new": now.keys() - began.keys(),
        "changed": {name for name in both if began[name] != now[name]},
    }
    return "; ".join(
        f"{kind}: {', '.join(sorted(names)[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for kind, names in kinds.items()
        if names
    )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif old != new:
        yield path, (old, new)


def _filled(known: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """With the usual values in the place of those that are not known."""
    parts = {
        name: _filled(known[name], value)
        for name, value in usual.items()
        if isinstance(value, dict) and isinstance(known.get(name), dict)
    }
    return {**usual, **known, **parts}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        reason = "it holds no names and values"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InputError(
        f"{path}: it should say how the run began, and cannot be read ({reason}); bring it back "
        "from a copy, or name another --out (of several processes, one that all of them see)"
    )


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=2).encode() + b"\n"
