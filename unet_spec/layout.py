"""torch layout <-> jax layout: names stay, axes move, nothing is rounded.

| kind    | torch               | jax                  |
|---------|---------------------|----------------------|
| conv    | (out, in, h, w)     | (h, w, in, out)      |
| up_conv | (in, out, h, w)     | (h, w, in, out)      |
| count   | int64               | int32                |
| others  | as they are         | as they are          |

No kernel is mirrored: both frameworks' convolutions correlate, and the up-convolution is
written as the product that it is (`unet_jax.layers.UpConv`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unet_spec.config import UNetConfig
from unet_spec.parameters import Parameter, Tensors, check_tensors, parameters

_AXES = {"conv": (2, 3, 1, 0), "up_conv": (2, 3, 0, 1)}


def to_jax(config: UNetConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """Return the tensors of a `state_dict` in JAX's layout: owned, contiguous, the same names."""
    check_tensors(config, tensors, source="torch tensors")
    return {p.name: _to_jax(p, tensors[p.name]) for p in parameters(config)}


def to_torch(config: UNetConfig, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `to_jax`, bit for bit, of the arrays that are given."""
    return {
        p.name: _to_torch(p, np.asarray(arrays[p.name]))
        for p in parameters(config)
        if p.name in arrays
    }


def _to_jax(parameter: Parameter, tensor: np.ndarray) -> np.ndarray:
    if parameter.kind == "count":
        return np.array(tensor, dtype=np.int32)
    return np.array(tensor.transpose(_AXES.get(parameter.kind)), order="C", copy=True)


def _to_torch(parameter: Parameter, array: np.ndarray) -> np.ndarray:
    if parameter.kind == "count":
        return np.array(array, dtype=np.int64)
    axes = _AXES.get(parameter.kind)
    return np.array(
        array.transpose(None if axes is None else np.argsort(axes)), order="C", copy=True
    )
