"""Does a run on many devices compute what it does on one, and with how much memory?

`python -m benchmarks.sharding` trains the same 20 steps on meshes of `data` x `rows` host devices,
and in two processes. On each it also takes the step of `benchmarks.exact_step`, in which nothing
is rounded. It writes `results/sharding.json` (some minutes on two cores).
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

# before JAX is imported: it reads the flag once
_DEVICES = int(os.environ.get("SHARDING_DEVICES", "8"))
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={_DEVICES}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import exact_step  # noqa: E402
from benchmarks.script import RESULTS, parse_arguments, write_result  # noqa: E402
from unet_spec import UNetConfig  # noqa: E402
from unet_spec.environment import environment  # noqa: E402
from unet_train.config import AugmentConfig, DataConfig, MeshConfig, TrainConfig  # noqa: E402
from unet_train.devices.collectives import count_collectives, largest_bytes  # noqa: E402
from unet_train.devices.placement import make_placement  # noqa: E402
from unet_train.devices.processes import join_processes, wait_for_all  # noqa: E402
from unet_train.input.crops import cut_batch  # noqa: E402
from unet_train.input.dataset import open_dataset  # noqa: E402
from unet_train.step import Steps, compile_steps, prepare_batch, update_state  # noqa: E402

COMMAND = "python -m benchmarks.sharding"
RESULT = RESULTS / "sharding.json"
STEPS = 20
ORDERS = 6
MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 2), (4, 2), (2, 4))
CONFIG = TrainConfig(
    net=UNetConfig(widths=(8, 16, 32, 64), norm="batch"),
    data=DataConfig(crop_px=128, batch=8, synthetic=16),
    augment=AugmentConfig(rotation_deg=10, elastic_px=5),
    steps=STEPS,
)
EXACT = replace(
    exact_step.CONFIG,
    net=replace(exact_step.CONFIG.net, widths=CONFIG.net.widths),
    data=CONFIG.data,
    # of more pixels the gradients have smaller steps, and the weights would need more bits
    optimizer=replace(exact_step.CONFIG.optimizer, lr=8.0),
)
PARTS = (2, 4)


def sharding(*, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The losses of all meshes beside those of one device, and what the compiled steps hold."""
    reference = run(CONFIG)
    as_it_is = run(CONFIG, order=np.arange(CONFIG.data.batch))
    orders = [
        _apart(as_it_is["losses"], run(CONFIG, order=order)["losses"])
        for order in np.random.default_rng(0).permuted([range(CONFIG.data.batch)] * ORDERS, axis=1)
    ]
    say(f"one device, batch in other orders: {orders}")
    exact = exact_step.find_step(EXACT)
    rows = []
    for meshed in MESHES:
        mesh = MeshConfig(data=meshed[0], rows=meshed[1])
        different = count_different(exact, replace(EXACT, mesh=mesh))
        rows.append(row(replace(CONFIG, mesh=mesh), reference["losses"], different=different))
        say(json.dumps(rows[-1]))
    both = two_processes()
    different = sum(one["different"] for one in both)
    rows.append(row(CONFIG, reference["losses"], different=different, found=both[0]))
    say(json.dumps(rows[-1]))
    in_parts = [
        {"parts": parts, "data": mesh.data, "rows": mesh.rows, "different": different}
        for parts in PARTS
        for mesh in (MeshConfig(data=1), MeshConfig(data=2, rows=4))
        for different in [count_different(exact, replace(EXACT, mesh=mesh, accumulate=parts))]
    ]
    say(json.dumps(in_parts))
    return {
        "command": COMMAND,
        "steps": STEPS,
        "loss": reference["losses"][-1],
        "other_orders": orders,
        "rows": rows,
        "exact": {
            "values": sum(value.size for value in exact.truth.values()),
            "largest_sum": exact.largest_sum,
            "in_parts": in_parts,
        },
        "environment": {**environment(), "device": jax.devices()[0].device_kind},
    }


