"""A step gives the same bits on every mesh of devices, where nothing in it is rounded."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import unet_train.step
from benchmarks import exact_step
from benchmarks.exact_step import CONFIG, count_differences, make_step, take_step
from parity_tests.compiling import CHEAP_FLAGS
from unet_parity import exact
from unet_spec.recipe import Optimizer
from unet_train import losses
from unet_train.config import DataConfig, MeshConfig
from unet_train.devices.placement import make_placement

UNEVEN = replace(CONFIG, data=DataConfig(batch=6, crop_px=48))
HALF = replace(CONFIG, compute="bfloat16")


@pytest.fixture(scope="module")
def step():
    """The step of CONFIG, which float64 certifies."""
    return certified(CONFIG)


def certified(config, *, taps=3.0, seed=1):
    step = make_step(config, taps=taps, seed=seed)
    assert step.refusals == ()
    return step


def refusals(config, *, taps=3.0, seed=1):
    return make_step(config, taps=taps, seed=seed).refusals


def on(config, *, data=1, rows=1, parts=1, **mesh):
    return replace(config, accumulate=parts, mesh=MeshConfig(data=data, rows=rows, **mesh))


@pytest.mark.parametrize(
    "config",
    [
        on(CONFIG),
        on(CONFIG, data=8),
        on(CONFIG, data=4, rows=2),
        on(CONFIG, data=2, rows=4),
        on(CONFIG, rows=8),
        on(CONFIG, data=2, rows=2),
        on(CONFIG, data=4, rows=2, shard_parameters=True),
        on(CONFIG, parts=4),
        on(CONFIG, data=2, rows=4, parts=2),
    ],
    ids=lambda c: (
        f"{c.mesh.data} x {c.mesh.rows}, {c.accumulate} parts"
        + ", sharded" * c.mesh.shard_parameters
    ),
)
def test_every_mesh_gives_the_bits_of_float64(step, config):
    assert count_differences(step.truth, take_step(config, step)) == {}


@pytest.mark.parametrize(("data", "rows"), [(3, 2), (2, 3), (1, 6)])
def test_sizes_that_are_no_powers_of_two_give_the_bits_of_float64(data, rows):
    step = certified(UNEVEN)
    assert count_differences(step.truth, take_step(on(UNEVEN, data=data, rows=rows), step)) == {}


@pytest.mark.parametrize(("data", "rows"), [(1, 1), (2, 4)])
def test_bfloat16_gives_the_bits_of_float64(data, rows):
    step = certified(HALF, taps=2.5, seed=4)
    assert count_differences(step.truth, take_step(on(HALF, data=data, rows=rows), step)) == {}


@pytest.mark.parametrize(("data", "height", "holds"), [(2, 2, False), (1, 2, True), (2, 4, True)])
def test_xla_is_wrong_where_two_devices_have_one_row_each(data, height, holds):
    """So `make_placement` refuses that; once XLA is mended, the refusal can go."""
    rng = np.random.default_rng(0)
    x, y, kernel = (
        rng.integers(-2, 3, shape).astype(np.float32)
        for shape in ((data, height, 3, 4), (data, height, 3, 5), (3, 3, 4, 5))
    )

    @jax.jit
    def gradient(x, kernel, y):
        _, pull = jax.vjp(
            lambda x: jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            x,
        )
        return pull(y)[0]

    mesh = jax.make_mesh((data, 2), ("data", "rows"), (AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("data", "rows"))
    spread = gradient(jax.device_put(x, rows), kernel, jax.device_put(y, rows))
    assert np.array_equal(spread, gradient(x, kernel, y)) == holds


@pytest.mark.parametrize("channels", [(2, 5), (7, 7), (10, 5)], ids=["first", "neck", "last"])
def test_a_border_row_that_does_not_reach_the_neighbour_is_seen(step, monkeypatch, channels):
    whole = nnx.Conv.__call__

    def convolve(conv, x):
        y = whole(conv, x)
        if (conv.in_features, conv.out_features) != channels:
            return y
        border = x.shape[1] // 2  # of two devices; the upper one sees zeros below its last row
        short = whole(conv, x.at[:, border:].set(0))
        return y.at[:, border - 1].set(short[:, border - 1])

    monkeypatch.setattr(nnx.Conv, "__call__", convolve)
    differences = count_differences(step.truth, take_step(on(CONFIG, rows=2), step))
    assert "gradient of down_1.conv.conv.0.weight" in differences


@pytest.mark.parametrize("axis", ["data", "rows"])
def test_gradients_that_are_summed_twice_are_seen(step, monkeypatch, axis):
    config = on(CONFIG, data=2, rows=2)
    mesh, once = make_placement(config).mesh, unet_train.step.accumulate_gradients

    def twice(*arguments):
        gradients, *rest = once(*arguments)
        add = jax.shard_map(
            lambda tree: jax.lax.psum(tree, axis),
            mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
        )  # fmt: skip
        return add(gradients), *rest

    monkeypatch.setattr(unet_train.step, "accumulate_gradients", twice)
    differences = count_differences(step.truth, take_step(config, step))
    assert set(differences) == set(step.truth) - {"loss", "confusion"}


def test_parts_that_count_alike_whatever_they_hold_are_seen(step, monkeypatch):
    loss = losses.loss

    def mean_of_means(*arguments, over, **options):
        return loss(*arguments, **options, over=None) / 4

    monkeypatch.setattr(losses, "loss", mean_of_means)
    differences = count_differences(step.truth, take_step(on(CONFIG, parts=4), step))
    assert set(differences) == set(step.truth) - {"confusion"}


CHILD = """
import json
import sys
from dataclasses import replace
from benchmarks.exact_step import CONFIG, count_differences, make_step, take_step
from unet_train.config import MeshConfig
from unet_train.devices.placement import Placement
from unet_train.devices.processes import join_processes

