"""`unet plan`: the step of a run, compiled for chips that are not here, and what follows."""

import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_spec import InputError
from unet_train.config import TrainConfig, to_plain

if TYPE_CHECKING:
    from unet_plan.plan import Plan
    from unet_plan.topology import Topology

LINE_EVERY_S = 30
# of `plan` alone: the number of words that follow each, None for any
OWN_FLAGS = {"--topology": None, "--report": 1, "--json": 1, "--largest": 0, "--no-largest": 0}
OF_PROCESSES = ("--mesh.processes", "--mesh.process", "--mesh.coordinator")


def plan(
    config: TrainConfig,
    *,
    topology: Sequence[str],
    largest: bool,
    report: Path | None,
    json: Path | None,
    command: Command,
) -> int:
    """Run `unet plan` and return its exit status, which is 1 where a topology is too small.

    Args:
        config: the run.
        topology: names of groups of chips.
        largest: look for the largest batch that fits.
        report: the page.
        json: the report.
        command: what was typed.

    Raises:
        InputError: anything of it cannot be used, before anything is compiled.
    """
    from unet_plan import compiler, page, table
    from unet_plan.plan import make_plan, place
    from unet_plan.topology import parse_topology

    topologies = [parse_topology(name) for name in topology]
    if not topologies:
        raise InputError("--topology needs at least one name, such as v5e:4x4 or h100:8")
    processors = [one.devices for one in topologies if one.chip.platform == "cpu"]
    compiler.prepare_jax(max(processors, default=1))
    config = _apply_start(config)
    placements = [place(config, one) for one in topologies]
    console = Console()
    plans: list[Plan] = []
    for chips, placement in zip(topologies, placements, strict=True):
        with _watch(console, chips.name) as say:
            if largest:
                plans.append(_find_largest(config, chips, say))
            else:
                plans.append(make_plan(config, chips, placement))
    lines = [list_commands(command.words, config, one) for one in plans]
    table.show(plans, console)
    for one, commands in zip(plans, lines, strict=True):
        if one.fits:
            for line in commands:
                console.print(f"{one.topology}: {line}", soft_wrap=True, highlight=False)
    if report is not None:
        page.write_page(report, plans, lines, command=str(command))
        console.print(f"the page: {report}", markup=False)
    rows = [{**p.to_json(), "commands": line} for p, line in zip(plans, lines, strict=True)]
    write_json(json, {"plans": rows, "config": to_plain(config)}, command=command)
    return int(not all(one.fits for one in plans))


def _apply_start(config: TrainConfig) -> TrainConfig:
    """Return a run with the net and the settings of the file that it begins with."""
    if config.start is None:
        return config
    from unet_train.run import beginning

    config = beginning.apply_start(config, beginning.read_start_settings(config, run=None))
    config.check_net()
    return config


def _find_largest(config: TrainConfig, topology: "Topology", say: Callable[[str], None]) -> "Plan":
    """Return the plan with the largest batch, or that of a single image, which does not fit."""
    from unet_plan.largest import find_largest
    from unet_plan.plan import make_plan, place
    from unet_plan.table import size

    tried: list[Plan] = []

    def compile_plan(sized: TrainConfig, quick: bool) -> "Plan":
        one = make_plan(sized, topology, place(sized, topology), quick=quick)
        with_remat = ", remat" if one.remat else ""
        say(
            f"{topology.name}: {'' if quick else 'in full, '}batch {one.batch}, "
            f"data {one.data} x rows {one.rows}{with_remat}: "
            f"{'fits' if one.fits else 'does not fit'} "
            f"({size(one.memory.needed)} of {size(one.memory.limit)})"
        )
        tried.append(one)
        return one

    return find_largest(config, compile_plan) or tried[-1]


def list_commands(words: Sequence[str], config: TrainConfig, plan: "Plan") -> list[str]:
    """Return the lines that run what was planned: one, or one for each host that needs its own.

    Args:
        words: what was typed after `unet`.
        config: the run that was typed.
        plan: of it, or of one with another batch that fits.
    """
    from unet_plan.compiler import HOST_DEVICES

    dropped = {**OWN_FLAGS, **dict.fromkeys(OF_PROCESSES, 1)}
    added: list[str] = []
    if plan.batch != config.data.batch:
        dropped["--data.batch"] = 1
        added += ["--data.batch", str(plan.batch)]
    if plan.rows != config.mesh.rows:
        dropped |= {"--mesh.rows": 1, "--mesh.data": 1}
        added += ["--mesh.rows", str(plan.rows)]
    if plan.remat and not config.remat:
        dropped["--no-remat"] = 0
        added += ["--remat"]
    if config.data.images is None and config.data.synthetic == 0:
        added += ["--data.images", "IMAGES", "--data.masks", "MASKS"]
    added += ["--out", "RUN"]
    line = shlex.join(["unet", "train", *_drop_flags(words[1:], dropped), *added])
    if plan.chip == "cpu" and plan.available > 1:
        return [f"{HOST_DEVICES.format(plan.available)} {line}"]
    if plan.hosts == 1:
        return [line]
    line += f" --mesh.processes {plan.hosts}"
    if plan.chip.startswith(("v", "tpu")):  # the machines of a TPU slice know each other
        return [f"on each of the {plan.hosts} hosts: {line}"]
    return [
        f"on host {host}: {line} --mesh.process {host} --mesh.coordinator HOST:PORT"
        for host in range(plan.hosts)
    ]


def _drop_flags(words: Sequence[str], flags: dict[str, int | None]) -> list[str]:
    """Return the words without some flags and what follows them."""
    kept: list[str] = []
    to_drop = 0
    for word in words:
        flag, equals, _ = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in flags:
            count = flags[flag]
            to_drop = 0 if equals else len(words) if count is None else count
        elif word.startswith("--"):
            to_drop = 0
            kept.append(word)
        elif to_drop:
            to_drop -= 1
        else:
            kept.append(word)
    return kept


@contextmanager
def _watch(console: Console, name: str) -> Iterator[Callable[[str], None]]:
    """Say what is compiled, and for how long already; yield a function that prints a line."""
    start, ended = time.monotonic(), threading.Event()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tick() -> None:
        while not ended.wait(1 if console.is_interactive else LINE_EVERY_S):
            text = f"{name}: compiling, {time.monotonic() - start:.0f} s so far"
            if console.is_interactive:
                status.update(text)
            else:
                say(text)

    say(f"{name}: compiling the step")
    with console.status(f"{name}: compiling") as status:
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield say
        finally:
            ended.set()
            thread.join()
