"""The net as two pure functions over flat dicts, for `jax.jit`, `jax.grad`, other people's loops.

Keys are the slides' names (`down_1.conv.conv.0.weight`), arrays are in JAX's layout
(`unet_spec.layout`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx

from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import UNetConfig
from unet_spec.parameters import parameters

Arrays = Mapping[str, jax.Array]
Part = TypeVar("Part", bound=nnx.Module)
_NAMES = {"kernel": "weight", "scale": "weight"}


class Functional(NamedTuple):
    """A net without state.

    Attributes:
        init: `init(key) -> (params, stats)`: trained arrays, and batch norm's statistics ({}
            for a net without it).
        apply: `apply(params, x, stats={}) -> logits` in inference;
            `apply(params, x, stats, train=True, keep=masks or key=key) -> (logits, stats)` in
            training: batch statistics are used and returned updated, dropout drops.
    """

    init: Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]
    apply: Callable[..., Any]


def functional(config: UNetConfig, *, numerics: Numerics = Numerics()) -> Functional:
    """The net of `config` as `(init, apply)`.

    >>> init, apply = functional(UNetConfig(widths=(4, 6)))
    >>> params, _ = init(jax.random.key(0))
    >>> apply(params, jax.numpy.ones((1, 8, 12, 1))).shape
    (1, 8, 12, 2)
    """
    abstract = cache(
        lambda: nnx.eval_shape(lambda: UNet(config, numerics=numerics, rngs=nnx.Rngs(0)))
    )
    trained = {p.name for p in parameters(config) if p.trained}

    def init(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        arrays = to_arrays(UNet(config, numerics=numerics, rngs=nnx.Rngs(key)))
        return (
            {name: array for name, array in arrays.items() if name in trained},
            {name: array for name, array in arrays.items() if name not in trained},
        )

    def apply(
        params: Arrays,
        x: jax.Array,
        stats: Arrays = {},
        *,
        train: bool = False,
        keep: Sequence[jax.Array | None] = (None, None),
        key: jax.Array | None = None,
    ) -> Any:
        model = with_arrays(abstract(), {**params, **stats})
        if not train:
            model.eval()
            return model(x)
        model.train()
        logits = model(x, keep, None if key is None else nnx.Rngs(dropout=key))
        return logits, {n: a for n, a in to_arrays(model).items() if n not in trained}

    return Functional(init, apply)


def to_arrays(model: nnx.Module) -> dict[str, Any]:
    """Every array of a net, or of a part of one, by its name in it; of an abstract one
    (`nnx.eval_shape`), its shapes."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {_name(path): variable.get_value() for path, variable in state}


def with_arrays(model: Part, arrays: Arrays) -> Part:
    """A copy of `model` that holds these arrays.

    Raises:
        KeyError: an array is missing.
    """
    graph, state, *rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)
    filled = [
        (path, variable.replace(arrays[_name(path)])) for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled), *rest)


def _name(path: tuple[Any, ...]) -> str:
    """The slides' name of an NNX path: `nnx.Sequential` keeps its modules under `layers`."""
    modules, last = [str(part) for part in path[:-1]], str(path[-1])
    return ".".join([*(m for m in modules if m != "layers"), _NAMES.get(last, last)])
