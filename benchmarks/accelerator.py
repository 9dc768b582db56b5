"""What does an accelerator do with the net: is it the same net there, how fast, and does it train?

`python -m benchmarks.accelerator [--out FILE.json] [--small] [--minutes 8] [--only SECTION ...]`
runs one section after the other and writes the file after each. A section is a process of its own:
where it fails, crashes or takes too long, its record says so and the next one begins; the exit
status is then 1. A section for which no time is left is recorded as skipped, so what matters most
comes first. `--small` is for trying the script on a CPU.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_spec import UNetConfig
from unet_spec.environment import environment
from unet_spec.files import atomic_write

if TYPE_CHECKING:
    from unet_bench.steps import Arithmetic

# Sections import the frameworks themselves: the process that runs them needs none, and an import
# that fails is one section's failure.

COMMAND = "python -m benchmarks.accelerator"
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Of every section: JAX takes memory as it needs it, so that torch fits beside it."""
LEAST_S = 10.0
"""Seconds below which no section begins."""
COMPILE_S = 75
"""The longest that `torch.compile` may take, for the forward pass and the step together."""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Record = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        budget_s: of timing each case.
        side: of the matrices that are multiplied.
        repeat: matrix products that are timed as one.
        copied_bytes: of an array that is copied.
        presets: steps of each.
        preset_flags: that make the presets small.
        kill_steps, kill_every: of the run that is killed, and between its checkpoints.
    """

    net: UNetConfig = UNetConfig()
    size_px: int = 256
    batch: int = 16
    verify_steps: int = 3
    budget_s: float = 1.5
    side: int = 8192
    repeat: int = 10
    copied_bytes: int = 2**31
    presets: Mapping[str, int] = field(default_factory=lambda: {"modern": 300})
    preset_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kill_flags: tuple[str, ...] = (
        "--net.widths", "32", "64", "128", "256", "--data.synthetic", "8",
    )  # fmt: skip
    kill_steps: int = 60
    kill_every: int = 10


def small() -> Sizes:
    """Everything tiny, for a CPU."""
    tiny = ("--net.widths", "4", "8", "--data.synthetic", "4", "--data.batch", "2")
    return Sizes(
        net=UNetConfig(widths=(4, 8, 16)), size_px=32, batch=2, verify_steps=2, budget_s=0.2,
        side=512, repeat=1, copied_bytes=2**24, presets={"modern": 41},
        preset_flags={"modern": (*tiny, "--data.crop-px", "32")},
        kill_flags=(*tiny, "--data.crop-px", "32"),
    )  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A process that leaves a JSON record in a file, after each part of its work.

    Attributes:
        command: the file comes as one more argument.
        limit_s: seconds after which it is ended.
    """

    command: tuple[str, ...]
    limit_s: float


# ---- the process that runs the sections


def measure(
    sections: Mapping[str, Section], *, seconds: float, write: Callable[[dict[str, Record]], None]
) -> dict[str, Record]:
    """The record of every section, in their order.

    Args:
        seconds: for all of them.
        write: is given all records after each section.
    """
    deadline = time.monotonic() + seconds
    records: dict[str, Record] = {}
    # what one section has compiled, the next reads: `memory` must not compile on the device
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        for name, section in sections.items():
            left = deadline - time.monotonic()
            if left < LEAST_S:
                records[name] = {"skipped": f"{max(left, 0):.0f} s were left"}
            else:
                print(f"== {name}", flush=True)
                limit_s = min(left, section.limit_s)
                records[name] = _run_section(section, limit_s=limit_s, cache=cache)
            write(records)
    return records


def has_failed(record: Record) -> bool:
    return "error" in record


