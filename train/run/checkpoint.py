"""RUN/checkpoints: states of a run that no kill, full disk or flipped bit takes away.

orbax writes the arrays. But it restores a file with a flipped bit without a word, and takes an
empty folder for the latest checkpoint. So a manifest with the sha256 of every file follows, and
only then the folder gets the name of its step, in one rename:

    600.part/   being written
    600/        whole, as long as its files are those of its manifest
    600.gone/   being removed
"""

import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from unet_spec import InputError

from ..run import manifest
from ..run.manifest import Manifest, NotWholeError

SPARE = 2**20  # bytes besides those of the arrays; orbax took 130,000 for 184 arrays
_NOTHING, _NONE_WHOLE = -1, -2  # in place of a step


class Restored(NamedTuple):
    """A checkpoint, read."""

    step: int
    state: Any
    card: dict[str, Any]


class Checkpoints:
    """The last checkpoints of a run, and the best one.

    A context manager. Where a run has several processes, all of them make the same calls, on a
    folder that all of them see.
    """

    def __init__(self, folder: Path, *, keep: int = 2, say: Callable[[str], None] = print):
        """
        Args:
            keep: number of checkpoints that are kept besides the best; those that are not whole
                do not count.
            say: told which checkpoint is skipped, and why.
        """
        # they log errors that are raised as well; on a full disk, one for every array
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _silence_what_comes_late()
        self.folder, self._keep, self._say = folder.absolute(), keep, say
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._sealing: tuple[int, Future[None]] | None = None
        self._seen: dict[int, Manifest] = {}  # whole when this process wrote or verified them
        self._there: int | None = None  # the step whose state this process knows to be whole

    def save(
        self, step: int, state: Any, *, card: dict[str, Any], score: float | None = None
    ) -> None:
        """Begin to write the state as it is now; waits for the one before. Of a step that was just
        saved or restored, only card and score are written: its arrays are there.

        The arrays may be donated as soon as this returns: orbax has them on the host then. On CPU
        that is a view of the same memory, and XLA does not write to a buffer with a view.

        Args:
            card: JSON that comes back with the state.
            score: higher is better; the best of the states that have one is kept.

        Raises:
            InputError: there is no room, or the one before could not be written.
        """
        self.wait()
        if step == self._there:
            self._tell(step, card, score)
            return
        arrays = _named(state)
        about = Manifest(
            step=step,
            score=score,
            card=json.loads(json.dumps(card)),  # the caller may change its own
            arrays={name: _told(array) for name, array in arrays.items()},
            orbax=ocp.__version__,
        )
        part, writer = self.folder / f"{step}.part", _orbax()
        with self._refusing(step):
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clear()
                self._check_room(sum(array.nbytes for array in arrays.values()))
            writer.save(part, args=ocp.args.PyTreeSave(arrays), force=True)
        self._sealing = step, self._background.submit(self._seal, writer, part, about)

    def restore(self, like: Any) -> Restored | None:
        """The newest whole checkpoint, or None where there is none at all.

        Args:
            like: the tree of the state, of arrays or `jax.ShapeDtypeStruct` with shardings; onto
                their devices it comes, whatever those were that it was saved from.

        Raises:
            InputError: no checkpoint is whole, it holds other arrays, or orbax cannot read it.
        """
        self.wait()
        step = self._newest_whole() if jax.process_index() == 0 else _NOTHING
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == _NOTHING:
            return None
        if step == _NONE_WHOLE:
            raise InputError(
                f"{self.folder}: none of the checkpoints there is whole; bring one back from a "
                f"copy, or remove {self.folder} to begin again"
            )
        try:
            about = manifest.read(self._path(step))
        except NotWholeError as reason:
            raise InputError(
                f"{self._path(step)}: process 0 takes this checkpoint, and it cannot be read from "
                f"here ({reason}); name an --out that all processes see"
            ) from reason
        state = _read(self._path(step), about, like)
        self._there = step
        return Restored(step, state, about.card)

    def wait(self) -> None:
        """Return when all that was saved is on the disk, and what is too old is not.

        Raises:
            InputError: it could not be written; the checkpoints before it are as they were.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            step, future = sealing
            with self._refusing(step):
                future.result()
            self._there = step

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

    def _seal(self, writer: ocp.AsyncCheckpointer, part: Path, about: Manifest) -> None:
        """In the background: wait for orbax, and make a checkpoint of what it wrote."""
        writer.wait_until_finished()  # for all processes
        writer.close()
        if jax.process_index() > 0:
            return
        about = manifest.seal(part, about)
        if self._path(about.step).exists():  # damaged: the run fell back behind it
            self._retire(about.step)
        os.replace(part, self._path(about.step))
        self._prune(about)

    def _tell(self, step: int, card: dict[str, Any], score: float | None) -> None:
        """Write card and score of a checkpoint that is there, in one rename."""
        if jax.process_index() == 0:
            with self._refusing(step):
                about = manifest.told_anew(self._path(step), card=card, score=score)
                self._prune(about)

    def _prune(self, latest: Manifest) -> None:
        """Remove all but the last whole ones and the best."""
        self._seen[latest.step] = latest
        for step in self._steps():
            if step not in self._seen:
                with suppress(NotWholeError):
                    self._seen[step] = manifest.verified(self._path(step))
        whole = {step: self._seen[step] for step in self._steps() if step in self._seen}
        scores = {step: whole[step].score for step in sorted(whole)}
        scored = {step: s for step, s in scores.items() if s is not None and not math.isnan(s)}
        kept = set(sorted(whole)[-self._keep :])
        if scored:
            kept.add(max(scored, key=lambda step: scored[step]))
        for step in self._steps():
            if step not in kept:
                self._retire(step)
        self._clear()

    def _newest_whole(self) -> int:
        """Its step, or that there is none; says what is skipped."""
        steps = self._steps()
        for step in reversed(steps):
            try:
                self._seen[step] = manifest.verified(self._path(step))
                return step
            except NotWholeError as reason:
                self._seen.pop(step, None)
                self._say(f"{self._path(step)}: this checkpoint is skipped: {reason}")
        return _NONE_WHOLE if steps else _NOTHING

    def _steps(self) -> list[int]:
        """Whole or not, in their order."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in paths if re.fullmatch("[0-9]+", path.name))

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _retire(self, step: int) -> None:
        """Take its name away, at once; the rest is for `_clear`."""
        os.replace(self._path(step), self.folder / f"{step}.gone")

    def _clear(self) -> None:
        """Remove what is not yet, or no longer, a checkpoint."""
        for path in self.folder.iterdir():
            if re.match(r"[0-9]+\.(part|gone)", path.name):
                shutil.rmtree(path)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE:
            raise OSError(f"it needs {needed + SPARE:,} bytes, and {free:,} are free")

    @contextmanager
    def _refusing(self, step: int) -> Iterator[None]:
        """What goes wrong with files in the block, as one sentence."""
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore raises ValueError for all
            with suppress(OSError):  # orbax may not have let go of it yet
                if jax.process_index() == 0:
                    self._clear()
            raise InputError(
                f"{self.folder}: the checkpoint of step {step} could not be written "
                f"({_short(error)}); make room or mend it, and give the command again: it goes on "
                "from the last one that is whole, or begins again"
            ) from error


