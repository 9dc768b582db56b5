"""A run: data in, steps, validations, checkpoints, files out. Its effects live here."""

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from unet_jax.weights import from_weights
from unet_spec import InputError, training_state, weight_file
from unet_spec.training_state import TrainingState, checkpoint_path
from unet_spec.weight_file import WeightFile

from .check.nonfinite import explain_step
from .config import TrainConfig, to_plain
from .devices import signals
from .devices.placement import describe_environment
from .devices.processes import (
    broadcast_from_first,
    gather_to_host,
    is_first_process,
    wait_for_all,
    was_preempted,
)
from .input.prefetch import prefetch_batches
from .metrics import as_result, format_score
from .report.metrics_log import (
    MetricsLog,
    has_lines,
    read_metrics,
    read_validations,
)
from .report.page import Report, write_page
from .report.pictures import draw_overlays, draw_worst_and_best, write_pictures
from .report.progress import Progress
from .report.validation import Scores, validate
from .run import beginning
from .run import folder as run_folder
from .run.checkpoints import Checkpoints, restore
from .run.states import resume_state, start_from_weights, to_training_state, to_weight_file
from .setup import Setup, lock_run, make_setup, open_run
from .step import State, Steps, compile_steps

LOGGED_PICTURES = 3  # of held-out images, at each validation


@dataclass(frozen=True)
class Result:
    """A `Result` is what a run ended with, as plain values.

    The scores are those of the last weights, not of the best, or, where a signal ended the run, of
    the last validation. None means not available: the run ended before it was measured, or there
    was nothing to score.

    Attributes:
        mean_image_iou: mean over the held-out images of the mean IoU of classes 1 and up.
        pooled_iou: of each class, over all held-out pixels.
        stopped_by: the signal that ended the run early, by its name.
        compile_s: what compiling took, or reading what was compiled before.
        seconds: of this command, from reading the first image to the last picture.
    """

    weights: str | None
    step: int
    loss: float | None
    mean_image_iou: float | None
    pooled_iou: list[float | None] | None
    best_step: int | None
    best_mean_image_iou: float | None
    training_images: int
    validation_images: int
    images_per_s: float | None
    waiting_share: float | None
    compile_s: float
    seconds: float
    stopped_by: str | None
    environment: dict[str, str]


@dataclass(frozen=True)
class Validations:
    """A `Validations` says how the validations of a run went so far.

    Attributes:
        last_step: step of the last one; 0 for none.
        best_step: step of the first one with the highest score; 0 for none.
        best_score: mean IoU of images; -1 for none.
        since_best: number of validations with a score after the best.
    """

    last_step: int = 0
    best_step: int = 0
    best_score: float = -1.0
    since_best: int = 0

    def add(self, step: int, score: float | None) -> "Validations":
        """Return them with one more; one without a score is neither better nor worse."""
        if score is None:
            return replace(self, last_step=step)
        if score > self.best_score:
            return Validations(step, step, score, 0)
        return replace(self, last_step=step, since_best=self.since_best + 1)


@dataclass(frozen=True)
class End:
    """An `End` is where the steps of this command ended.

    Attributes:
        scores: of the last validation of this command, if there was one.
        means: of the last window of steps, as `StepBar.advance` returns them.
    """

    state: State
    validations: Validations
    scores: Scores | None
    means: dict[str, float]
    stopped_by: str | None = None


def run(config: TrainConfig, out: Path, *, progress: Progress, command: str = "") -> Result:
    """Train, or resume a run, and leave in `out` all that it makes.

    Args:
        command: that repeats the run, for its page.

    Raises:
        InputError: data, a config or an output that cannot be used, before anything is written;
            a loss that is not finite.
    """
    start = time.monotonic()
    setup = make_setup(config, progress, out=out)
    with lock_run(setup, out):
        # before the compilation, because its files may not be those of a run that can go on
        checkpoint, validations = read_resumption(setup, out, progress)
        progress.say(f"compiling for {setup.placement.describe()}")
        compile_start = time.monotonic()
        steps = compile_steps(setup.config, setup.placement)
        compile_s = time.monotonic() - compile_start
        progress.say(f"compiled in {compile_s:.1f} s")
        if is_first_process():  # not before: a run that cannot be compiled leaves nothing
            open_run(setup, out)
            restore_best(out, validations, progress)
        wait_for_all("compiled")
        if not is_first_process():  # it has to see the folder as well
            run_folder.compare_with_beginning(out, setup.config, setup.dataset)
        state = first_state(setup, checkpoint, steps, progress)
        del checkpoint  # as large as the state
        end = take_steps(setup, out, steps, state, validations, progress)
        if end.stopped_by is None:
            end = write_end(setup, out, end, progress, command)
    return make_result(setup, out, end, compile_s=compile_s, seconds=time.monotonic() - start)


