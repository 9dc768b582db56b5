"""`unet predict`: images are measured, then read one ahead of the net, and written one by one."""

import hashlib
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unet_command import prediction_folder
from unet_command.compilations import keep_compilations
from unet_command.parsing import Command
from unet_command.prediction_folder import Target
from unet_command.reports import write_json
from unet_image import (
    Page,
    TooLargeError,
    check_channels,
    list_images,
    measure_pages,
    overlay,
    read_page,
    takes_alpha,
    write_mask,
    write_picture,
)
from unet_spec import InputError, prediction, weight_file
from unet_spec.environment import need
from unet_spec.garbage import pause_garbage_collection
from unet_spec.ranges import IMAGE_GB, check_number
from unet_spec.weight_file import WeightFile
from unet_spec.wording import make_printable

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""A net: an image becomes a mask and, where they are wanted, probabilities."""


def predict(
    weights: Path,
    images: Sequence[Path],
    *,
    out: Path,
    framework: str | None,
    threshold: float | None,
    probabilities: str | None,
    largest_gb: float,
    json: Path | None,
    command: Command,
) -> int:
    """Run `unet predict` and return its exit status.

    What is there already of the same prediction is not done again.

    Args:
        weights: the weight file.
        images: files and folders of images.
        out: the folder of the outputs.
        framework: jax or torch; None takes JAX where it is installed.
        threshold: of the probability of class 1, in a net of two classes.
        probabilities: tif or npy, to write these as well.
        largest_gb: GB that an image may take as float32.
        json: the report.
        command: what was typed.

    Raises:
        InputError: anything of it cannot be used. Nothing is written then, unless it is an image
            that turns out to be damaged when it is read.
    """
    if framework is None:
        framework = "jax" if importlib.util.find_spec("jax") else "torch"
    need(framework)
    check_number("--largest-gb", largest_gb, IMAGE_GB)
    net = weight_file.read(weights)
    prediction.check_threshold(net.config, threshold)
    if net.config.mask_classes > 256:
        raise InputError(
            f"{weights}: the net has {net.config.classes} classes, and a mask holds 256; predict "
            f"in Python: unet_{framework}.predict"
        )
    given = [path for image in images for path in list_images(image)]
    paths = list({os.path.realpath(path): path for path in given}.values())  # each once
    pages = _measure(paths, net, largest_gb)
    targets = prediction_folder.list_targets(pages, probabilities)
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    request = prediction_folder.describe_request(
        targets, command=str(command), weights=digest, framework=framework, threshold=threshold,
        probabilities=probabilities,
    )  # fmt: skip
    with prediction_folder.open_folder(out, request):
        rows = _read_rows(out, targets, net)
        missing = [target for target in targets if target.name not in rows]
        progress = _Progress(len(targets), done=len(rows))

        def leave(name: str) -> None:
            progress.end()
            prediction_folder.remove_leftovers(out, request)
            done = sum((out / target.mask_file).exists() for target in targets)
            _print_line(
                f"unet: {name}; {done} of {len(targets)} images are done, and the same command "
                "goes on"
            )

        if missing:
            pages = [target.page for target in missing]
            load = _load(net, framework, pages, threshold, with_probabilities=bool(probabilities))
            with _exit_on_signal(leave), progress, load as run:
                for target, pixels in _read_ahead(missing, net):
                    rows[target.name] = _predict_one(run, target, pixels, out, net)
                    progress.advance(_word_row(rows[target.name]))
    report = {"out": str(out), "images": [rows[target.name] for target in targets]}
    write_json(json, report, command=command)
    return 0


def _measure(paths: Sequence[Path], net: WeightFile, largest_gb: float) -> list[Page]:
    """Measure the pages of all files, and refuse those that the net cannot predict."""
    try:
        pages = [page for path in paths for page in measure_pages(path, largest_gb=largest_gb)]
        for page in pages:
            _check_fit(page, net)
    except TooLargeError as error:
        raise InputError(
            f"{error}, or let it take more memory by --largest-gb {error.needed_gb}"
        ) from error
    return pages


def _takes_alpha(page: Page, net: WeightFile) -> bool:
    return takes_alpha(page, channels=net.config.in_channels, preprocessing=net.preprocessing)


def _check_fit(page: Page, net: WeightFile) -> None:
    """Refuse an image that the net cannot predict, before anything is written."""
    check_channels(page, channels=net.config.in_channels, preprocessing=net.preprocessing)
    height, width, *_ = page.shape
    try:
        prediction.check_size(height, width, config=net.config, preprocessing=net.preprocessing)
    except InputError as error:
        raise InputError(f"{page.place}: {error}") from error


def _read_rows(out: Path, targets: Sequence[Target], net: WeightFile) -> dict[str, dict[str, Any]]:
    """Return what the report says of the images that were predicted before, by their names."""
    rows = {}
    for target in targets:
        mask = prediction_folder.read_mask(out, target, classes=net.config.classes)
        if mask is not None:
            rows[target.name] = _describe(target, mask, net)
    return rows


def _describe(target: Target, mask: np.ndarray, net: WeightFile) -> dict[str, Any]:
    """Return what the report says of one image."""
    counts = np.bincount(mask.ravel(), minlength=net.config.mask_classes)
    row: dict[str, Any] = {
        "image": str(target.page.path), "page": target.page.index, "mask": target.mask_file,
        "height": mask.shape[0], "width": mask.shape[1],
        "class_shares": (counts / mask.size).tolist(),
    }  # fmt: skip
    if target.probabilities_file is not None:
        row["probabilities"] = target.probabilities_file
    return row


def _word_row(row: dict[str, Any]) -> str:
    percent = ", ".join(f"{share:.1%}" for share in row["class_shares"][1:])
    text = f"{row['image']} {row['height']}x{row['width']} -> {row['mask']} ({percent})"
    return make_printable(text)


def _predict_one(
    run: Run, target: Target, pixels: np.ndarray, out: Path, net: WeightFile
) -> dict[str, Any]:
    """Predict one image, write what is asked for, and return what the report says of it."""
    try:
        mask, probabilities = run(pixels)
    except InputError as error:
        raise InputError(f"{target.page.place}: {error}") from error
    if probabilities is not None and target.probabilities_file is not None:
        path = out / target.probabilities_file
        prediction_folder.write_probabilities(path, probabilities, class_names=net.class_names)
    write_picture(out / target.overlay_file, overlay(pixels, mask))
    write_mask(out / target.mask_file, mask)
    return _describe(target, mask, net)


def _read_ahead(targets: Sequence[Target], net: WeightFile) -> Iterator[tuple[Target, np.ndarray]]:
    """Yield each target with its pixels, while the next one is read in another thread."""

    def read(target: Target) -> np.ndarray:
        return read_page(target.page, alpha=_takes_alpha(target.page, net))

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, targets[0])
        for target, following in zip(targets, [*targets[1:], None], strict=True):
            pixels = ahead.result()
            if following is not None:
                ahead = reader.submit(read, following)
            yield target, pixels


@contextmanager
def _load(
    net: WeightFile,
    framework: str,
    pages: Sequence[Page],
    threshold: float | None,
    *,
    with_probabilities: bool,
) -> Iterator[Run]:
    """Yield the function that predicts with a net in one of the frameworks.

    Args:
        pages: of the images that it will get, for which JAX compiles in the background.
    """
    model: Any
    predict: Any
    predict_both: Any
    with ExitStack() as stack:
        with pause_garbage_collection():
            if framework == "jax":
                from unet_jax.predict import compile_ahead, predict, predict_both
                from unet_jax.weights import from_weights

                keep_compilations()
                model = from_weights(net)
                stack.enter_context(compile_ahead(model, _list_shapes(pages, net)))
            else:
                from unet_torch.predict import predict, predict_both
                from unet_torch.weights import from_weights as to_torch

                model = to_torch(net)
        if with_probabilities:
            yield lambda pixels: predict_both(model, pixels, threshold=threshold)
        else:
            yield lambda pixels: (predict(model, pixels, threshold=threshold), None)


def _list_shapes(pages: Sequence[Page], net: WeightFile) -> list[tuple[int, ...]]:
    """Return the shapes of the input that the net gets of each page."""
    return [
        prediction.input_shape(*page.shape[:2], config=net.config, preprocessing=net.preprocessing)
        for page in pages
    ]


class _Progress:
    """A `_Progress` prints a line for each image, on a terminal above a bar."""

    def __init__(self, count: int, *, done: int):
        self._count, self.done = count, done
        self._console = Console()
        self._bar = Progress(
            TextColumn("image"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("left"), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("image", total=count, completed=done)
        if done:
            every = "all" if done == count else f"{done} of"
            self._print(f"{every} {count} images are there already")

    def __enter__(self) -> None:
        if self._console.is_interactive:
            self._bar.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._console.is_interactive:
            self._bar.stop()

    def advance(self, line: str) -> None:
        """Count one image, and print the line about it."""
        self.done += 1
        self._bar.update(self._task, completed=self.done)
        self._print(line if self._count == 1 else f"{self.done} of {self._count}: {line}")

    def _print(self, text: str) -> None:
        whole = not self._console.is_interactive  # a log has no width
        self._console.print(text, highlight=False, markup=False, soft_wrap=whole)


@contextmanager
def _exit_on_signal(leave: Callable[[str], None]) -> Iterator[None]:
    """End the process at once when a signal comes in the block, after a last act.

    An exception would be swallowed in a callback, such as JAX's in the garbage collection.

    Args:
        leave: gets the name of the signal.
    """

    def end(number: int, _: object) -> None:
        leave(signal.Signals(number).name)
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_line(text: str) -> None:
    """Print a line to stderr, even where a signal has interrupted a print."""
    os.write(2, f"{text}\n".encode())