def _run_section(section: Section, *, limit_s: float, cache: str) -> Record:
    """Run a section; return its record, with its seconds, and an error where it had one.

    Args:
        cache: the folder in which JAX keeps what it compiles.
    """
    with tempfile.TemporaryDirectory() as folder:
        part, began, error = Path(folder) / "part.json", time.monotonic(), None
        # a session of its own, so that whatever it started ends with it
        process = subprocess.Popen(
            [*section.command, str(part)],
            env={**os.environ, **ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": cache},
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit_s)
            if status:
                error = f"it ended with status {status}"
        except subprocess.TimeoutExpired:
            error = f"it was ended after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        record: Record = json.loads(part.read_text()) if part.exists() else {}
        if error is not None:
            record.setdefault("error", error)
            print(f"FAILED: {record['error']}", flush=True)
        return {**record, "seconds": time.monotonic() - began}


# ---- the process of a section


def record_section(parts: Iterator[Record], path: Path) -> int:
    """Write what a section yields as it comes, and the error that ends it; the exit status."""
    record: Record = {}
    status = 0
    try:
        for part in parts:
            record.update(part)
            _write_json(path, record)
    except Exception as error:  # of any kind: the record is what is asked for
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"[:1000]
        record["traceback"] = traceback.format_exc()[-4000:]
        _write_json(path, record)
        status = 1
    return status


def describe_environment(sizes: Sizes) -> Iterator[Record]:
    """The hardware, its driver, and versions."""
    yield {"installed": environment()}
    import torch

    yield {
        "cuda_of_torch": torch.version.cuda,
        "cudnn_of_torch": torch.backends.cudnn.version(),
        "torch_gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    from unet_bench.environment import environment as devices

    yield {"installed": devices()}
    query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
    try:
        smi = subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20
        )
        yield {"nvidia_smi": smi.stdout.strip().splitlines()}
    except FileNotFoundError:
        yield {"nvidia_smi": None}
    # last, because it is not among what JAX promises to keep
    from jax.extend.backend import get_backend

    yield {"jax_platform": get_backend().platform_version}


def prove_exactly(sizes: Sizes) -> Iterator[Record]:
    """The exact proof of `verify`, with JAX's products in two precisions.

    torch computes on the CPU; it is the reference, not what is measured.
    """
    from unet_parity import exact, integer_cases, jax_twin, precision

    precision.use_full_precision()
    bits = {name: precision.significand_bits(name) for name in ("highest", "default")}
    yield {
        "bits": bits,
        "precisions": {name: precision.describe_precision(name) for name in bits},
    }
    rows: list[Record] = []
    ports: dict[tuple[Any, ...], jax_twin.JaxRun] = {}
    other = replace(sizes.net, padding="valid", fit="error")
    for config, rung in product((sizes.net, other), integer_cases.RUNGS):
        case, certificate = exact.find_case(config, rung)
        # a bfloat16 factor has 8 bits in either precision
        for name in bits if rung.dtype == "float32" else ("default",):
            if rung.bits > bits[name] and rung.dtype == "float32":
                print(f"{rung.name}: left out, {name} keeps {bits[name]} bits", flush=True)
                continue
            key = (config, rung.dtype, name)
            if key not in ports:
                ports[key] = jax_twin.JaxRun(config, dtype=rung.dtype, precision=name)
            row = exact.compare_exactly(
                config, case, rung, certificate, port=ports[key], locate=False
            )
            print(f"{row.rung}, {row.padding}, {name}: {row.outcome}", flush=True)
            rows.append({"jax_precision": name, "outcome": row.outcome, **row.to_json()})
            yield {"exact": rows}


def compare_ordinary_weights(sizes: Sizes) -> Iterator[Record]:
    """The other part of `verify`: ordinary weights, then training steps; torch on the CPU."""
    from unet_parity import comparison, oracle, precision, training, verify

    precision.use_full_precision()
    yield {"environment": precision.describe_precision()}
    net, tensors = sizes.net, oracle.random_tensors(sizes.net, seed=0)
    structure = verify.check_structure(net)
    compared = comparison.compare_twins(net, tensors, train=False, say=print)
    steps: list[training.Trajectory] = []

    def judged() -> Record:
        verdict, reasons = verify.judge(
            net, structure, (), (compared,), tuple(steps), own_weights=True
        )
        steps_in = [each.dtype for each in steps]
        return {"verdict": verdict, "reasons": list(reasons), "steps_in": steps_in}

    yield {**judged(), "agreement": asdict(compared.agreement)}
    for dtype in ("float32", "float64"):
        recipe = verify.VERIFIED_RECIPE
        steps.append(
            training.train_side_by_side(net, tensors, recipe, steps=sizes.verify_steps, dtype=dtype)
        )
        yield {**judged(), "steps": [asdict(each) for each in steps]}


def measure_ceilings(sizes: Sizes) -> Iterator[Record]:
    """Measure the quickest matrix product in each arithmetic, and the quickest copy, of both."""
    from unet_bench import ceilings, steps

    devices = steps.devices()
    for arithmetic in (steps.BFLOAT16, steps.TF32, steps.FLOAT32):
        print(
            f"{arithmetic.name}: {_measure_peak(sizes, arithmetic) / 1e3:.1f} TFLOP/s", flush=True
        )
        yield {f"{arithmetic.name}_tflops": _measure_peak(sizes, arithmetic) / 1e3}
    speed = ceilings.copy_gb_s(*devices, size_bytes=sizes.copied_bytes, budget_s=sizes.budget_s)
    yield {"copy_gb_s": speed}


def _measure_peak(sizes: Sizes, arithmetic: "Arithmetic") -> float:
    """Return the GFLOP/s of the quickest matrix product in an arithmetic, once measured."""
    from unet_bench import ceilings, steps

    if arithmetic.name not in _PEAKS:
        _PEAKS[arithmetic.name] = ceilings.matmul_gflops(
            *steps.devices(),
            side=sizes.side,
            budget_s=sizes.budget_s,
            arithmetic=arithmetic,
            repeat=sizes.repeat,
        )
    return _PEAKS[arithmetic.name]


_PEAKS: dict[str, float] = {}


def compare_speed(sizes: Sizes) -> Iterator[Record]:
    """Time forward passes and training steps beside torch's, in bfloat16 and in TF32.

    `torch.compile` is timed in bfloat16, after the variants that need no compiler.
    """
    from unet_bench import steps

    _, torch_device = steps.devices()
    rows: list[Record] = []
    plain = tuple(steps.VARIANTS)
    for arithmetic in (steps.BFLOAT16, steps.TF32):
        yield from _time_arithmetic(sizes, arithmetic, plain, rows)
    reason = steps.explain_no_compiler(torch_device)
    if reason is not None:
        yield {"torch_compile": f"not measured: {reason}"}
        return
    try:
        with _time_limit(COMPILE_S):
            # a line of channels_last stands beside it, because only times of one run compare
            variants = ("channels_last", steps.COMPILED)
            yield from _time_arithmetic(sizes, steps.BFLOAT16, variants, rows)
    except Exception as error:  # of torch's compiler, of any kind, or it takes too long
        yield {"torch_compile": f"not measured: {type(error).__name__}: {error}"[:500]}


def compare_float32_speed(sizes: Sizes) -> Iterator[Record]:
    """Time the same in full float32, of which XLA compiles the step for minutes on a GPU."""
    from unet_bench import steps

    yield from _time_arithmetic(sizes, steps.FLOAT32, tuple(steps.VARIANTS), [])


def _time_arithmetic(
    sizes: Sizes, arithmetic: "Arithmetic", variants: tuple[str, ...], rows: list[Record]
) -> Iterator[Record]:
    """Time the net in one arithmetic, and yield all rows after each; they go into `rows`."""
    import torch

    from unet_bench import net_times, steps

    peak = _measure_peak(sizes, arithmetic)
    problem = steps.Problem(
        sizes.net, sizes.size_px, *steps.devices(), batch=sizes.batch, arithmetic=arithmetic
    )
    with steps.torch_tf32(arithmetic.tf32):
        for row in net_times.time_nets(
            problem, peak_gflops=peak, budget_s=sizes.budget_s, variants=variants
        ):
            rows.append(_speed_row(row, arithmetic.name, sizes.batch))
            print(_describe_speed(rows[-1]), flush=True)
            yield {"rows": rows}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compare_memory(sizes: Sizes) -> Iterator[Record]:
    """Compare XLA's plan of memory with the most that was in use, of what `speed` has compiled.

    The forward pass comes first, because the most in use is counted from the start of a process.
    A device that compiles takes memory for trials, so the programs have to come from the cache
    that `speed` has filled; `before_mb` says what was in use at most before a program ran.
    """
    import gc

    import jax

    from unet_bench import steps

    device, torch_device = steps.devices()
    rows: list[Record] = []
    for what, build in (("forward", steps.jax_forward), ("training step", steps.jax_step)):
        problem = steps.Problem(
            sizes.net, sizes.size_px, device, torch_device, sizes.batch, steps.BFLOAT16
        )
        program = build(problem)
        before = _most_in_use_mb(device)
        for _ in range(3):
            jax.block_until_ready(program.run())
        rows.append({
            "case": f"{problem.name}, {what}", "planned_mb": program.peak_mb, "before_mb": before,
            "measured_mb": _most_in_use_mb(device), "compile_s": program.compile_s,
        })  # fmt: skip
        print(_describe_memory(rows[-1]), flush=True)
        yield {"rows": rows}
        del program
        gc.collect()


def _most_in_use_mb(device: Any) -> float | None:
    """Return the most memory in use on a device so far, in MB of 10^6 bytes; None where the
    device does not tell, as a CPU."""
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 1e6


def _describe_memory(row: Record) -> str:
    planned, measured, before = (
        "-" if row[name] is None else f"{row[name]:.0f}"
        for name in ("planned_mb", "measured_mb", "before_mb")
    )
    return f"{row['case']}: MB planned {planned}, at most in use {measured}, before it {before}"


def train_presets(sizes: Sizes) -> Iterator[Record]:
    """The presets for accelerators, on synthetic cells."""
    with tempfile.TemporaryDirectory() as folder:
        for preset, steps in sizes.presets.items():
            run, report = Path(folder) / preset, Path(folder) / f"{preset}.json"
            flags = ("--validate-every", str(steps), "--checkpoint-every", str(steps))
            size = sizes.preset_flags.get(preset, ("--data.synthetic", "24"))
            process = _start_training(
                preset, steps, (*flags, *size, "--json", str(report)), run, {}
            )
            if status := process.wait():
                raise RuntimeError(f"the preset {preset} ended with status {status}")
            yield {preset: _summarise(json.loads(report.read_text()), run)}


def resume_after_kill(sizes: Sizes) -> Iterator[Record]:
    """A run that SIGKILL ends half-way and that goes on, beside one that nobody disturbs."""
    import jax

    flags = (
        "--validate-every", str(sizes.kill_steps), "--checkpoint-every", str(sizes.kill_every),
        *sizes.kill_flags,
    )  # fmt: skip
    gpu = jax.default_backend() == "gpu"
    xla = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC if gpu else ''}".strip()
    yield {"xla_flags": xla, "steps": sizes.kill_steps, "checkpoint_every": sizes.kill_every}
    with tempfile.TemporaryDirectory() as folder:
        extra = {"XLA_FLAGS": xla}

        def start(name: str) -> subprocess.Popen[bytes]:
            return _start_training("modern", sizes.kill_steps, flags, Path(folder) / name, extra)

        def finish(name: str) -> str:
            if status := start(name).wait():
                raise RuntimeError(f"the {name} run ended with status {status}")
            return hashlib.sha256(
                (Path(folder) / name / "weights.safetensors").read_bytes()
            ).hexdigest()

        whole = finish("whole")
        yield {"sha256_undisturbed": whole}
        process = start("killed")
        while process.poll() is None:
            saved = _newest_checkpoint(Path(folder) / "killed")
            if saved >= 2 * sizes.kill_every:
                process.kill()
            time.sleep(0.002)
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the run ended with {process.returncode} before it was killed")
        saved = _newest_checkpoint(Path(folder) / "killed")
        killed = finish("killed")
        yield {"resumed_at": saved, "sha256_resumed": killed, "equal": whole == killed}


