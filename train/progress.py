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
        self._counted = 0
        self._since = self._said = time.monotonic()

    def advance(self, metrics: Metrics, *, images: int) -> None:
        """Count one step."""
        self._done += 1
        self._pending.append(metrics)
        first = self._done == 1
        if not (first or len(self._pending) == WINDOW or self._done == self._count):
            return
        losses = [float(m.loss) for m in self._pending]
        self.loss = float(np.mean(losses))
        score = foreground_iou(np.sum([np.asarray(m.confusion) for m in self._pending], axis=0))
        now = time.monotonic()
        if not first:  # the first step compiles
            self.images_per_s = images * len(losses) / (now - self._since)
        self._pending, self._since = [], now
        text = f"loss {self.loss:.4f}  IoU {score:.3f}  {self.images_per_s:.1f} images/s"
        self._live.update(self._task, completed=self._done, description=text)
        if not self._live.disable or (now - self._said < LINE_EVERY_S and not first):
            return
        self._said = now
        self._progress.say(f"step {self._done} of {self._count}: {text}")
