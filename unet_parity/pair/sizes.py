"""Other sizes of a net's inputs, so that no mistake hides where nobody looks.

Some mistakes show at odd sizes only, or at large ones. Which lengths of the inputs are free is not
asked: one length is changed wherever it stands, and the reference runs or does not.
"""

import time
from collections.abc import Callable

import numpy as np

from unet_parity.pair.numbers import Shapes
from unet_parity.pair.passes import Arrays

LARGEST_S = 2.0
"""A forward pass of the reference in float64 takes at most about so long at the largest size."""
MOST_VALUES = 2**22
"""All inputs together have at most so many values."""


def list_sizes(takes: Callable[[Shapes], bool], inputs: Arrays) -> list[Shapes]:
    """Return other shapes of the inputs that the reference takes.

    For each free length it is one more and one fewer, or the next one that it takes, as a net whose
    pools halve its maps takes no odd length; and for all of them together twice as much, as often
    as there is time for.

    Args:
        takes: runs the reference on inputs of such shapes, and says whether it takes them.
    """
    axes = [
        (place, axis)
        for place, x in enumerate(inputs)
        for axis in range(x.ndim)
        if x.dtype.kind == "f"
    ]
    lengths = dict.fromkeys(inputs[place].shape[axis] for place, axis in axes)
    free = []
    sizes: list[Shapes] = []
    shapes = tuple(x.shape for x in inputs)
    for length in lengths:
        # a length that stands in several inputs is changed in all of them
        alike = [(p, a) for p, a in axes if inputs[p].shape[a] == length]
        groups = [alike] if len({p for p, _ in alike}) > 1 else [[one] for one in alike]
        for group in groups:
            others = [_change(shapes, group, length + step) for step in (1, -1) if length + step]
            taken = [other for other in others if takes(other)]
            if not taken:
                longer = (_change(shapes, group, length + step) for step in list_steps(length))
                taken = [other for other in longer if takes(other)][:1]
            sizes += taken
            if taken:
                free.append(group)
    free = [group for group in free if min(axis for _, axis in group) > 0]  # batches stay
    return [*sizes, *_list_larger(takes, inputs, free)]


def list_steps(length: int) -> list[int]:
    """Return the powers of 2 from 2 to a length.

    >>> list_steps(12)
    [2, 4, 8]
    """
    return [2**power for power in range(1, length.bit_length()) if 2**power <= length]


def _list_larger(
    takes: Callable[[Shapes], bool], inputs: Arrays, free: list[list[tuple[int, int]]]
) -> list[Shapes]:
    """Return shapes twice as long, and the largest for which there is time; none where no length is
    free."""
    larger: list[Shapes] = []
    factor = 2
    while free:
        shapes = tuple(x.shape for x in inputs)
        for group in free:
            place, axis = group[0]
            shapes = _change(shapes, group, factor * inputs[place].shape[axis])
        start = time.monotonic()
        if sum(map(np.prod, shapes)) > MOST_VALUES:
            break
        if not takes(shapes):
            break
        larger = [*larger[:1], shapes]
        if (time.monotonic() - start) * 2 ** len(free) > LARGEST_S:
            break
        factor *= 2
    return larger


def _change(shapes: Shapes, group: list[tuple[int, int]], length: int) -> Shapes:
    changed = [list(shape) for shape in shapes]
    for place, axis in group:
        changed[place][axis] = length
    return tuple(map(tuple, changed))
