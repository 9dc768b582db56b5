"""The wiring of JAX's net alone: crops, concatenations and the order of calls.

Every leaf gives the reference's own output, and its own input gradient on the way back, whatever
comes in. What then arrives at the places between the leaves is the work of the wiring, and must be
equal to what the reference has there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unet_parity.jax_net import (
    Arrays,
    JaxMaps,
    JaxNet,
    Mover,
    fetch_maps,
    is_map,
    move_map,
    move_masks,
    select_maps,
)
from unet_parity.jax_twin import compile_jax, jax_arrays
from unet_parity.trace import OUTPUT, Call, Maps, Place, select_leaves
from unet_parity.twins import Masks
from unet_spec.parameters import Tensors

Shapes = tuple[tuple[Place, tuple[tuple[int, ...], ...]], ...]  # of the maps at every place, NHWC


@dataclass(frozen=True)
class Wiring:
    """What arrived where.

    Attributes:
        order: the places in the order of arrival, as far as the pass came.
        arrived: the maps at each place; none if one of another shape stopped the pass.
        gradients: the gradients by them; likewise.
    """

    order: tuple[Place, ...]
    arrived: dict[Place, Maps]
    gradients: dict[Place, Maps]


class WiringProbe:
    """Runs JAX's net with the reference's numbers in place of its leaves; compiled once.

    Args:
        quick: as of `twins.compile_jax`.
    """

    def __init__(self, net: JaxNet, *, quick: bool = True):
        self.net = net
        self._run = compile_jax(partial(_run_wired, net), net.dtype, quick=quick, static_argnums=0)

    def probe(
        self,
        tensors: Tensors,
        calls: Mapping[str, Call],
        x: np.ndarray,
        cotangent: np.ndarray,
        *,
        keep: Masks = (None, None),
    ) -> Wiring:
        """Return what arrives at every place between the leaves, forward and backward.

        Args:
            calls: of a trace of the reference with the same tensors, input and cotangent.
        """
        net, leaves = self.net, select_leaves(calls)
        with net.x64():
            make_update = Mover(net.dtype)
            params, stats = jax_arrays(net.config, tensors, dtype=net.dtype)
            replacement = _Replacement(
                {path: make_update.move_all(call.outputs) for path, call in leaves.items()},
                {path: make_update.move_all(call.input_gradients) for path, call in leaves.items()},
            )
            try:
                arrivals, gradients = self._run(
                    _list_shapes(calls, cotangent),
                    {**params, **stats},
                    replacement,
                    move_map(x, net.dtype),
                    move_map(cotangent, net.dtype),
                    move_masks(keep),
                )
            except _PassStoppedError as stop:
                return Wiring(stop.order, {}, {})
            return Wiring(
                arrivals.order,
                {place: fetch_maps(maps) for place, maps in arrivals.maps.items()},
                {place: fetch_maps(maps) for place, maps in gradients.items()},
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Replacement:
    """What each leaf gives instead of its own: outputs, and input gradients on the way back."""

    outputs: dict[str, JaxMaps]
    input_gradients: dict[str, JaxMaps]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Arrivals:
    """What arrived; the order is known while the pass is traced, so it is no array."""

    order: tuple[Place, ...] = field(metadata={"static": True})
    maps: dict[Place, JaxMaps]


class _PassStoppedError(Exception):
    """The maps did not fit one another; `order` holds the places that were reached."""

    def __init__(self, order: tuple[Place, ...]):
        super().__init__(order)
        self.order = order


def _run_wired(
    net: JaxNet,
    shapes: Shapes,
    arrays: Arrays,
    replacement: _Replacement,
    x: jax.Array,
    cotangent: jax.Array,
    masks: Any,
) -> tuple[_Arrivals, dict[Place, JaxMaps]]:
    """Return what arrives at every place, and the gradients there.

    Gradients come from taps, zeros that are added to the maps at every place. The pass gives the
    inputs of all leaves and the logits; from these the reference's gradients are pulled back, and
    what reaches a tap is the gradient at its place.
    """
    taps = {place: tuple(jnp.zeros(s, net.dtype) for s in maps) for place, maps in shapes}

    def forward(taps: dict[Place, JaxMaps]) -> Any:
        order: list[Place] = []
        arrived: dict[Place, JaxMaps] = {}
        leaf_inputs: list[JaxMaps] = []

        def arrive(place: Place, maps: JaxMaps) -> JaxMaps:
            order.append(place)
            arrived[place] = maps
            if [m.shape for m in maps] != [tap.shape for tap in taps[place]]:
                raise ValueError("a map of another shape")
            return tuple(m + tap for m, tap in zip(maps, taps[place], strict=True))

        def watch(path: str, module: Any, *arguments: Any) -> Any:
            inputs = arrive((path, "input"), select_maps(arguments))
            if path in replacement.outputs:
                leaf_inputs.append(inputs)
                output: Any = replacement.outputs[path]
            else:
                tapped = iter(inputs)
                output = module(*(next(tapped) if is_map(a) else a for a in arguments))
            result = arrive((path, "output"), select_maps(output))
            return result if len(result) > 1 else result[0]

        try:
            logits, _ = net.run(watch, arrays, x, masks)
            (logits,) = arrive(OUTPUT, (logits,))
        except (TypeError, ValueError) as error:
            raise _PassStoppedError(tuple(order)) from error
        return (leaf_inputs, logits), _Arrivals(tuple(order), arrived)

    _, pull, arrivals = jax.vjp(forward, taps, has_aux=True)
    # in the order of the calls, in which `forward` gives the inputs of the leaves
    leaf_gradients = [
        replacement.input_gradients[path]
        for path, side in arrivals.order
        if side == "input" and path in replacement.input_gradients
    ]
    (gradients,) = pull((leaf_gradients, cotangent))
    return arrivals, gradients


def _list_shapes(calls: Mapping[str, Call], cotangent: np.ndarray) -> Shapes:
    """Return the shapes of the maps at every place, as the reference has them."""
    maps: dict[Place, Maps] = {}
    for path, call in calls.items():
        maps[path, "input"] = call.inputs
        maps[path, "output"] = call.outputs
    maps[OUTPUT] = (cotangent,)
    return tuple((place, tuple(map(_nhwc_shape, at_place))) for place, at_place in maps.items())


def _nhwc_shape(array: np.ndarray) -> tuple[int, ...]:
    b, c, h, w = array.shape
    return b, h, w, c
