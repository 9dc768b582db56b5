"""`unet verify --recorded`: recordings of what another machine computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_spec import InputError

_COLOURS = {"equivalent": "bold green", "different": "bold red"}
RUNS = "unet verify --recorded FIRST.jsonl AGAIN.jsonl REPLAY.jsonl"


def refuse_flags_of_a_net(values: Mapping[str, object]) -> None:
    """Refuse what says something of a net beside recordings of runs, which need none.

    Args:
        values: of the flags; None where one is not given.

    Raises:
        InputError: it names the first that is given.
    """
    for flag, value in values.items():
        if value is not None:
            raise InputError(
                f"{flag} is of a net, and recordings of runs after --recorded need none; leave it "
                "out"
            )


def verify_recorded(
    paths: Sequence[Path],
    *,
    names: Path | None,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Compare recordings and return the exit status, which is 1 where they differ.

    Args:
        paths: a training run, the same run with its sums in another order, and its replay.
        names: a TOML file with lines such as "their.name" = "our.name".
        report: the page.
        json: the report.
        command: what was typed.

    Raises:
        InputError: they are not three recordings of runs, or cannot be compared.
    """
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
    console.print(f"[{_COLOURS[found.verdict]}]{found.verdict}[/]")
    for sentence in found.list_sentences():
        console.print(sentence, highlight=False, markup=False)
    console.print(found.draw_table(), highlight=False, markup=False, soft_wrap=True)
    if report is not None:
        from unet_parity.runs import page

        page.write_page(report, found, command=str(command))
        console.print(f"the page: {report}", markup=False)
    write_json(json, found.to_json(), command=command)
    return int(found.verdict == "different")
