"""JAX's net as it is: what goes into and comes out of every module of a whole pass."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from unet_parity.jax_net import (
    Arrays,
    JaxMaps,
    JaxNet,
    fetch_maps,
    move_map,
    move_masks,
    select_maps,
)
from unet_parity.jax_twin import compile_jax, jax_arrays, to_pass
from unet_parity.trace import ModuleMaps
from unet_parity.twins import Masks, Pass
from unet_spec.parameters import Tensors


@dataclass(frozen=True)
class Recording:
    """A pass through JAX's net, and the maps around every module, by its path."""

    result: Pass
    maps: dict[str, ModuleMaps]


class Recorder:
    """Records passes through JAX's net; compiled once for many weights.

    Args:
        quick: as of `twins.compile_jax`.
    """

    def __init__(self, net: JaxNet, *, quick: bool = True):
        self.net = net
        self._run = compile_jax(partial(_run_recorded, net), net.dtype, quick=quick)

    def record(
        self, tensors: Tensors, x: np.ndarray, cotangent: np.ndarray, *, keep: Masks = (None, None)
    ) -> Recording:
        """Run a pass, forward and backward; maps in torch's layout."""
        net = self.net
        with net.x64():
            output, stats, maps, gradients, input_gradient = self._run(
                *jax_arrays(net.config, tensors, dtype=net.dtype),
                move_map(x, net.dtype),
                move_map(cotangent, net.dtype),
                move_masks(keep),
            )
            result = to_pass(net.config, output, stats, gradients, input_gradient)
            around = {
                path: ModuleMaps(fetch_maps(inputs), fetch_maps(outputs))
                for path, (inputs, outputs) in maps.items()
            }
        return Recording(result, around)


def _run_recorded(
    net: JaxNet, params: Arrays, stats: Arrays, x: jax.Array, cotangent: jax.Array, masks: Any
) -> tuple[Any, ...]:
    """Return output, statistics, maps around every module, and the gradients."""

    def forward(params: Arrays, x: jax.Array) -> Any:
        maps: dict[str, tuple[JaxMaps, JaxMaps]] = {}

        def watch(path: str, module: Any, *arguments: Any) -> Any:
            output = module(*arguments)
            maps[path] = select_maps(arguments), select_maps(output)
            return output

        output, new_stats = net.run(watch, {**params, **stats}, x, masks)
        return output, (new_stats, maps)

    output, pull, (new_stats, maps) = jax.vjp(forward, params, x, has_aux=True)
    gradients, input_gradient = pull(cotangent)
    return output, new_stats, maps, gradients, input_gradient
