"""The run: data in, steps, validation, files out. Effects live here."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import unet_image
from train import data, synthetic
from train.config import TrainConfig, to_plain
from train.metrics import confusion, foreground_iou, iou
from train.progress import Progress
from train.step import State, make_step
from unet_jax import UNet, predict
from unet_jax.training_state import to_training_state
from unet_jax.weights import from_weights
from unet_spec import InputError, layout, training_state
from unet_spec.environment import environment
from unet_spec.files import refuse_existing, written
from unet_spec.weight_file import WeightFile

PICTURES = 8


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        mean_image_iou: mean over the held-out images of the mean IoU of classes 1 and up.
        pooled_iou: of each class, over all held-out pixels.
        seconds: from reading the first image to the last picture.
    """

    weights: str
    loss: float
    mean_image_iou: float
    pooled_iou: list[float]
    training_images: int
    validation_images: int
    images_per_s: float
    seconds: float
    environment: dict[str, str]


def run(config: TrainConfig, out: Path, *, progress: Progress) -> Result:
    """Train, validate, and leave in `out` weights, training state, config, metrics and pictures.

    Raises:
        InputError: data or an output that cannot be used, before anything is written; a loss
            that is not finite.
    """
    refuse_existing(out)
    began = time.monotonic()
    training, validation = data.split(load(config), holdout=config.data.holdout, seed=config.seed)
    progress.say(f"{len(training)} images to train on, {len(validation)} held out")
    out.mkdir(parents=True, exist_ok=True)
    with written(out / "config.json") as stream:
        stream.write(json.dumps(to_plain(config), indent=2).encode())
    init, step = make_step(config)
    state = init()
    progress.say(f"compiling the step for {jax.devices()[0].device_kind}")
    with progress.steps(config.steps) as bar:
        for done, (x, truth) in enumerate(batches(training, config), start=1):
            state, metrics = step(state, x, truth)
            bar.advance(metrics, images=len(x))
            if done % config.validate_every and done < config.steps:
                continue
            bar.settle()
            _refuse_infinite(bar.loss, done)
            model, scores = _saved(config, state, validation, out)
            line = {"step": done, "loss": bar.loss, "images_per_s": bar.images_per_s, **scores}
            with (out / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            progress.say(
                f"step {done}: validation IoU {scores['mean_image_iou']:.3f} (mean of images), "
                f"{scores['pooled_iou'][-1]:.3f} (pooled)"
            )
            bar.resume()
    draw(model, validation[:PICTURES], out / "pictures")
    return Result(
        weights=str(out / "weights.safetensors"),
        loss=bar.loss,
        **scores,
        training_images=len(training),
        validation_images=len(validation),
        images_per_s=bar.images_per_s,
        seconds=time.monotonic() - began,
        environment={**environment(), "device": jax.devices()[0].device_kind},
    )


def batches(
    samples: list[data.Sample], config: TrainConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a run in order; the next one is made while one is used."""

    def made(step: int) -> Future[tuple[np.ndarray, np.ndarray]]:
        return reader.submit(
            data.batch, samples, step, data=config.data, net=config.net, seed=config.seed
        )

    with ThreadPoolExecutor(1) as reader:
        ahead = made(0)
        for step in range(config.steps):
            current, ahead = ahead, made(step + 1)
            yield current.result()


def _saved(
    config: TrainConfig, state: State, validation: list[data.Sample], out: Path
) -> tuple[UNet, dict[str, Any]]:
    """Write the weight file and the training state; the net in them, and its scores."""
    middle = to_training_state(
        config.net,
        config.recipe,
        state.params,
        state.stats,
        state.optimizer,
        preprocessing=config.preprocessing,
        class_names=config.class_names,
    )
    training_state.write(out, middle)
    model = from_weights(middle.weights)
    return model, validate(model, validation)


def load(config: TrainConfig) -> list[data.Sample]:
    """The samples of a run: its folders, or synthetic cells."""
    folders = config.data.images, config.data.masks
    if folders[0] is not None and folders[1] is not None:
        return data.read_samples(
            folders[0], folders[1], net=config.net, preprocessing=config.preprocessing
        )
    pairs = [synthetic.cells(config.seed * 100_000 + i) for i in range(config.data.synthetic)]
    return [
        data.make_sample(f"synthetic {i}", image, mask, config.net, config.preprocessing)
        for i, (image, mask) in enumerate(pairs)
    ]


def to_weight_file(config: TrainConfig, state: State) -> WeightFile:
    """The state's weights with all that prediction needs."""
    arrays = {name: np.asarray(a) for name, a in {**state.params, **state.stats}.items()}
    tensors = layout.to_torch(config.net, arrays)
    return WeightFile(config.net, tensors, config.preprocessing, config.class_names)


def validate(model: UNet, samples: list[data.Sample]) -> dict[str, Any]:
    """IoU on whole images, through the same prediction as `unet predict`."""
    matrices = [
        np.asarray(confusion(predict(model, s.image), s.mask, classes=model.config.classes))
        for s in samples
    ]
    return {
        "mean_image_iou": float(np.mean([foreground_iou(m) for m in matrices])),
        "pooled_iou": iou(np.sum(matrices, axis=0)).tolist(),
    }


def draw(model: UNet, samples: list[data.Sample], folder: Path) -> None:
    """Validation images with predicted (orange) and true (blue) outlines."""
    folder.mkdir(exist_ok=True)
    for number, sample in enumerate(samples):
        picture = unet_image.overlay(sample.image, predict(model, sample.image), sample.mask)
        unet_image.write_picture(folder / f"validation_{number}.png", picture)


def _refuse_infinite(loss: float, step: int) -> None:
    if not np.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at step {step}; lower --schedule.max-lr (--optimizer.lr "
            "without one_cycle), or look for damaged images; the weights of the last validation "
            "are kept"
        )
