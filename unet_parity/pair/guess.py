"""Which known mistake a port makes, tried with torch's operators where it leaves the reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from unet_parity.differences import NET, module_of
from unet_parity.pair.blame import Blame
from unet_parity.pair.logs import translate_operator
from unet_parity.pair.operations import Operation, widen
from unet_parity.pair.values import ComputedValues, Values
from unet_parity.pair.variants import ACTIVATIONS, list_variants

VIEWS = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "squeeze",
    "unsqueeze", "clone", "alias", "detach", "select", "slice", "split", "unbind",
)  # fmt: skip
"""Operators that compute nothing."""


def guess_mistake(
    blame: Blame, operations: Sequence[Operation], first: int, computed: ComputedValues
) -> Blame:
    """Return a blame that says which known mistake gives the port's values, if one does.

    Args:
        operations: of the reference, in float64.
        first: the number of the one at which the port leaves it.
        computed: by the port, in float64.
    """
    port = _Port(computed.all, computed.given, _keep_values(operations))
    for variant in list_variants(operations[first], operations[:first]):
        if not variant.tensors or not all(_contains(port.values, t) for t in variant.tensors):
            continue
        if not variant.is_later and not port.goes_on(operations, (first, 0), variant.tensors[0]):
            continue
        if not variant.is_wiring:
            return replace(blame, looks_like=variant.text)
        # a layer that is right, and is given what comes from elsewhere, is not at fault
        what = f"its {translate_operator(operations[first].name)} differs"
        return Blame(module_of(blame.module) or NET, what, variant.text)
    return blame


def guess_end(outputs: Sequence[Tensor], computed: ComputedValues) -> str:
    """Say behind which activation a port gives what the reference gives as it is; empty if none.

    Args:
        outputs: of the reference, in float64.
        computed: by the port, in float64.
    """
    for text, function in ACTIVATIONS.items():
        changed = [function(output) for output in outputs]
        is_other = not all(map(torch.equal, changed, outputs))
        if is_other and all(_contains(computed.given, output) for output in changed):
            return f"{text} behind it"
    return ""


class _Port(NamedTuple):
    """The values of a port, those that it gives at its end, and those of the reference."""

    values: Values
    port_outputs: Values
    of_reference: Values

    def goes_on(
        self, operations: Sequence[Operation], place: tuple[int, int], tensor: Tensor
    ) -> bool:
        """Say whether the port goes on with a value as the reference does with that of a place.

        That it computes the value says little: the input of an activation is computed anyway. What
        comes of it says nothing either, if the reference computes that too, somewhere else.
        """
        uses = [operation for operation in operations[place[0] + 1 :] if place in operation.inputs]
        if not uses:
            return _contains(self.port_outputs, tensor)
        for use in uses:
            tensors = [
                tensor if source == place else own
                for source, own in zip(use.inputs, use.tensors, strict=True)
            ]
            try:
                result = use.run_with(tensors)[0]
            except RuntimeError:  # of another shape
                continue
            if use.name in VIEWS:
                if self.goes_on(operations, (use.number, 0), result):
                    return True
            elif _contains(self.values, result) and not _contains(self.of_reference, result):
                return True
        return False


def _keep_values(operations: Sequence[Operation]) -> Values:
    values = Values()
    for operation in operations:
        for tensor in operation.outputs:
            if tensor.is_floating_point():
                values.add(widen(tensor))
    return values


def _contains(values: Values, tensor: Tensor) -> bool:
    """Say whether a tensor is among some values, and proves something: a constant does not."""
    array = widen(tensor)
    return array.size > 0 and bool((array != array.flat[0]).any()) and values.contains(array)