@cache
def _silence_what_comes_late() -> None:
    """When a disk fills up, orbax ends with the first array's error, and each other array calls
    back into its closed event loop, or was never begun: a page of tracebacks and warnings beside
    our sentence. Only orbax could wait for them, and room that is reserved can be taken before the
    write."""
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook


def _orbax() -> ocp.AsyncCheckpointer:
    # a new one each time: one that has failed raises its old error again. Compression takes half
    # as much CPU time again, for 7 % of the bytes of weights and moments
    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _read(path: Path, about: Manifest, like: Any) -> Any:
    """A tree like `like`, of the arrays that were saved."""
    saved = about.arrays
    shapes = {name: _shape(array) for name, array in _named(like).items()}
    wanted = {name: _told(shape) for name, shape in shapes.items()}
    names = sorted(saved.keys() | wanted.keys())
    if differing := [name for name in names if saved.get(name) != wanted.get(name)]:
        name = differing[0]
        raise InputError(
            f"{path}: {len(differing)} of its arrays are not those of this run, first {name}: "
            f"{saved.get(name, 'nothing')} in place of {wanted.get(name, 'nothing')}; give the "
            "config that the run began with"
        )
    how = ocp.checkpoint_utils.construct_restore_args(shapes)
    reader = _orbax()
    try:
        arrays = reader.restore(path, args=ocp.args.PyTreeRestore(shapes, restore_args=how))
    except Exception as error:  # of any kind; the files are those that were written
        raise InputError(
            f"{path}: orbax {about.orbax} wrote this checkpoint, and orbax {ocp.__version__} does "
            f"not read it ({_short(error)}); go on with the version that wrote it"
        ) from error
    finally:
        reader.close()
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in shapes])


def _named(state: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths; None and {} hold none."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _told(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _short(error: Exception) -> str:
    # tensorstore's messages end with the cause: ... [os_error_code='28']
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else " ".join(str(error).split())[:200]
