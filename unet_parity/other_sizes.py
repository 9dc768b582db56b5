"""Other sizes of the input, and whole predictions, so that no bug hides where nobody looks.

A bug may show at odd sizes only, or above some number of pixels. So both twins also compute sizes
that were not compared in depth: a very small one, an odd one where the net takes it, and the
largest for which there is time. With weights of somebody's own, both `predict`s are compared from
the image to the mask. What counts is the error of JAX in float32 against float64, beside that of
PyTorch (`oracle`); it may be smaller, for interpolations of PyTorch err more the larger a map is.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
import torch

import unet_jax.weights
import unet_torch.weights
from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_jax.predict import predict_both as predict_in_jax
from unet_parity.comparison import Comparer, draw_numbers
from unet_parity.differences import error_ratio, rms
from unet_parity.jax_twin import jax_arrays
from unet_parity.oracle import FACTOR
from unet_parity.torch_twin import torch_model
from unet_parity.twins import nchw, nhwc
from unet_spec import UNetConfig, geometry, prediction
from unet_spec.parameters import Tensors
from unet_spec.weight_file import WeightFile
from unet_torch.model import UNet
from unet_torch.predict import predict_both as predict_in_torch

Size = tuple[int, int]
LARGEST_S = 10.0
"""A float64 pass of PyTorch at the largest size takes at most about so long."""
SIDE, LARGEST_PX = 128, 1024
"""The largest size is at least the first, and at most about the second."""
LEAST_PIXELS = 4096
"""A batch has at least so many pixels: over fewer values, a mean error says little."""
LOCATED_PIXELS = 320 * 320
"""In inputs of up to so many pixels the module at fault is looked for."""


@dataclass(frozen=True)
class SizeRow:
    """Both twins on inputs of another size; errors are root mean squares against float64.

    Attributes:
        size: (height, width) of the input in pixels.
        scale: root mean square of the float64 output.
        torch_error: of PyTorch's output in float32.
        jax_error: of JAX's; infinite where it does not run or gives another shape.
        fault: the module at fault, in words; empty if none is, or if it was not looked for.
    """

    size: Size
    scale: float
    torch_error: float
    jax_error: float
    fault: str = ""

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        ratio = error_ratio(self.torch_error, self.jax_error, self.scale)
        if ratio <= FACTOR:
            return ""
        what = f"{ratio:.3g} times as far from float64 as torch's, {FACTOR:g} allowed"
        fault = f"{self.fault}; " if self.fault else ""
        return f"inputs of {self.size[0]} x {self.size[1]} pixels: {fault}JAX's output is {what}"


@dataclass(frozen=True)
class PredictionRow:
    """Both `predict`s on one image; errors are of probabilities, against float64.

    Attributes:
        size: (height, width) of the image in pixels.
        scale, torch_error, jax_error: as of `SizeRow`.
        pixels: of the masks.
        differing: those that have another class in the two masks.
        unexplained: of these, those of which rounding explains it in neither mask.
    """

    size: Size
    scale: float
    torch_error: float
    jax_error: float
    pixels: int
    differing: int
    unexplained: int

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        where = f"predict on an image of {self.size[0]} x {self.size[1]} pixels"
        ratio = error_ratio(self.torch_error, self.jax_error, self.scale)
        if not ratio <= FACTOR:
            return (
                f"{where}: JAX's probabilities are {ratio:.3g} times as far from float64 as "
                f"torch's, {FACTOR:g} allowed"
            )
        if self.unexplained:
            return f"{where}: {self.unexplained} pixels have a class that rounding does not explain"
        return ""


def compare_sizes(
    config: UNetConfig, tensors: Tensors, *, precision: str, say: Callable[[str], None]
) -> Iterator[SizeRow]:
    """Compare the outputs of both twins at other sizes.

    Args:
        precision: of JAX's products.
        say: is called with a line for each size.
    """
    truth = torch_model(config, tensors, dtype="float64", train=False)
    ours = torch_model(config, tensors, dtype="float32", train=False)
    apply = jax.jit(functional(config, numerics=Numerics(precision=precision)).apply)
    params, stats = jax_arrays(config, tensors, dtype="float32")
    for size in list_sizes(config, lambda size: _time(truth, config, size)):
        say(f"  {size[0]} x {size[1]} pixels")
        x = draw_images(config, size)
        right, torch_output = _run_torch(truth, x), _run_torch(ours, x)
        try:
            jax_output = nchw(np.asarray(apply(params, nhwc(x), stats)))
        except (TypeError, ValueError):  # its maps do not fit one another
            jax_output = np.full_like(right, np.nan)
        yield _compare_outputs(config, tensors, size, right, torch_output, jax_output)


def list_sizes(config: UNetConfig, measure: Callable[[Size], float]) -> Iterator[Size]:
    """Yield sizes that a net takes: a very small one, an odd one if it takes one, and the largest
    for which there is time.

    Args:
        measure: returns the seconds of a pass at a size.
    """
    # a norm has no variance over one value in the neck
    least = 1 if config.norm == "none" else 2 ** (config.depth + 1)
    small = geometry.next_legal(config, least)
    yield _two_sides(config, small)
    legal = [side for side in range(small + 2, small + 18) if geometry.is_legal(config, side)]
    odd = next((side for side in legal if side % 2), None)
    if odd is not None:
        yield _two_sides(config, odd)
    side = SIDE
    seconds = measure(_two_sides(config, side))
    while side < LARGEST_PX and 4 * seconds <= LARGEST_S:
        side, seconds = 2 * side, 4 * seconds
    yield _two_sides(config, side)


def draw_images(config: UNetConfig, size: Size) -> np.ndarray:
    """Draw normal inputs (b, in_channels, h, w) in float32; more of them if they are small."""
    batch = max(1, LEAST_PIXELS // (size[0] * size[1]))
    rng = np.random.default_rng(size)
    return rng.standard_normal((batch, config.in_channels, *size)).astype(np.float32)


def compare_predictions(weights: WeightFile) -> PredictionRow:
    """Compare both `predict`s on a random image that is cut into tiles or windows."""
    config, settings = weights.config, weights.preprocessing
    rng = np.random.default_rng(0)
    height = settings.window_px or geometry.next_legal(config, 40)
    width = 2 * settings.window_px if settings.window_px else prediction.TILE_PX + 60
    image = rng.integers(0, 256, (height, width, config.in_channels), dtype=np.uint8)
    if config.in_channels == 1:
        image = image[..., 0]
    model = torch_model(config, weights.tensors, dtype="float64", train=False)

    def forward(x: np.ndarray) -> np.ndarray:
        return nhwc(_run_torch(model, nchw(x)))

    _, right = prediction.predict_both(forward, image, config=config, preprocessing=settings)
    both = [
        predict_in_torch(unet_torch.weights.from_weights(weights), image),
        predict_in_jax(unet_jax.weights.from_weights(weights), image),
    ]
    errors = [rms(probabilities - right) for _, probabilities in both]
    largest = max(float(np.abs(probabilities - right).max()) for _, probabilities in both)
    (torch_mask, _), (jax_mask, _) = both
    differing = torch_mask != jax_mask
    return PredictionRow(
        (height, width), rms(right), errors[0], errors[1], torch_mask.size,
        int(differing.sum()), int((differing & (find_margin(config, right) > 2 * largest)).sum()),
    )  # fmt: skip


def find_margin(config: UNetConfig, probabilities: np.ndarray) -> np.ndarray:
    """Return by how much the class of each pixel (h, w) was chosen, by the probabilities
    (h, w, classes)."""
    if config.classes == 1:
        return np.abs(probabilities[..., 0] - 0.5)
    least, most = np.sort(probabilities, axis=-1)[..., -2:].transpose(2, 0, 1)
    return most - least


def _two_sides(config: UNetConfig, side: int) -> Size:
    """Return the next legal size of at least so many pixels, and the one above it."""
    height = geometry.next_legal(config, side)
    return height, geometry.next_legal(config, height + 1)


@torch.no_grad()
def _run_torch(model: UNet, x: np.ndarray) -> np.ndarray:
    return model(torch.tensor(x).to(model.out.weight)).numpy()


def _time(model: UNet, config: UNetConfig, size: Size) -> float:
    """Return the seconds of a pass, the quicker one of two: the first prepares much."""
    x = draw_images(config, size)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        _run_torch(model, x)
        seconds.append(time.monotonic() - start)
    return min(seconds)


def _compare_outputs(
    config: UNetConfig,
    tensors: Tensors,
    size: Size,
    right: np.ndarray,
    torch_output: np.ndarray,
    jax_output: np.ndarray,
) -> SizeRow:
    is_alike = jax_output.shape == right.shape and np.isfinite(jax_output).all()
    jax_error = rms(jax_output - right) if is_alike else float("inf")
    row = SizeRow(size, rms(right), rms(torch_output - right), jax_error)
    if not row.problem or size[0] * size[1] > LOCATED_PIXELS:
        return row
    comparer = Comparer(config, train=False, quick=False)
    faults = comparer.faults(draw_numbers(config, tensors, size=size))
    return replace(row, fault=str(faults[0])) if faults else row