def read_resumption(
    setup: Setup, out: Path, progress: Progress
) -> tuple[TrainingState | None, Validations]:
    """Return the newest checkpoint and the validations before it; None for a run that begins.

    Raises:
        InputError: the files of the run are damaged, or of another one.
    """
    checkpoint = restore(out / run_folder.CHECKPOINTS, say=progress.say) if setup.resuming else None
    if checkpoint is None:
        return None, Validations()
    run_folder.refuse_other_run(out, checkpoint, setup.config)
    if is_first_process() and (out / run_folder.BEST).exists() and not has_lines(out):
        raise InputError(
            f"{out / run_folder.METRICS}: it should say how good {run_folder.BEST} is, and holds "
            f"no line; bring it back from a copy, or move {out / run_folder.BEST} away"
        )
    validations = _read_validations(out, until=checkpoint.step)
    _say_where_it_resumes(setup, checkpoint, progress)
    return checkpoint, validations


def restore_best(out: Path, validations: Validations, progress: Progress) -> None:
    """Write the best weights again from their checkpoint, where their file is gone or damaged."""
    if not validations.best_step:
        return
    try:
        weight_file.read(out / run_folder.BEST)
    except InputError as damage:
        try:
            path = checkpoint_path(out / run_folder.CHECKPOINTS, validations.best_step)
            best = training_state.read(path).weights_that_predict
        except InputError:
            progress.say(f"the best weights so far are lost, with their checkpoint: {damage}")
            return
        weight_file.write(out / run_folder.BEST, best)
        progress.say(f"{out / run_folder.BEST}: written again from {path}")


def first_state(
    setup: Setup, checkpoint: TrainingState | None, steps: Steps, progress: Progress
) -> State:
    """Return the state of a checkpoint, of `config.start`, or of step 0."""
    config, state = setup.config, steps.init()
    if checkpoint is not None:
        return resume_state(checkpoint, state)
    if config.start is None:
        return state
    source = beginning.read_start(config.start)
    if isinstance(source, WeightFile):
        return start_from_weights(source, state)
    if source.average and not config.ema:
        progress.say(f"{config.start}: its averaged weights are left out; --ema keeps an average")
    return resume_state(replace(source, recipe=config.recipe), state)


def take_steps(
    setup: Setup,
    out: Path,
    steps: Steps,
    state: State,
    validations: Validations,
    progress: Progress,
) -> End:
    """Step, validate and save until the last step, or until somebody asks to stop."""
    config, step = setup.config, int(state.step)
    scores: Scores | None = None
    means: dict[str, float] = {}
    with (
        Checkpoints(out / run_folder.CHECKPOINTS, keep=config.keep) as checkpoints,
        closing(
            prefetch_batches(
                setup.dataset.training,
                setup.placement,
                data=config.data,
                net=config.net,
                seed=config.seed,
                steps=range(step, config.steps),
            )
        ) as batches,
        open_log(out, resume_at=step) as log,
        collect_stop_requests() as requests,
        progress.steps(config.steps, start=step) as bar,
    ):
        is_due = partial(is_validation_due, every=config.validate_every, last=config.steps)
        validate_and_publish = partial(
            _validate_and_publish, setup, out, checkpoints, log, requests, progress
        )
        if step and is_due(step) and validations.last_step != step:
            # the command before this one was stopped in that validation
            scores, validations = validate_and_publish(state, validations)
            bar.restart_clock()
        if requests or is_out_of_patience(config.patience, validations, progress):
            return End(state, validations, scores, means, *requests[:1])
        for batch in batches:
            try:
                crops = bar.wait_for(batch)
            except (InputError, OSError):  # an image is gone or damaged
                save_before_failure(setup, checkpoints, state, validations, progress)
                raise
            state, measured = steps.step(state, crops)
            step += 1
            stops = is_stop_asked(requests, step)
            validates = is_due(step) and not stops
            saves = stops or validates or step % config.checkpoint_every == 0
            window = bar.advance(measured, images=config.data.batch, settle=saves)
            if window is not None:
                means = window
                log_means(log, step, means)
                refuse_nonfinite(setup, out, state, means)
            if saves:
                save(setup, checkpoints, state, validations)
            if validates:
                new_scores, validations = validate_and_publish(state, validations)
                scores = new_scores or scores
            if saves:
                bar.restart_clock()
                if requests or is_out_of_patience(config.patience, validations, progress):
                    break
        return End(state, validations, scores, means, *requests[:1])


