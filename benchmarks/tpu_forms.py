"""What each form of `unet_jax.forms` gives on a TPU, by the estimate of TPU's own compiler.

No TPU is needed: the wheel `libtpu` compiles for a chip that is not there, and writes into the
program how many cycles it expects each operation to take. The sum is an estimate, no measurement.
Operations that have no estimate are counted, with the time that moving their bytes takes at least.

Every row takes some forms of the CPU and some of the TPU. Rows that are in the result file
already are not compiled again, so that a script that was stopped goes on.

A forward pass compiles in about half a minute, a training step in about two minutes.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no server is asked which machine this is
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.script import RESULTS, make_parser, write_result
from unet_jax import Numerics, forms, functional
from unet_spec import SLIDES, UNetConfig
from unet_spec.flops import forward_gflop
from unet_train import losses
from unet_train.config import LossConfig

RESULT = RESULTS / "tpu_forms.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- forms -->", "<!-- end of forms -->"
CHIP: dict[str, Any] = {
    "name": "v5e",
    "topology": "v5e:2x2",
    "ghz": 1.5,
    "tflops": 197,
    "gb_s": 819,
}
"""One chip of this topology; its clock, bfloat16 peak and memory rate."""
IMAGES, SIZE_PX = 16, 256
BATCH_NORM = replace(SLIDES, norm="batch", bias=False)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "the CPU's forms": ("cpu", ()),
    "all of TPU's forms": ("tpu", ()),
    "all that folds": ("cpu", ("convolve", "max_pool", "up_convolve", "concatenate")),
    "pool by slices": ("cpu", ("max_pool",)),
    "up-convolution with a dilated input": ("cpu", ("up_convolve",)),
    "moments in one pass": ("cpu", ("moments",)),
    "ReLU's gradient by its output": ("cpu", ("relu",)),
    "all but the concatenation": ("tpu", ("concatenate",)),
    "convolutions folded, and nothing else": ("cpu", ("convolve",)),
    "all but the place of the logits": ("tpu", ("place_logits",)),
    "all but the moments": ("tpu", ("moments",)),
}
"""The forms of a row: those of a platform, but those of the other for some operations."""

FREE = (
    "parameter", "constant", "bitcast", "get-tuple-element", "tuple", "copy-start", "copy-done",
    "slice-start", "slice-done", "async-start", "async-done",
)  # fmt: skip
"""Operations that take no time of their own: names of arrays, and copies beside the computation."""
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
"""Likewise, of what the compiler calls by name."""


def forward(config: UNetConfig, params: Any, stats: Any, x: Any, truth: Any) -> Any:
    return _net(config).apply(params, x, stats) if stats else _net(config).apply(params, x)


def train(config: UNetConfig, params: Any, stats: Any, x: Any, truth: Any) -> Any:
    """Take a step of gradient descent on the cross-entropy."""

    def objective(params: Any) -> Any:
        logits, updated = _net(config).apply(params, x, stats, train=True)
        return losses.loss(logits, truth, config=LossConfig()), updated

    (loss, stats), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    params = jax.tree.map(lambda value, slope: value - 0.01 * slope, params, gradients)
    return loss, stats, params


PROGRAMS: dict[str, tuple[Callable[..., Any], UNetConfig]] = {
    "forward": (forward, SLIDES),
    "step": (train, SLIDES),
    "step_batch_norm": (train, BATCH_NORM),
}


def estimate(program: str, platform: str, others: tuple[str, ...]) -> dict[str, Any]:
    """Compile a program for the chip, and add up the estimates in it."""
    run, config = PROGRAMS[program]
    other = {"cpu": "tpu", "tpu": "cpu"}[platform]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIP["topology"])
    arguments = list_arguments(config, topology.devices[0])
    with forms.force_forms(platform, **dict.fromkeys(others, other)):
        lowered = jax.jit(partial(run, config)).lower(*arguments)
    compiled = lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise RuntimeError("this compiler shows neither its program nor its memory")
    if folder := os.environ.get("UNET_KEEP_PROGRAMS"):
        name = "_".join((program, platform, *others))
        (Path(folder) / f"{name}.txt").write_text(text)
    cycles, missing = read_estimates(text)
    ms = cycles / CHIP["ghz"] / 1e6
    passes = 1 if program == "forward" else 3
    bound_ms = passes * IMAGES * forward_gflop(config, SIZE_PX, SIZE_PX) / CHIP["tflops"]
    moved = compiled.cost_analysis() or {}
    return {
        "estimate_ms": round(ms, 2),
        "without_estimate": {kind: len(sizes) for kind, sizes in missing.items()},
        "without_estimate_at_least_ms": round(
            sum(map(sum, missing.values())) / CHIP["gb_s"] / 1e6, 2
        ),
        "of_flop_bound": round(bound_ms / ms, 3),
        "gb_moved": round(moved["bytes accessed"] / 1e9, 1),
        "gb_temporary": round(memory.temp_size_in_bytes / 1e9, 2),
    }


def read_estimates(text: str) -> tuple[int, dict[str, list[int]]]:
    """Return the cycles of a compiled program, and what has none.

    The second are the bytes that each operation without an estimate reads and writes, by its kind.
    """
    entry = text[text.index("\nENTRY") :].splitlines()
    cycles = 0
    missing: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for line in entry:
        match = re.match(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, kind, rest = match.groups()
        sizes[name] = _bytes(shape)
        if found := re.search(r'"estimated_cycles":"(\d+)"', line):
            cycles += int(found[1])
        elif kind not in FREE and not any(target in line for target in FREE_CALLS):
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            moved = sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
            missing.setdefault(kind, []).append(moved)
    return cycles, missing


def _bytes(shape: str) -> int:
    """Return the bytes of all arrays of a shape as XLA writes it, without padding."""
    total = 0
    for kind, dimensions in re.findall(r"([a-z]+\d+|pred)\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += bits // 8 * int(np.prod([int(n) for n in dimensions.split(",") if n]))
    return total


def _net(config: UNetConfig) -> Any:
    return functional(config, numerics=Numerics(dtype=jnp.bfloat16))


def list_arguments(config: UNetConfig, device: Any) -> Any:
    """Return what a program takes, as shapes on a device: params, stats, images and their truth."""
    params, stats = jax.eval_shape(_net(config).init, jax.random.key(0))
    image = (IMAGES, SIZE_PX, SIZE_PX)
    x = jax.ShapeDtypeStruct((*image, config.in_channels), jnp.float32)
    truth = jax.ShapeDtypeStruct(image, jnp.uint8)
    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        (params, stats, x, truth),
    )


def _rows(programs: list[str], rows: list[str]) -> Iterator[tuple[str, str]]:
    for row in rows:
        for program in programs:
            _, others = ROWS[row]
            if others != ("moments",) or program == "step_batch_norm":
                yield row, program  # the slides' net takes no moments


def main() -> int:
    parser = make_parser(__doc__, result=RESULT)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    flags = parser.parse_args()
    about = {
        "command": "python -m benchmarks.tpu_forms",
        "what": "an estimate by TPU's compiler without a TPU, no measurement",
        "chip": CHIP,
        "problem": f"{IMAGES} images of {SIZE_PX}x{SIZE_PX} on one chip, base 64, bfloat16",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
    }
    result: dict[str, Any] = {**about, "rows": {}}
    if flags.out.exists():
        known = json.loads(flags.out.read_text())
        if {name: known.get(name) for name in about} == about:
            result["rows"] = known["rows"]
    for row, program in _rows(flags.programs, flags.rows):
        done = result["rows"].setdefault(row, {})
        if program in done:
            continue
        platform, others = ROWS[row]
        done[program] = estimate(program, platform, others)
        print(f"{row}, {program}: {done[program]}", flush=True)
        write_result(flags.out, result)
    if flags.out == RESULT:
        text = DOCUMENT.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{describe(result)}\n{END}{after}")
    return 0


def describe(result: dict[str, Any]) -> str:
    """Return the section of the document that holds the figures, with the table of all rows."""
    rows, versions = result["rows"], result["versions"]
    first, best = rows["the CPU's forms"], rows["all of TPU's forms"]
    shares = []
    for name in ("forward", "step"):
        before, after = (100 * row[name]["of_flop_bound"] for row in (first, best))
        shares.append(f"from {before:.0f} % to {after:.0f} %")
    lines = [
        f"The net is the slides', in bfloat16, with {IMAGES} images of {SIZE_PX}x{SIZE_PX} on one "
        f"chip of a TPU {CHIP['name']}, compiled by libtpu {versions['libtpu']} and JAX "
        f"{versions['jax']}. All of TPU's forms bring the forward pass {shares[0]} of the chip's "
        f"peak, and the training step {shares[1]}.",
        "",
        "| forms | forward, ms | training step, ms | step with batch norm, ms | GB moved in it |",
        "|---|---|---|---|---|",
    ]
    for name, programs in rows.items():
        cells = [_cell(programs.get(program)) for program in PROGRAMS]
        moved = programs.get("step_batch_norm", {}).get("gb_moved", "")
        lines.append(f"| {name} | {' | '.join(cells)} | {moved} |")
    return "\n".join(lines)


def _cell(program: dict[str, Any] | None) -> str:
    if program is None:
        return ""
    missing = program["without_estimate_at_least_ms"]
    return f"{program['estimate_ms']:.1f}" + (f" + {missing:.1f}" if missing >= 0.05 else "")


if __name__ == "__main__":
    sys.exit(main())