def count_different(exact: exact_step.ExactStep, config: TrainConfig) -> int:
    """Return how many values of the exact step differ from float64 in any bit."""
    return sum(
        exact_step.count_differences(exact.truth, exact_step.take_step(config, exact)).values()
    )


def row(
    config: TrainConfig,
    reference: list[float],
    *,
    different: int,
    found: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one mesh of the table.

    Args:
        different: what `count_different` says of it.
        found: what `run` found, where it ran elsewhere.
    """
    processes = 1 if found is None else 2
    found = found or run(config)
    return {
        "data": found["mesh"][0],
        "rows": found["mesh"][1],
        "processes": processes,
        "loss": found["losses"][-1],
        "apart": _apart(reference, found["losses"]),
        "different": different,
        "memory_mb": found["memory_mb"],
        "collectives": found["collectives"],
        "largest_gather_kb": found["largest_gather_kb"],
    }


def run(config: TrainConfig, *, order: np.ndarray | None = None) -> dict[str, Any]:
    """The losses of the steps on a mesh.

    Args:
        order: of the images in every batch, which only changes the order of sums.
    """
    placement = make_placement(config if jax.process_count() > 1 else _on_one(config))
    steps = compile_steps(config, placement)
    prepared = jax.jit(partial(prepare_batch, config))
    updated = jax.jit(partial(update_state, config), donate_argnums=0)
    wait_for_all("compiled")
    samples = open_dataset(config).training
    rows = placement.local(config.data.batch)
    state, losses = steps.init(), []
    for step in range(STEPS):
        batch = cut_batch(
            samples, step, data=config.data, net=config.net, seed=config.seed, rows=rows
        )
        crops = placement.put(batch, batch=config.data.batch)
        if order is None:
            state, metrics = steps.step(state, crops)
        else:  # how an image is augmented depends on its place, so that is done before
            seen = jax.tree.map(lambda array: array[order], prepared(crops, state.step))
            state, metrics = updated(state, seen)
        losses.append(float(metrics.loss))
    return {"losses": losses, "mesh": list(placement.mesh.devices.shape), **_compiled(steps)}


def two_processes() -> list[dict[str, Any]]:
    """Return what each of two processes finds, of four devices each, over the loopback
    interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sharding"],
            env={
                **os.environ,
                "SHARDING_DEVICES": "4",
                "SHARDING_PROCESS": str(process),
                "SHARDING_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    told = [child.communicate(timeout=3600)[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("one of the two processes failed")
    return [json.loads(text.splitlines()[-1]) for text in told]


def _one_of_two(process: int, port: int) -> None:
    settings = MeshConfig(
        data=4, rows=2, processes=2, process=process, coordinator=f"127.0.0.1:{port}"
    )
    join_processes(settings)
    exact = exact_step.find_step(EXACT)
    different = count_different(exact, replace(EXACT, mesh=settings))
    print(json.dumps({**run(replace(CONFIG, mesh=settings)), "different": different}))


def _on_one(config: TrainConfig) -> TrainConfig:
    return config if config.mesh.data else replace(config, mesh=MeshConfig(data=1))


def _compiled(steps: Steps) -> dict[str, Any]:
    step: Any = steps.step
    counted: Counter[str] = count_collectives(step.as_text())
    return {
        "memory_mb": round(step.memory_analysis().temp_size_in_bytes / 1e6, 1),
        "collectives": dict(counted),
        "largest_gather_kb": round(
            largest_bytes(step.as_text(), "all-gather", "all-to-all") / 1e3, 1
        ),
    }


def _apart(reference: list[float], found: list[float]) -> float:
    """Largest relative difference of the losses."""
    return float(np.max(np.abs(np.subtract(found, reference)) / np.abs(reference)))


if __name__ == "__main__":
    if "SHARDING_PROCESS" in os.environ:  # a child of two_processes
        _one_of_two(int(os.environ["SHARDING_PROCESS"]), int(os.environ["SHARDING_PORT"]))
    else:
        arguments = parse_arguments(__doc__, result=RESULT)
        write_result(arguments.out, sharding())
