"""The table of names and shapes, in torch's layout and order.

Neither twin reads it: it is the third witness, which both must equal.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError
from unet_spec.wording import list_names

Tensors = Mapping[str, np.ndarray]


class Parameter(NamedTuple):
    """A `Parameter` names one tensor of a `state_dict`.

    `kind` decides its layout in JAX and whether it is trained: `conv`, `up_conv` and `vector`
    are; `statistic` and `count` belong to batch norm.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["conv", "up_conv", "vector", "statistic", "count"]

    @property
    def trained(self) -> bool:
        return self.kind not in ("statistic", "count")


@lru_cache(maxsize=64)  # a search for a net's hidden facts asks thousands of times
def parameters(config: UNetConfig) -> tuple[Parameter, ...]:
    """List every tensor of the net, in the order of torch's `state_dict`."""
    return tuple(_parameters(config))


def trained_names(config: UNetConfig) -> tuple[str, ...]:
    """Name the tensors that are trained; the others are batch norm's statistics."""
    return tuple(p.name for p in parameters(config) if p.trained)


def parameter_count(config: UNetConfig) -> int:
    """Count the trained values: 31,030,658 in the slides' net."""
    return sum(int(np.prod(p.shape)) for p in parameters(config) if p.trained)


def check_tensors(config: UNetConfig, tensors: Tensors, *, source: str) -> None:
    """Refuse tensors that are not exactly those of the net.

    Args:
        source: what the sentence calls them, usually the file's path.

    Raises:
        InputError: naming every missing, unexpected and mis-shaped tensor, in one sentence.
    """
    table = {p.name: p.shape for p in parameters(config)}
    missing = [name for name in table if name not in tensors]
    unexpected = sorted(tensors.keys() - table.keys())
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in table.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    not_floats = [
        f"{p.name} {tensors[p.name].dtype}"
        for p in parameters(config)
        if p.name in tensors and p.kind != "count" and tensors[p.name].dtype.kind != "f"
    ]
    not_counts = [
        f"{p.name} {tensors[p.name]}"
        for p in parameters(config)
        if p.name in tensors and p.kind == "count" and not is_count(tensors[p.name])
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "mis-shaped": misshaped,
        "no floats": not_floats,
        "no counts": not_counts,
    }
    if any(kinds.values()):
        lists = [f"{kind}: {list_names(names, 4)}" for kind, names in kinds.items() if names]
        problems = "; ".join(lists)
        raise InputError(
            f"{source}: the tensors do not fit the net of its config ({problems}); nothing was "
            "loaded: give the weights of this net, or the config of these weights"
        )


def is_count(tensor: ArrayLike) -> bool:
    """Whether values are whole numbers from 0 on; some programs write them as floats."""
    values = np.asarray(tensor)
    if values.dtype.kind not in "iuf":
        return False
    if values.dtype.kind == "f":
        values = values.astype(np.float64)  # float16 does not reach the bound
    is_in_range = (values >= 0) & (values < 2.0**63)  # of int64; NaN is in no range
    return bool((is_in_range & (values == np.floor(values))).all())


def _parameters(config: UNetConfig) -> Iterator[Parameter]:
    for level, (in_, out) in enumerate(config.downs, start=1):
        yield from _convolutions(f"down_{level}.conv", in_, out, out, config)
    above, lowest = config.widths[-2:]
    yield from _convolutions("neck", above, lowest, lowest, config)
    for level, (in_, up, skip, middle, out) in enumerate(config.ups, start=1):
        yield from _up_sampling(f"up_{level}.up", in_, up, config)
        yield from _convolutions(f"up_{level}.conv", up + skip, middle, out, config)
    yield Parameter("out.weight", (config.classes, config.out_channels, 1, 1), "conv")
    yield Parameter("out.bias", (config.classes,), "vector")


def _convolutions(
    name: str, first: int, middle: int, last: int, config: UNetConfig
) -> Iterator[Parameter]:
    """List the 3x3 convolutions of a level, with their norms.

    Args:
        first: channels before the convolutions; `middle` between them, `last` after them.
    """
    block = 2 if config.norm == "none" else 3
    norm_at = 1 if config.norm_place == "before" else 2
    channels = (first, *(middle,) * (config.convolutions - 1), last)
    for number, (in_, out) in enumerate(pairwise(channels)):
        start = number * block
        yield Parameter(f"{name}.conv.{start}.weight", (out, in_, 3, 3), "conv")
        if config.bias:
            yield Parameter(f"{name}.conv.{start}.bias", (out,), "vector")
        if config.norm != "none":
            yield from _norm(f"{name}.conv.{start + norm_at}", out, config)


def _norm(name: str, channels: int, config: UNetConfig) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (channels,), "vector")
    yield Parameter(f"{name}.bias", (channels,), "vector")
    if config.norm == "batch":
        yield Parameter(f"{name}.running_mean", (channels,), "statistic")
        yield Parameter(f"{name}.running_var", (channels,), "statistic")
        yield Parameter(f"{name}.num_batches_tracked", (), "count")


def _up_sampling(name: str, in_: int, out: int, config: UNetConfig) -> Iterator[Parameter]:
    if config.up == "transposed":
        yield Parameter(f"{name}.weight", (in_, out, 2, 2), "up_conv")
        yield Parameter(f"{name}.bias", (out,), "vector")
    elif config.up_convolution:
        yield Parameter(f"{name}.1.weight", (out, in_, 1, 1), "conv")
        yield Parameter(f"{name}.1.bias", (out,), "vector")