def _start_training(
    preset: str, steps: int, flags: tuple[str, ...], out: Path, extra: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "unet_cli", "train", preset, "--steps", str(steps), *flags]
    return subprocess.Popen([*command, "--out", str(out)], env={**os.environ, **extra})


def _newest_checkpoint(run: Path) -> int:
    """Return the step of the newest one; 0 before there is any."""
    from unet_spec.training_state import CHECKPOINTS, list_steps

    return max(list_steps(run / CHECKPOINTS), default=0)


def _summarise(result: Record, run: Path) -> Record:
    """Of a run's JSON and metrics: its speed, and whether the loss fell."""
    from unet_train.report.metrics_log import read_metrics

    losses = [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]
    names = ("step", "compile_s", "seconds", "images_per_s", "waiting_share", "mean_image_iou")
    return {
        **{name: result[name] for name in names},
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "loss_fell": losses[-1] < losses[0],
    }


def _speed_row(row: Any, arithmetic: str, batch: int) -> Record:
    """A `unet_bench.net_times.NetRow`, with images per second."""
    return {
        "arithmetic": arithmetic,
        **asdict(row),
        "jax_images_per_s": 1e3 * batch / row.jax_ms,
        "torch_images_per_s": 1e3 * batch / row.torch_ms if row.torch_ms else None,
    }


