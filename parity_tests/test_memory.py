"""What cannot fit into memory is refused before it is tried, and what runs out ends in a
sentence."""

import io
import sys
from contextlib import redirect_stderr
from dataclasses import replace

import jax
import pytest
import torch

import unet_cli
from parity_tests.tiny import TINY, quiet
from unet_parity.verify import verify
from unet_spec import InputError, UNetConfig, memory
from unet_spec.parameters import parameter_count
from unet_spec.recipe import Schedule
from unet_train.devices import room
from unet_train.devices.placement import make_placement
from unet_train.overfit import learn_one_batch
from unet_train.setup import make_setup
from unet_train.step import compile_steps

NETS = {
    "same": UNetConfig(widths=(4, 6, 9)),
    "valid": UNetConfig(widths=(4, 6), padding="valid", convolutions=3),
    "wide": UNetConfig(widths=(64, 96)),
    "batch norm": UNetConfig(widths=(6, 8), norm="batch"),
    "half": UNetConfig(widths=(6, 8, 10), up="bilinear", up_middle="half", up_convolution=False),
}


def planned_bytes(config, placement):
    """What XLA plans for a step, by the check that gets it."""
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_refuse", lambda config, need: plans.append(need))
        compile_steps(config, placement)
    (need,) = plans
    return need


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("net", NETS)
def test_arithmetic_never_says_more_than_the_plan_of_a_compiled_step(net, accumulate):
    """So a run that fits is never refused; and it says a tenth at least, or it would be no use."""
    crop_px = 92 if net == "valid" else 64
    config = replace(
        TINY,
        net=NETS[net],
        data=replace(TINY.data, crop_px=crop_px, batch=4),
        accumulate=accumulate,
        schedule=Schedule(),
    )
    placement = make_placement(config)
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_refuse", lambda config, need: counted.append(need))
        room.check_room(config, placement)
    planned = planned_bytes(config, placement)
    assert planned / 10 < counted[0] <= planned


def test_values_between_layers_are_those_that_torch_computes():
    config = UNetConfig(widths=(4, 6, 9), padding="valid")
    import unet_torch

    net, counts = unet_torch.UNet(config), []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(lambda *given: counts.append(given[2].numel()))
    net(torch.zeros(1, 1, 60, 76))
    # the last of each level are counted for all: an unpadded convolution takes two pixels away
    assert 0.8 * sum(counts) < memory.count_map_values(config, 60, 76) <= sum(counts)


def overfit(config, progress):
    return learn_one_batch(config, progress=progress)


@pytest.mark.parametrize("begin", [make_setup, overfit])
@pytest.mark.parametrize(
    "large",
    [
        {"net": UNetConfig(widths=(60_000, 60_000))},
        {"data": replace(TINY.data, batch=60_000, crop_px=256)},
        {"data": replace(TINY.data, crop_px=30_000)},
    ],
    ids=["net", "batch", "crop"],
)
def test_a_run_that_cannot_fit_is_refused_before_anything_is_drawn(large, begin, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 12 * 10**9)
    monkeypatch.setattr("unet_train.setup.open_dataset", None)
    config = replace(TINY, schedule=Schedule(), **large)
    with pytest.raises(InputError, match=r"needs at least \d+\.\d GB of memory, and 12\.0 GB are"):
        begin(config, quiet())


def test_a_compiled_step_that_does_not_fit_is_refused_before_it_is_run(monkeypatch):
    config = replace(TINY, schedule=Schedule())
    placement = make_placement(config)
    free = planned_bytes(config, placement)
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    compile_steps(config, placement)
    monkeypatch.setattr(memory, "free_bytes", lambda: free - 1)
    room.check_room(config, placement)  # arithmetic does not know it
    with pytest.raises(InputError, match=r"lower net\.widths, data\.batch or data\.crop_px"):
        compile_steps(config, placement)


def test_an_accelerator_refuses_by_itself(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    room.check_room(TINY, make_placement(TINY))


@pytest.mark.parametrize(
    "large", [{"config": UNetConfig(widths=(60_000, 60_000))},
              {"config": UNetConfig(widths=(4, 8)), "size": (30_000, 30_000)}],
    ids=["net", "size"],
)  # fmt: skip
def test_a_proof_that_cannot_fit_is_refused_before_anything_is_drawn(large, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 12 * 10**9)
    monkeypatch.setattr("unet_parity.oracle.random_tensors", None)
    with pytest.raises(InputError, match=r"the proof needs at least \d+\.\d GB of memory, and 12"):
        verify(**large)


def test_a_net_of_many_levels_and_channels_is_counted_in_no_time():
    config = UNetConfig(widths=(2**16,) * 16, convolutions=100)
    assert parameter_count(config) > 2**45
    assert memory.count_map_values(config, 2**15, 2**15) > 2**45


GIB = 2**30
GROUPS = {
    "system": ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4096 kB\n"}, 4 * 2**20),
    "version 2": (
        {
            "proc/meminfo": f"MemAvailable: {9 * 2**20} kB\n",
            "proc/self/cgroup": "0::/a/b\n",
            "cgroup/a/memory.max": f"{3 * GIB}\n",
            "cgroup/a/memory.current": f"{2 * GIB}\n",
            "cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "cgroup/a/b/memory.max": "max\n",
            "cgroup/a/b/memory.current": f"{2 * GIB}\n",
        },
        2 * GIB,
    ),
    "version 1": (
        {
            "proc/meminfo": f"MemAvailable: {9 * 2**20} kB\n",
            "proc/self/cgroup": "5:cpu:/\n4:memory:/not/seen/here\n",
            "cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
            "cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
        },
        GIB,
    ),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("system", GROUPS)
def test_free_memory_is_what_the_system_and_the_container_leave(system, tmp_path, monkeypatch):
    files, free = GROUPS[system]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    assert memory.free_bytes() == free


def test_a_limit_of_the_process_counts(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, 2**20))
    assert memory.free_bytes() == 0


ERRORS = {
    "python": MemoryError(),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't "
                          "allocate memory: you tried to allocate 4 bytes."),
    "a GPU by torch": RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "jax": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."),
    "the system": OSError(12, "Cannot allocate memory"),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("verb", unet_cli.VERBS)
def test_memory_that_runs_out_anywhere_is_a_sentence(verb, error, tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise ERRORS[error]

    words = {"train": ["cells", "--out", "a"], "predict": ["a", "b", "--out", "c"]}
    words |= {"convert": ["a", "b"], "check": ["a"], "plan": ["cells", "--topology", "v5e:2x2"]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unet_cli, "check_target", run_out)
    monkeypatch.setattr(sys, "argv", ["unet", verb, *words.get(verb, [])])
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as ended:
        unet_cli.main()
    assert ended.value.code == 2
    assert said.getvalue().startswith("unet: ")
    assert "the memory is used up" in said.getvalue()
    assert said.getvalue().count("\n") == 1


def test_torch_and_numpy_say_so_in_the_words_that_are_known():
    import numpy as np

    from unet_command.wording import is_out_of_memory

    for ask in (lambda: np.ones(2**50), lambda: torch.empty(2**50)):
        with pytest.raises((MemoryError, RuntimeError)) as refusal:
            ask()
        assert is_out_of_memory(refusal.value)
    assert not is_out_of_memory(RuntimeError("something else"))