def is_validation_due(step: int, *, every: int, last: int) -> bool:
    """Return whether a validation follows after this step."""
    return step % every == 0 or step >= last


def is_out_of_patience(patience: int | None, validations: Validations, progress: Progress) -> bool:
    """Return whether too many validations brought nothing better, and say so."""
    if patience is None or validations.since_best < patience:
        return False
    progress.say(
        f"no better validation since step {validations.best_step} ({patience} of them): "
        "the run ends"
    )
    return True


def collect_stop_requests() -> AbstractContextManager[list[str]]:
    """Yield a list that gets the names of the signals that ask to stop.

    In a run of several processes JAX itself listens to SIGTERM, to tell the others.
    """
    return signals.collect_signals() if jax.process_count() == 1 else nullcontext([])


def is_stop_asked(requests: list[str], step: int) -> bool:
    """Return whether to stop after this step; all processes of a run agree on it."""
    if jax.process_count() > 1 and was_preempted(step):
        requests.append("SIGTERM")
    return bool(requests)


def open_log(out: Path, *, resume_at: int) -> AbstractContextManager[MetricsLog | None]:
    """Open the log of the metrics, which the first process keeps."""
    return MetricsLog(out, resume_at=resume_at) if is_first_process() else nullcontext()


def log_means(log: MetricsLog | None, step: int, means: dict[str, float]) -> None:
    """Log the means of a window of steps."""
    if log is not None:
        values: dict[str, float | None] = {**means, "iou": as_result(means["iou"])}
        log.add_scalars(step, {f"train/{name}": value for name, value in values.items()})


def refuse_nonfinite(setup: Setup, out: Path, state: State, means: dict[str, float]) -> None:
    """Refuse to go on from a state that a loss, gradient or update without a value has stopped.

    Raises:
        InputError: it has; with what was not finite, and what to do.
    """
    if np.isfinite(means["loss"]) and not bool(state.stopped):
        return
    reason = explain_step(setup.config, setup.placement, setup.dataset.training, state)
    weights = out / run_folder.WEIGHTS
    last = f"; --start {weights} begins with the last good weights" if weights.exists() else ""
    raise InputError(
        f"step {int(state.step) + 1} is not finite: {reason}; lower --schedule.max-lr "
        "(--optimizer.lr without one_cycle), clip with --optimizer.clip-norm, or mend that image, "
        f"in a run with another --out{last}"
    )


def save_before_failure(
    setup: Setup,
    checkpoints: Checkpoints,
    state: State,
    validations: Validations,
    progress: Progress,
) -> None:
    """Save the state before a step whose images cannot be read, and say so.

    Of several processes each waits for the others in a save, and they do not know of it: what they
    go on from is their last checkpoint.
    """
    if jax.process_count() > 1:
        return
    save(setup, checkpoints, state, validations)
    progress.say(
        f"an image cannot be read any more: saved at step {int(state.step)}; once it is mended the "
        "same command goes on there"
    )


def save(setup: Setup, checkpoints: Checkpoints, state: State, validations: Validations) -> None:
    """Begin to write a checkpoint.

    The arrays may be donated at once, because they are on the host. On a CPU that is a view of the
    same memory, and XLA does not write to a buffer with a view.
    """
    host, devices = gather_to_host(state), setup.placement.describe()
    make = partial(to_training_state, setup.config, host, origin=setup.origin, devices=devices)
    checkpoints.save(int(host.step), make, best=validations.best_step or None)


def _validate_and_publish(
    setup: Setup,
    out: Path,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    requests: Sequence[str],
    progress: Progress,
    state: State,
    validations: Validations,
) -> tuple[Scores | None, Validations]:
    """Score a state whose checkpoint is there; write its weight files and its line in the log.

    A validation may take minutes. If a signal ends it half-way, nothing of it is written.
    """
    step = int(state.step)
    weights = to_weight_file(setup.config, gather_to_host(state), origin=setup.origin)
    try:
        scores = score_weights(setup, weights, progress, requests, step=step)
    except signals.StopAskedError:
        return None, validations
    # processes whose scores differ in the last bit would not end at the same step
    score = math.nan if scores.mean_image_iou is None else scores.mean_image_iou
    score = broadcast_from_first(f"score {step}", score)
    validations = validations.add(step, as_result(score))
    checkpoints.wait()  # no weights without a checkpoint, or the run could not go on
    if is_first_process():
        write_weights(out, weights, is_best=validations.best_step == step)
    if log is not None:  # last: a validation without its line is made again
        held_out = setup.dataset.validation
        first = range(min(LOGGED_PICTURES, len(held_out)))
        log.add_images(step, draw_overlays(from_weights(weights), held_out, first))
        log.add_scalars(step, {f"validation/{name}": v for name, v in scores.headline.items()})
    progress.say(
        f"step {step}: validation IoU {format_score(scores.mean_image_iou)} (mean of images), "
        f"{format_score(scores.headline['pooled_iou'])} (pooled)"
    )
    if scores.mean_image_iou is None:
        progress.say(
            "nothing to score in the held-out images: no image has a class other than 0, and the "
            "net finds none"
        )
    return scores, validations


