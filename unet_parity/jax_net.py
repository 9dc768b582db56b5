"""JAX's net with its modules under the paths of the reference.

The reference's paths (`down_1.conv.conv.0`) are looked up in the port, so no list is kept by hand:
a path that the port does not have ends the comparison. `recording`, `wiring` and `leaves` each
look at the net in another way.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unet_jax.functional import fill_arrays, split, to_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet as JaxUNet
from unet_parity.differences import module_of
from unet_parity.trace import Call, Maps
from unet_parity.twins import Masks, nhwc
from unet_spec import UNetConfig
from unet_spec.wording import list_names

Arrays = dict[str, jax.Array]
JaxMaps = tuple[jax.Array, ...]  # each (b, h, w, c)
Watch = Callable[..., Any]  # watch(path, module, *arguments) runs in place of module(*arguments)


@dataclass(frozen=True, eq=False)
class JaxNet:
    """A net of shapes only, and how it computes.

    Attributes:
        abstract: the net without numbers.
        paths: of the reference's modules, all of which the net has.
        dtype: of parameters and arithmetic.
        train: batch statistics and dropout as in training.
    """

    config: UNetConfig
    abstract: JaxUNet
    paths: tuple[str, ...]
    dtype: str
    train: bool

    def x64(self) -> AbstractContextManager[None]:
        """Return a context in which JAX computes in float64, if this net does."""
        return jax.enable_x64(self.dtype == "float64")

    def fill(self, arrays: Arrays) -> JaxUNet:
        """Return a net of its own that holds these arrays."""
        model = fill_arrays(self.abstract, arrays)
        if self.train:
            model.train()
        else:
            model.eval()
        return model

    def run(self, watch: Watch, arrays: Arrays, x: jax.Array, masks: Any) -> tuple[Any, Arrays]:
        """Return the output and the statistics of a pass with `watch` around every module."""
        model = self.fill(arrays)
        modules = {path: find_module(model, path) for path in self.paths}
        parents = {path: find_module(model, module_of(path)) for path in self.paths}
        for path, module in modules.items():
            _set_module(parents[path], path, partial(watch, path, module))
        output = model(x, masks)
        for path, module in modules.items():
            _set_module(parents[path], path, module)
        return output, split(self.config, to_arrays(model))[1]


def match_modules(
    config: UNetConfig,
    calls: Mapping[str, Call],
    *,
    dtype: str,
    train: bool,
    precision: Any = "highest",
) -> JaxNet:
    """Return JAX's net for the modules that the reference called.

    Args:
        calls: of a trace of the reference.
        precision: of products, as in `jax.lax.Precision`.

    Raises:
        ValueError: a path of the reference that the port does not have.
    """
    with jax.enable_x64(dtype == "float64"):
        numerics = Numerics(jnp.dtype(dtype), jnp.dtype(dtype), precision)
        abstract = nnx.eval_shape(lambda: JaxUNet(config, numerics=numerics, rngs=nnx.Rngs(0)))
    unmatched = [path for path in calls if find_module(abstract, path) is None]
    if unmatched:
        raise ValueError(f"JAX's net has no {list_names(unmatched, 1)}")
    return JaxNet(config, abstract, tuple(calls), dtype, train)


class Mover:
    """Moves numpy maps (b, c, h, w) to JAX's device and layout.

    A map that comes again is not moved again: what one module gives, the next one takes.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype
        # the numpy array is held too, so that no other can get its id
        self._moved: dict[int, tuple[np.ndarray, jax.Array]] = {}

    def move(self, array: np.ndarray) -> jax.Array:
        if id(array) not in self._moved:
            self._moved[id(array)] = array, move_map(array, self.dtype)
        return self._moved[id(array)][1]

    def move_all(self, maps: Maps) -> JaxMaps:
        return tuple(map(self.move, maps))


def move_map(array: np.ndarray, dtype: str) -> jax.Array:
    """Move a map (b, c, h, w) to JAX's device, as (b, h, w, c)."""
    return jnp.asarray(nhwc(array), dtype)


def move_masks(masks: Masks) -> list[jax.Array | None]:
    """Move masks of dropout (b, c, h, w) to JAX's device, as (b, h, w, c)."""
    return [None if mask is None else jnp.asarray(nhwc(mask)) for mask in masks]


def fetch_maps(maps: JaxMaps) -> Maps:
    """Fetch maps (b, h, w, c) from JAX's device, as (b, c, h, w)."""
    return tuple(np.asarray(array).transpose(0, 3, 1, 2) for array in maps)


def select_maps(arguments: Any) -> JaxMaps:
    """Return the floating-point arrays among a module's arguments, or of its output."""
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    return tuple(argument for argument in arguments if is_map(argument))


def is_map(argument: Any) -> bool:
    return isinstance(argument, jax.Array) and jnp.issubdtype(argument.dtype, jnp.floating)


def find_module(model: nnx.Module, path: str) -> Any:
    """Return the module or function of JAX's net at a path, the net at an empty one; None if there
    is none."""
    here: Any = model
    for name in path.split(".") if path else ():
        if isinstance(here, nnx.Sequential):
            here = here.layers[int(name)] if int(name) < len(here.layers) else None
        else:
            here = getattr(here, name, None)
    return here


def _set_module(parent: Any, path: str, value: Any) -> None:
    name = path.rpartition(".")[2]
    if isinstance(parent, nnx.Sequential):
        parent.layers[int(name)] = value
    else:
        setattr(parent, name, value)
