"""Single leaves of both nets, each alone on inputs that are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

from unet_jax.functional import fill_arrays, to_arrays
from unet_parity.jax_net import (
    Arrays,
    JaxMaps,
    JaxNet,
    Mover,
    fetch_maps,
    find_module,
    move_masks,
)
from unet_parity.jax_twin import compile_jax, fetch_tree, jax_arrays
from unet_parity.torch_twin import numpy_of, torch_model
from unet_parity.trace import Call, Maps, select_leaves
from unet_spec import UNetConfig, layout
from unet_spec.parameters import Tensors


@dataclass(frozen=True)
class LeafResult:
    """What one leaf of JAX's net made of its inputs, in torch's layout.

    Attributes:
        input_gradients: none without a cotangent, or if the output has another shape than it.
        gradients: of its trained tensors by name; likewise.
        statistics: of batch norm after the pass, by name.
    """

    output: np.ndarray
    input_gradients: Maps
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


class JaxLeaves:
    """Every leaf of JAX's net alone; compiled once for many weights.

    Args:
        quick: as of `twins.compile_jax`.
    """

    def __init__(self, net: JaxNet, *, quick: bool = True):
        self.net = net
        self._run = compile_jax(partial(_run_leaves, net), net.dtype, quick=quick)

    def run(
        self,
        tensors: Tensors,
        calls: Mapping[str, Call],
        *,
        inputs: Mapping[str, Maps] | None = None,
        backward: bool,
    ) -> dict[str, LeafResult | None]:
        """Run every leaf by itself; None stands for one that refuses the shape of its inputs.

        Args:
            calls: of a trace of the reference, for inputs, masks and cotangents.
            inputs: by path, in place of those of `calls`.
            backward: compute the gradients too.
        """
        net, leaves = self.net, select_leaves(calls)
        if inputs is None:
            inputs = {path: call.inputs for path, call in leaves.items()}
        with net.x64():
            make_update = Mover(net.dtype)
            cotangents = {}
            if backward:
                cotangents = {path: make_update.move(c.cotangents[0]) for path, c in leaves.items()}
            results = self._run(
                *jax_arrays(net.config, tensors, dtype=net.dtype),
                {path: make_update.move_all(maps) for path, maps in inputs.items()},
                {path: move_masks(call.masks) for path, call in leaves.items()},
                cotangents,
            )
            return {path: _fetch_result(net.config, result) for path, result in results.items()}


class TorchLeaves:
    """Single leaves of the reference."""

    def __init__(
        self,
        config: UNetConfig,
        tensors: Tensors,
        *,
        dtype: str,
        train: bool,
    ):
        self.model = torch_model(config, tensors, dtype=dtype, train=train)
        self.dtype = getattr(torch, dtype)

    @torch.no_grad()
    def run(self, call: Call, *, inputs: Maps) -> np.ndarray:
        """Return the output of the leaf of a call, with the masks of that call."""
        masks = [None if mask is None else torch.tensor(mask) for mask in call.masks]
        maps = [torch.tensor(array, dtype=self.dtype) for array in inputs]
        return numpy_of(self.model.get_submodule(call.path)(*maps, *masks))


class _JaxResult(NamedTuple):
    """A `LeafResult` before it is fetched from JAX's device."""

    output: jax.Array
    input_gradients: JaxMaps
    gradients: Arrays
    statistics: Arrays


def _run_leaves(
    net: JaxNet,
    params: Arrays,
    stats: Arrays,
    inputs: dict[str, JaxMaps],
    masks: dict[str, Any],
    cotangents: Arrays,
) -> dict[str, _JaxResult | None]:
    model = net.fill({**params, **stats})
    return {
        path: _run_leaf(
            find_module(model, path),
            path,
            frozenset(params),
            inputs[path],
            masks[path],
            cotangents.get(path),
        )
        for path in inputs
    }


def _run_leaf(
    leaf: Any,
    path: str,
    trained_names: frozenset[str],
    inputs: JaxMaps,
    masks: Any,
    cotangent: jax.Array | None,
) -> _JaxResult | None:
    """Run one leaf; None if it refuses the shape of its inputs.

    Args:
        leaf: a module, or a function such as the activation.
        trained_names: of the tensors of the whole net that are trained.
        cotangent: without it there are no gradients.
    """
    arrays = to_arrays(leaf) if isinstance(leaf, nnx.Module) else {}
    trained = {name: a for name, a in arrays.items() if f"{path}.{name}" in trained_names}

    def forward(trained: Arrays, inputs: JaxMaps) -> tuple[Any, Arrays]:
        if not arrays:
            return leaf(*inputs, *masks), {}
        filled = fill_arrays(leaf, {**arrays, **trained})
        output = filled(*inputs, *masks)
        after = to_arrays(filled)
        return output, {f"{path}.{name}": a for name, a in after.items() if name not in trained}

    try:
        if cotangent is None:
            output, statistics = forward(trained, inputs)
            return _JaxResult(output, (), {}, statistics)
        output, pull, statistics = jax.vjp(forward, trained, inputs, has_aux=True)
        if output.shape != cotangent.shape:
            return _JaxResult(output, (), {}, statistics)
        gradients, input_gradients = pull(cotangent)
    except (TypeError, ValueError):
        return None
    by_name = {f"{path}.{name}": gradient for name, gradient in gradients.items()}
    return _JaxResult(output, input_gradients, by_name, statistics)


def _fetch_result(config: UNetConfig, result: _JaxResult | None) -> LeafResult | None:
    if result is None:
        return None
    (output,) = fetch_maps((result.output,))
    return LeafResult(
        output,
        fetch_maps(result.input_gradients),
        layout.to_torch(config, fetch_tree(result.gradients)),
        fetch_tree(result.statistics),
    )
