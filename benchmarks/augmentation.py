"""What does augmentation move and take on a TPU: by gathers of pixels, and by matrix products?

`python -m benchmarks.augmentation` compiles the augmentation of two presets by TPU's own compiler,
which needs no TPU but the wheel `libtpu`, and writes `results/augmentation.json` (two minutes).
All times but those of the CPU are that compiler's estimates.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any
from unittest.mock import patch

# before JAX is imported: it looks for no TPU, and for no server that would know of one
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.script import RESULTS, parse_arguments, write_result
from unet_spec.environment import environment
from unet_train.config import PRESETS, TrainConfig
from unet_train.devices.collectives import count_collectives
from unet_train.devices.placement import Placement
from unet_train.input import augment, resample
from unet_train.input.crops import Batch
from unet_train.step import prepare_batch, shapes_of_crops

COMMAND = "python -m benchmarks.augmentation"
RESULT = RESULTS / "augmentation.json"
CHIP, CYCLES_PER_S, BYTES_PER_S = "v5e", 1.5e9, 819e9
TOPOLOGY = f"{CHIP}:2x2"
ROUNDS = 5
Read = Callable[..., Any]


def _gather(values: Any, source: Any, *, stretch: float) -> Any:
    return resample.read_by_gathers(values, source)


def _multiply(values: Any, source: Any, *, stretch: float) -> Any:
    side_px = resample.choose_window(stretch)
    return resample.read_by_products(values, source, side_px=side_px)


FORMS: dict[str, Read] = {"gathers": _gather, "products": resample.resample}


def measure_on_tpu(preset: str, form: str, *, data: int, rows: int) -> dict[str, Any]:
    """Return what TPU's compiler says of the augmentation of a preset's batch on each chip."""
    config = PRESETS[preset]
    config = replace(config, data=replace(config.data, batch=config.data.batch * data))
    chips = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    grid: Any = np.array(chips[: data * rows]).reshape(data, rows)
    placement = Placement(Mesh(grid, ("data", "rows"), axis_types=(AxisType.Auto,) * 2))
    crops = shapes_of_crops(config, placement)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement.everywhere)
    with patch.object(augment, "resample", FORMS[form]):
        prepare = jax.jit(partial(prepare_batch, config), out_shardings=placement.images)
        compiled: Any = prepare.lower(crops, step).compile()
    text: str = compiled.as_text()
    cost = compiled.cost_analysis()
    if " while(" in text:
        raise SystemExit("the compiler counts a loop's body once, so these bytes are too few")
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', text[text.index("\nENTRY") :])))
    memory = compiled.memory_analysis()
    return {
        "preset": preset,
        "form": form,
        "data": data,
        "rows": rows,
        "images_per_chip": config.data.batch // data,
        "crop_px": config.data.crop_px,
        "moved_gb": cost["bytes accessed"] / 1e9,
        "moved_ms": 1e3 * cost["bytes accessed"] / BYTES_PER_S,
        "estimate_ms": 1e3 * cycles / CYCLES_PER_S,
        "gathers_without_estimate": len(re.findall(r"\bgather\(", text)),
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "collectives": dict(count_collectives(text)),
    }


def measure_on_cpu(config: TrainConfig) -> dict[str, Any]:
    """Return the times of both forms on this CPU, for two images, in turns."""
    images, side = 2, config.data.crop_px
    rng = np.random.default_rng(0)
    crops = Batch(
        jnp.asarray(rng.normal(size=(images, side, side, config.net.in_channels)), jnp.float32),
        jnp.asarray(rng.integers(0, 2, (images, side, side)), jnp.uint8),
        None,
    )
    compiled: dict[str, Any] = {}
    for form, read in {"gathers": _gather, "products": _multiply}.items():
        with patch.object(augment, "resample", read):
            # a function of its own: JAX traces one function once
            prepare = jax.jit(partial(prepare_batch, config))
            compiled[form] = prepare.lower(crops, jnp.int32(0)).compile()
    times: dict[str, list[float]] = {form: [] for form in compiled}
    for _ in range(ROUNDS):
        for form, prepare in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(prepare(crops, jnp.int32(0)))
            times[form].append(1e3 * (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(times["gathers"], times["products"], strict=True)]
    return {"images": images, "ms": times, "products_over_gathers": median(ratios)}


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, result=RESULT)
    meshes = [(preset, form, 1, 1) for preset in ("modern", "paper") for form in FORMS]
    meshes += [("modern", "products", 4, 1), ("modern", "products", 2, 2)]
    rows = []
    for preset, form, data, spread in meshes:
        row = measure_on_tpu(preset, form, data=data, rows=spread)
        print(row, flush=True)
        rows.append(row)
    cpu = measure_on_cpu(PRESETS["modern"])
    print(cpu)
    result = {
        "command": COMMAND,
        "what": "by the estimate of TPU's compiler, on each chip; gathers of pixels have no "
        "estimate, so `moved_ms` is the least that their bytes take at the memory's rate",
        "chip": CHIP,
        "tpu": rows,
        "cpu": cpu,
        "libtpu": version("libtpu"),
        "environment": environment(),
    }
    write_result(arguments.out, result)
