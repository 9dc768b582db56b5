"""The layers that differ from Flax's, against Flax's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from unet_bench.timing import alternate
from unet_jax.forms import max_pool
from unet_jax.layers import Numerics, UpConv

PRECISION = "highest"
# of the largest value; sums of 512 products in another order differ by about 1e-6 of it
ROUNDING = 1e-5
UP_SIZES = ((128, 128, 64), (32, 512, 256))
"""Height and width in pixels, channels in and out: `up_4` and `up_2` of the slides' net at 256."""
POOL_SIZES = ((256, 64), (64, 256))
"""Height and width in pixels, channels: `down_1` and `down_3` of the same net."""

Layer = Callable[[Any, Array], Array]


@dataclass(frozen=True)
class LayerRow:
    """One layer at one size: median times, and ours over plain Flax's.

    Attributes:
        others_cores: kept busy by other work (`unet_bench.timing.Timings`).
    """

    case: str
    ours_ms: float
    flax_ms: float
    ratio: float
    others_cores: float | None


def time_layers(device: jax.Device, *, budget_s: float, quick: bool) -> Iterator[LayerRow]:
    """Time each layer, size and direction.

    Args:
        budget_s: for each row.
        quick: the smaller size of each layer only.
    """
    rng, first = np.random.default_rng(0), -1 if quick else 0

    def normal(*shape: int) -> Array:
        return jax.device_put(rng.standard_normal(shape, np.float32), device)

    for size, in_, out in UP_SIZES[first:]:
        name = f"up-convolution, {size}x{size}, {in_} to {out}"
        params = normal(2, 2, in_, out), normal(out)
        yield from _time_layer(
            name, up_conv(in_, out), params, normal(1, size, size, in_), budget_s
        )
    for size, channels in POOL_SIZES[first:]:
        name = f"max-pool, {size}x{size}, {channels}"
        yield from _time_layer(name, pool(), (), normal(1, size, size, channels), budget_s)


def up_conv(in_: int, out: int) -> tuple[Layer, Layer]:
    """Build our layer and Flax's, of the same kernel (2, 2, in, out) and bias (out)."""
    ours = nnx.eval_shape(lambda: UpConv(in_, out, Numerics(precision=PRECISION), nnx.Rngs(0)))
    flax = nnx.eval_shape(
        lambda: nnx.ConvTranspose(
            in_, out, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True,
            precision=PRECISION, rngs=nnx.Rngs(0),
        )
    )  # fmt: skip

    def run_flax(params: Any, x: Array) -> Array:
        kernel, bias = params
        # a transposed convolution is the gradient of a convolution, whose kernel this one is
        return _fill(flax, kernel.swapaxes(2, 3), bias)(x)

    return lambda params, x: _fill(ours, *params)(x), run_flax


def pool() -> tuple[Layer, Layer]:
    """Return our max-pool and Flax's."""
    return lambda _, x: max_pool(x), lambda _, x: nnx.max_pool(x, (2, 2), strides=(2, 2))


def forward_backward(layer: Layer) -> Callable[[Any, Array, Array], Any]:
    """Return a function that gives the output, and the gradients by parameters and input."""

    def run(params: Any, x: Array, cotangent: Array) -> Any:
        output, pull = jax.vjp(layer, params, x)
        return output, pull(cotangent)

    return run


def check_equal(ours: Any, flax: Any) -> None:
    """Refuse to time two different computations: `AssertionError` beyond float32's rounding."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert a.shape == b.shape
        worst = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        assert worst <= ROUNDING, f"they differ by {worst:.1e} of the largest value"


def _time_layer(
    name: str, layers: tuple[Layer, Layer], params: Any, x: Array, budget_s: float
) -> Iterator[LayerRow]:
    forward = [jax.jit(layer) for layer in layers]
    output = forward[0](params, x)
    yield _row(f"{name}, forward", forward, (params, x), budget_s)
    both = [jax.jit(forward_backward(layer)) for layer in layers]
    yield _row(f"{name}, forward and backward", both, (params, x, jnp.sin(output)), budget_s)


def _row(case: str, functions: list[Any], arguments: Any, budget_s: float) -> LayerRow:
    ours, flax = functions
    check_equal(ours(*arguments), flax(*arguments))
    runs = {"ours": lambda: ours(*arguments), "flax": lambda: flax(*arguments)}
    # Flax takes seconds for what takes ours a fiftieth: few rounds show it
    times = alternate(runs, budget_s=budget_s, least=3)
    ratio = times.ratio("ours", over="flax")
    return LayerRow(case, times.ms("ours"), times.ms("flax"), ratio, times.others_cores)


def _fill(layer: Any, kernel: Array, bias: Array) -> Any:
    graph, _ = nnx.split(layer)
    return nnx.merge(graph, nnx.State({"kernel": nnx.Param(kernel), "bias": nnx.Param(bias)}))
