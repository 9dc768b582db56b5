"""What a person sees of a run: a live bar on a terminal, a line now and then elsewhere."""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import jax
import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.text import Text

from unet_spec.wording import make_printable

from ..input.crops import Batch
from ..metrics import as_result, foreground_iou, format_score
from ..step import Metrics

LINE_EVERY_S = 15.0
WINDOW = 20
IN_FLIGHT = 2  # steps given to the devices; each holds its batch there


class Progress:
    """A `Progress` says what a run does."""

    def __init__(self, console: Console):
        self.console = console
        self._view: _View | None = None

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one; a name in it may steer no terminal."""
        text = "\n".join(map(make_printable, text.split("\n")))
        whole = not self.console.is_interactive  # a log has no width
        self.console.print(text, highlight=False, markup=False, soft_wrap=whole)

    @contextmanager
    def steps(self, count: int, *, start: int = 0) -> Iterator["StepBar"]:
        """Show a bar over so many steps, of which the first `start` are done."""
        with self._open_view() as view:
            yield StepBar(self, view, count, start)

    @contextmanager
    def images(self, count: int) -> Iterator[Callable[[], None]]:
        """Show a bar over so many images; yield a function that counts one, in any thread."""
        last_line = time.monotonic()
        with self._open_view() as view:
            task = view.add_task("image", total=count)

            def count_one() -> None:
                nonlocal last_line
                view.advance(task)
                if view.disable and time.monotonic() - last_line > LINE_EVERY_S:
                    last_line = time.monotonic()
                    self.say(f"image {view.tasks[-1].completed:.0f} of {count}")

            try:
                yield count_one
            finally:
                view.remove_task(task)

    @contextmanager
    def _open_view(self) -> Iterator["_View"]:
        """Yield the view that is open, or open one: a terminal shows one at a time."""
        if self._view is not None:
            yield self._view
            return
        with _View(self.console) as self._view:
            try:
                yield self._view
            finally:
                self._view = None


class StepBar:
    """A `StepBar` counts steps, and shows means over the last of them.

    Steps run ahead of the numbers: only every few steps, a window, are they fetched. The means of
    a window are loss, iou, grad_norm, lr (of its last step), peak_memory_bytes (so far), and
    images_per_s and waiting_share, the part of the time in which the devices waited for a batch.

    The first step of a run is a window of its own. A run that resumes has the windows of one that
    was never stopped. Of its first window the speeds leave out the first step, with which happens
    what happens only once; a window of that step alone has no speeds.
    """

    def __init__(self, progress: Progress, view: "_View", count: int, start: int):
        self._progress, self._view = progress, view
        self._task = view.add_task("step", total=count, completed=start)
        self._count, self._first, self._done = count, start + 1, start
        self._has_shown = False
        self._pending: list[Metrics] = []
        self._images, self._waited_s = 0, 0.0
        self._window_start = self._last_line = time.monotonic()

    def wait_for(self, batch: Future[Batch]) -> Batch:
        """Return the batch. While steps are under way nobody waits for it but the host."""
        if not batch.done():
            jax.block_until_ready(self._pending[-1:])
        start = time.monotonic()
        result = batch.result()
        self._waited_s += time.monotonic() - start
        return result

    def advance(
        self, metrics: Metrics, *, images: int, settle: bool = False
    ) -> dict[str, float] | None:
        """Count one step of so many images; return the means of a window that it ends.

        Args:
            settle: end the window here, because the steps under way are waited for anyway.
        """
        self._done += 1
        self._images += images
        self._pending.append(metrics)
        if self._done == self._first:
            jax.block_until_ready(self._pending)
            self._images, self._waited_s = 0, 0.0
            self.restart_clock()
        jax.block_until_ready(self._pending[:-IN_FLIGHT][-1:])
        if settle or self._done == 1 or len(self._pending) == WINDOW:
            return self._settle()
        return None

    def restart_clock(self) -> None:
        """Leave a pause out of the speed."""
        self._window_start = time.monotonic()

    def _settle(self) -> dict[str, float]:
        """Wait for the steps under way, show their means and return them."""
        means = self._measure(jax.device_get(self._pending))
        self._pending, self._images, self._waited_s = [], 0, 0.0
        self._window_start = time.monotonic()
        self._show(means)
        return means

    def _measure(self, steps: list[Metrics]) -> dict[str, float]:
        """Return the means of the steps of a window."""
        elapsed_s = time.monotonic() - self._window_start
        matrix = np.asarray([step.confusion for step in steps], np.float64).sum(axis=0)
        means = {
            "loss": float(np.mean([step.loss for step in steps], dtype=np.float64)),
            "iou": foreground_iou(matrix),  # NaN if no class of it is in the window
            "lr": float(steps[-1].lr),
            "grad_norm": float(np.mean([step.grad_norm for step in steps], dtype=np.float64)),
            "peak_memory_bytes": float(peak_memory_bytes()),
        }
        if self._images == 0:
            return means
        speed = {
            "images_per_s": self._images / elapsed_s,
            "waiting_share": self._waited_s / elapsed_s,
        }
        return {**means, **speed}

    def _show(self, means: dict[str, float]) -> None:
        """Show the means in the bar, or print a line where there is none and it is time."""
        self._view.numbers = text = format_status(means)
        self._view.update(self._task, completed=self._done)
        now = time.monotonic()
        is_first_or_last = not self._has_shown or self._done == self._count
        if self._view.disable and (is_first_or_last or now - self._last_line > LINE_EVERY_S):
            self._last_line, self._has_shown = now, True
            self._progress.say(f"step {self._done} of {self._count}: {text}")


class _View(RichBar):
    """A `_View` is the bar, and the numbers below it."""

    def __init__(self, console: Console):
        self.numbers = ""
        columns = (
            TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("left"),
        )  # fmt: skip
        # by default the speed is that of half a minute, in which large nets do not make a window
        super().__init__(
            *columns,
            console=console,
            disable=not console.is_interactive,
            speed_estimate_period=600,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the numbers where there are some."""
        yield from super().get_renderables()
        if self.numbers:
            yield Text(self.numbers)


def format_status(means: dict[str, float]) -> str:
    """Return the means of a window as a line of less than 80 characters."""
    parts = [
        f"loss {means['loss']:.4f}",
        f"IoU {format_score(as_result(means['iou']))}",
        f"lr {means['lr']:.1e}",
    ]
    if "images_per_s" in means:
        parts.append(f"{means['images_per_s']:.1f} images/s")
        parts.append(f"input wait {100 * means['waiting_share']:.0f} %")
    return "  ".join([*parts, f"{means['peak_memory_bytes'] / 1e9:.1f} GB"])


def peak_memory_bytes() -> int:
    """Return the most memory that was in use at once on any accelerator of this process.

    JAX does not tell it for a CPU; then it is that of the process.
    """
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
    if any(peaks):
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
