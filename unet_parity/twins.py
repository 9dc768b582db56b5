"""One pass through each twin on the same numbers; everything numpy, in torch's layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_spec import UNetConfig, layout
from unet_spec.parameters import Tensors, parameters
from unet_torch.model import UNet

Masks = Sequence[np.ndarray | None]


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
    """A pass through the reference.

    Args:
        tensors: of a `state_dict`.
        x: (b, in_channels, h, w).
        cotangent: (b, classes, h', w'), the gradient of the loss by the output.
        dtype: of parameters and arithmetic.
        train: batch statistics and dropout as in training.
        keep: masks of the two dropouts, (b, c, h, w).
    """
    kind = getattr(torch, dtype)
    model = UNet(config).to(kind)
    model.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()}, strict=True)
    model.train(train)
    leaf = torch.tensor(x, dtype=kind, requires_grad=True)
    masks = [None if mask is None else torch.tensor(mask) for mask in keep]
    output = model(leaf, masks)
    output.backward(torch.tensor(cotangent, dtype=kind))
    return Pass(
        _numpy(output),
        _numpy(leaf.grad),
        {name: _numpy(p.grad) for name, p in model.named_parameters()},
        {name: _numpy(buffer) for name, buffer in model.named_buffers()},
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
    """A pass through the port; the arguments of `torch_pass`, in its layout.

    Args:
        jit: compile; without it each operation runs by itself, which is quicker for small nets.
        precision: of products, as in `jax.lax.Precision`.
    """
    with jax.enable_x64(dtype == "float64"):
        kind = jnp.dtype(dtype)
        run = _differentiated(config, Numerics(kind, kind, precision), train)
        run = jax.jit(run) if jit else run
        trained = {p.name for p in parameters(config) if p.trained}
        arrays = layout.to_jax(config, tensors)
        output, stats, gradients, input_gradient = run(
            {n: jnp.asarray(a, kind) for n, a in arrays.items() if n in trained},
            jnp.asarray(_nhwc(x), kind),
            {n: _statistic(a, kind) for n, a in arrays.items() if n not in trained},
            [None if mask is None else jnp.asarray(_nhwc(mask)) for mask in keep],
            jnp.asarray(_nhwc(cotangent), kind),
        )
        back = _wide({**gradients, **stats})
        torch_layout = layout.to_torch(config, back)
        return Pass(
            _nchw(_wide(output)),
            _nchw(_wide(input_gradient)),
            {name: torch_layout[name] for name in gradients},
            {name: torch_layout[name] for name in stats},
        )


def _differentiated(config: UNetConfig, numerics: Numerics, train: bool) -> Callable[..., Any]:
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


def _statistic(array: np.ndarray, kind: Any) -> jax.Array:
    return jnp.asarray(array, kind if np.issubdtype(array.dtype, np.floating) else None)


def _numpy(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    wide = tensor.detach().double() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return wide.numpy().copy()


def _wide(tree: Any) -> Any:
    """numpy arrays; bfloat16, which numpy does not have, as float64."""
    return jax.tree.map(
        lambda a: np.asarray(a, np.float64) if a.dtype == jnp.bfloat16 else np.asarray(a), tree
    )


def _nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def _nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
