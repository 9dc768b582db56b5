"""What is settled before the first step of a run: config, devices, samples."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from unet_spec import InputError
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
        resuming: the run has a checkpoint in its folder.
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
        out: the folder of the run; None for one that leaves nothing, and may have one image.

    Raises:
        InputError: data, a config or an output that cannot be used.
    """
    config.data.check_source()
    resuming = out is not None and is_first_process() and run_folder.may_resume(out)
    resuming = broadcast_from_first("resuming", resuming)
    if out is not None and not resuming and run_folder.has_begun(out):
        progress.say(f"{out}: the run there has no checkpoint yet, and begins again")
    settings = beginning.read_start_settings(config, run=out if resuming else None)
    given, config = config, beginning.apply_start(config, settings)
    for name, value in run_folder.list_changes(given, config):
        progress.say(f"taken from {config.start}: {name}={value}")
    placement = make_placement(config)
    samples = load_samples(config)
    validation: list[Sample] = []
    if out is None and len(samples) == 1:  # nothing is scored there, so nothing is held out
        training = samples
    else:
        training, validation = split_samples(samples, holdout=config.data.holdout, seed=config.seed)
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


def lock_run(plan: Plan, out: Path) -> AbstractContextManager[None]:
    """Let no other command train in the folder in the block; the first process holds the lock.

    Raises:
        InputError: another command trains there, or has done so since the plan was made.
    """
    return _lock_run(plan, out) if is_first_process() else nullcontext()


@contextmanager
def _lock_run(plan: Plan, out: Path) -> Iterator[None]:
    with run_folder.lock_run(out):
        if run_folder.may_resume(out) != plan.resuming:
            raise InputError(f"{out}: another command has just trained there; give this one again")
        yield


def open_run(plan: Plan, out: Path) -> None:
    """Write the beginning of a new run, or clear up in one that resumes, where it is locked."""
    config = plan.config
    run_folder.remove_leftovers(out)
    if not plan.resuming:
        started = beginning.describe_start(plan.settings, plan.origin)
        run_folder.write_beginning(out, config, fingerprints=plan.fingerprints, started=started)
    if not (out / run_folder.AUGMENTED).exists():
        write_preview(
            out / run_folder.AUGMENTED, plan.training, data=config.data, net=config.net,
            augment=config.augment, seed=config.seed,
        )  # fmt: skip
