"""Does wrong input always end in one sentence? Thousands of hostile and damaged files say.

`python -m benchmarks.wrong_input` makes images, files of weights and recorded pairs that are
damaged or mean harm, damages the files of a run, draws commands with good and bad flags, and lets
runs have bad days (ten minutes on two cores). The project reads all of it in watched processes. The
script counts what must not be: tracebacks, reads over five seconds or over 1 GiB, files that a
refused command left behind, programs that were started, files written elsewhere, and files that are
read although another reader, which shares no code with the project, refuses them or gives other
values. It exits with 1 if there is any. `--quick` has a few hundred cases, and no bad days.
"""

import ast
import hashlib
import re
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bad_days, hostile, hostile_images, other_decoders, other_readers, wrong_flags
from benchmarks.campaign import run_campaign
from benchmarks.damage import DAMAGES, damage_json, seal
from benchmarks.script import RESULTS
from benchmarks.watched import (
    FAULTS,
    Case,
    FaultError,
    Outcome,
    Tally,
    Work,
    run_watched,
)
from benchmarks.whole_files import RUN_FILES, write_images, write_run, write_weights
from unet_convert.conversion import Conversion
from unet_spec import InputError
from unet_spec.environment import environment, usable_cores
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

COMMAND = "python -m benchmarks.wrong_input"
RESULT = RESULTS / "wrong_input.json"
COUNTS = {"weights": 3000, "images": 3000, "pairs": 300, "runs": 400, "commands": 1500}
QUICK_COUNTS = {"weights": 130, "images": 100, "pairs": 10, "runs": 10, "commands": 20}
_NO_DAYS: dict[str, Any] = {"cases": {}, "counts": {}, "details": [], "largest_growth_mb": 0}
BESIDE = ("beside the net, ", "left out, ")  # so begin the sentences about what is not the net's
SHARE_OF_DAMAGE = 0.4  # of weights and images; the others are hostile
KINDS = {
    "weights": hostile.WEIGHTS,
    "pairs": hostile.RECORDED,
    "images": hostile_images.IMAGES,
}


