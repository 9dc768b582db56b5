"""Does wrong input always end in one sentence? Thousands of damaged files and commands say.

`python -m benchmarks.wrong_input` damages images, files of weights and the files of a run, draws
commands with good and bad flags, and lets the project read them (ten minutes on two cores). It
counts what must not be: tracebacks, reads over five seconds or over 1 GiB, files that a refused
command left behind, and damaged files that are read but not twice the same, or with values that
are not finite. It exits with 1 if there is any.
"""

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import wrong_flags
from benchmarks.damage import DAMAGES, damage_json
from benchmarks.script import RESULTS, make_parser, write_result
from benchmarks.watched import FAULTS, Case, Outcome, Tally, run_watched
from benchmarks.whole_files import RUN_FILES, write_images, write_run, write_weights
from unet_spec.environment import environment, usable_cores
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile

COMMAND = "python -m benchmarks.wrong_input"
RESULT = RESULTS / "wrong_input.json"
COUNTS = {"images": 3000, "weights": 2600, "run": 400, "commands": 1500}
QUICK_COUNTS = {"images": 120, "weights": 120, "run": 30, "commands": 60}


def wrong_input(
    *, seed: int = 0, quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run all cases, and return the counts as they go to the file."""
    began, tally = time.monotonic(), Tally()
    counts = QUICK_COUNTS if quick else COUNTS
    prepares = {
        "images": prepare_images,
        "weights": prepare_weights,
        "run": prepare_run,
        "commands": wrong_flags.prepare,
    }
    with tempfile.TemporaryDirectory() as name:
        for kind, prepare in prepares.items():
            say(f"{kind}: {counts[kind]} cases")
            cases = draw_cases(kind, counts[kind], Path(name) / "whole" / kind, seed=seed)
            folder = Path(name) / kind
            run_watched(cases, prepare, folder, tally, children=usable_cores(), say=say)
    return {
        "command": COMMAND,
        "seed": seed,
        "cases": counts,
        "counts": {group: tally.counts[group] for group in sorted(tally.counts)},
        "faults": {end: sum(f["end"] == end for f in tally.faults) for end in FAULTS},
        "details": tally.faults,
        "largest_growth_mb": round(tally.peak_mb),
        "seconds": round(time.monotonic() - began),
        "environment": environment(),
    }


def draw_cases(kind: str, count: int, folder: Path, *, seed: int) -> list[Case]:
    """Draw the cases of a kind, of which each is made again from its number."""
    first = seed * 10**6
    numbers = range(first, first + count)
    if kind == "commands":
        return [Case("commands", "", number) for number in numbers]
    if kind == "run":
        return [
            Case(f"RUN/{RUN_FILES[number % len(RUN_FILES)]}", "JSON", number) for number in numbers
        ]
    folder.mkdir(parents=True)
    paths = write_images(folder) if kind == "images" else write_weights(folder)
    names, cases = list(DAMAGES), []
    for number in numbers:
        path = paths[number % len(paths)]
        what = names[number // len(paths) % len(names)]
        cases.append(Case(path.name, what, number, (path,)))
    return cases


def prepare_images(folder: Path) -> Callable[[Case, Path], Outcome]:
    """Return what reads one damaged image."""
    return _read_image


def prepare_weights(folder: Path) -> Callable[[Case, Path], Outcome]:
    """Return what converts one damaged file of weights."""
    import torch

    torch.set_num_threads(1)
    return _convert_weights


def prepare_run(folder: Path) -> Callable[[Case, Path], Outcome]:
    """Return what reads a RUN with one damaged file."""
    shutil.rmtree(folder / "whole", ignore_errors=True)
    write_run(folder / "whole")
    return _read_run


def _damage(case: Case, folder: Path) -> Path:
    """Write the damaged file of a case."""
    (whole,) = case.arguments
    damage = DAMAGES[case.what]
    path = folder / f"damaged{whole.suffix}"
    path.write_bytes(damage(whole.read_bytes(), np.random.default_rng(case.number)))
    return path


def _read_image(case: Case, folder: Path) -> Outcome:
    import unet_image
    from unet_spec import Preprocessing
    from unet_spec.preprocessing import prepare

    path = _damage(case, folder)
    first, second = (
        [unet_image.read_page(page) for page in unet_image.measure_pages(path)] for _ in range(2)
    )
    for image in first:  # a picture of floats may hold NaN; a net never sees it
        prepare(image, channels=np.atleast_3d(image).shape[-1], preprocessing=Preprocessing())
    return _compare(first, second)


def _convert_weights(case: Case, folder: Path) -> Outcome:
    from unet_convert import conversion

    path, out = _damage(case, folder), folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    target = out / ("new.pt" if path.suffix == ".safetensors" else "new.safetensors")
    try:
        written = conversion.convert(path, target).content
    except BaseException:
        if left := [file.name for file in out.iterdir()]:
            return Outcome("left behind", str(left))
        raise
    again, _, _ = conversion.read(path)
    back, _, _ = conversion.read(target)
    first = _list_arrays(written)
    outcome = _compare(first, _list_arrays(again))
    return outcome if outcome.end != "read" else _compare(first, _list_arrays(back))


def _read_run(case: Case, folder: Path) -> Outcome:
    from unet_train.config import CELLS
    from unet_train.input.dataset import open_dataset
    from unet_train.report import metrics_log
    from unet_train.run import beginning
    from unet_train.run import folder as run_folder

    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "whole", run)
    path = run / case.group.removeprefix("RUN/")
    path.write_bytes(damage_json(path.read_bytes(), np.random.default_rng(case.number)))
    run_folder.compare_with_beginning(run, CELLS, open_dataset(CELLS))
    beginning.read_start_settings(CELLS, run=run)
    beginning.read_origin(None, run=run)
    metrics_log.read_validations(run, until=2)
    return Outcome("read")


def _list_arrays(content: TrainingState | WeightFile) -> list[np.ndarray]:
    """List the tensors of a file's content, those of an optimizer too."""
    if isinstance(content, WeightFile):
        return list(content.tensors.values())
    slots = [tensor for slot in content.slots.values() for tensor in slot.values()]
    return [*content.weights.tensors.values(), *slots, *content.average.values()]


def _compare(first: list[np.ndarray], second: list[np.ndarray]) -> Outcome:
    """Say whether two readings of a file gave the same, and finite values."""
    hashes = [_hash(arrays) for arrays in (first, second)]
    if hashes[0] != hashes[1]:
        return Outcome("not the same", "two readings differ")
    floats = [array for array in first if array.dtype.kind in "fc"]
    if not all(np.isfinite(array).all() for array in floats):
        return Outcome("not finite", "it was read with NaN or infinite values")
    return Outcome("read")


def _hash(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def print_table(result: dict[str, Any]) -> None:
    """Print how the cases of every group ended, and the faults."""
    ends = ("refused", "read", "begun", *FAULTS)
    print(f"{'':22}" + "".join(f"{end:>13}" for end in ends))
    for group, counts in result["counts"].items():
        print(f"{group:22}" + "".join(f"{counts.get(end, 0):>13}" for end in ends))
    for fault in result["details"][:40]:
        print(f"{fault['end']}: {fault['group']}, {fault['what']}, case {fault['number']}: "
              f"{fault['detail']}")  # fmt: skip
    print(f"{sum(result['faults'].values())} faults, {result['seconds']} s, at most "
          f"{result['largest_growth_mb']} MB above the start of a process")  # fmt: skip


if __name__ == "__main__":
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument("--seed", type=int, default=0, help="of the damage; by default 0")
    parser.add_argument("--quick", action="store_true", help="a few hundred cases")
    arguments = parser.parse_args()
    result = wrong_input(seed=arguments.seed, quick=arguments.quick)
    print_table(result)
    write_result(arguments.out, result)
    sys.exit(any(result["faults"].values()))
