"""RUN/checkpoints: one file for each step, which no kill, full disk or flipped bit takes away.

A file gets its name in one rename when all of it is on the disk, and carries the sha256 of its
bytes (`unet_spec.training_state`). So a file with a name is whole, or it says that it is not.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

from unet_spec import InputError, training_state
from unet_spec.safetensors_file import NotWholeError
from unet_spec.training_state import TrainingState, checkpoint_path, list_steps

from ..devices.processes import broadcast_from_first, is_first_process


class Checkpoints:
    """A `Checkpoints` writes the last checkpoints of a run, and keeps the best one.

    It writes in the background, and is a context manager. Of several processes the first writes,
    and the others do nothing.

    Args:
        keep: number of checkpoints that are kept besides the best; damaged ones do not count.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder, self._keep = folder, keep
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._whole: set[int] = set()  # written or hashed by this process

    def save(self, step: int, make: Callable[[], TrainingState], *, best: int | None) -> None:
        """Begin to write a step, after the one before is on the disk.

        Args:
            make: returns what is written; it is called in the background, so all that it uses has
                to be on the host, and stay as it is.
            best: the step with the best validation so far, whose checkpoint stays.

        Raises:
            InputError: the one before could not be written; all others are as they were.
        """
        self.wait()
        if is_first_process():
            self._writing = step, self._background.submit(self._write, step, make, best)

    def wait(self) -> None:
        """Return when all that was saved is on the disk, and what is too old is not.

        Raises:
            InputError: it could not be written; all others are as they were.
        """
        if self._writing is None:
            return
        (step, future), self._writing = self._writing, None
        try:
            future.result()
        except OSError as error:
            raise InputError(
                f"{self.folder}: the checkpoint of step {step} could not be written "
                f"({error.strerror or error}); make room or mend it, and give the command again: "
                "it goes on from the last one that is whole, or begins again"
            ) from error

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # an error that is under way already says more than one of ours
        with suppress(InputError) if kind else nullcontext():
            self.close()

    def _write(self, step: int, make: Callable[[], TrainingState], best: int | None) -> None:
        self.folder.mkdir(exist_ok=True)
        training_state.write(checkpoint_path(self.folder, step), make())
        self._whole.add(step)
        self._remove_all_but_the_last(best)

    def _remove_all_but_the_last(self, best: int | None) -> None:
        steps = list_steps(self.folder)
        whole = [step for step in steps if self._is_whole(step)]
        stay = {*whole[-self._keep :], best}
        for step in steps:
            if step not in stay:
                checkpoint_path(self.folder, step).unlink()

    def _is_whole(self, step: int) -> bool:
        """Return whether the file is what was written; no process hashes a file twice."""
        if step not in self._whole:
            try:
                training_state.check_whole(checkpoint_path(self.folder, step))
            except NotWholeError:
                return False
            self._whole.add(step)
        return True


def restore(folder: Path, *, say: Callable[[str], None]) -> TrainingState | None:
    """Return the newest whole checkpoint, the same in all processes, or None where there is none.

    Args:
        say: is given a sentence for each one that is skipped.

    Raises:
        InputError: none is whole, or this process does not see the folder of the first.
    """
    state = training_state.read_newest(folder, say=say) if is_first_process() else None
    step = broadcast_from_first("checkpoint", -1 if state is None else state.step)
    if step < 0 or is_first_process():
        return state
    path = checkpoint_path(folder, step)
    try:
        return training_state.read(path)
    except NotWholeError as error:
        raise InputError(
            f"{path}: process 0 takes this checkpoint, and it cannot be read from here ({error}); "
            "name an --out that all processes see"
        ) from error
