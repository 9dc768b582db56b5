"""What the script of a campaign does: arguments, a table of its counts, and a result file."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.script import make_parser, write_result
from benchmarks.watched import FAULTS, describe_fault
from unet_spec.wording import make_printable


def run_campaign(
    description: str | None, campaign: Callable[..., dict[str, Any]], *, result: Path, quick: str
) -> NoReturn:
    """Run a campaign as its script does: arguments, table, result file and status.

    Args:
        description: the script's docstring.
        campaign: takes `seed` and `quick`.
        result: the file that it writes by default.
        quick: what the quick form has, in words.
    """
    parser = make_parser(description, result=result)
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; by default 0")
    parser.add_argument("--quick", action="store_true", help=quick)
    arguments = parser.parse_args()
    content = campaign(seed=arguments.seed, quick=arguments.quick)
    print_table(content)
    write_result(arguments.out, content)
    sys.exit(any(content["faults"].values()))


def print_table(result: Mapping[str, Any]) -> None:
    """Print how the cases of every group ended, and the faults."""
    all_ends = ("refused", "read", "unchecked", "begun", *FAULTS)
    ends = [end for end in all_ends if any(end in row for row in result["counts"].values())]
    width = max(map(len, result["counts"]))
    print(f"{'':{width}}" + "".join(f"{end:>14}" for end in ends))
    for group, counts in result["counts"].items():
        print(f"{group:{width}}" + "".join(f"{counts.get(end, 0):>14}" for end in ends))
    for fault in result["details"]:
        print(make_printable(describe_fault(fault)))
    cases = sum(sum(row.values()) for row in result["counts"].values())
    print(f"{cases} cases, {sum(result['faults'].values())} faults, {result['seconds']} s; a case "
          f"took at most {result['largest_growth_mb']} MB")  # fmt: skip
