"""A training step in which nothing is rounded: every mesh of devices has to give the same bits.

The step is the one that `unet train` compiles. Only its numbers are chosen:

- The weights and the images are small integers, with few non-zero taps (`unet_parity.exact`).
- The last convolution is scaled by 256, and its biases keep the logits of a pixel apart. So softmax
  is exactly 0 or 1, and the cross-entropy of a pixel is an integer: 0 where the net is right, and a
  difference of two logits where it is wrong.
- The number of pixels that count is a power of two, and so is the learning rate.

Then the loss, each gradient and each new weight is an integer over a power of two, and so is every
partial sum of them. Their order cannot matter, and float64 says what they are. A case is refused
where a sum could leave the 24 bits of float32, or where it would prove nothing.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from unet_parity.exact import SEEDS, CaseTruth, find_truth
from unet_parity.integer_cases import RUNGS, Case, make_case
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig, geometry, layout
from unet_spec.parameters import Tensors
from unet_spec.recipe import Optimizer, Schedule
from unet_spec.weight_file import WeightFile
from unet_train.config import AugmentConfig, DataConfig, LossConfig, TrainConfig
from unet_train.devices.placement import make_placement
from unet_train.devices.processes import gather_to_host, wait_for_all
from unet_train.input.crops import Batch
from unet_train.run.states import start_from_weights
from unet_train.step import compile_steps, prepare_batch

Outcome = dict[str, np.ndarray]
"""A step's loss, confusion, gradients and new weights by name, in torch's layout."""

TAPS = (3.0, 2.5, 2.0)
SCALE = 256  # exp(-256) is 0 in float32
IGNORED = 255
CONFIG = TrainConfig(
    net=UNetConfig(in_channels=2, widths=(5, 6, 7), classes=3),
    data=DataConfig(batch=8, crop_px=32),
    augment=AugmentConfig(flips=True, quarter_turns=True),  # which move whole pixels
    loss=LossConfig(ignore_index=IGNORED),
    # momentum keeps the gradients, so that they can be compared
    optimizer=Optimizer("sgd", lr=0.5, momentum=0.5),
    schedule=Schedule(),
    class_names=("background", "cell", "border"),
    steps=1,
)


@dataclass(frozen=True)
class ExactStep:
    """An `ExactStep` is where a step begins, and what it has to give.

    Attributes:
        tensors: the weights before it, in torch's layout.
        crops: the batch as it is cut, before augmentation.
        truth: what float64 gives, as float32; equal on every mesh.
        largest_sum: the largest sum of absolute products in any convolution, forward or back, in
            units of its smallest step.
        refusals: why it proves nothing; empty if it does.
    """

    tensors: Tensors
    crops: Batch
    truth: Outcome
    largest_sum: float
    refusals: tuple[str, ...]


def find_step(config: TrainConfig) -> ExactStep:
    """Find the first step that float64 certifies.

    Raises:
        RuntimeError: there is none, with the reasons against the last one.
    """
    for taps in TAPS:
        for seed in range(SEEDS):
            step = make_step(config, taps=taps, seed=seed)
            if not step.refusals:
                return step
    raise RuntimeError(f"no step of this config is exact: {'; '.join(step.refusals)}")


def make_step(config: TrainConfig, *, taps: float, seed: int) -> ExactStep:
    """Draw a step.

    Args:
        taps: non-zero weights per output, on average.
    """
    net, rng = config.net, np.random.default_rng((seed, int(2 * taps)))
    side = config.data.crop_px
    shape = (config.data.batch, side, side)
    tensors = dict(make_case(net, taps=taps, seed=seed, size=(side, side)).tensors)
    # logits that have other remainders of the number of classes cannot be equal
    tensors["out.weight"] = net.classes * tensors["out.weight"]
    tensors["out.bias"] = np.arange(net.classes, dtype=np.float32)
    crops = rng.integers(-2, 3, (*shape, net.in_channels)).astype(np.float32)
    source = _find_sources(config)
    seen = np.take_along_axis(crops.reshape(len(crops), -1, net.in_channels), source[..., None], 1)
    x = seen.reshape(crops.shape).transpose(0, 3, 1, 2)

    nothing = np.zeros((shape[0], net.classes, *shape[1:]), np.float32)
    logits = torch_pass(net, tensors, x, nothing, dtype="float64").output
    predicted = logits.argmax(1)
    counted = _choose_counted(rng, shape)
    truth, wrong = _draw_truth(rng, predicted, counted, config)
    cotangent = _one_hot(predicted, net) - _one_hot(truth, net)
    case = Case(taps, seed, tensors, x, cotangent * wrong[:, None])
    rung = next(rung for rung in RUNGS if rung.dtype == config.compute)
    case_truth = find_truth(net, case, rung)

    scaled = {name: tensor * _scale_of(name) for name, tensor in tensors.items()}
    outcome = _compute_outcome(config, scaled, case_truth, truth, counted)
    turned = np.empty((len(truth), side * side), np.uint8)
    np.put_along_axis(turned, source, truth.reshape(turned.shape).astype(np.uint8), 1)
    return ExactStep(
        scaled,
        Batch(crops, turned.reshape(shape)),
        {name: np.asarray(value, np.float32) for name, value in outcome.items()},
        case_truth.largest_sum,
        (
            *case_truth.refusals,
            *_find_overflows(case_truth, outcome, bound=2**rung.bits),
            *_find_idle_parts(config, wrong),
        ),
    )


def take_step(config: TrainConfig, step: ExactStep, *, name: str = "exact step") -> Outcome:
    """Take the step as a run on the mesh of the config takes it.

    Args:
        name: of the exchange between processes; no other one may have it.
    """
    placement = make_placement(config)
    steps = compile_steps(config, placement)
    wait_for_all(name)
    weights = WeightFile(config.net, step.tensors)
    rows = placement.local(config.data.batch)
    crops = placement.put(
        jax.tree.map(lambda array: array[rows], step.crops), batch=config.data.batch
    )
    state, metrics = steps.step(start_from_weights(weights, steps.init()), crops)
    state, metrics = gather_to_host((state, metrics))
    gradients = state.optimizer.slots["momentum_buffer"]
    return _name_outcome(
        metrics.loss,
        metrics.confusion,
        layout.to_torch(config.net, gradients),
        layout.to_torch(config.net, state.params),
    )


def count_differences(truth: Outcome, outcome: Outcome) -> dict[str, int]:
    """Return how many values differ in any bit, of everything in which one does."""
    bits = {
        name: np.asarray(outcome[name], np.float32).view(np.uint32) != value.view(np.uint32)
        for name, value in truth.items()
    }
    return {name: int(unequal.sum()) for name, unequal in bits.items() if unequal.any()}


def _find_sources(config: TrainConfig) -> np.ndarray:
    """Return (b, h * w) places in its crop that each pixel comes from which the net sees."""
    side, net = config.data.crop_px, config.net
    places = np.arange(side * side, dtype=np.float32).reshape(1, side, side, 1)
    shape = (config.data.batch, side, side, net.in_channels)
    crops = Batch(np.broadcast_to(places, shape), np.zeros(shape[:3], np.uint8))
    prepared: Any = jax.jit(partial(prepare_batch, config))(crops, np.int32(0))
    return np.asarray(prepared.x[..., 0], np.int64).reshape(len(crops.x), -1)


def _choose_counted(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Choose a power of two of the pixels, of each image more than of the one before."""
    count = 2 ** int(np.log2(np.prod(shape) * 3 / 4))
    order = rng.random(shape) ** np.arange(1, shape[0] + 1)[:, None, None]
    return order <= np.sort(order, axis=None)[count - 1]