process, coordinator = sys.argv[1:]
mesh = MeshConfig(data=4, rows=2, processes=2, process=int(process), coordinator=coordinator)
join_processes(mesh)
step = make_step(CONFIG, taps=3.0, seed=1)

def list_differences():
    return sorted(count_differences(step.truth, take_step(replace(CONFIG, mesh=mesh), step)))

healthy = list_differences()
# the images of the first process twice, and not those of the second
Placement.local = lambda placement, batch: slice(0, batch // 2)
print(json.dumps([healthy, list_differences()]))
"""


def test_two_processes_give_the_bits_of_float64_and_half_of_the_batch_is_seen(step):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count=4 {CHEAP_FLAGS}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(process), address],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        answers = [child.communicate(timeout=400) for child in children]
    finally:
        for child in children:
            child.kill()
    for out, err in answers:
        assert out, err
        assert json.loads(out.splitlines()[-1]) == [[], sorted(step.truth)]


def without_the_first_image(rng, shape):
    counted = np.ones(shape, bool)
    counted[0] = False
    return counted


def test_a_step_in_which_a_part_of_the_images_has_no_gradient_is_refused(monkeypatch):
    monkeypatch.setattr(exact_step, "_choose_counted", without_the_first_image)
    assert any("8 parts of the images have" in reason for reason in refusals(CONFIG))


def test_a_step_that_leaves_the_accumulator_is_refused(monkeypatch):
    monkeypatch.setattr(exact, "ACCUMULATOR_BITS", 8)
    assert any("overflows the accumulator" in reason for reason in refusals(CONFIG))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compute": "bfloat16"}, "the sum of a device could be"),
        ({"optimizer": Optimizer("sgd", lr=0.1, momentum=0.5)}, "float32 rounds down_1.conv"),
    ],
    ids=["bfloat16", "a rate that is no power of two"],
)
def test_a_step_that_could_round_is_refused(changes, reason):
    assert any(reason in refusal for refusal in refusals(replace(CONFIG, **changes)))


def test_a_step_without_gradients_is_refused():
    (first, *_) = refusals(CONFIG, taps=2.0, seed=3)
    assert first.endswith("gradients are all zero, down_1.conv.conv.0.weight among them")
