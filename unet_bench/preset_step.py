"""The training step of a preset, as `unet train` runs it and as torch would.

Both frameworks have the same net, loss, optimizer, schedule and running average. Nothing is read
from files or augmented, which only `unet train` does. Its own step, which is timed, besides counts
the confusion matrix and checks that all is finite.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import unet_jax.recipe
import unet_torch.recipe
from unet_bench.net_times import Case
from unet_bench.steps import (
    COMPILED,
    FLOAT32,
    VARIANTS,
    CompiledRun,
    wait_for_device,
)
from unet_bench.timing import Run, compile_timed, planned_mb
from unet_jax.functional import split
from unet_parity.oracle import random_tensors
from unet_spec import layout
from unet_spec.flops import forward_gflop
from unet_torch.model import UNet as TorchUNet
from unet_train.config import LossConfig, TrainConfig
from unet_train.input.crops import Batch
from unet_train.step import State, copy_for_average, update_state


@dataclass(frozen=True)
class PresetStep:
    """A preset's net, and a batch of random crops with random classes, in torch's layout."""

    config: TrainConfig
    jax_device: jax.Device
    torch_device: torch.device | None

    def __post_init__(self) -> None:
        net, loss = self.config.net, self.config.loss
        # what `torch_preset_step` does not do
        has_other_loss = loss != LossConfig(cross_entropy=loss.cross_entropy, dice=loss.dice)
        has_other_net = net.padding == "valid" or net.norm == "batch" or net.dropout > 0
        has_other_output = net.classes < 2 or net.output == "sigmoid"
        is_split = self.config.compute != "float32" or self.config.accumulate > 1
        if has_other_loss or has_other_net or has_other_output or is_split:
            raise AssertionError(f"{self.config.preset} has a step that the torch side has not")

    @property
    def case(self) -> Case:
        """Return what both frameworks do; a step counts as three forward passes."""
        size, batch = self.config.data.crop_px, self.config.data.batch
        name = f"{self.config.preset}, {size}x{size}, batch {batch}, training step"
        gflop = 3 * batch * forward_gflop(self.config.net, size, size)
        return Case(name, gflop, batch * size**2 / 1e6, FLOAT32.rounding)

    def images(self) -> np.ndarray:
        size, batch = self.config.data.crop_px, self.config.data.batch
        shape = (batch, self.config.net.in_channels, size, size)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def truth(self) -> np.ndarray:
        size, batch = self.config.data.crop_px, self.config.data.batch
        rng = np.random.default_rng(1)
        return rng.integers(0, self.config.net.classes, (batch, size, size))


def jax_preset_step(step: PresetStep) -> CompiledRun:
    """Build the step that `unet train` compiles, in donated buffers; it gives the loss."""
    config = step.config
    arrays = layout.to_jax(config.net, random_tensors(config.net, seed=0))
    params, stats = split(config.net, {name: jnp.array(a) for name, a in arrays.items()})
    optimizer = unet_jax.recipe.build(config.recipe).init(params)
    ema = copy_for_average(params, stats) if config.ema else {}
    state = State(params, stats, optimizer, ema, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    batch = Batch(
        jnp.asarray(step.images().transpose(0, 2, 3, 1)),
        jnp.asarray(step.truth().astype(np.uint8)),
        None,
    )
    state, batch = jax.device_put((state, batch), step.jax_device)
    function = jax.jit(partial(update_state, config), donate_argnums=0)
    program, seconds = compile_timed(function, state, batch)

    def run() -> Any:
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready(state)
        return metrics.loss

    return CompiledRun(run, seconds, planned_mb(program))


def torch_preset_step(step: PresetStep, variant: str) -> Run:
    """Build the same step in torch, by its own optimizer and scheduler; it gives the loss."""
    config, device = step.config, step.torch_device
    kind = torch.channels_last if variant == COMPILED else VARIANTS[variant]
    model = TorchUNet(config.net)
    tensors = random_tensors(config.net, seed=0)
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    # mypy's stubs know no `to` of a module with memory_format alone
    model = model.to(device).to(memory_format=kind)  # type: ignore[call-overload]
    optimizer, scheduler = unet_torch.recipe.build(config.recipe, model.named_parameters())
    parameters = [parameter.detach() for parameter in model.parameters()]
    average = [parameter.clone() for parameter in parameters]
    x = torch.tensor(step.images(), device=device).contiguous(memory_format=kind)
    truth = torch.tensor(step.truth(), device=device)
    forward = torch.compile(model) if variant == COMPILED else model
    done = 0

    def run() -> Any:
        nonlocal done
        optimizer.zero_grad()
        loss = torch_loss(forward(x), truth, config.loss)
        loss.backward()
        unet_torch.recipe.advance(config.recipe, optimizer, scheduler, step=done)
        if config.ema:
            torch._foreach_lerp_(average, parameters, average_rate(config.ema, done))
        done += 1
        return loss.detach()

    return wait_for_device(run, device)


def average_rate(decay: float, done: int) -> float:
    """Return the part of the new weights in a running average, after so many steps.

    >>> average_rate(0.99, 0), average_rate(0.99, 10_000)
    (0.9, 0.010000000000000009)
    """
    return 1 - min(decay, (1 + done) / (10 + done))


def torch_loss(logits: Tensor, truth: Tensor, config: LossConfig) -> Tensor:
    """Return the loss of `unet_train.losses` with cross-entropy and Dice, of (b, classes, h, w)."""
    total = config.cross_entropy * F.cross_entropy(logits, truth)
    if config.dice:
        is_class = F.one_hot(truth, logits.shape[1]).permute(0, 3, 1, 2)[:, 1:]
        p = logits.softmax(1)[:, 1:]
        t = is_class.to(p.dtype)
        score = (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + t.sum((2, 3)) + 1)
        total = total + config.dice * (1 - score).mean()
    return total