def _draw_truth(
    rng: np.random.Generator, predicted: np.ndarray, counted: np.ndarray, config: TrainConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return a truth that differs from what is predicted in a pixel of every part that a device
    can have, and where it does."""
    bands = _count_bands(config)
    wrong = np.zeros(predicted.shape, bool)
    rows = predicted.shape[1] // bands
    for image in range(len(predicted)):
        for top in range(0, predicted.shape[1], rows):
            places = np.argwhere(counted[image, top : top + rows])
            for row, column in rng.permutation(places)[:1]:
                wrong[image, top + row, column] = True
    other = predicted + rng.integers(1, config.net.classes, predicted.shape)
    truth = np.where(wrong, other % config.net.classes, predicted)
    return np.where(counted, truth, IGNORED), wrong


def _count_bands(config: TrainConfig) -> int:
    """Return over how many devices the rows can be spread at most."""
    return geometry.levels(config.net, config.data.crop_px).neck


def _one_hot(classes: np.ndarray, net: UNetConfig) -> np.ndarray:
    """Return (b, classes, h, w), which is 1 where a pixel has the class."""
    of_each = np.arange(net.classes)[:, None, None]
    return (classes[:, None] == of_each).astype(np.float32)


def _scale_of(name: str) -> int:
    return SCALE if name.startswith("out.") else 1


def _compute_outcome(
    config: TrainConfig,
    tensors: Tensors,
    case_truth: CaseTruth,
    truth: np.ndarray,
    counted: np.ndarray,
) -> Outcome:
    """Return in float64 what the step has to give.

    Args:
        tensors: scaled.
        case_truth: of the net without the scale, for the sum over pixels.
        truth: the class of each pixel that the net sees.
        counted: the pixels that are not ignored.
    """
    classes, logits = config.net.classes, SCALE * case_truth.result.output
    predicted, count = logits.argmax(1), counted.sum()
    asked = np.where(counted, truth, 0)[:, None]
    missing = logits.max(1) - np.take_along_axis(logits, asked, 1)[:, 0]
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (truth[counted], predicted[counted]), 1)
    # what lies before the last convolution gets its gradient through the scale of its weights
    gradients = {
        name: gradient * (SCALE // _scale_of(name)) / count
        for name, gradient in case_truth.result.gradients.items()
    }
    rate = config.optimizer.lr
    weights = {name: tensors[name] - rate * gradient for name, gradient in gradients.items()}
    return _name_outcome((missing * counted).sum() / count, matrix, gradients, weights)


def _name_outcome(loss: Any, matrix: Any, gradients: Tensors, weights: Tensors) -> Outcome:
    return {
        "loss": np.asarray(loss),
        "confusion": np.asarray(matrix),
        **{f"gradient of {name}": gradient for name, gradient in gradients.items()},
        **weights,
    }


def _find_overflows(case_truth: CaseTruth, outcome: Outcome, *, bound: int) -> list[str]:
    """Say what could be rounded, besides what float64 said.

    Args:
        bound: up to which the arithmetic holds every integer. Each device rounds its own sum to it
            before the sums are added, and that may be as large as the sum of absolute values.
    """
    refusals = []
    if case_truth.largest_sum > bound:
        refusals.append(f"the sum of a device could be {case_truth.largest_sum:.0f}")
    rounded = [n for n, value in outcome.items() if (value != value.astype(np.float32)).any()]
    if rounded:
        refusals.append(f"float32 rounds {rounded[0]}")
    return refusals


def _find_idle_parts(config: TrainConfig, wrong: np.ndarray) -> list[str]:
    """Say where devices could have no share in the gradients."""
    parts = wrong.reshape(len(wrong), _count_bands(config), -1).any(-1)
    return [] if parts.all() else [f"{(~parts).sum()} parts of the images have no gradient"]
