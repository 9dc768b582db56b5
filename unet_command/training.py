"""`unet train` in this process, or in a child that this one watches, and how each of them ends."""

import dataclasses
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from unet_command.compilations import keep_compilations
from unet_command.parsing import Command
from unet_command.reports import write_json
from unet_command.wording import is_out_of_memory, list_fields, word_error
from unet_spec import InputError
from unet_spec.allocator import keep_freed_memory
from unet_spec.errors import ConfigError
from unet_spec.garbage import pause_garbage_collection
from unet_train.config import TrainConfig, to_plain

if TYPE_CHECKING:
    from unet_train.loop import Result

# what JAX's errors of exchanges between processes name, and those of a device do not
OF_EXCHANGES = re.compile(
    "gloo|nccl|coordinat|barrier|heartbeat|unavailable|deadline|socket|connection|cancelled|abort",
    re.IGNORECASE,
)


def train(
    config: TrainConfig, *, out: Path, overfit: bool, json: Path | None, command: Command
) -> int:
    """Run `unet train` and return its exit status.

    One of several processes runs in a child, which this one watches: JAX ends a process with a
    page of C++ where another one died.

    Args:
        config: the run.
        out: its folder.
        overfit: only see whether the net can learn the first batch by heart.
        json: the report.
        command: what was typed.

    Raises:
        InputError: anything of it cannot be used.
    """
    is_one_cycle = config.start is None and config.schedule.name == "one_cycle"
    if is_one_cycle and command.find_value("--optimizer.lr") is not None:
        raise ConfigError(
            config,
            "{optimizer.lr} counts nothing with the schedule one_cycle, whose peak is "
            "{schedule.max_lr}; give that",
        )
    from unet_train.devices import signals, supervise

    if config.mesh.processes == 1:
        with signals.exit_on_signal():
            return _train_here(config, out=out, overfit=overfit, json=json, command=command)
    if supervise.is_watched():
        supervise.die_with_the_parent()
        return _train_here(config, out=out, overfit=overfit, json=json, command=command)
    status, reason = supervise.run_watched(command.words)
    if reason is not None:
        print(f"unet: {reason}", file=sys.stderr)
    return status


def _train_here(
    config: TrainConfig, *, out: Path, overfit: bool, json: Path | None, command: Command
) -> int:
    """Run `unet train` in this process and return its exit status."""
    allocator = keep_freed_memory()
    with pause_garbage_collection():
        import jax
        from rich.console import Console

        from unet_train import loop
        from unet_train.devices.processes import join_processes
        from unet_train.overfit import learn_one_batch
        from unet_train.report.progress import Progress
    keep_compilations()

    try:
        if config.mesh.processes > 1:
            print(f"waiting for all {config.mesh.processes} processes", flush=True)
        join_processes(config.mesh)
        is_first = jax.process_index() == 0
        json = json if is_first else None
        progress = Progress(Console(quiet=not is_first))
        if allocator.keeps:
            progress.say(allocator.text)
        if overfit:
            learned = learn_one_batch(config, progress=progress)
            report = {"learned": learned, "config": to_plain(config)}
            write_json(json, report, command=command)
            return int(not learned)
        result = loop.run(config, out, progress=progress, command=str(command))
    except BaseException as error:
        _end(error)
    _print_end(result, out=out, steps=config.steps)
    report = {**dataclasses.asdict(result), "config": to_plain(config)}
    write_json(json, report, command=command)
    return 0 if result.stopped_by is None else 128 + signal.Signals[result.stopped_by]


def _print_end(result: "Result", *, out: Path, steps: int) -> None:
    """Print how a run ended, and where its page is."""
    from unet_train.metrics import format_score
    from unet_train.run import folder as run_folder

    if result.stopped_by is not None:
        print(
            f"{result.stopped_by}: stopped at step {result.step} of {steps}, nothing is lost; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return
    print(
        f"{result.weights}: validation IoU {format_score(result.mean_image_iou)} (mean of images), "
        f"{result.seconds:.0f} s"
    )
    print(f"the page: {out / run_folder.PAGE}")


def _end(error: BaseException) -> NoReturn:
    """Pass an error of a run on; a watched process says why and ends here: it would hang.

    Raises:
        BaseException: the error, or a `ConfigError` in the place of one of memory.
    """
    import jax

    from unet_train.devices import supervise

    if not isinstance(error, (InputError, OSError)) and is_out_of_memory(error):
        error = ConfigError(
            TrainConfig,
            "the device has too little memory for this run; lower {data.batch} or {data.crop_px}, "
            "or give {accumulate} or {remat}; if that was a validation, cut the largest images "
            "into parts: a net with norm group or instance has to see each whole",
        )
    if not supervise.is_watched():
        raise error
    if isinstance(error, (InputError, OSError)):
        print(f"unet: {word_error(error, list_fields(TrainConfig))}", file=sys.stderr)
        supervise.exit_now(2)
    if isinstance(error, jax.errors.JaxRuntimeError) and OF_EXCHANGES.search(str(error)):
        excerpt = " ".join(str(error).split())[:200]
        print(f"unet: {supervise.DIED} (seen here: {excerpt})", file=sys.stderr)
        supervise.exit_now(supervise.LOST)
    traceback.print_exception(error)
    supervise.exit_now(1)
    raise error
