"""What is settled before the first step of a run: config, devices, samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unet_spec.files import refuse_existing
from unet_spec.origin import Origin

from .check import data_doctor
from .config import TrainConfig
from .devices.placement import Placement, make_placement
from .devices.processes import broadcast_from_first, is_first_process, refuse_unlike_processes
from .input.samples import Sample, load_samples
from .input.split import split_samples
from .report.pictures import write_preview
from .report.progress import Progress
from .run import beginning
from .run import folder as run_folder


@dataclass(frozen=True)
class Plan:
    """A `Plan` is all that is settled before the first step.

    Attributes:
        config: complete, with the settings of its start.
        settings: names of what the start settled.
        origin: of the net in the start.
        fingerprints: sha256 of each sample, by its name.
        resuming: the run has begun in its folder.
    """

    config: TrainConfig
    settings: Sequence[str]
    origin: Origin | None
    placement: Placement
    training: list[Sample]
    validation: list[Sample]
    fingerprints: run_folder.Fingerprints
    diagnosis: data_doctor.Diagnosis
    resuming: bool


def make_plan(config: TrainConfig, progress: Progress, *, out: Path | None = None) -> Plan:
    """Settle all that comes before the first step; nothing is written.

    Args:
        out: the folder of the run; None for one that leaves nothing.

    Raises:
        InputError: data, a config or an output that cannot be used.
    """
    resuming = out is not None and broadcast_from_first("begun", run_folder.is_run(out))
    settings = beginning.read_start_settings(config, run=out if resuming else None)
    given, config = config, beginning.apply_start(config, settings)
    for name, value in run_folder.list_changes(given, config):
        progress.say(f"taken from {config.start}: {name}={value}")
    placement = make_placement(config)
    if out is not None and not resuming and is_first_process():
        refuse_existing(out, why="exists, and holds no run")
    samples = load_samples(config)
    training, validation = split_samples(samples, data=config.data, seed=config.seed)
    fingerprints = run_folder.fingerprint_samples(samples)
    refuse_unlike_processes(run_folder.describe_identity(config, fingerprints))
    if out is not None and resuming:
        for change in run_folder.compare_with_beginning(out, config, fingerprints):
            progress.say(f"other than before: {change}")
    if config.data.images is None:
        progress.say(f"no --data.images: {len(samples)} images of synthetic cells")
    diagnosis = data_doctor.report_data(
        training, validation, config=config, console=progress.console
    )
    return Plan(
        config,
        sorted(settings),
        beginning.read_origin(config.start, run=out if resuming else None),
        placement,
        training,
        validation,
        fingerprints,
        diagnosis,
        resuming,
    )


@contextmanager
def open_run(plan: Plan, out: Path) -> Iterator[None]:
    """Write the beginning of a new run, and let nobody else train in the folder meanwhile."""
    if not is_first_process():
        yield
        return
    config = plan.config
    if not plan.resuming:
        started = beginning.describe_start(config.start, plan.settings, plan.origin)
        run_folder.write_beginning(out, config, fingerprints=plan.fingerprints, started=started)
    with run_folder.lock_run(out):
        run_folder.remove_leftovers(out)
        if not (out / run_folder.AUGMENTED).exists():
            write_preview(
                out / run_folder.AUGMENTED, plan.training, data=config.data, net=config.net,
                augment=config.augment, seed=config.seed,
            )  # fmt: skip
        yield