@dataclass
class _LimitError(Exception):
    seconds: float

    def __str__(self) -> str:
        return f"it took more than {self.seconds:.0f} s"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_LimitError` in the block when it takes too long."""

    def stop(*_: object) -> None:
        raise _LimitError(seconds)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


RUNS: dict[str, tuple[Callable[[Sizes], Iterator[Record]], float]] = {
    "environment": (describe_environment, 40),
    "ceilings": (measure_ceilings, 40),
    "speed": (compare_speed, 200),
    "memory": (compare_memory, 40),
    "train": (train_presets, 100),
    "resume": (resume_after_kill, 80),
    "exact": (prove_exactly, 120),
    "ordinary": (compare_ordinary_weights, 80),
    "float32": (compare_float32_speed, 150),
}
"""Sections in their order, and the seconds after which each is ended."""


# ---- the table


def show(records: Mapping[str, Record]) -> Iterator[str]:
    """Lines that say what was measured."""
    installed = records.get("environment", {}).get("installed", {})
    yield ", ".join(f"{name} {installed.get(name)}" for name in ("jax_device", "jax", "torch"))
    for name, record in records.items():
        state = record.get("skipped") or record.get("error") or ""
        state = (
            f"skipped: {state}" if "skipped" in record else f"FAILED: {state}" if state else "ok"
        )
        yield f"{name:12} {record.get('seconds', 0):5.0f} s  {state[:200]}"
    ceilings = records.get("ceilings", {})
    measured = {k: v for k, v in ceilings.items() if isinstance(v, float) and k != "seconds"}
    yield "ceilings: " + ", ".join(f"{name} {value:.1f}" for name, value in measured.items())
    for row in records.get("exact", {}).get("exact", ()):
        unequal = f"{row['mismatches']} of {row['outputs']} outputs are not equal, "
        unequal += f"{row['gradients']['mismatches']} values of gradients"
        what = f"exact {row['rung']}, {row['padding']}, {row['jax_precision']}"
        yield f"{what}: {row['outcome']}; {unequal}"
    ordinary = records.get("ordinary", {})
    yield f"ordinary weights: {ordinary.get('verdict')} {ordinary.get('reasons', '')}"
    for section in ("speed", "float32"):
        for row in records.get(section, {}).get("rows", ()):
            yield _describe_speed(row)
    if note := records.get("speed", {}).get("torch_compile"):
        yield f"torch.compile: {note}"
    for row in records.get("memory", {}).get("rows", ()):
        yield _describe_memory(row)
    for preset, summary in records.get("train", {}).items():
        if isinstance(summary, dict):
            numbers = {k: round(v, 3) if isinstance(v, float) else v for k, v in summary.items()}
            yield f"{preset}: {numbers}"
    yield f"resumed in the same bytes: {records.get('resume', {}).get('equal')}"


def _describe_speed(row: Record) -> str:
    what, against = f"{row['arithmetic']}, {row['case'].split(', ')[-1]}", ""
    if row["torch_ms"]:
        against = f"torch {row['torch_variant']} {row['torch_ms']:.2f} ms, JAX {row['ratio']:.2f} x"
    memory = [row["peak_mb"], row["torch_peak_mb"]]
    return (
        f"{what}: JAX {row['jax_ms']:.2f} ms, {row['jax_images_per_s']:.0f} images/s, "
        f"{row['share_of_peak']:.2f} of the matrix peak; {against}; "
        f"MB {' and '.join('-' if mb is None else f'{mb:.0f}' for mb in memory)}"
    )


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("accelerator.json"), help="the result"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="sections")
    parser.add_argument("--section", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = small() if flags.small else Sizes()
    if flags.section:
        name, path = flags.section
        return record_section(RUNS[name][0](sizes), Path(path))
    size = ("--small",) if flags.small else ()
    sections = {
        name: Section((sys.executable, "-m", "benchmarks.accelerator", *size, "--section", name), s)
        for name, (_, s) in RUNS.items()
        if name in flags.only
    }

    def write(records: dict[str, Record]) -> None:
        about = {"command": COMMAND, "small": flags.small, "environment_variables": ENVIRONMENT}
        _write_json(flags.out, {**about, "environment": environment(), "sections": records})

    records = measure(sections, seconds=60 * flags.minutes, write=write)
    print("\n".join(["", *show(records)]), flush=True)
    return int(any(map(has_failed, records.values())))


if __name__ == "__main__":
    sys.exit(main())
