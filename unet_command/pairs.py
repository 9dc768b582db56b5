"""`unet verify --port`: somebody's own torch module and their own port of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_spec import InputError

if TYPE_CHECKING:
    from unet_parity.pair.report import PairReport

COLOURS = {"identical": "bold green", "equivalent": "bold green", "different": "bold red"}


def refuse_flags_of_a_net(values: Mapping[str, object]) -> None:
    """Refuse what says something of a U-Net here, beside a port of any net.

    Args:
        values: of the flags; None where one is not given.

    Raises:
        InputError: it names the first that is given.
    """
    for flag, value in values.items():
        if value is not None:
            raise InputError(f"{flag} is of a U-Net here, and --port of any net; leave one out")


def verify(
    *,
    reference: str | None,
    arguments: str,
    port: str | None,
    convert: str | None,
    inputs: Path | None,
    names: Path | None,
    steps: int,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Compare a pair and return the exit status, which is 1 where they differ.

    Args:
        reference: FILE.py:NAME of the torch module.
        arguments: of its constructor.
        port: FILE.py:NAME of a function of (params, *inputs), of an nnx module, or of a linen one.
        convert: FILE.py:NAME of a function that gives the port's parameters for a `state_dict`.
        inputs: an .npz with the arrays that the reference takes.
        names: a TOML file with lines such as "their.name" = "our.name".
        steps: of training.
        report: the page.
        json: the report.
        command: what was typed.

    Raises:
        InputError: one of them cannot be used.
    """
    if reference is None or inputs is None:
        flag = "--reference" if reference is None else "--inputs"
        raise InputError(f"a port of your own needs {flag} beside it; give it")
    from unet_convert.names_map import read_lines
    from unet_parity.pair.verify import verify_pair
    from unet_spec.recorded import read_arrays
    from unet_torch import reference as references

    arrays = read_arrays(inputs)
    lines = None if names is None else read_lines(names)
    module = references.build(reference, arguments)
    console = Console()
    found = verify_pair(
        module,
        None if port is None else references.load_name(port, flag="--port"),
        convert=None if convert is None else references.load_name(convert, flag="--convert"),
        inputs=arrays,
        names=lines,
        steps=steps,
        say=lambda text: console.print(text, highlight=False),
    )
    return show_report(found, console, report=report, json=json, command=command)


def show_report(
    found: "PairReport",
    console: Console,
    *,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Print the report on a pair, write its page and its JSON, and return the exit status.

    Args:
        report: the page.
        json: the report.
        command: what was typed.
    """
    console.print(f"[{COLOURS[found.verdict]}]{found.verdict}[/]")
    for sentence in found.list_sentences():
        console.print(sentence, highlight=False, markup=False)
    if report is not None:
        from unet_parity.pair import page

        page.write_page(report, found, command=str(command))
        console.print(f"the page: {report}", markup=False)
    write_json(json, found.to_json(), command=command)
    return int(found.verdict == "different")
