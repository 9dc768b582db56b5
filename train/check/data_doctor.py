"""A look at the data before the first step: every image is examined, and the diagnosis printed."""

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import itemgetter

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unet_spec import UNetConfig
from unet_spec.wording import list_names, make_printable

from ..config import DataConfig, TrainConfig
from ..devices.processes import gather_objects
from ..input.dataset import Dataset
from ..input.prefetch import read_ahead
from ..input.samples import Sample, Samples
from .diagnosis import MAX_NAMES, Diagnosis, Size, diagnose
from .image_facts import Facts, Values, measure_facts

# decoded, of all images that are examined; where there is more, a random part is
EXAMINED_BYTES = 1 << 28
_MARKS = {
    "warning": Text("!", style="bold yellow"),
    "note": Text("-", style="dim"),
}


def examine(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    net: UNetConfig,
    data: DataConfig,
    ignore_index: int | None = None,
    class_names: Sequence[str] = (),
) -> Diagnosis:
    """Return the diagnosis of all images of both sides of a split, decoded one by one."""
    sides = [
        [measure_facts(sample) for _, sample in read_ahead(side, range(len(side)))]
        for side in (training, validation)
    ]
    return diagnose(*sides, net=net, data=data, ignore_index=ignore_index, class_names=class_names)


def report_data(dataset: Dataset, *, config: TrainConfig, console: Console) -> Diagnosis:
    """Examine the data of a run, print the diagnosis and return it.

    Where there is more than `EXAMINED_BYTES`, a random part is examined, and it says so. Each
    process decodes its own part of that.
    """
    sides = (dataset.training, dataset.validation)
    share = min(1.0, EXAMINED_BYTES / max(1, sum(side.bytes for side in sides)))
    ours = [_examine_part(side, share, config.seed) for side in sides]
    # of each process the facts on either side, every one with its place in the order
    parts = gather_objects("facts", ours)
    training, validation = (
        [facts for _, facts in sorted(chain(*side), key=itemgetter(0))]
        for side in zip(*parts, strict=True)
    )
    diagnosis = diagnose(
        training, validation, net=config.net, data=config.data,
        ignore_index=config.loss.ignore_index, class_names=config.class_names,
        totals=(len(dataset.training), len(dataset.validation)),
    )  # fmt: skip
    print_diagnosis(diagnosis, console)
    return diagnosis


def _examine_part(samples: Samples, share: float, seed: int) -> list[tuple[int, Facts]]:
    """Return the facts of a random share of samples that this process has to examine, at least
    one in all processes together, each with its place in the order."""
    count = max(1, round(share * len(samples))) if len(samples) else 0
    drawn = sorted(np.random.default_rng((seed, 1)).permutation(len(samples))[:count].tolist())
    own = drawn[jax.process_index() :: jax.process_count()]
    return [(index, measure_facts(sample)) for index, sample in read_ahead(samples, own)]


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis: what there is, the classes, then each finding."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    for label, value in _list_facts(diagnosis):
        facts.add_row(label, Text(make_printable(value)))
    classes = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    classes.add_column("class")
    for title in ("pixels to train on", "images to train on", "images held out"):
        classes.add_column(title, justify="right")
    for share in diagnosis.classes:
        images = f"{share.training}", f"{share.validation}"
        classes.add_row(Text(share.name), f"{100 * share.pixels:.1f} %", *images)
    console.print(facts, "", classes, sep="\n")
    if diagnosis.findings:
        findings = Table.grid(padding=(0, 1))
        for finding in diagnosis.findings:
            findings.add_row(_MARKS[finding.level], Text(make_printable(finding.text)))
        console.print("", findings, sep="\n")


def _list_facts(d: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield each fact about the data as its label and its value."""
    kinds = [f"{count} with {kind}" for kind, count in d.kinds.items()]
    masks = [f"{len(names)} with {kind}" for kind, names in d.stored.items()]
    yield "images", f"{d.training} to train on, {d.validation} held out"
    yield "an epoch", f"{round(d.steps_per_epoch, 1):,g} steps"
    if d.examined < d.training + d.validation:
        yield "examined", f"{d.examined} of them, drawn at random: all below is about these"
    yield "decoded", f"{d.memory_bytes / 1e6:,.0f} MB"
    yield "sizes", _format_sizes(d.sizes)
    yield "read as", list_names(kinds, MAX_NAMES)
    yield "values", _format_values(d.as_read)
    yield "saturated", f"{100 * d.saturated_pixels:.1f} % of the pixels"
    yield "net's input", _format_values(d.as_input)
    yield "masks", list_names(masks, MAX_NAMES)
    if d.ignored_pixels:
        yield "ignored", f"{100 * d.ignored_pixels:.1f} % of the pixels to train on"


def _format_sizes(sizes: Sequence[Size]) -> str:
    """Return the sizes in words: each of a few, or the range and the most frequent of many."""
    if len(sizes) <= 3:
        return ", ".join(f"{size.images} of {_format_size(size)}" for size in sizes)
    smallest, largest = _format_size(sizes[0]), _format_size(sizes[-1])
    most = max(sizes, key=lambda size: size.images)
    return f"{len(sizes)}, {smallest} to {largest}; {most.images} images of {_format_size(most)}"


def _format_size(size: Size) -> str:
    """Return the height and the width of a size, in words."""
    return f"{size.height} x {size.width}"


def _format_values(values: Values) -> str:
    """Return the values in words."""
    mean = values.mean
    if abs(mean) <= 1e-6 * values.deviation:  # the rounding of normalized images
        mean = 0.0
    return (
        f"{_format_number(values.low)} to {_format_number(values.high)}, "
        f"mean {_format_number(mean)}, standard deviation {_format_number(values.deviation)}"
    )


def _format_number(value: float) -> str:
    """Return a number with three digits, or with all those before the point."""
    value += 0.0  # -0 becomes 0
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
