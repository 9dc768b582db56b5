"""What a compiled program says of itself: its exchanges, and the compiler's cycles by module."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unet_train.devices.collectives import measure_collective

EXCHANGES = {
    "collective-permute": "halos", "all-reduce": "sums", "reduce-scatter": "sums",
    "all-gather": "gathers", "all-to-all": "gathers",
}  # fmt: skip
"""What a collective is for in a step: the rows at a border, a sum over devices, or a whole array
put together, which no feature map should ever be."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_OPERATION = re.compile(r"= .*? ([a-z][a-z-]*)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_LEVEL = re.compile(r"\b(down_\d+|up_\d+|neck|out|augment|loss|optimizer)\b")
_PART = re.compile(r"[/(](conv|pool|up)\b")
# these work, in contrast to what only names a part of a tuple
_WORKING = {"fusion", "custom-call", "convolution", "dot", "scatter", "gather", "sort"}
UNNAMED = "unnamed"


@dataclass(frozen=True)
class Exchange:
    """An `Exchange` is what devices send each other in one step, of one kind.

    Attributes:
        kind: halos, sums or gathers.
        count: the number of collectives.
        bytes: that they give each device.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """A `Cost` is an operation of the program with the compiler's estimate of its time.

    Attributes:
        module: of the net, or the part of a step, by the last operation that is fused into it.
        passes: forward or backward.
        operation: that last operation, as JAX calls it.
        cycles: in a step.
    """

    module: str
    passes: str
    operation: str
    cycles: int


@dataclass(frozen=True)
class Program:
    """A `Program` is what the text of a compiled step says.

    Attributes:
        costs: of all operations with an estimate, the costliest first; () where the compiler
            has none.
        without_estimate: number of operations that compute, and have none.
    """

    exchanges: tuple[Exchange, ...]
    costs: tuple[Cost, ...]
    without_estimate: int

    @property
    def cycles(self) -> int | None:
        """Return the cycles of a step; None where the compiler estimates none."""
        return sum(cost.cycles for cost in self.costs) or None


def read_program(text: str) -> Program:
    """Read the text of a compiled function (`as_text()`)."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    costs: list[Cost] = []
    without = 0
    for times, line in list_operations(split_computations(text)):
        collective = measure_collective(line)
        if collective is not None:
            kind, size = collective
            sums[EXCHANGES[kind]].update(count=times, bytes=times * size)
            continue
        cycles = _CYCLES.search(line)
        operation = _OPERATION.search(line)
        if cycles is not None:
            costs.append(_describe(line, times * int(cycles[1])))
        elif operation is not None and operation[1] in _WORKING:
            without += times
    exchanges = [
        Exchange(kind, sums[kind]["count"], sums[kind]["bytes"])
        for kind in dict.fromkeys(EXCHANGES.values())
        if kind in sums
    ]
    costs.sort(key=lambda cost: -cost.cycles)
    return Program(tuple(exchanges), tuple(costs), without)


def split_computations(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation by its name, and those of the entry as "" too."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head is not None:
            lines = computations[head[2]] = []
            if head[1]:
                computations[""] = lines
        elif line.startswith("  "):
            lines.append(line)
    return computations


def list_operations(
    computations: Mapping[str, list[str]], name: str = "", times: int = 1
) -> Iterator[tuple[int, str]]:
    """Yield (number of times, line) of every operation that a step runs.

    The inside of a fusion is one operation; that of a loop is run as often as the loop turns.
    """
    for line in computations.get(name, ()):
        yield times, line
        operation = _OPERATION.search(line)
        kind = operation[1] if operation else ""
        if kind not in ("while", "call", "conditional", "async-start"):
            continue
        turns = times * (_count_turns(computations, line) if kind == "while" else 1)
        for names in _CALLED.findall(line):
            for called in re.findall(r"%([\w.-]+)", names):
                yield from list_operations(computations, called, turns)


def sum_by_module(costs: Iterable[Cost]) -> dict[str, int]:
    """Return the cycles of each module, the costliest first."""
    sums: Counter[str] = Counter()
    for cost in costs:
        sums[cost.module] += cost.cycles
    return dict(sums.most_common())


def find_module(op_name: str) -> str:
    """Return the module that an operation belongs to, by the names that JAX gave it.

    >>> find_module("jit(train_step)/transpose(jvp(up_1))/conv/conv_general_dilated")
    'up_1.conv'
    >>> find_module("jit(train_step)/augment/vmap()/mul"), find_module("copy")
    ('augment', 'unnamed')
    """
    level = _LEVEL.search(op_name)
    if level is None:
        return UNNAMED
    part = _PART.search(op_name, level.end())
    has_parts = level[1].startswith(("down", "up"))
    return f"{level[1]}.{part[1]}" if part and has_parts else level[1]


def _describe(line: str, cycles: int) -> Cost:
    named = _OP_NAME.search(line)
    path = named[1] if named else ""
    passes = "backward" if "transpose(" in path else "forward"
    last = path.rpartition("/")[2] or _first_word(line)
    return Cost(find_module(path), passes, last, cycles)


def _first_word(line: str) -> str:
    """Return what the compiler calls an operation without a name: copy, fusion, ..."""
    operation = _OPERATION.search(line)
    return operation[1] if operation else UNNAMED


def _count_turns(computations: Mapping[str, Sequence[str]], line: str) -> int:
    """Return how often a loop turns: it is stated, or the one number in the loop's condition."""
    stated = _TRIPS.search(line)
    if stated is not None:
        return int(stated[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    inside = computations.get(condition[1], ()) if condition else ()
    numbers = [int(n) for one in inside for n in _CONSTANT.findall(one)]
    return numbers[0] if len(numbers) == 1 else 1
