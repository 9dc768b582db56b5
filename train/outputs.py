"""What a run leaves for people and for other programs: weight files, pictures, the page."""

import re
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

import unet_image
from unet_jax.training_state import to_training_state
from unet_spec import layout, training_state, weight_file
from unet_spec.environment import environment
from unet_spec.files import atomic_write
from unet_spec.weight_file import WeightFile

from . import data, page, run_folder
from .config import TrainConfig, to_plain
from .data import Sample
from .doctor import Diagnosis
from .preview import preview
from .record import read
from .step import State
from .validation import Scores

PICTURES = 3  # of the worst images, and of the best
PREVIEWED = 4  # images of the first batch
TRIED = 5  # steps that the preview shows of each


def to_weight_file(config: TrainConfig, state: State) -> WeightFile:
    """What predicts: the weights of a state, or their average, where the config has one."""
    arrays = {**state.params, **state.stats, **state.ema}
    tensors = layout.to_torch(config.net, {name: np.asarray(a) for name, a in arrays.items()})
    return WeightFile(config.net, tensors, config.preprocessing, config.class_names)


def write_weights(
    out: Path, config: TrainConfig, state: State, weights: WeightFile, *, best: bool
) -> None:
    """The weight files, and the training state beside the weights that it belongs to.

    Args:
        state: on the host.
    """
    middle = to_training_state(
        config.net, config.recipe, state.params, state.stats, state.optimizer,
        preprocessing=config.preprocessing, class_names=config.class_names,
    )  # fmt: skip
    folder = out / run_folder.LAST
    folder.mkdir(exist_ok=True)
    training_state.write(folder, middle)
    weight_file.write(out / run_folder.WEIGHTS, weights)
    if best:
        weight_file.write(out / run_folder.BEST, weights)


def write_preview(out: Path, config: TrainConfig, training: list[Sample]) -> None:
    """A picture of what the net will see of the first batch."""
    rows = slice(0, PREVIEWED)
    first = data.batch(training, 0, data=config.data, net=config.net, seed=config.seed, rows=rows)
    sheet = preview(first.x, first.truth, config=config.augment, seed=config.seed, count=TRIED)
    unet_image.write_picture(out / run_folder.AUGMENTED, sheet)


def write_page(
    out: Path,
    config: TrainConfig,
    validation: list[Sample],
    scores: Scores,
    diagnosis: Diagnosis,
    command: str,
) -> None:
    """The pictures of the worst and the best held-out images, and the page that shows them."""
    order = np.argsort([image.iou for image in scores.images], kind="stable")
    chosen = dict.fromkeys([*order[:PICTURES], *order[-PICTURES:]])
    pictures = overlays(validation, scores, chosen)
    write_pictures(out, pictures)
    report = page.Report(
        config=to_plain(config),
        environment=environment_of_run(),
        metrics=read(out),
        scores=scores,
        pictures=pictures,
        class_names=config.class_names,
        findings=diagnosis.findings,
    )
    with atomic_write(out / run_folder.PAGE) as stream:
        stream.write(page.html(report, command=command).encode())


def write_pictures(out: Path, pictures: dict[str, np.ndarray]) -> None:
    """Files in the order of the pictures, and none of an earlier end of the run."""
    folder = out / run_folder.PICTURES
    folder.mkdir(exist_ok=True)
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    for place, (name, picture) in enumerate(pictures.items()):
        unet_image.write_picture(folder / f"{place}_{_stem(name)}.png", picture)


def overlays(
    validation: list[Sample], scores: Scores, chosen: Iterable[int]
) -> dict[str, np.ndarray]:
    """Pictures of held-out images with both outlines, by name."""
    images = [(validation[index], scores.masks[index]) for index in chosen]
    return {s.name: unet_image.overlay(s.image, mask, s.mask) for s, mask in images}


def environment_of_run() -> dict[str, str]:
    """Versions, and the kind of device."""
    return {**environment(), "device": jax.devices()[0].device_kind}


def _stem(name: str) -> str:
    """A file name made from that of a sample: a.tif[3] is a_3_."""
    without_suffix = re.sub(r"\.\w+(?=\[|$)", "", name)
    return re.sub(r"[^\w.-]", "_", without_suffix)