def score_weights(
    setup: Setup,
    weights: WeightFile,
    progress: Progress,
    requests: Sequence[str] = (),
    *,
    step: int,
) -> Scores:
    """Return the scores of weights on the held-out images.

    Args:
        requests: signals; the first ends it.

    Raises:
        signals.StopAskedError: before the next image.
    """
    held_out = setup.dataset.validation
    ours = len(range(jax.process_index(), len(held_out), jax.process_count()))
    of_this = "" if ours == len(held_out) else f", of which {ours} here"
    progress.say(f"predicting {len(held_out)} held-out images{of_this}")
    with progress.images(ours) as count_one:

        def before_each() -> None:
            """Stop where somebody asks for it, and count."""
            if requests:
                raise signals.StopAskedError
            count_one()

        return validate(
            from_weights(weights),
            held_out,
            ignore_index=setup.config.loss.ignore_index,
            before_each=before_each,
            name=f"scores {step}",
        )


def write_weights(out: Path, weights: WeightFile, *, is_best: bool) -> None:
    """Write the weight files of a validation."""
    weight_file.write(out / run_folder.WEIGHTS, weights)
    if is_best:
        weight_file.write(out / run_folder.BEST, weights)


def write_end(setup: Setup, out: Path, end: End, progress: Progress, command: str) -> End:
    """Write pictures and page of the last weights, and return the end with their scores."""
    scores = end.scores
    weights = to_weight_file(setup.config, gather_to_host(end.state), origin=setup.origin)
    if scores is None:  # the run had ended before: its files may be gone
        scores = score_weights(setup, weights, progress, step=int(end.state.step))
        if is_first_process():
            write_weights(out, weights, is_best=end.validations.best_step == int(end.state.step))
    if is_first_process():
        pictures = draw_worst_and_best(from_weights(weights), setup.dataset.validation, scores)
        write_pictures(out / run_folder.PICTURES, pictures)
        report = Report(
            config=to_plain(setup.config),
            environment=describe_environment(),
            metrics=read_metrics(out),
            scores=scores,
            pictures=pictures,
            class_names=setup.config.class_names,
            findings=setup.diagnosis.findings,
        )
        write_page(out / run_folder.PAGE, report, command=command)
    return replace(end, scores=scores)


def make_result(setup: Setup, out: Path, end: End, *, compile_s: float, seconds: float) -> Result:
    """Return what the run ended with, as plain values."""
    weights, best = out / run_folder.WEIGHTS, end.validations
    return Result(
        weights=str(weights) if weights.exists() else None,
        step=int(end.state.step),
        loss=end.means.get("loss"),
        mean_image_iou=None if end.scores is None else end.scores.mean_image_iou,
        pooled_iou=None if end.scores is None else end.scores.pooled_iou,
        best_step=best.best_step or None,
        best_mean_image_iou=best.best_score if best.best_step else None,
        training_images=len(setup.dataset.training),
        validation_images=len(setup.dataset.validation),
        images_per_s=end.means.get("images_per_s"),
        waiting_share=end.means.get("waiting_share"),
        compile_s=compile_s,
        seconds=seconds,
        stopped_by=end.stopped_by,
        environment=describe_environment(),
    )


def _say_where_it_resumes(setup: Setup, checkpoint: TrainingState, progress: Progress) -> None:
    finished = checkpoint.step >= setup.config.steps
    beginning_of_sentence = "finished already, at" if finished else "going on at"
    progress.say(f"{beginning_of_sentence} step {checkpoint.step} of {setup.config.steps}")
    devices = setup.placement.describe()
    if checkpoint.devices != devices:
        progress.say(
            f"on {devices}, and it was {checkpoint.devices or 'unknown'}: from here on the run "
            "equals the undisturbed one up to the order of sums, not to the bit"
        )


def _read_validations(out: Path, *, until: int) -> Validations:
    """Return the validations up to a step, as the first process reads them."""
    validations = Validations()
    if is_first_process():
        for step, score in read_validations(out, until=until):
            validations = validations.add(step, score)
    fields = {
        name: broadcast_from_first(name, value)
        for name, value in dataclasses.asdict(validations).items()
    }
    return Validations(**fields)
