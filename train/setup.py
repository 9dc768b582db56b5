"""What is settled before the first step of a run: config, devices, samples."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from unet_spec import InputError
from unet_spec.errors import ConfigError
from unet_spec.origin import Origin

from .check import data_doctor
from .check.diagnosis import Diagnosis
from .config import LossConfig, TrainConfig
from .devices.placement import Placement, make_placement
from .devices.processes import broadcast_from_first, is_first_process, refuse_unlike_processes
from .devices.room import check_room
from .input.dataset import Dataset, open_dataset
from .report.pictures import is_whole_png, write_preview
from .report.progress import Progress
from .run import beginning
from .run import folder as run_folder


@dataclass(frozen=True)
class Setup:
    """A `Setup` is all that is settled before the first step.

    Attributes:
        config: complete, with the settings of its start.
        settings: names of what the start settled.
        origin: of the net in the start.
        dataset: with the images of either side.
        resuming: the run has a checkpoint in its folder.
    """

    config: TrainConfig
    settings: Sequence[str]
    origin: Origin | None
    placement: Placement
    dataset: Dataset
    diagnosis: Diagnosis
    resuming: bool


def make_setup(config: TrainConfig, progress: Progress, *, out: Path | None = None) -> Setup:
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
    check_room(config, placement)
    known = run_folder.read_identities(out) if out is not None and resuming else {}
    dataset = open_dataset(config, known, needs_validation=out is not None)
    refuse_unlike_processes(run_folder.describe_identity(config, dataset))
    if dataset.matched is not None:
        progress.say(dataset.matched)
    if out is not None and resuming:
        for change in run_folder.compare_with_beginning(out, config, dataset):
            progress.say(f"other than before: {change}")
    if config.data.images is None:
        progress.say(f"no --data.images: {config.data.synthetic} images of synthetic cells")
    diagnosis = data_doctor.report_data(dataset, config=config, console=progress.console)
    config = replace(config, loss=balance_classes(config.loss, diagnosis))
    if config.loss.balance:
        weights = ", ".join(f"{weight:.4g}" for weight in config.loss.class_weights)
        count = diagnosis.examined_training
        images = f"{count} image{'s' if count > 1 else ''} to train on"
        progress.say(f"class weights by the pixels of {images}: {weights}")
    return Setup(
        config,
        sorted(settings),
        beginning.read_origin(config.start, run=out if resuming else None),
        placement,
        dataset,
        diagnosis,
        resuming,
    )


def balance_classes(loss: LossConfig, diagnosis: Diagnosis) -> LossConfig:
    """Return the loss, with the class weights that the data give where it asks for them.

    A class has the inverse of its share of the pixels, such that the mean weight of a pixel is 1;
    a class without a pixel has the weight 0, which no pixel uses.
    """
    if not loss.balance:
        return loss
    if loss.class_weights:
        raise ConfigError(loss, "{balance} takes {class_weights} from the data; leave out either")
    shares = [share.pixels for share in diagnosis.classes]
    present = sum(share > 0 for share in shares)
    weights = tuple(round(1 / (present * share), 6) if share > 0 else 0.0 for share in shares)
    return replace(loss, class_weights=weights)


def lock_run(setup: Setup, out: Path) -> AbstractContextManager[None]:
    """Let no other command train in the folder in the block; the first process holds the lock.

    Raises:
        InputError: another command trains there, or has done so since the setup was made.
    """
    return _lock_run(setup, out) if is_first_process() else nullcontext()


@contextmanager
def _lock_run(setup: Setup, out: Path) -> Iterator[None]:
    with run_folder.lock_run(out):
        if run_folder.may_resume(out) != setup.resuming:
            raise InputError(f"{out}: another command has just trained there; give this one again")
        yield


def open_run(setup: Setup, out: Path) -> None:
    """Write the beginning of a new run, or clear up in one that resumes, where it is locked."""
    config = setup.config
    run_folder.remove_leftovers(out)
    if not setup.resuming:
        started = beginning.describe_start(setup.settings, setup.origin)
        run_folder.write_beginning(out, config, dataset=setup.dataset, started=started)
    if not is_whole_png(out / run_folder.AUGMENTED):
        write_preview(
            out / run_folder.AUGMENTED, setup.dataset.training, data=config.data, net=config.net,
            augment=config.augment, seed=config.seed,
        )  # fmt: skip