def wrong_input(
    *, seed: int = 0, quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run all cases, and return the counts as they go to the file."""
    began, tally = time.monotonic(), Tally()
    counts = QUICK_COUNTS if quick else COUNTS
    prepares = {
        "weights": prepare_weights,
        "images": prepare_images,
        "pairs": prepare_pairs,
        "runs": prepare_runs,
        "commands": wrong_flags.prepare,
    }
    with tempfile.TemporaryDirectory() as name:
        for kind in counts:
            say(f"{kind}: {counts[kind]} cases")
            prepare = prepares[kind]
            cases = draw_cases(kind, counts[kind], Path(name) / "whole" / kind, seed=seed)
            folder = Path(name) / kind
            run_watched(cases, prepare, folder, tally, children=usable_cores(), say=say)
    days = _NO_DAYS if quick else bad_days.bad_days(seed=seed, say=say)
    ends: Counter[str] = Counter()
    for counted in days["counts"].values():
        ends.update(counted)
    faults = [*tally.faults, *days["details"]]
    return {
        "command": COMMAND,
        "seed": seed,
        "cases": {**counts, "bad days": sum(days["cases"].values())},
        "counts": {**tally.counts, "bad days": dict(ends)},
        "kinds": {**tally.kinds, "bad days": days["cases"]},
        "faults": {end: sum(fault["end"] == end for fault in faults) for end in FAULTS},
        "details": faults,
        "largest_growth_mb": round(max(tally.peak_mb, days["largest_growth_mb"])),
        "longest_seconds": round(tally.seconds, 1),
        "seconds": round(time.monotonic() - began),
        "environment": environment(),
    }


def draw_cases(kind: str, count: int, folder: Path, *, seed: int) -> list[Case]:
    """Draw the cases of a kind, of which each is made again from its number.

    Args:
        folder: in which the whole files are written that are damaged.
    """
    first = seed * 10**6
    numbers = range(first, first + count)
    if kind == "commands":
        return [Case(kind, "a command", number) for number in numbers]
    if kind == "runs":
        names = [RUN_FILES[number % len(RUN_FILES)] for number in numbers]
        return [Case(kind, name, number) for name, number in zip(names, numbers, strict=True)]
    if kind == "pairs":
        return _draw_hostile(kind, numbers)
    damaged = round(SHARE_OF_DAMAGE * count)
    cases = _draw_damage(kind, numbers[:damaged], folder)
    return [*cases, *_draw_hostile(kind, numbers[damaged:])]


def _draw_damage(kind: str, numbers: Sequence[int], folder: Path) -> list[Case]:
    folder.mkdir(parents=True)
    paths = write_images(folder) if kind == "images" else write_weights(folder)
    names, cases = list(DAMAGES), []
    for number in numbers:
        path, way = paths[number % len(paths)], names[number // len(paths) % len(names)]
        cases.append(Case(kind, f"damaged {path.name}", number, (path, way)))
    return cases


def _draw_hostile(kind: str, numbers: Sequence[int]) -> list[Case]:
    makers = [KINDS[kind][number % len(KINDS[kind])] for number in numbers]
    return [
        Case(kind, maker.__name__.replace("_", " "), number, (maker,))
        for maker, number in zip(makers, numbers, strict=True)
    ]


def make_file(case: Case, folder: Path) -> Path:
    """Write the file of a case: damage a whole one, or make a hostile one."""
    rng = np.random.default_rng(case.number)
    if len(case.arguments) == 1:
        (maker,) = case.arguments
        path = maker(folder, rng)
        assert isinstance(path, Path)
        return path
    whole, way = case.arguments
    path = folder / f"damaged{whole.suffix}"
    path.write_bytes(DAMAGES[way](whole.read_bytes(), rng))
    return path


# images


def prepare_images(ready: Path) -> Work:
    """Return what reads one image."""
    hostile_images.read_whole()
    return Work(make_file, _read_image, _check_image)


def _read_image(path: Path, folder: Path) -> list[str]:
    """Read every page twice, one after the other as a command does, and return their hashes.

    Raises:
        FaultError: the readings differ.
    """
    import unet_image
    from unet_spec import Preprocessing
    from unet_spec.preprocessing import prepare

    first, second = [], []
    for page in unet_image.measure_pages(path):
        image = unet_image.read_page(page)
        first.append(_hash([image]))
        try:
            channels = 1 if image.ndim == 2 else image.shape[2]
            prepare(image, channels=channels, preprocessing=Preprocessing())
        except InputError as error:  # as `unet predict` says it
            raise InputError(f"{page.place}: {error}") from error
    for page in unet_image.measure_pages(path):
        second.append(_hash([unet_image.read_page(page)]))
    if first != second:
        raise FaultError("not the same", "two readings differ")
    return first


def _check_image(path: Path, hashes: list[str]) -> Outcome:
    import unet_image

    pages = unet_image.read_pages(path)
    others = other_decoders.decode(path) if path.is_file() else None
    if others is None:
        return Outcome("unchecked")
    if len(others) != len(pages):
        return Outcome("wrong accept", f"{len(pages)} pages, and {len(others)} in another decoder")
    for index, (ours, theirs) in enumerate(zip(pages, others, strict=True)):
        if not is_same(ours, theirs):
            return Outcome("wrong accept", f"page {index} differs in another decoder")
    return Outcome("read")


# weights


def prepare_weights(ready: Path) -> Work:
    """Return what converts one file of weights."""
    import torch

    torch.set_num_threads(1)
    hostile.read_whole()
    return Work(_make_weights, _convert_weights, _check_weights)


def _make_weights(case: Case, folder: Path) -> Path:
    (folder / "out").mkdir()
    return make_file(case, folder)


def _convert_weights(path: Path, folder: Path) -> tuple[Conversion, Path]:
    from unet_convert import conversion

    target = folder / "out" / ("new.pt" if path.suffix == ".safetensors" else "new.safetensors")
    result = conversion.convert(path, target)
    written = result.content
    again, _, _ = conversion.read(path)
    back, _, _ = conversion.read(target)
    first = list(name_tensors(written).values())
    compare_readings(first, list(name_tensors(again).values()))
    # a file of weights is float32, which a conversion says where it makes a difference
    second = list(name_tensors(back).values())
    narrow = [ours.astype(new.dtype) for ours, new in zip(first, second, strict=True)]
    compare_readings(narrow, second)
    return result, target


def _check_weights(path: Path, accepted: tuple[Conversion, Path]) -> Outcome:
    result, target = accepted
    state = result.content
    text = "\n".join(line for line in result.sentences() if line.startswith(BESIDE))
    tensors = name_tensors(state)
    step = state.step if isinstance(state, TrainingState) else None
    for file in (path, target):
        try:
            others = read_elsewhere(file)
        except other_readers.NotConsistentError as error:
            return Outcome("wrong accept", f"another reader: {error}"[:300])
        if others is None:
            return Outcome("unchecked")
        wrong = find_difference(tensors, others, step, text=text)
        if seal(content := file.read_bytes()) != content:
            wrong = "its sha256 differs"
        if wrong:
            return Outcome("wrong accept", f"{file.name}: {wrong}"[:300])
        # a file of weights is float32, which a conversion says where it makes a difference
        if isinstance(state, WeightFile):
            tensors = {n: t.astype(np.float32) if t.dtype.kind == "f" else t
                       for n, t in tensors.items()}  # fmt: skip
    return Outcome("read")


def read_elsewhere(path: Path) -> dict[str, np.ndarray] | None:
    """Return the tensors of a file of weights by the reader that shares no code with the project.

    Raises:
        NotConsistentError: the file contradicts itself.
    """
    with path.open("rb") as stream:
        head = stream.read(9)
    if head[:2] in (b"PK", b"\x80\x02") and head[8:] != b"{":
        return other_readers.read_torch(path)
    return other_readers.read_safetensors(path)


def name_tensors(content: TrainingState | WeightFile) -> dict[str, np.ndarray]:
    """Return the tensors of a file's content, those of an optimizer too, by names."""
    if isinstance(content, WeightFile):
        return dict(content.tensors)
    named = dict(content.weights.tensors)
    for slot, tensors in content.slots.items():
        named |= {f"{slot}/{name}": tensor for name, tensor in tensors.items()}
    return named | {f"average/{name}": tensor for name, tensor in content.average.items()}


def find_difference(
    tensors: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray],
    step: int | None,
    *,
    text: str = "",
) -> str | None:
    """Say which tensor has no equal among those of another reader, or is in none of ours.

    A name in a file may have a prefix, or be another program's; then any equal tensor will do.

    Args:
        step: of the run in the file, which torch writes beside each tensor of an optimizer.
        text: what the command says; what is named there is not dropped without a word, and of many
            the first ones and a count are enough.
    """
    unnamed = sum(map(int, re.findall(r" and (\d+) more", text)))
    places = {*re.split(r": |, | and |\n", text)}  # a dict or a list stands for all in it
    for name, ours in tensors.items():
        if name.endswith("num_batches_tracked") and not ours:
            continue  # old files of torch have no counts
        with_name = [t for key, t in others.items() if key == name or key.endswith(f".{name}")]
        if not any(is_same(ours, theirs) for theirs in with_name or others.values()):
            return f"{name} has other values in another reader"
    for name, theirs in others.items():
        is_step = name.endswith(".step") and theirs.ndim == 0 and theirs == step
        is_named = any(part in text for part in (name, name.partition(".")[2]) if part)
        parts = name.split(".")
        is_within = any(".".join(parts[:end]) in places for end in range(1, len(parts)))
        if is_step or is_named or is_within:
            continue
        if not any(is_same(ours, theirs) for ours in tensors.values()):
            unnamed -= 1
            if unnamed < 0:
                return f"{name} is dropped"
    return None


