"""Plans as one HTML page: memory against the chip's limit, and the time of each module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unet_page
from unet_plan import table
from unet_plan.chips import CHIPS
from unet_plan.plan import Plan
from unet_spec.files import atomic_write

PARTS = ("weights", "average", "optimizer", "batch", "temporaries", "code")
MODULES = 24


def write_page(
    path: Path, plans: Sequence[Plan], commands: Sequence[Sequence[str]], *, command: str
) -> None:
    """Write the page, whole or not at all.

    Args:
        commands: those of the run, for each plan.
        command: that made the page.
    """
    with atomic_write(path) as stream:
        stream.write(render_page(plans, commands, command=command).encode())


def render_page(plans: Sequence[Plan], commands: Sequence[Sequence[str]], *, command: str) -> str:
    """Return the page as HTML; the arguments are those of `write_page`."""
    fitting = sum(plan.fits for plan in plans)
    return unet_page.render(
        Path(__file__).with_name("page.html"),
        plans=[describe_plan(plan, lines) for plan, lines in zip(plans, commands, strict=True)],
        rows=table.list_rows(plans),
        size=table.size,
        headline=f"It fits on {fitting} of {len(plans)}"
        if len(plans) > 1
        else f"It {'fits' if fitting else 'does not fit'} on {plans[0].topology}",
        nothing_ran=table.NOTHING_RAN,
        command=command,
    )


def describe_plan(plan: Plan, commands: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows of a plan."""
    memory = plan.memory
    whole = max(memory.needed, memory.limit)
    total_ms = sum(plan.modules.values())
    slowest = max(plan.modules.values(), default=1.0)
    chip = CHIPS.get(plan.chip)
    return {
        "plan": plan,
        "commands": commands,
        "sentences": table.list_sentences(plan),
        "stack": [
            (name, getattr(memory, name), 100 * getattr(memory, name) / whole) for name in PARTS
        ],
        "limit_at": 100 * memory.limit / whole,
        "needed": table.size(memory.needed),
        "limit": table.size(memory.limit),
        "modules": [
            (name, ms, 100 * ms / slowest, 100 * ms / total_ms)
            for name, ms in list(plan.modules.items())[:MODULES]
        ],
        "sources": chip.source if chip else (),
    }
