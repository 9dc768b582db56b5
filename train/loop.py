"""The run: data in, steps, validation, checkpoints, files out. Effects live here."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from unet_jax.weights import from_weights
from unet_spec import InputError
from unet_spec.files import refuse_existing
from unet_spec.weight_file import WeightFile

from .check import data_doctor
from .check.nonfinite import explain_nonfinite
from .config import TrainConfig
from .devices import signals
from .devices.placement import Placement, make_placement
from .devices.processes import (
    broadcast_from_first,
    gather_to_host,
    refuse_unlike_processes,
    wait_for_all,
    was_preempted,
)
from .input.crops import choose_samples
from .input.prefetch import prefetch_batches
from .input.samples import Sample, load_samples
from .input.split import split_samples
from .report import outputs
from .report.metrics_log import MetricsLog
from .report.progress import Progress, StepBar
from .report.validation import Scores, validate
from .run import beginning
from .run import folder as run_folder
from .run.checkpoint import Checkpoints
from .step import Steps, compile_steps, prepare_batch


@dataclass(frozen=True)
class Best:
    """The best validation so far, and how many came after it."""

    step: int = 0
    score: float = -1.0
    since: int = 0

    def after(self, step: int, score: float) -> "Best":
        """With one more validation."""
        if score > self.score:
            return Best(step, score, 0)
        return replace(self, since=self.since + 1)


@dataclass(frozen=True)
class Result:
    """What a run ended with; the scores are those of the last weights, not of the best, or, where
    a signal ended it, of the last validation. None is what there is not yet, or what this command
    did not measure.

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
    pooled_iou: list[float] | None
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


def run(config: TrainConfig, out: Path, *, progress: Progress, command: str = "") -> Result:
    """Train, or go on where a run stopped, and leave in `out` all that it made.

    Args:
        command: that repeats the run, for its page.

    Raises:
        InputError: data, a config or an output that cannot be used, before anything is written;
            a loss that is not finite.
    """
    began = time.monotonic()
    resuming = broadcast_from_first("begun", run_folder.is_run(out))
    given = config
    told = beginning.read_start_settings(config, run=out if resuming else None)
    config = beginning.apply_start(config, told)
    for name, value in run_folder.list_changes(given, config):
        progress.say(f"taken from {config.start}: {name}={value}")
    placement = make_placement(config)
    lead = jax.process_index() == 0
    if lead and not resuming:
        refuse_existing(out, why="exists, and holds no run")
    samples = load_samples(config)
    training, validation = split_samples(samples, holdout=config.data.holdout, seed=config.seed)
    shown = run_folder.fingerprint_samples(samples)
    refuse_unlike_processes(run_folder.describe_identity(config, shown))
    if resuming:
        for change in run_folder.compare_with_beginning(out, config, shown):
            progress.say(f"other than before: {change}")
    if config.data.images is None:
        progress.say(f"no --data.images: {len(samples)} images of synthetic cells")
    diagnosis = data_doctor.report_data(
        training, validation, config=config, console=progress.console
    )
    if lead and not resuming:
        run_folder.write_beginning(
            out, config, shown=shown,
            started={"told": sorted(told), "sha256": beginning.fingerprint(config.start)},
        )  # fmt: skip
    with run_folder.lock_run(out) if lead else nullcontext():
        if lead:
            run_folder.remove_leftovers(out)
        if lead and not (out / run_folder.AUGMENTED).exists():
            outputs.write_preview(out, config, training)
        progress.say(f"compiling for {placement.told()}")
        compiling = time.monotonic()
        steps = compile_steps(config, placement)
        compile_s = time.monotonic() - compiling
        progress.say(f"compiled in {compile_s:.1f} s")
        wait_for_all("compiled")
        if not lead:
            run_folder.compare_with_beginning(out, config, shown)  # it is seen from here as well
        with Checkpoints(out / run_folder.CHECKPOINTS, keep=config.keep, say=progress.say) as saved:
            going = _Run(config, out, placement, steps, (training, validation), saved, progress)
            going.begin(resuming)
            going.go()
            saved.wait()
        scores = going.scores
        if going.stopped_by is None:
            scores = going.draw(diagnosis, command)
        return going.result(scores, compile_s=compile_s, seconds=time.monotonic() - began)


