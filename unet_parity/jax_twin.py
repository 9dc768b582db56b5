"""One pass through JAX's net, with the arguments of `torch_pass`; it needs no torch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unet_jax.functional import functional, split
from unet_jax.layers import Numerics
from unet_parity.twins import Masks, Pass, nchw, nhwc
from unet_spec import UNetConfig, layout
from unet_spec.parameters import Tensors


def jax_pass(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    cotangent: np.ndarray,
    *,
    dtype: str = "float32",
    train: bool = False,
    keep: Masks = (None, None),
    jit: bool = True,
    precision: Any = "highest",
) -> Pass:
    """Run a pass through the port; the arguments are those of `torch_pass`, in its layout.

    Args:
        jit: compile; without it each operation runs by itself, which is quicker for small nets.
        precision: of products, as in `jax.lax.Precision`.
    """
    return JaxRun(config, dtype=dtype, train=train, jit=jit, precision=precision)(
        tensors, x, cotangent, keep=keep
    )


class JaxRun:
    """Passes through the port, compiled once for many weights.

    Args:
        mesh: of `make_mesh`: the devices that share a pass; without it there is one.
        unoptimised: as of `compile_jax`.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: str,
        train: bool = False,
        jit: bool = True,
        precision: Any = "highest",
        quick: bool = True,
        mesh: Mesh | None = None,
        unoptimised: bool = False,
    ):
        self.config, self.dtype, self.mesh = config, dtype, mesh
        with jax.enable_x64(dtype == "float64"):
            numerics = Numerics(jnp.dtype(dtype), jnp.dtype(dtype), precision)
            run = _make_pass(config, numerics, train)
        self._run = compile_jax(run, dtype, quick=quick, unoptimised=unoptimised) if jit else run

    def __call__(
        self, tensors: Tensors, x: np.ndarray, cotangent: np.ndarray, *, keep: Masks = (None, None)
    ) -> Pass:
        """Run forward and backward; maps in torch's layout."""
        with jax.enable_x64(self.dtype == "float64"):
            kind = jnp.dtype(self.dtype)
            params, stats = jax_arrays(self.config, tensors, dtype=self.dtype)
            image, arriving = (jnp.asarray(nhwc(array), kind) for array in (x, cotangent))
            if self.mesh is not None:
                everywhere = NamedSharding(self.mesh, PartitionSpec())
                images = NamedSharding(self.mesh, PartitionSpec("data", "rows"))
                params, stats = jax.device_put((params, stats), everywhere)
                image, arriving = jax.device_put((image, arriving), images)
            output, stats, gradients, input_gradient = self._run(
                params,
                image,
                stats,
                [None if mask is None else jnp.asarray(nhwc(mask)) for mask in keep],
                arriving,
            )
            return to_pass(self.config, output, stats, gradients, input_gradient)


def make_mesh(config: UNetConfig, size: tuple[int, int], devices: Sequence[Any]) -> Mesh:
    """Return a mesh of all devices: rows of an image are spread over as many as divide the rows of
    every level, and images over the others.

    Args:
        size: (height, width) of the input in pixels.
    """
    rows = 1
    if config.padding == "same":  # unpadded maps have other heights, which nothing divides
        multiples = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        lowest = size[0] >> config.depth
        # XLA's gradients of a convolution over two rows are wrong where two devices have one each
        fitting = [n for n in multiples if size[0] % (n << config.depth) == 0]
        rows = max(fitting, default=1) if lowest > 2 else 1
    grid = np.array(devices).reshape(len(devices) // rows, rows)
    return Mesh(grid, ("data", "rows"), axis_types=(AxisType.Auto, AxisType.Auto))


def _make_pass(config: UNetConfig, numerics: Numerics, train: bool) -> Callable[..., Any]:
    apply = functional(config, numerics=numerics).apply

    def run(params, x, stats, keep, cotangent):
        def forward(params, x):
            if train:
                return apply(params, x, stats, train=True, keep=keep)
            return apply(params, x, stats), stats

        output, pull, new_stats = jax.vjp(forward, params, x, has_aux=True)
        gradients, input_gradient = pull(cotangent)
        return output, new_stats, gradients, input_gradient

    return run


def compile_jax(
    run: Callable[..., Any],
    dtype: str,
    *,
    quick: bool = True,
    unoptimised: bool = False,
    **options: Any,
) -> Any:
    """Compile a function as `jax.jit` does.

    Args:
        quick: for float64, which nobody trains in, leave LLVM's optimisations out: on CPU they
            take five times as long as the rest of a compilation. Convolutions of large maps
            then run five times as long.
        unoptimised: leave them out in any type, for what runs once or twice on integers, of which
            no optimisation changes a bit.
    """
    if (unoptimised or (dtype == "float64" and quick)) and jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(run, **options)


def jax_arrays(
    config: UNetConfig, tensors: Tensors, *, dtype: str
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Move a `state_dict` to JAX's device and layout, as (params, stats); counts stay integers."""
    arrays = {}
    for name, array in layout.to_jax(config, tensors).items():
        kind = dtype if np.issubdtype(array.dtype, np.floating) else None
        arrays[name] = jnp.asarray(array, kind)
    return split(config, arrays)


def to_pass(
    config: UNetConfig, output: jax.Array, stats: Any, gradients: Any, input_gradient: jax.Array
) -> Pass:
    """Fetch what a pass through JAX's net gave, in torch's layout."""
    return Pass(
        nchw(fetch_tree(output)),
        nchw(fetch_tree(input_gradient)),
        layout.to_torch(config, fetch_tree(gradients)),
        layout.to_torch(config, fetch_tree(stats)),
    )


def fetch_tree(tree: Any) -> Any:
    """Fetch a tree as numpy arrays; bfloat16, which numpy does not have, as float64."""
    return jax.tree.map(
        lambda a: np.asarray(a, np.float64) if a.dtype == jnp.bfloat16 else np.asarray(a), tree
    )
