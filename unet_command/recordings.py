"""`unet verify --recorded`: recordings of what other machines computed; no framework is needed."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unet_command.pairs import COLOURS, show_report
from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_spec import InputError

RUN = ".jsonl"
"""The names of recorded training runs end so; those of either side of a pair in .safetensors."""
RUNS = "unet verify --recorded FIRST.jsonl AGAIN.jsonl REPLAY.jsonl"


def verify_recorded(
    paths: Sequence[Path],
    *,
    weights: Path | None,
    names: Path | None,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Compare recordings and return the exit status, which is 1 where they differ.

    Args:
        paths: of the recording of a reference and that of its port, in any order; or of a training
            run, of the same run with its sums in another order, and of its replay.
        weights: what was typed before any flag.
        names: of a replay: a TOML file with lines such as "their.name" = "our.name".
        report: the page.
        json: the report.
        command: what was typed.

    Raises:
        InputError: they are no recordings, or do not belong together.
    """
    are_runs = any(path.suffix == RUN for path in paths)
    # all other flags say what is compared and how, which recordings say themselves
    allowed = ("--recorded", "--report", "--json", *(["--names"] if are_runs else []))
    typed = [word.partition("=")[0] for word in command.words if word.startswith("--")]
    others = [flag for flag in typed if flag not in allowed]
    if weights is not None:
        others.append("WEIGHTS")
    if others:
        raise InputError(
            f"{others[0]} stands beside recordings, which say all by themselves; leave it out"
        )
    if are_runs:
        return _compare_runs(paths, names=names, report=report, json=json, command=command)
    return _compare_pair(paths, report=report, json=json, command=command)


def _compare_pair(
    paths: Sequence[Path], *, report: Path | None, json: Path | None, command: Command
) -> int:
    if len(paths) != 2:
        raise InputError(
            f"--recorded takes two recordings of a pair, that of its reference and that of its "
            f"port, got {len(paths)}; give both"
        )
    from unet_parity.pair.record import compare_recordings

    console = Console()
    found = compare_recordings(*paths, say=lambda text: console.print(text, highlight=False))
    return show_report(found, console, report=report, json=json, command=command)


def _compare_runs(
    paths: Sequence[Path],
    *,
    names: Path | None,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    from unet_convert.names_map import read_lines
    from unet_parity.runs.comparison import compare_runs
    from unet_parity.runs.recording import is_recording

    others = [path for path in paths if not is_recording(path)]
    if others:
        raise InputError(
            f"{others[0]}: no recording of a training run, which RunRecorder writes; give three of "
            f"them: {RUNS}"
        )
    if len(paths) != 3:
        raise InputError(
            f"a training run is compared by 3 recordings, got {len(paths)}; give the run, the same "
            f"run with its sums in another order, and the replay: {RUNS}"
        )
    first, again, replay = paths
    found = compare_runs(first, again, replay, names=None if names is None else read_lines(names))
    console = Console()
    console.print(f"[{COLOURS[found.verdict]}]{found.verdict}[/]")
    for sentence in found.list_sentences():
        console.print(sentence, highlight=False, markup=False)
    console.print(found.draw_table(), highlight=False, markup=False, soft_wrap=True)
    if report is not None:
        from unet_parity.runs import page

        page.write_page(report, found, command=str(command))
        console.print(f"the page: {report}", markup=False)
    write_json(json, found.to_json(), command=command)
    return int(found.verdict == "different")
