"""One pass through each twin on the same numbers; everything numpy, in torch's layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from unet_jax.functional import functional, split
from unet_jax.layers import Numerics
from unet_parity.jax_side import compile_jax, fetch_tree
from unet_parity.torch_side import gradient_of, numpy_of
from unet_spec import UNetConfig, layout
from unet_spec.parameters import Tensors
from unet_torch.model import UNet

Masks = Sequence[np.ndarray | None]
QUICK_PIXELS = 64 * 64


@dataclass(frozen=True)
class Pass:
    """What one pass gave, forward and backward.

    Attributes:
        output: (b, classes, h', w').
        input_gradient: (b, in_channels, h, w).
        gradients: of every trained tensor, by name.
        statistics: of batch norm after the pass, by name.
    """

    output: np.ndarray
    input_gradient: np.ndarray
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def torch_pass(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    cotangent: np.ndarray,
    *,
    dtype: str = "float32",
    train: bool = False,
    keep: Masks = (None, None),
) -> Pass:
    """Run a pass through the reference.

    Args:
        tensors: of a `state_dict`.
        x: (b, in_channels, h, w).
        cotangent: (b, classes, h', w'), the gradient of the loss by the output.
        dtype: of parameters and arithmetic.
        train: batch statistics and dropout as in training.
        keep: masks of the two dropouts, (b, c, h, w).
    """
    model = torch_model(config, tensors, dtype=dtype, train=train)
    return run_module(model, x, cotangent, keep)


def torch_model(config: UNetConfig, tensors: Tensors, *, dtype: str, train: bool) -> UNet:
    """Build the reference with these tensors."""
    with torch.device("meta"):
        model = UNet(config)
    kind = getattr(torch, dtype)
    state = {
        name: torch.tensor(t, dtype=kind if np.issubdtype(t.dtype, np.floating) else None)
        for name, t in tensors.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_().train(train)
    return model


def run_module(
    model: UNet, x: np.ndarray, cotangent: np.ndarray, keep: Masks = (None, None)
) -> Pass:
    """Run forward and backward through the reference, in the dtype of its parameters."""
    kind = next(model.parameters()).dtype
    leaf = torch.tensor(x, dtype=kind, requires_grad=True)
    masks = [None if mask is None else torch.tensor(mask) for mask in keep]
    output = model(leaf, masks)
    output.backward(torch.tensor(cotangent, dtype=kind))
    return Pass(
        numpy_of(output),
        gradient_of(leaf),
        {name: gradient_of(p) for name, p in model.named_parameters()},
        {name: numpy_of(buffer) for name, buffer in model.named_buffers()},
    )


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
    """Passes through the port, compiled once for many weights."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: str,
        train: bool = False,
        jit: bool = True,
        precision: Any = "highest",
        quick: bool = True,
    ):
        self.config, self.dtype = config, dtype
        with jax.enable_x64(dtype == "float64"):
            numerics = Numerics(jnp.dtype(dtype), jnp.dtype(dtype), precision)
            run = _make_pass(config, numerics, train)
        self._run = compile_jax(run, dtype, quick=quick) if jit else run

    def __call__(
        self, tensors: Tensors, x: np.ndarray, cotangent: np.ndarray, *, keep: Masks = (None, None)
    ) -> Pass:
        """Run forward and backward; maps in torch's layout."""
        with jax.enable_x64(self.dtype == "float64"):
            kind = jnp.dtype(self.dtype)
            params, stats = jax_arrays(self.config, tensors, dtype=self.dtype)
            output, stats, gradients, input_gradient = self._run(
                params,
                jnp.asarray(nhwc(x), kind),
                stats,
                [None if mask is None else jnp.asarray(nhwc(mask)) for mask in keep],
                jnp.asarray(nhwc(cotangent), kind),
            )
            return to_pass(self.config, output, stats, gradients, input_gradient)


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


def is_small(x: np.ndarray) -> bool:
    """Say whether a pass over images (b, c, h, w) takes less than its optimised compilation: then
    `compile_jax` had better be quick."""
    return x.size <= QUICK_PIXELS * x.shape[1]


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


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
