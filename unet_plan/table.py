"""Plans as tables on a terminal, one column for each topology."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from unet_plan.plan import Plan
from unet_plan.program import Cost

NOTHING_RAN = (
    "Nothing ran on a chip: times are estimates of the chip's own compiler, without the exchanges "
    "between devices, or bounds by arithmetic."
)
UNKNOWN = "-"


def show(plans: Sequence[Plan], console: Console) -> None:
    """Print plans side by side, and what follows from each."""
    table = Table()
    table.add_column("")
    for plan in plans:
        table.add_column(plan.topology, justify="right")
    for name, cells in list_rows(plans):
        table.add_row(name, *cells)
    console.print(table)
    for plan in plans:
        for sentence in list_sentences(plan):
            console.print(f"{plan.topology}: {sentence}", highlight=False, markup=False)
    console.print(NOTHING_RAN)


def list_rows(plans: Sequence[Plan]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table that say something: a name, and a cell for each plan."""
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("devices, data x rows", lambda p: f"{p.data} x {p.rows}"),
        ("batch, images", lambda p: f"{p.batch:,}"),
        ("fits", lambda p: "yes" if p.fits else "no"),
        ("memory of a device", lambda p: f"{needed(p)} of {size(p.memory.limit)}"),
        ("  weights, with their average", lambda p: size(p.memory.weights + p.memory.average)),
        ("  optimizer", lambda p: size(p.memory.optimizer)),
        ("  batch", lambda p: size(p.memory.batch)),
        ("  temporaries", lambda p: size(p.memory.temporaries)),
        ("  code", lambda p: size(p.memory.code)),
        ("TFLOP of a step, on a device", lambda p: f"{p.flops / 1e12:.3g}"),
        ("moved in a step, on a device", lambda p: size(p.bytes_moved)),
        ("halos of a step", lambda p: exchange(p, "halos")),
        ("sums of a step", lambda p: exchange(p, "sums")),
        ("gathers of a step", lambda p: exchange(p, "gathers")),
        ("step, bound by arithmetic, ms", lambda p: number(p.arithmetic_ms)),
        ("step, bound by memory, ms", lambda p: number(p.memory_ms)),
        ("step, estimate, ms", lambda p: number(p.estimate_ms)),
        ("images per second, estimate", lambda p: number(p.images_per_s)),
        ("share of peak, estimate", lambda p: share(p.share_of_peak)),
        ("hours for all steps, estimate", lambda p: number(p.hours)),
        ("seconds to compile here", lambda p: f"{p.compile_s:.0f}"),
    ]
    filled = [(name, [cell(plan) for plan in plans]) for name, cell in rows]
    return [(name, cells) for name, cells in filled if set(cells) != {UNKNOWN}]


def list_sentences(plan: Plan) -> list[str]:
    """Return what a plan says beside its numbers."""
    sentences = []
    if plan.devices < plan.available:
        sentences.append(
            f"the run uses {plan.devices} of {plan.available} devices, because more do not divide "
            "the batch"
        )
    if not plan.fits:
        at_least = "" if plan.is_whole else "at least "
        over = plan.memory.needed - plan.memory.limit
        sentences.append(
            f"it does not fit: a device needs {at_least}{size(plan.memory.needed)} and has "
            f"{size(plan.memory.limit)}, which is {at_least}{size(over)} too few; {plan.advice}"
        )
    elif plan.estimate_ms is None:
        known = "the bounds are all" if plan.bound_ms else "nothing"
        sentences.append(f"its compiler estimates no time; {known} that is known of it")
    elif plan.without_estimate:
        sentences.append(
            f"{plan.without_estimate} operations have no estimate, so a step takes longer"
        )
    for number_, (cost, ms) in enumerate(plan.costliest, start=1):
        sentences.append(f"{number_}. {describe_cost(cost)}: {ms:.3g} ms")
    return sentences


def needed(plan: Plan) -> str:
    """Return the memory that a plan needs; with a sign before it where there is more."""
    return f"{'' if plan.is_whole else '> '}{size(plan.memory.needed)}"


def describe_cost(cost: Cost) -> str:
    """Return an operation in words: its module, direction and name."""
    return f"{cost.module}, {cost.passes}, {cost.operation}"


def size(count: float | None) -> str:
    """Return a number of bytes with its unit; a dash for None.

    >>> size(15_750_000_000), size(312_320), size(0)
    ('15.8 GB', '312 kB', '0 kB')
    """
    if count is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{number(count / 1e3)} kB"


def number(value: float | None) -> str:
    """Return a number with three digits; a dash for None."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Return a share in percent; a dash for None."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"


def exchange(plan: Plan, kind: str) -> str:
    """Return how many exchanges of a kind a step has, and their size; a dash for none."""
    for one in plan.exchanges:
        if one.kind == kind:
            return f"{one.count}, {size(one.bytes)}"
    return UNKNOWN