def is_same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two arrays have the same shape and, as the type of the first, the same values."""
    if ours.shape != theirs.shape:
        return False
    return np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=ours.dtype.kind in "fc")


# recorded pairs


def prepare_pairs(ready: Path) -> Work:
    """Return what reads one recorded pair."""
    hostile.read_whole()
    return Work(make_file, _read_pair, _check_pair)


def _read_pair(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    from unet_spec.recorded import read_recorded

    first, second = read_recorded(path), read_recorded(path)
    compare_readings(list(first), list(second))
    return first


def _check_pair(path: Path, pair: tuple[np.ndarray, np.ndarray]) -> Outcome:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({*names}) < len(names) or archive.testzip() is not None:
            return Outcome("wrong accept", "a name twice, or a CRC-32 that differs")
        others = [_parse_array(archive.read(name)) for name in ("x.npy", "y.npy")]
    if not all(is_same(*both) for both in zip(pair, others, strict=True)):
        return Outcome("wrong accept", "other values in another reader")
    return Outcome("read")


def _parse_array(content: bytes) -> np.ndarray:
    """Return the array of a `.npy` of version 1, without numpy's own reader."""
    start = 10 + int.from_bytes(content[8:10], "little")
    words = ast.literal_eval(content[10:start].decode())
    values = np.frombuffer(content[start:], words["descr"])
    return values[: int(np.prod(words["shape"]))].reshape(words["shape"])


# files of a run


def prepare_runs(ready: Path) -> Work:
    """Return what reads a RUN with one damaged file."""
    shutil.rmtree(ready, ignore_errors=True)
    write_run(ready)

    def make(case: Case, folder: Path) -> Path:
        run = folder / "a_run"
        shutil.copytree(ready, run)
        path = run / case.what
        path.write_bytes(damage_json(path.read_bytes(), np.random.default_rng(case.number)))
        return run

    return Work(make, _read_run, lambda run, content: Outcome("unchecked"))


def _read_run(run: Path, folder: Path) -> None:
    from unet_train.config import CELLS
    from unet_train.input.dataset import open_dataset
    from unet_train.report import metrics_log
    from unet_train.run import beginning
    from unet_train.run import folder as run_folder

    run_folder.compare_with_beginning(run, CELLS, open_dataset(CELLS))
    beginning.read_start_settings(CELLS, run=run)
    beginning.read_origin(None, run=run)
    metrics_log.read_validations(run, until=2)


def compare_readings(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Refuse readings of one file that differ, and values that are not finite.

    Raises:
        FaultError: they do, or are.
    """
    if _hash(first) != _hash(second):
        raise FaultError("not the same", "two readings differ")
    floats = [array for array in first if array.dtype.kind in "fc"]
    if not all(np.isfinite(array).all() for array in floats):
        raise FaultError("not finite", "it was read with NaN or infinite values")


def _hash(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run_campaign(__doc__, wrong_input, result=RESULT, quick="a few hundred cases, and no bad days")
