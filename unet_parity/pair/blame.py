"""Where a port first leaves the reference, by the values of both and by no names of the port.

The reference's operations are walked backwards from an output that differs. A value that the port
computes too, in whatever layout, ends the walk: up to there both agree. What is left are the
operations whose values the port does not have; the first of them that is given nothing but values
that the port has is at fault. A port that computes something in another order of operations is not
at fault, as long as it comes to a value of the reference again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from unet_parity.compared import NET
from unet_parity.differences import module_of
from unet_parity.pair.intermediates import Values
from unet_parity.pair.operations import Operation
from unet_parity.pair.variants import list_variants

WORDS = {
    "convolution": "convolution", "addmm": "linear layer", "mm": "matrix product",
    "bmm": "matrix product", "native_layer_norm": "layer norm", "_softmax": "softmax",
    "native_batch_norm": "batch norm", "_native_batch_norm_legit": "batch norm",
    "_native_batch_norm_legit_no_training": "batch norm", "native_group_norm": "group norm",
    "cat": "concatenation", "add": "sum", "mul": "product", "div": "quotient", "sub": "difference",
    "max_pool2d_with_indices": "max-pool", "upsample_nearest2d": "interpolation",
    "_adaptive_avg_pool2d": "average pool", "mean": "mean", "gelu": "GELU", "relu": "ReLU",
    "masked_fill": "mask", "_scaled_dot_product_flash_attention_for_cpu": "attention",
}  # fmt: skip
"""What people call torch's operators."""
VIEWS = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "squeeze",
    "unsqueeze", "clone", "alias", "detach", "select", "slice", "split", "unbind",
)  # fmt: skip
"""Operators that compute nothing."""


@dataclass(frozen=True)
class Blame:
    """A `Blame` says where a port first leaves the reference.

    Attributes:
        module: path of the reference's module, or `the net`.
        what: which of its values differs, in words.
        looks_like: what gives the port's values there; empty if nothing known does.
    """

    module: str
    what: str
    looks_like: str = ""

    def __str__(self) -> str:
        guess = f"; it looks like {self.looks_like}" if self.looks_like else ""
        return f"{self.module}: {self.what}{guess}"


def find_fault(
    operations: Sequence[Operation],
    outputs: Sequence[tuple[int, int]],
    values: Values,
    port_outputs: Values,
) -> Blame:
    """Return where the port leaves the reference.

    Args:
        operations: of the reference, in float64.
        outputs: those of its outputs that differ, by the operations that give them.
        values: of the port, in float64.
        given: of these, what it gives at its end.
    """
    unlike = _walk_back(operations, outputs, values)
    if not unlike:
        return Blame(NET, "its output is computed, but given in another place or order")
    first = min(
        number
        for number in unlike
        if not any(source and source[0] in unlike for source in operations[number].inputs)
    )
    operation = operations[first]
    word = WORDS.get(operation.name, operation.name.strip("_"))
    blame = Blame(operation.module or NET, f"its {word} differs")
    port = _Port(values, port_outputs, _keep_values(operations))
    for variant in list_variants(operation, operations[:first]):
        if not variant.tensors or not all(contains(values, t) for t in variant.tensors):
            continue
        if variant.is_later or port.goes_on(operations, (first, 0), variant.tensors[0]):
            # a layer that is right, and is given what comes from elsewhere, is not at fault
            module = module_of(blame.module) or NET if variant.is_wiring else blame.module
            return replace(blame, module=module, looks_like=variant.text)
    return blame


def _walk_back(
    operations: Sequence[Operation], outputs: Sequence[tuple[int, int]], values: Values
) -> set[int]:
    """Return the operations on the way to some outputs whose values the port does not have."""
    unlike: set[int] = set()
    to_visit = list(outputs)
    known: dict[tuple[int, int], bool] = {}
    dependent = _find_dependent(operations)
    while to_visit:
        place = to_visit.pop()
        if place in known:
            continue
        number, which = place
        operation = operations[number]
        known[place] = number not in dependent or contains(values, operation.outputs[which])
        if known[place]:
            continue
        unlike.add(number)
        to_visit += [source for source in operation.inputs if source is not None]
    return unlike


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
            return contains(self.port_outputs, tensor)
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
            elif contains(self.values, result) and not contains(self.of_reference, result):
                return True
        return False


def _keep_values(operations: Sequence[Operation]) -> Values:
    values = Values()
    for operation in operations:
        for tensor in operation.outputs:
            if tensor.is_floating_point():
                values.add(tensor.double().numpy())
    return values


def contains(values: Values, tensor: Tensor) -> bool:
    """Say whether a tensor is among the values of a port."""
    return values.contains(tensor.detach().double().numpy())


def _find_dependent(operations: Sequence[Operation]) -> set[int]:
    """Return the operations that compute with floating-point numbers what depends on an input.

    What is computed from weights, or from integers and masks alone, may look otherwise in the port.
    """
    reached: set[int] = set()
    dependent: set[int] = set()
    for operation in operations:
        # an input of the net is copied before anything is done with it
        is_input = operation.name == "clone" and not any(operation.inputs)
        if not is_input and not any(source and source[0] in reached for source in operation.inputs):
            continue
        reached.add(operation.number)
        are_float = [tensor.is_floating_point() for tensor in operation.tensors]
        if any(are_float) and any(tensor.is_floating_point() for tensor in operation.outputs):
            dependent.add(operation.number)
    return dependent
