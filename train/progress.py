"""What a person sees of a run: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from train.metrics import foreground_iou
from train.step import Metrics

LINE_EVERY_S = 15.0
WINDOW = 20


class Progress:
    """Says what a run does."""

    def __init__(self, console: Console):
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    @contextmanager
    def steps(self, count: int) -> Iterator["StepBar"]:
        """A bar over so many steps."""
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        live = RichBar(*columns, console=self.console, disable=not self.console.is_terminal)
        with live:
            yield StepBar(self, live, live.add_task("step", total=count), count)


class StepBar:
    """Loss, IoU and images per second over the last steps.

    Steps run ahead of the numbers: only every few steps is their result waited for.
    """

    def __init__(self, progress: Progress, live: RichBar, task: TaskID, count: int):
        self.loss = float("nan")
        self.images_per_s = 0.0
        self._progress, self._live, self._task, self._count = progress, live, task, count
        self._pending: list[Metrics] = []
        self._done = 0
        self._images = 0
        self._since = self._said = time.monotonic()

    def advance(self, metrics: Metrics, *, images: int) -> None:
        """Count one step of so many images."""
        self._done += 1
        self._images += images
        self._pending.append(metrics)
        if self._done == 1 or len(self._pending) == WINDOW:
            self.settle()

    def settle(self) -> None:
        """Wait for the steps under way, and show what they gave."""
        if not self._pending:
            return
        self.loss = float(np.mean([float(m.loss) for m in self._pending]))
        score = foreground_iou(np.sum([np.asarray(m.confusion) for m in self._pending], axis=0))
        now = time.monotonic()
        if self._done > 1:  # the first step compiles
            self.images_per_s = self._images / (now - self._since)
        self._pending, self._images, self._since = [], 0, now
        text = f"loss {self.loss:.4f}  IoU {score:.3f}  {self.images_per_s:.1f} images/s"
        self._live.update(self._task, completed=self._done, description=text)
        due = now - self._said > LINE_EVERY_S or self._done in (1, self._count)
        if self._live.disable and due:
            self._said = now
            self._progress.say(f"step {self._done} of {self._count}: {text}")

    def resume(self) -> None:
        """Start the clock again after a pause, so that it does not count as slowness."""
        self._since = time.monotonic()
