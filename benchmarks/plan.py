"""What do the presets need and take on chips that are not here, by those chips' own compilers?

`python -m benchmarks.plan` runs `unet plan` once for each row and writes `results/plan.json` after
each, so that it goes on where it was stopped (hours on two cores; nothing else should run).
`--small` is a trial with a narrow net, `--rows TEXT` makes only the rows whose name begins so.
It needs the compilers: pip install 'unet-twins[plan]'.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.script import RESULTS, make_parser, write_result
from unet_plan.topology import parse_topology
from unet_spec.environment import environment

RESULT = RESULTS / "plan.json"
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v6e:2x2")
BATCHES = {"modern": 64, "paper": 16}
SMALL = ("--net.widths", "4", "6", "--data.crop-px", "60", "--augment.no-flips",
         "--augment.no-quarter-turns", "--augment.elastic-px", "0", "--augment.rotation-deg", "0",
         "--augment.scale", "0", "--augment.shift-px", "0")  # fmt: skip
TOO_LARGE = 128
"""Images of a device that are too many for one chip of v5e."""


def list_rows(made: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each row and what is typed after `unet plan`.

    Args:
        made: the rows that there are already, by name. A plan that does not fit advises a batch,
            which is the next row.
    """
    for preset, batch in BATCHES.items():
        for topology in TOPOLOGIES:
            words = [preset, "--topology", topology, "--data.batch", str(batch)]
            yield f"{preset} on {topology}", words
    yield (
        "modern with 16 images each on v5e:4x4",
        ["modern", "--topology", "v5e:4x4", "--data.batch", "256"],
    )
    batch = TOO_LARGE * parse_topology("v5e:2x2").devices
    yield "too large", ["modern", "--topology", "v5e:2x2", "--data.batch", str(batch)]
    advice = re.search(r"--data\.batch (\d+)", made.get("too large", {}).get("advice") or "")
    if advice is not None:
        yield "as advised", ["modern", "--topology", "v5e:2x2", "--data.batch", advice[1]]
    rows = ["--data.crop-px", "2048", "--data.batch", "4", "--mesh.data", "1", "--mesh.rows", "16"]
    yield "images of 2048x2048 px, spread", ["modern", "--topology", "v5e:4x4", *rows]
    for preset, batch in BATCHES.items():
        for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):  # one of each kind of chip
            words = [preset, "--topology", topology, "--data.batch", str(batch), "--largest"]
            yield f"largest batch of {preset} on {topology}", words


def plan(words: Sequence[str]) -> dict[str, Any]:
    """Run `unet plan` in a process of its own and return its row.

    Raises:
        CalledProcessError: it ended otherwise than with a plan.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "unet_cli", "plan", *words, "--json", str(target)]
        status = subprocess.run(command, check=False).returncode
        if not target.exists():
            raise subprocess.CalledProcessError(status, command)
        (row,) = json.loads(target.read_text())["plans"]
    del row["compile_s"]  # it depends on what else this machine did
    return {"command": " ".join(["unet", "plan", *words]), **row}


def main() -> None:
    """Make the rows that are missing."""
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument("--small", action="store_true", help="a trial with a narrow net")
    parser.add_argument("--rows", metavar="TEXT", default="", help="only rows whose name begins so")
    arguments = parser.parse_args()
    made: dict[str, Any] = {}
    if arguments.out.exists():
        made = json.loads(arguments.out.read_text())["rows"]
    for name, words in list_rows(made):
        if name.startswith(arguments.rows):
            typed = [*words, *(SMALL if arguments.small else ())]
            make_row(name, typed, made, arguments.out)
    print("", *list_lines(made), sep="\n")


def list_lines(rows: Mapping[str, Any]) -> list[str]:
    """Return the tables of docs/plan.md, line by line; a test compares them with this."""
    # in the order of the list, whichever was made first
    rows = {name: rows[name] for name, _ in list_rows(rows) if name in rows}
    largest = {name: row for name, row in rows.items() if name.startswith("largest")}
    lines = [
        "| run | topology | batch | memory of a device, GB | estimate of a step, ms | images/s "
        "| share of peak | exchanged in a step, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if name not in largest:
            lines.append(_describe_row(name.partition(" on ")[0], row))
    if largest:
        lines += [
            "",
            "| preset | topology | largest batch | images of a device | needs "
            "| memory of a device, GB |",
            "|---|---|---|---|---|---|",
        ]
    for name, row in largest.items():
        preset = name.removeprefix("largest batch of ").partition(" on ")[0]
        needs = ["remat"] if row["remat"] else []
        needs += [f"{row['rows']} rows"] if row["rows"] > 1 else []
        lines.append(
            f"| {preset} | {row['topology']} | {row['batch']:,} | {row['images']:g} "
            f"| {' and '.join(needs) or 'nothing more'} | {_gigabytes(row)} |"
        )
    return lines


def _describe_row(name: str, row: Mapping[str, Any]) -> str:
    exchanged = sum(one["bytes"] for one in row["exchanges"]) / 1e6
    times = ["does not fit", "-", "-", "-"]
    if row["fits"]:
        times = [
            f"{row['estimate_ms']:.1f}", f"{row['images_per_s']:,.0f}",
            f"{100 * row['share_of_peak']:.0f} %", f"{exchanged:,.0f}",
        ]  # fmt: skip
    cells = [name, row["topology"], f"{row['batch']:,}", _gigabytes(row), *times]
    return f"| {' | '.join(cells)} |"


def _gigabytes(row: Mapping[str, Any]) -> str:
    sign = "" if row["is_whole"] else "> "
    return f"{sign}{row['memory']['needed'] / 1e9:.1f} of {row['memory']['limit'] / 1e9:.1f}"


def make_row(name: str, words: list[str], made: dict[str, Any], out: Path) -> None:
    """Make a row and write the file, unless the same command has made it before."""
    command = " ".join(["unet", "plan", *words])
    if made.get(name, {}).get("command") == command:
        print(f"{name}: is there already", flush=True)
        return
    print(f"{name}: {command}", flush=True)
    made[name] = plan(words)
    result = {"command": "python -m benchmarks.plan", "rows": made, "environment": environment()}
    write_result(out, result)


if __name__ == "__main__":
    main()
