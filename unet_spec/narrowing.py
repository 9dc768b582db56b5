"""Floating-point values in another type, with nothing lost in silence."""

from collections.abc import Iterator, Mapping

import numpy as np

from unet_spec.errors import InputError
from unet_spec.wording import list_names

Arrays = Mapping[str, np.ndarray]
SMALLEST_NORMAL = {
    "float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022,
}  # fmt: skip
"""Below these, a type has fewer digits the smaller a value is: its subnormal numbers. IEEE 754."""


def refuse_not_finite(tensors: Arrays, *, what: str = "the weights") -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        what: what the sentence calls all of them.

    Raises:
        InputError: naming the tensors.
    """
    names = [
        f"{name} ({tensor.size - finite} of {tensor.size})"
        for name, tensor in tensors.items()
        if tensor.dtype.kind == "f" and (finite := int(np.isfinite(tensor).sum())) < tensor.size
    ]
    if names:
        raise InputError(
            f"{what} hold NaN or infinite values: {list_names(names, 3)}; take an earlier "
            "checkpoint, of a time when all were finite"
        )


def narrow(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a tensor in a floating-point type, rounded to nearest, ties to even.

    bfloat16, which numpy does not have, is returned as float32: each of its values is one.

    Args:
        name: what the sentence calls it.
        dtype: float16, bfloat16, float32 or float64.

    Raises:
        InputError: a finite value would become infinite.
    """
    with np.errstate(over="ignore", under="ignore"):
        result = _round_to_bfloat16(tensor) if dtype == "bfloat16" else tensor.astype(dtype)
    if lost := int((np.isfinite(tensor) & ~np.isfinite(result)).sum()):
        largest = float(np.nanmax(np.abs(tensor[np.isfinite(tensor)])))
        raise InputError(
            f"{name} does not fit {dtype}: {lost} of its {tensor.size} values would become "
            f"infinite, the largest {largest:.6g}; choose a type with a larger range, such as "
            f"{'float64' if dtype == 'float32' else 'float32'}"
        )
    return result


def describe_losses(tensors: Arrays, narrowed: Arrays, dtype: str) -> str:
    """Say in one sentence which values a type keeps with fewer digits, or makes 0; empty for none.

    Args:
        narrowed: what `narrow` made of these tensors.
    """
    subnormal = zero = 0
    names = []
    for name, tensor in tensors.items():
        after = np.abs(narrowed[name].astype(np.float64))
        is_small = (tensor != 0) & (after < SMALLEST_NORMAL[dtype])
        if count := int(is_small.sum()):
            names.append(f"{name} ({count})")
            zero += int((after[is_small] == 0).sum())
            subnormal += int((after[is_small] != 0).sum())
    if not names:
        return ""
    total = sum(tensor.size for tensor in tensors.values())
    return (
        f"{subnormal + zero} of {total} values are below the smallest normal number of {dtype}, "
        f"{SMALLEST_NORMAL[dtype]:.3g}: {subnormal} have fewer digits now and {zero} are 0; "
        f"in {list_names(names, 3)}"
    )


def list_floats(tensors: Arrays) -> dict[str, np.ndarray]:
    """Return the tensors of floating-point numbers."""
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == "f"}


def find_subnormal(tensors: Arrays) -> Iterator[tuple[str, int]]:
    """Yield the name of every tensor that has subnormal numbers of float32, and how many."""
    for name, tensor in list_floats(tensors).items():
        magnitudes = np.abs(tensor)
        count = int(((magnitudes > 0) & (magnitudes < SMALLEST_NORMAL["float32"])).sum())
        if count:
            yield name, count


def _round_to_bfloat16(tensor: np.ndarray) -> np.ndarray:
    """Round to the upper half of a float32, to nearest, ties to even."""
    single = np.asarray(tensor, np.float32)
    bits = single.view(np.uint32).reshape(single.shape).astype(np.uint32)
    if tensor.dtype == np.float64:
        # rounded twice, a value may end on the wrong side of a tie: the first rounding cuts, and
        # says in the last bit whether it has cut anything
        bits -= (np.abs(single.astype(np.float64)) > np.abs(tensor)).astype(np.uint32)
        bits |= (single.astype(np.float64) != tensor).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    is_number = ~np.isnan(single)
    return np.where(is_number, rounded, bits).astype(np.uint32).view(np.float32)
