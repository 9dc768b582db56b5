"""The net as two pure functions over flat dicts, for `jax.jit`, `jax.grad`, other people's loops.

Keys are the slides' names (`down_1.conv.conv.0.weight`), arrays are in JAX's layout
(`unet_spec.layout`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx

from unet_jax.forms import place_logits
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_spec import InputError, UNetConfig
from unet_spec.parameters import parameters, trained_names

Arrays = Mapping[str, jax.Array]
Part = TypeVar("Part", bound=nnx.Module)
_NAMES = {"kernel": "weight", "scale": "weight"}


class Functional(NamedTuple):
    """A `Functional` is a net as two pure functions, which `jax.jit` and `jax.grad` take.

    Attributes:
        init: `init(key) -> (params, stats)` draws the initial weights. `params` are the trained
            arrays by name, `stats` batch norm's statistics ({} for a net without it).
        apply: `apply(params, x, stats={}) -> logits` in inference, and
            `apply(params, x, stats, train=True) -> (logits, stats)` in training: batch
            statistics are used and returned updated. `x` is (b, h, w, in_channels), logits are
            (b, h', w', classes). A net with dropout needs `key=key` in training, or `keep`, its
            two masks (`UNet.__call__`). `jax.jit(apply, static_argnames="train")` compiles it.
            It raises InputError for a batch in another layout or of an illegal size, and where
            `stats` is missing; KeyError names a missing parameter.
    """

    init: Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]
    apply: Callable[..., Any]


def functional(config: UNetConfig, *, numerics: Numerics = Numerics()) -> Functional:
    """Return the net of a config as two pure functions, `(init, apply)`.

    Args:
        config: which U-Net.
        numerics: in what it computes and keeps its parameters.

    Returns:
        a `Functional`, which says what the two take and raise.

    >>> init, apply = functional(UNetConfig(widths=(4, 6)))
    >>> params, _ = init(jax.random.key(0))
    >>> apply(params, jax.numpy.ones((1, 8, 12, 1))).shape
    (1, 8, 12, 2)
    """
    abstract = cache(
        lambda: nnx.eval_shape(lambda: UNet(config, numerics=numerics, rngs=nnx.Rngs(0)))
    )

    def init(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return split(config, to_arrays(UNet(config, numerics=numerics, rngs=nnx.Rngs(key))))

    def apply(
        params: Arrays,
        x: jax.Array,
        stats: Arrays = {},
        *,
        train: bool = False,
        keep: Sequence[jax.Array | None] = (None, None),
        key: jax.Array | None = None,
    ) -> Any:
        arrays = {**params, **stats}
        _check_statistics(config, arrays)
        model = fill_arrays(abstract(), arrays)
        if not train:
            model.eval()
            return model(x)
        model.train()
        logits = model(x, keep, None if key is None else nnx.Rngs(dropout=key))
        return place_logits(logits), split(config, to_arrays(model))[1]

    return Functional(init, apply)


def split(config: UNetConfig, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a net's arrays into (params, stats): those that are trained, and the statistics."""
    trained = set(trained_names(config))
    params = {name: array for name, array in arrays.items() if name in trained}
    stats = {name: array for name, array in arrays.items() if name not in trained}
    return params, stats


def _check_statistics(config: UNetConfig, arrays: Arrays) -> None:
    for parameter in parameters(config):
        if not parameter.trained and parameter.name not in arrays:
            raise InputError(
                f"stats lacks {parameter.name}: a net with norm={config.norm} needs its "
                "statistics; use apply(params, x, stats) with the stats of init(key) or "
                "read_arrays(path)"
            )


def to_arrays(model: nnx.Module) -> dict[str, Any]:
    """Return every array of a net, or of a part of one, by its name in it.

    Of an abstract net (`nnx.eval_shape`) these are shapes.
    """
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {_name(path): variable.get_value() for path, variable in state}


def fill_arrays(model: Part, arrays: Arrays) -> Part:
    """Return a copy of `model` that holds these arrays.

    Raises:
        KeyError: an array is missing.
    """
    graph, state, *rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)
    filled = [
        (path, variable.replace(arrays[_name(path)])) for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled), *rest)


def _name(path: tuple[Any, ...]) -> str:
    """Return the slides' name of an NNX path: `nnx.Sequential` keeps its modules under `layers`."""
    *modules, last = map(str, path)
    names = [module for module in modules if module != "layers"]
    return ".".join([*names, _NAMES.get(last, last)])
