"""How far two arrays are apart, and whether they are the same in every bit."""

import hashlib
from collections.abc import Mapping

import numpy as np

NET = "the net"
"""What the whole is called where modules are called by their paths."""
EPS = 2.0**-24  # half of float32's spacing at 1: what one rounding can change, relatively


def difference(a: np.ndarray, b: np.ndarray, *, scale: float | None = None) -> float:
    """Return the largest difference over the scale (the largest value of `a` without one); infinite
    if the shapes differ or anything is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    if a.size == 0:
        return 0.0
    scale = float(np.abs(a).max()) if scale is None else scale
    worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return worst / scale if scale > 0 else (0.0 if worst == 0 else float("inf"))


def error_ratio(torch_error: float, jax_error: float, scale: float) -> float:
    """Return JAX's error over torch's; below float32's resolution of the scale all errors are
    equal."""
    if not np.isfinite(jax_error):
        return float("inf")
    floor = EPS * scale
    if max(torch_error, jax_error) <= floor:
        return 1.0
    return max(jax_error, floor) / max(torch_error, floor)


def rms(values: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def ulp(scale: float) -> float:
    """Return the spacing of float32 at a scale: one unit in the last place."""
    return float(np.spacing(np.float32(scale)))


def module_of(name: str) -> str:
    """Return the path of the module that a tensor, or a module, belongs to."""
    return name.rpartition(".")[0]


def module_scales(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the largest gradient in each module: a bias before batch norm has a gradient of
    exactly 0, so that noise would be measured against noise."""
    scales: dict[str, float] = {}
    for name, gradient in gradients.items():
        largest = float(np.abs(gradient).max())
        scales[module_of(name)] = max(scales.get(module_of(name), 0.0), largest)
    return scales


def hash_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of names, shapes, types and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
