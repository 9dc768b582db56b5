"""One large image through `predict` of both frameworks, which cut it into tiles."""

import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

import unet_jax
import unet_torch
from unet_bench.net_times import Case
from unet_bench.steps import FLOAT32, VARIANTS, CompiledRun, wait_for_device
from unet_bench.timing import Run
from unet_jax.weights import from_weights as jax_net
from unet_parity.oracle import random_tensors
from unet_spec import UNetConfig
from unet_spec.flops import forward_gflop
from unet_spec.prediction import border, cut_tiles
from unet_spec.weight_file import WeightFile
from unet_torch.weights import from_weights as torch_net


@dataclass(frozen=True)
class TiledImage:
    """A net and one image of bytes, in which a side is longer than a tile."""

    config: UNetConfig
    height_px: int
    width_px: int
    torch_device: torch.device | None

    def tiles(self) -> list[tuple[int, int]]:
        """Return the height and width of each tile, in pixels."""
        sides = [
            [tile.input.stop - tile.input.start for tile in cut_tiles(self.config, size)]
            for size in (self._padded(self.height_px), self._padded(self.width_px))
        ]
        return list(product(*sides))

    @property
    def case(self) -> Case:
        """Return what both frameworks do; the operations are those of all tiles."""
        tiles = self.tiles()
        name = (
            f"base {self.config.widths[0]}, {self.height_px}x{self.width_px} in {len(tiles)} tiles"
        )
        gflop = sum(forward_gflop(self.config, *tile) for tile in tiles)
        megapixels = self.height_px * self.width_px / 1e6
        return Case(f"{name}, predict", gflop, megapixels, FLOAT32.rounding)

    def image(self) -> np.ndarray:
        shape = (self.height_px, self.width_px)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def weights(self) -> WeightFile:
        return WeightFile(self.config, random_tensors(self.config, seed=0))

    def _padded(self, size_px: int) -> int:
        return size_px + sum(border(self.config, size_px))


def jax_prediction(image: TiledImage) -> CompiledRun:
    """Build a prediction whose first run gives the probabilities, and each later one the mask.

    In a mask two probabilities that are nearly the same may be the other way round, so it cannot
    be compared.
    """
    net, pixels = jax_net(image.weights()), image.image()
    start = time.perf_counter()
    first = unet_jax.predict_probabilities(net, pixels)
    seconds = time.perf_counter() - start
    return CompiledRun(_first(first, lambda: unet_jax.predict(net, pixels)), seconds, None)


def torch_prediction(image: TiledImage, variant: str) -> Run:
    """Build the same in torch, with the weights in the memory format of the variant."""
    net: Any = torch_net(image.weights())
    net = net.to(image.torch_device).to(memory_format=VARIANTS[variant])
    pixels = image.image()
    first = unet_torch.predict_probabilities(net, pixels)
    return wait_for_device(
        _first(first, lambda: unet_torch.predict(net, pixels)), image.torch_device
    )


def _first(value: np.ndarray, run: Run) -> Run:
    """Return a run that gives a value the first time, and then what `run` gives."""
    values = [value]
    return lambda: values.pop() if values else run()
