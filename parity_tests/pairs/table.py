"""The planted bugs of the pairs, and the table of them in docs/any-net.md.

`python -m parity_tests.pairs.table` writes it; it takes some minutes.
"""

from pathlib import Path

import torch

from parity_tests.pairs.bugs import BUGS, Bug
from parity_tests.pairs.catalogue import PAIRS
from parity_tests.pairs.loading import draw_inputs, load_port
from unet_parity.compared import NET
from unet_parity.pair.comparison import PairComparer, PairComparison
from unet_parity.pair.procedure import compare_seed
from unet_parity.pair.verify import prepare_pair

TABLE = Path(__file__).parent.parent.parent / "docs" / "any-net.md"
BEGIN, END = "<!-- pairs -->", "<!-- end of pairs -->"
WIDTH = 6
MAKERS = {pair.name: pair.make_reference for pair in PAIRS}


def make_comparers(
    name: str, *, width: int = WIDTH, old: str = "", new: str = ""
) -> tuple[list[PairComparer], tuple, tuple]:
    """Return the comparers of a pair, one for each mode, its inputs and its outputs.

    Args:
        old: what stands in the source of the port once, and is replaced.
        new: what stands there instead.
    """
    torch.manual_seed(width)
    reference = MAKERS[name](width)
    module = load_port(name, old=old, new=new)
    port = getattr(module, "port", None)
    if hasattr(module, "make_port"):
        port = module.make_port(width)
    inputs = draw_inputs(name, width, 0)
    return prepare_pair(reference, port, inputs=inputs, convert=module.convert)


def compare_bug(bug: Bug) -> PairComparison:
    """Return the first comparison that has a problem, or the last one."""
    comparers, inputs, outputs = make_comparers(bug.pair, old=bug.old, new=bug.new)
    for comparer in comparers:
        comparison = compare_seed(comparer, inputs, outputs, seed=1)
        if comparison.problems:
            break
    return comparison


def is_named(bug: Bug, module: str) -> bool:
    """Say whether a module is the one of a bug, or inside it."""
    places = [bug.module or NET, *bug.also]
    return any(module == place or module.startswith(f"{place}.") for place in places)


def describe(bug: Bug, comparison: PairComparison) -> str:
    """Return the line of a bug."""
    blame = comparison.blame
    named = "" if blame is None else blame.module
    guess = "" if blame is None else blame.looks_like
    place = named if blame is not None and is_named(bug, named) else f"{named} (not named)"
    return f"| {bug.pair} | {bug.name} | {bug.module or NET} | {place} | {guess} |"


def main() -> None:
    """Write the table."""
    lines = [
        "| pair | mistake | it is in | named | the port seems to have |",
        "|---|---|---|---|---|",
    ]
    named = 0
    for bug in BUGS:
        comparison = compare_bug(bug)
        assert comparison.problems, bug.name
        lines.append(describe(bug, comparison))
        named += "(not named)" not in lines[-1]
        print(lines[-1], flush=True)
    count = f"All {len(BUGS)} mistakes are found, and {named} of them are named by their module."
    before, rest = TABLE.read_text().split(BEGIN)
    _, after = rest.split(END)
    TABLE.write_text(f"{before}{BEGIN}\n{count}\n\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
