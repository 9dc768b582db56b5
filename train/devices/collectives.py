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


def measure_collective(line: str) -> tuple[str, int] | None:
    """Return the kind of a collective in a line of a compiled function, and the bytes that it
    gives each device; None for any other operation."""
    match = _OPERATION.search(line)
    if match is None:
        return None
    shapes, kind = match.groups()
    if kind == "all-reduce":  # of several arrays at once
        return kind, sum(_list_bytes(shapes))
    # one that only starts names what it reads as well
    return kind, _largest_shape_bytes(shapes)


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
    return max(_list_bytes(shapes), default=0)


def _list_bytes(shapes: str) -> list[int]:
    """Return the bytes of each array that a text of shapes names."""
    return [
        _BYTES.get(kind, 8) * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in _SHAPE.findall(shapes)
    ]