class _Run:
    """A run under way: what it has, and what changes from step to step."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        placement: Placement,
        steps: Steps,
        samples: tuple[list[Sample], list[Sample]],
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self.config, self.out, self.placement, self.steps = config, out, placement, steps
        self.training = samples[0]
        self.validation = samples[1]
        self.checkpoints, self.progress = checkpoints, progress
        self.lead = jax.process_index() == 0
        self.state = steps.init()
        self.best = Best()
        self.scores: Scores | None = None
        self.scored = -1  # at which step
        self.window: dict[str, float] = {}
        self.stopped_by: str | None = None

    def begin(self, resuming: bool) -> None:
        """Take the state of the last checkpoint, of `config.start`, or of step 0."""
        found = self.checkpoints.restore(self.state) if resuming else None
        if found is None:
            if self.config.start is not None:
                source = beginning.read_start(self.config.start)
                if resuming:
                    beginning.refuse_changed(self.config.start, run=self.out)
                self.state = beginning.make_first_state(self.config, source, self.state)
            if resuming:
                self.progress.say("no checkpoint yet: the run begins again")
            return
        self.state, self.best = found.state, Best(**found.card["best"])
        self.scored = found.card["scored"]
        finished = found.step >= self.config.steps
        told = "finished already, at" if finished else "going on at"
        self.progress.say(f"{told} step {found.step} of {self.config.steps}")
        if found.card["devices"] != self.placement.told():
            self.progress.say(
                f"on {self.placement.told()}, and it was {found.card['devices']}: from here on the "
                "run equals the undisturbed one up to the order of sums, not to the bit"
            )

    def go(self) -> None:
        """Step, validate and save until the end, or until somebody asks to stop."""
        config, first = self.config, int(self.state.step)
        with (
            closing(prefetch_batches(config, self.placement, self.training, first=first)) as made,
            self._recorded(first) as record,
            self._asked() as asked,
            self.progress.steps(config.steps, start=first, on_window=self._on(record)) as bar,
        ):
            if first and self._validates_at(first) and self.scored != first:
                self._validate(bar, record, first, asked)  # it ended before it could
            if asked:
                self.stopped_by = asked[0]
            if self.stopped_by or self._out_of_patience():
                return
            for step, batch in enumerate(made, start=first + 1):
                self.state, metrics = self.steps.step(self.state, bar.awaited(batch))
                bar.advance(metrics, images=config.data.batch)
                stops, validates = self._stops(asked, step), self._validates_at(step)
                if stops or validates or step % config.checkpoint_every == 0:
                    bar.settle()
                    self._save(step)
                    bar.resume()
                if validates and not stops:
                    self._validate(bar, record, step, asked)
                if asked and (stops or validates):
                    self.stopped_by = asked[0]
                if self.stopped_by or self._out_of_patience():
                    break

    def _asked(self) -> AbstractContextManager[list[str]]:
        # of several processes JAX itself hears SIGTERM, to tell the others
        return signals.collect_signals() if jax.process_count() == 1 else nullcontext([])

    def _stops(self, asked: list[str], step: int) -> bool:
        """Whether to stop after this step; all processes of a run agree on it."""
        if jax.process_count() > 1 and was_preempted(step):
            asked.append("SIGTERM")
        return bool(asked)

    def _validates_at(self, step: int) -> bool:
        return step % self.config.validate_every == 0 or step >= self.config.steps

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        if patience is None or self.best.since < patience:
            return False
        self.progress.say(
            f"no better validation since step {self.best.step} ({patience} of them): the run ends"
        )
        return True

    def validated(self, weights: WeightFile, asked: Sequence[str] = ()) -> Scores:
        """The scores of these weights.

        Args:
            asked: signals; the first ends it.

        Raises:
            signals.StoppedError: before the next image.
        """
        self.progress.say(f"predicting {len(self.validation)} held-out images")
        ignore_index = self.config.loss.ignore_index
        images = signals.iterate_until_stopped(asked, self.validation)
        return validate(from_weights(weights), images, ignore_index=ignore_index)

    def draw(self, diagnosis: data_doctor.Diagnosis, command: str) -> Scores:
        """The scores of the last weights, and of them the pictures and the page."""
        scores = self.scores
        if scores is None or self.scored != int(self.state.step):
            state = gather_to_host(self.state)
            weights = outputs.to_weight_file(self.config, state)
            scores = self.validated(weights)
            if self.lead:  # whatever became of the files since
                best = self.best.step == int(self.state.step)
                outputs.write_weights(self.out, self.config, state, weights, best=best)
        if self.lead:
            outputs.write_page(self.out, self.config, self.validation, scores, diagnosis, command)
        return scores

    def result(self, scores: Scores | None, *, compile_s: float, seconds: float) -> Result:
        """What the run ended with."""
        weights = self.out / run_folder.WEIGHTS
        return Result(
            weights=str(weights) if weights.exists() else None,
            step=int(self.state.step),
            loss=self.window.get("loss"),
            mean_image_iou=None if scores is None else scores.mean_image_iou,
            pooled_iou=None if scores is None else scores.pooled_iou,
            best_step=self.best.step or None,
            best_mean_image_iou=self.best.score if self.best.step else None,
            training_images=len(self.training),
            validation_images=len(self.validation),
            images_per_s=self.window.get("images_per_s"),
            waiting_share=self.window.get("waiting_share"),
            compile_s=compile_s,
            seconds=seconds,
            stopped_by=self.stopped_by,
            environment=outputs.describe_environment(),
        )

    def _validate(
        self, bar: StepBar, record: MetricsLog | None, step: int, asked: Sequence[str]
    ) -> None:
        """Score the weights, whose state is saved, and write their files; or stop half-way, for
        it may take minutes."""
        state = gather_to_host(self.state)
        weights = outputs.to_weight_file(self.config, state)
        try:
            self.scores, self.scored = self.validated(weights, asked), step
        except signals.StopAskedError:
            return
        # processes whose scores differ in the last bit would not end at the same step
        score = broadcast_from_first(f"score {step}", self.scores.mean_image_iou)
        self.best = self.best.after(step, score)
        if self.lead:
            first = self.best.since == 0
            outputs.write_weights(self.out, self.config, state, weights, best=first)
        if record is not None:
            told = {f"validation/{name}": value for name, value in self.scores.headline.items()}
            record.scalars(step, told)
            shown = range(len(self.validation))[: outputs.PICTURES]
            record.images(step, outputs.draw_overlays(self.validation, self.scores, shown))
        self.progress.say(
            f"step {step}: validation IoU {self.scores.mean_image_iou:.3f} (mean of images), "
            f"{self.scores.headline['pooled_iou']:.3f} (pooled)"
        )
        self._save(step)  # with the score
        bar.resume()

    def _save(self, step: int) -> None:
        card = {
            "best": asdict(self.best),
            "scored": self.scored,
            "devices": self.placement.told(),
        }
        score = self.scores.mean_image_iou if self.scored == step and self.scores else None
        self.checkpoints.save(step, self.state, card=card, score=score)

    def _on(self, record: MetricsLog | None) -> Callable[[int, dict[str, float]], None]:
        """What happens with the means of a window of steps."""

        def on_window(step: int, means: dict[str, float]) -> None:
            self.window = means
            if record is not None:
                record.scalars(step, {f"train/{name}": value for name, value in means.items()})
            if not np.isfinite(means["loss"]) or bool(self.state.stopped):
                self._refuse_infinite()

        return on_window

    def _refuse_infinite(self) -> None:
        step, config = int(self.state.step), self.config
        names = [
            s.name for s in choose_samples(self.training, step, data=config.data, seed=config.seed)
        ]
        with closing(prefetch_batches(config, self.placement, self.training, first=step)) as made:
            seen = jax.jit(partial(prepare_batch, config))(next(made).result(), np.int32(step))
        try:
            reason = explain_nonfinite(
                config, gather_to_host(self.state), gather_to_host(seen), names
            )
        except jax.errors.JaxRuntimeError as error:
            told = " ".join(str(error).split())[:200]
            reason = f"where is not known, for that step by itself, in parts, fails ({told})"
        weights = self.out / run_folder.WEIGHTS
        kept = f"; --start {weights} begins with the last good weights" if weights.exists() else ""
        raise InputError(
            f"step {step + 1} is not finite: {reason}; lower --schedule.max-lr (--optimizer.lr "
            "without one_cycle), clip with --optimizer.clip-norm, or mend that image, in a run "
            f"with another --out{kept}"
        )

    def _recorded(self, first: int) -> AbstractContextManager[MetricsLog | None]:
        if not self.lead:
            return nullcontext()
        return MetricsLog(self.out, resume_at=first, scored_at=self.scored)
