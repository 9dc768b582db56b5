"""What a compiled step exchanges between devices."""

import math
import re
from collections import Counter

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8}  # fmt: skip
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def count_collectives(text: str) -> Counter[str]:
    """Return how many collectives of each kind a compiled function (`as_text()`) holds.

    Halos of rows are `collective-permute`, sums of gradients `all-reduce`.
    """
    return Counter(kind for _, kind in _OPERATION.findall(text))


def largest_bytes(text: str, *kinds: str) -> int:
    """The largest array that a collective of these kinds, by default of any, makes; 0 without
    one."""
    found = [
        _largest_shape_bytes(shape)
        for shape, kind in _OPERATION.findall(text)
        if kind in kinds or not kinds
    ]
    return max(found, default=0)


def _largest_shape_bytes(shapes: str) -> int:
    return max(
        (
            _BYTES.get(kind, 8) * math.prod(int(n) for n in sizes.split(",") if n)
            for kind, sizes in _SHAPE.findall(shapes)
        ),
        default=0,
    )
