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
from unet_parity.pair.logs import ForwardLog, LoggedOperation, Source, translate_operator
from unet_parity.pair.values import ComputedValues, PortValues


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
    blame = Blame(operation.module or NET, _say_what_differs(operation, log.operations))
    if computed is None:
        return blame
    from unet_parity.pair.guess import guess_mistake

    return guess_mistake(blame, log.calls, first, computed)


def _say_what_differs(operation: LoggedOperation, operations: Sequence[LoggedOperation]) -> str:
    """Name an operation by its kind, and by its place where its module has several of that kind."""
    numbers = [
        other.number
        for other in operations
        if (other.module, other.name) == (operation.module, operation.name)
    ]
    word = translate_operator(operation.name)
    if len(numbers) == 1:
        return f"its {word} differs"
    return f"its {word}, number {1 + numbers.index(operation.number)} of {len(numbers)}, differs"


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
