"""Where a port's gradients first leave the reference's, going backwards, by values alone.

Every function that the reference calls is seen with the gradient that arrives at what it gives, and
with the gradients that it passes on to each of its inputs. A function at fault is given a gradient
that the port computes too, and passes one on that the port does not compute.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unet_parity.differences import NET
from unet_parity.pair.logs import BackwardLog, LoggedCall
from unet_parity.pair.values import PortValues

NOTHING = 1e-12
"""A gradient that is smaller than this part of the one behind it is rounding."""


def find_module(log: BackwardLog, wrong: Sequence[int], values: PortValues) -> str:
    """Return the module at which the port's gradients leave the reference's; empty if none is
    found.

    From each wrong gradient the walk goes towards the output, as long as gradients are not the
    port's.

    Args:
        log: of the reference, in float64.
        wrong: the numbers of parameters and inputs whose gradients are not the port's.
        values: of the port's pass, forward and backward, in float64.
    """
    users: dict[int, list[LoggedCall]] = defaultdict(list)
    for call in log.calls:
        for tensor in dict.fromkeys(call.inputs):
            users[tensor].append(call)
    faults: dict[int, str] = {}  # by the numbers of calls
    to_visit, visited = list(wrong), set[int]()
    while to_visit:
        tensor = to_visit.pop()
        if tensor in visited:
            continue
        visited.add(tensor)
        unlike = [call for call in users[tensor] if not _is_known(values, log, call, tensor)]
        for call in unlike:
            behind = [y for y in call.outputs if y in log.arriving]
            later = [y for y in behind if not values.contains(f"gradient of {y}", log.arriving[y])]
            to_visit += later
            if not later:
                faults[call.number] = call.module
        if users[tensor] and not unlike:
            # each use passes on what the port computes too, but not all of it is added
            modules = [call.module for call in users[tensor]]
            faults[users[tensor][-1].number] = _name_common(modules)
    return (faults[max(faults)] or NET) if faults else ""


def _is_known(values: PortValues, log: BackwardLog, call: LoggedCall, tensor: int) -> bool:
    """Say whether the port computes the gradient that a call passes on to a tensor."""
    gradient = call.passed.get(tensor)
    if gradient is None:
        return True
    arriving = [log.arriving[y] for y in call.outputs if y in log.arriving]
    scale = max(map(_largest, arriving), default=0.0)
    # what is 0 but for rounding is another rounding in the port
    return _largest(gradient) <= NOTHING * scale or values.contains(
        f"gradient of {tensor} through call {call.number}", gradient
    )


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max())


def _name_common(paths: Sequence[str]) -> str:
    """Return the innermost module that holds all of some modules.

    >>> _name_common(["block.norm", "block.mlp.0"])
    'block'
    """
    parts = [path.split(".") for path in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
