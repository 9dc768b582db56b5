"""`unet verify --recorded A.safetensors B.safetensors`: a pair by its recordings."""

from collections.abc import Sequence
from pathlib import Path

from unet_command.pairs import show_report
from unet_command.parsing import Command
from unet_spec import InputError

FLAGS = ("--recorded", "--report", "--json")
"""All others say what is compared and how, which recordings say themselves."""


def verify_recorded(
    paths: Sequence[Path],
    *,
    weights: Path | None,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Compare two recordings and return the exit status, which is 1 where they differ.

    Neither framework is needed.

    Args:
        paths: of the recording of a reference and that of its port, in any order.
        weights: what was typed before any flag.
        report: the page.
        json: the report.
        command: what was typed.

    Raises:
        InputError: they are no recordings, or do not belong together.
    """
    typed = [word.partition("=")[0] for word in command.words if word.startswith("--")]
    others = [flag for flag in typed if flag not in FLAGS]
    if weights is not None:
        others.append("WEIGHTS")
    if others:
        raise InputError(
            f"{others[0]} stands beside recordings of a pair, which say all by themselves; leave "
            "it out"
        )
    if len(paths) != 2:
        raise InputError(
            f"--recorded takes two recordings of a pair, that of its reference and that of its "
            f"port, got {len(paths)}; give both"
        )
    from rich.console import Console

    from unet_parity.pair.record import compare_recordings

    console = Console()
    found = compare_recordings(*paths, say=lambda text: console.print(text, highlight=False))
    return show_report(found, console, report=report, json=json, command=command)
