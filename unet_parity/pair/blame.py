"""Where a port first leaves the reference, by the values of both and by no names of the port.

The reference's operations are walked backwards from an output that differs. A value that the port
computes too, in whatever layout, ends the walk: up to there both agree. What is left are the
operations whose values the port does not have; the first of them that is given nothing but values
that the port has is at fault. A port that computes something in another order of operations is not
at fault, as long as it comes to a value of the reference again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unet_parity.differences import NET
from unet_parity.pair.logs import ForwardLog, LoggedOperation, Source
from unet_parity.pair.values import ComputedValues, PortValues

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
        guess = f"; the port seems to have {self.looks_like}" if self.looks_like else ""
        return f"{self.module}: {self.what}{guess}"


def find_fault(log: ForwardLog, outputs: Sequence[Source], values: PortValues) -> Blame:
    """Return where the port leaves the reference.

    Args:
        log: of the reference, in float64.
        outputs: those of its outputs that differ, by the operations that give them.
        values: of the port, in float64.
    """
    unlike = _walk_back(log.operations, outputs, values)
    # a recording has no operations of torch, with which mistakes are tried
    computed = values if log.calls and isinstance(values, ComputedValues) else None
    if not unlike:
        what = "its output is computed, but given in another place, order or form"
        if computed is None:
            return Blame(NET, what)
        from unet_parity.pair.guess import guess_end

        tensors = [log.calls[number].outputs[which] for number, which in outputs]
        return Blame(NET, what, guess_end(tensors, computed))
    first = min(
        number
        for number in unlike
        if not any(source and source[0] in unlike for source in log.operations[number].inputs)
    )
    operation = log.operations[first]
    blame = Blame(operation.module or NET, f"its {_describe(operation, log.operations)} differs")
    if computed is None:
        return blame
    from unet_parity.pair.guess import guess_mistake

    return guess_mistake(blame, log.calls, first, computed)


def _describe(operation: LoggedOperation, all_of_them: Sequence[LoggedOperation]) -> str:
    """Return what people call an operation, and which of its module's it is if there are more."""
    word = WORDS.get(operation.name, operation.name.strip("_"))
    alike = [o for o in all_of_them if (o.module, o.name) == (operation.module, operation.name)]
    if len(alike) == 1:
        return word
    place = 1 + next(number for number, other in enumerate(alike) if other is operation)
    return f"{word}, number {place} of {len(alike)},"


def _walk_back(
    operations: Sequence[LoggedOperation], outputs: Sequence[Source], values: PortValues
) -> set[int]:
    """Return the operations on the way to some outputs whose values the port does not have."""
    unlike: set[int] = set()
    to_visit = list(outputs)
    known: dict[Source, bool] = {}
    while to_visit:
        place = to_visit.pop()
        if place in known:
            continue
        number, which = place
        operation = operations[number]
        known[place] = not operation.outputs or values.contains(
            f"output {which} of operation {number}", operation.outputs[which]
        )
        if known[place]:
            continue
        unlike.add(number)
        to_visit += [source for source in operation.inputs if source is not None]
    return unlike
