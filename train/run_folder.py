"""RUN/: what a run leaves there, and whether the same command may go on in it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train.config import TrainConfig, to_plain
from train.data import Sample
from unet_spec import InputError, training_state
from unet_spec.files import written

CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
LAST = training_state.LAST
PICTURES = "pictures"
PAGE = "report.html"
AUGMENTED = "augmented.png"

# all else is part of what the weights are a function of
MAY_CHANGE = (
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


def begin(out: Path, config: TrainConfig, samples: Sequence[Sample]) -> None:
    """Write what the run is."""
    out.mkdir(parents=True, exist_ok=True)
    with written(out / DATA) as stream:
        stream.write(_json({"images": len(samples), "sha256": fingerprint(samples)}))
    with written(out / CONFIG) as stream:
        stream.write(_json(to_plain(config)))


def check(out: Path, config: TrainConfig, samples: Sequence[Sample]) -> list[str]:
    """What this command says otherwise than the one that began the run, in words; a run goes on
    with other devices, paths and intervals.

    Raises:
        InputError: it differs in something that the weights depend on, or the images do.
    """
    began = _read(out / CONFIG)
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
        raise InputError(
            f"{out}: the run there cannot go on with another config ({listed}); give the values "
            "that it began with, or name another --out"
        )
    if _read(out / DATA)["sha256"] != fingerprint(samples):
        raise InputError(
            f"{out}: the images or masks are not those with which the run there began; bring them "
            "back, or name another --out"
        )
    return [f"{name} was {old}, now {new}" for name, (old, new) in changed.items()]


def fingerprint(samples: Sequence[Sample]) -> str:
    """Hash of the names, inputs and masks of all samples, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.name} {sample.x.shape}".encode())
        digest.update(sample.x.tobytes())
        digest.update(sample.mask.tobytes())
    return digest.hexdigest()


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif old != new:
        yield path, (old, new)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: it should say how the run began, and cannot be read ({error}); name another "
            "--out"
        ) from error


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=2).encode() + b"\n"
