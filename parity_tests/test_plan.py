"""A plan is of the program that trains, and says of it what its compiler says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parity_tests.shown import run_unet
from parity_tests.test_documents import is_accepted
from parity_tests.tiny import TINY, quiet
from unet_command.planning import list_commands
from unet_plan import compiler, page, table
from unet_plan.chips import CHIPS, GIB
from unet_plan.compiler import parse_refusal
from unet_plan.largest import find_largest, find_step
from unet_plan.plan import Memory, Plan, advise, make_plan, place
from unet_plan.program import Cost, Exchange, read_program, sum_by_module
from unet_plan.topology import parse_topology
from unet_spec import InputError, environment
from unet_spec.parameters import parameter_count
from unet_train import loop
from unet_train.config import MODERN, DataConfig, MeshConfig
from unet_train.devices.room import count_bytes
from unet_train.step import compile_steps

NO_TPU_COMPILER = importlib.util.find_spec("libtpu") is None
NO_GPU_COMPILER = importlib.util.find_spec("jax_cuda12_plugin") is None
TPUS = [chip.name for chip in CHIPS.values() if chip.platform == "tpu"]
MESHES = {"data": MeshConfig(data=2), "data and rows": MeshConfig(data=2, rows=2)}


class _StopError(Exception):
    """The step has been compiled, and is not run."""


def compile_as_training_does(config, out, monkeypatch) -> Any:
    """Return the compiled step of `unet train`."""
    steps = []

    def compile_and_stop(*arguments):
        steps.append(compile_steps(*arguments))
        raise _StopError

    monkeypatch.setattr(loop, "compile_steps", compile_and_stop)
    with pytest.raises(_StopError):
        loop.run(config, out, progress=quiet())
    return steps[0].step


def operations_of(program: Any) -> str:
    """Return the text of a program without what names lines of Python."""
    text = re.sub(r", metadata=\{[^}]*\}", "", program.as_text())
    return text[text.index("\n\n%") :] if "\nFileNames" in text else text


@pytest.mark.parametrize("mesh", MESHES)
def test_the_planned_program_is_the_one_that_trains(mesh, tmp_path, monkeypatch):
    config = replace(TINY, mesh=MESHES[mesh])
    trained = compile_as_training_does(config, tmp_path / "run", monkeypatch)
    topology = parse_topology("cpu:8")
    placement = place(config, topology)
    planned = compiler.compile_step(config, placement).outcome
    assert operations_of(planned) == operations_of(trained)
    assert len(operations_of(planned)) > 10_000
    plan = make_plan(config, topology, placement)
    reported = count_bytes(trained.memory_analysis())
    assert abs(plan.memory.needed - reported) < 0.1 * reported
    assert plan.memory.weights >= 4 * parameter_count(config.net)
    assert plan.memory.optimizer > 8 * parameter_count(config.net)  # both moments of Adam


def test_flops_by_arithmetic_are_near_those_that_the_compiler_counts():
    config = replace(
        TINY, net=replace(TINY.net, widths=(16, 32), norm="none", dropout=0.0),
        augment=replace(TINY.augment, elastic_px=0, rotation_deg=0, noise=0),
    )  # fmt: skip
    topology = parse_topology("cpu:1")
    plan = make_plan(config, topology, place(config, topology))
    assert plan.program_flops is not None
    # the compiler counts sums and the optimizer as well, and no gradient of the image
    assert 0.8 < plan.flops / plan.program_flops < 1.2


NAMES = {
    "v5e:4x4": (16, 16, 4), "v5e-16": (16, 16, 4), "v5e-8": (8, 8, 1), "v5e-1": (1, 1, 1),
    "v5litepod-4": (4, 4, 1), "v6e:2x2": (4, 4, 1), "v6e-16": (16, 16, 4), "v5p-8": (4, 4, 1),
    "v5p:2x2x2": (8, 8, 2), "v4-8": (4, 4, 1), "v4-32": (16, 16, 4), "tpu7x:2x2x1": (4, 8, 1),
    "h100": (1, 1, 1), "H100:8": (8, 8, 1), "h200:16": (16, 16, 2), "a100-80gb": (1, 1, 1),
    "a100-80gb:4": (4, 4, 1), "cpu:8": (8, 8, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_chips_devices_and_hosts(name):
    topology = parse_topology(name)
    assert (topology.chips, topology.devices, topology.hosts) == NAMES[name]


WRONG = {
    "v9:2x2": "known are v4, v5e, v5p", "": "known are v4", "h100x": "known are v4",
    "v5e": "it has v5e:1x1", "v5e:3x3": "it has v5e:1x1", "v5e-7": "also v5e-1, v5e-4",
    "v5e:2x2x1": "it has v5e:1x1", "v5p:2x2": "it has v5p:2x2x1", "v5p-9": "also v5p-8",
    "v5e:0x4": "it has v5e", "v5e:64x64": "it has v5e", "h100:9": "a multiple of 8",
    "h100:0": "takes a number", "h100:2x2": "takes a number", "h100:99999": "takes a number",
    "v5e:" + "9" * 5000: "known are v4",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(InputError) as refusal:
        parse_topology(name)
    assert WRONG[name] in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize("name", [*TPUS, "h100"])
def test_without_the_compiler_a_sentence_says_what_installs_it(name, monkeypatch):
    monkeypatch.setattr(compiler, "_is_installed", lambda module: False)
    size = next(iter(CHIPS[name].slices.values()), "1")
    with pytest.raises(InputError, match=r"pip install 'unet-twins\[plan(-gpu)?\]'"):
        compiler.list_devices(parse_topology(f"{name}:{size}"))


REFUSALS = {
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.": (20.5 * GIB, 15.75 * GIB),
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(800.00G) exceeds available HBM (15.75G).": (800 * GIB, 15.75 * GIB),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_gives_what_is_needed_and_what_is_there(text):
    refusal = parse_refusal(text)
    assert refusal is not None
    assert (refusal.needed_bytes, refusal.limit_bytes) == REFUSALS[text]
    assert refusal.is_whole == ("Used" in text)
    assert parse_refusal("INTERNAL: something else") is None


# as a TPU's compiler writes it, with what is read and little else
TEXT = """HloModule jit_train_step, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  ROOT %add.9 = f32[4]{0} add(%p, %p), metadata={op_name="x"}, backend_config={"estimated_cycles":"7"}
}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.1 = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%p), calls=%fused, metadata={op_name="jit(train_step)/while/body/transpose(jvp(up_1))/conv/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, f32[3,3]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%sum
}

%condition.1 (p: (s32[], f32[4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[]{:T(128)}, f32[4]{0}) while(%t), condition=%condition.1, body=%body.1, metadata={op_name="jit(train_step)/while"}
  %collective-permute-start = (bf16[4,1,64,1]{2,1,0,3:T(2,128)(2,1)S(1)}, bf16[4,1,64,1]{2,1,0,3}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2
  %collective-permute-done = bf16[4,1,64,1]{2,1,0,3} collective-permute-done(%collective-permute-start)
  %gather_fusion = u8[16]{0} fusion(%x, %y), kind=kCustom, calls=%fused, metadata={op_name="jit(train_step)/augment/gather"}
  %fusion.2 = f32[4]{0} fusion(%x), calls=%fused, metadata={op_name="jit(train_step)/jvp(down_1)/pool/max"}, backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %copy.1 = f32[4]{0} copy(%fusion.2), backend_config={"window_config":{"estimated_cycles":"20"}}
}
"""  # noqa: E501


def test_a_text_gives_exchanges_and_cycles_by_module():
    """A loop of three turns counts three times, and the inside of a fusion never."""
    program = read_program(TEXT)
    assert program.costs == (
        Cost("up_1.conv", "backward", "conv_general_dilated", 3000),
        Cost("down_1.pool", "forward", "max", 500),
        Cost("unnamed", "forward", "copy", 20),
    )
    assert program.cycles == 3520
    assert program.without_estimate == 1
    assert program.exchanges == (
        Exchange("halos", 1, 2 * 4 * 64),
        Exchange("sums", 3, 3 * 4 * (64 + 9)),
    )
    assert sum_by_module(program.costs)["up_1.conv"] == 3000


def make(**changes) -> Plan:
    """Return a plan whose numbers are made up, with so much memory for each image."""
    memory = Memory(1000, 60, 20, 120, 10, 700, 40)
    plan = Plan(
        topology="v5e:2x2", chip="v5e", devices=4, available=4, hosts=1, data=4, rows=1, batch=16,
        images=4.0, crop_px=256, accumulate=1, remat=False, compute="bfloat16", steps=5000,
        fits=True, is_whole=True, memory=memory, flops=1e12, program_flops=1.1e12, bytes_moved=4e9,
        exchanges=(Exchange("halos", 54, 2_000_000), Exchange("sums", 86, 130_000_000)),
        arithmetic_ms=5.0, memory_ms=8.0, estimate_ms=12.5, without_estimate=3,
        costliest=((Cost("up_1.conv", "backward", "mul", 900), 0.6),),
        modules={"up_1.conv": 9.0, "neck": 3.5}, compile_s=42.0,
    )  # fmt: skip
    return replace(plan, **changes)


def compile_by(needed, *, limit=1000, rows_divide=(1, 2, 4), early=np.inf, more=0):
    """Return what plays the compiler: memory by (images of a device, remat, rows), and gives
    up `early`; in full it needs `more`."""
    calls = []

    def compile_plan(config, quick):
        if config.mesh.rows not in rows_divide:
            raise InputError("these rows do not divide")
        data = config.mesh.data or 4 // config.mesh.rows
        images = config.data.batch // config.accumulate // data
        total = needed(images, config.remat, config.mesh.rows) + more * (not quick)
        calls.append((images, quick))
        memory = Memory(limit, 60, 20, 120, 0, total - 200, 0)
        return make(
            batch=config.data.batch, data=data, rows=config.mesh.rows, remat=config.remat,
            memory=memory, fits=total <= limit, is_whole=total < early,
        )  # fmt: skip

    return compile_plan, calls


BENDS = {
    "straight": lambda images: 200 + 13 * images,
    "an image more than all": lambda images: 200 + 801 * images,
    "saves memory near the limit": lambda images: min(200 + 13 * images, 930 + images),
    "jumps": lambda images: 200 + 50 * ((images + 3) // 4),
    "thousands": lambda images: 200 + images // 9,
}


@pytest.mark.parametrize("early", [np.inf, 1000])
@pytest.mark.parametrize("first", [1, 4, 300])
@pytest.mark.parametrize("bend", BENDS)
def test_the_largest_batch_is_the_last_one_that_fits(bend, first, early):
    needed = BENDS[bend]
    compile_plan, calls = compile_by(
        lambda images, remat, rows: needed(images) // (1 + 9 * remat), early=early
    )
    config = replace(MODERN, data=DataConfig(batch=4 * first, crop_px=256))
    plan = find_largest(config, compile_plan)
    assert plan is not None
    if needed(1) > 1000:
        assert plan.remat
        return
    images = plan.batch // plan.data
    assert needed(images) <= 1000 < needed(images + find_step(images))
    assert not plan.remat
    assert len(calls) <= 11, calls
    assert [images for images, quick in calls if not quick] == [images]


@pytest.mark.parametrize("more", [1, 40, 200])
def test_the_largest_batch_fits_when_it_is_compiled_in_full(more):
    compile_plan, calls = compile_by(lambda images, remat, rows: 200 + 13 * images, more=more)
    config = replace(MODERN, data=DataConfig(batch=4, crop_px=256))
    plan = find_largest(config, compile_plan)
    assert plan is not None
    images = plan.batch // plan.data
    assert (images, False) in calls
    assert plan.memory.needed == 200 + 13 * images + more <= 1000
    assert 200 + 13 * (images + find_step(images)) + more > 1000


def test_rows_and_remat_are_used_only_where_nothing_fits_without():
    config = replace(MODERN, data=DataConfig(batch=4, crop_px=256))
    compile_plan, _ = compile_by(lambda images, remat, rows: 200 + 3000 * images // (rows + remat))
    plan = find_largest(config, compile_plan)
    assert plan is not None
    assert (plan.remat, plan.rows, plan.batch) == (True, 4, 1)
    compile_plan, _ = compile_by(lambda images, remat, rows: 5000)
    assert find_largest(config, compile_plan) is None
    compile_plan, _ = compile_by(lambda images, remat, rows: 1, rows_divide=())
    with pytest.raises(InputError, match="do not divide"):
        find_largest(config, compile_plan)


@pytest.mark.parametrize("batch", [16, 48, 400])
def test_advice_makes_a_plan_fit_whose_memory_grows_with_its_images(batch):
    assert_fits_as_advised(batch, lambda images: 240 + 70 * images)


@pytest.mark.parametrize("batch", [508, 512, 604])
def test_advice_makes_a_plan_fit_whose_images_are_padded_to_eight(batch):
    advice = assert_fits_as_advised(batch, lambda images: 240 + 6 * (-(-images // 8) * 8))
    assert "--data.batch 480" in advice
    assert ("--accumulate" in advice) == (batch == 512)


def test_advice_makes_a_plan_fit_that_a_compiler_refused_after_saving_memory():
    memory = Memory(1000, 60, 20, 120, 0, 804, 0)  # 4 too few; without saving they would be 224
    plan = make(batch=512, images=128.0, fits=False, memory=memory, program_flops=None)
    advice = advise(plan)
    smaller = re.search(r"--data\.batch (\d+)", advice)
    assert smaller is not None
    assert 200 + 8 * int(smaller[1]) // 4 <= 1000


def assert_fits_as_advised(batch, needed):
    """Return the advice for a batch that is too large, by the memory that images need."""
    images = batch // 4
    memory = Memory(1000, 60, 20, 120, 0, needed(images) - 240, 40)
    plan = make(batch=batch, images=float(images), fits=False, memory=memory)
    advice = advise(plan)
    smaller = re.search(r"--data\.batch (\d+)", advice)
    assert smaller is not None
    fitting = int(smaller[1]) // 4
    assert needed(fitting) <= 1000 < needed(fitting + (8 if fitting >= 8 else 1))
    parts = re.search(r"--accumulate (\d+)", advice)
    if parts is not None:
        assert images % int(parts[1]) == 0
        assert needed(images // int(parts[1])) <= 1000
    assert "--remat" in advice
    assert "--mesh.rows 2" in advice
    return advice


TYPED = ("plan", "modern", "--topology", "v5e:2x2", "v5e:4x4", "--steps", "7", "--json", "a.json",
         "--mesh.processes", "9", "--report=a.html", "--largest", "--net.no-bias")  # fmt: skip


def test_the_command_for_each_host_is_the_one_that_was_planned():
    config = replace(MODERN, steps=7)
    base = "unet train modern --steps 7 --net.no-bias"
    images = "--data.images IMAGES --data.masks MASKS --out RUN"
    same = {"batch": config.data.batch, "rows": 1}
    assert list_commands(TYPED, config, make(**same)) == [f"{base} {images}"]
    of_four = make(topology="v5e:4x4", hosts=4, **same)
    assert list_commands(TYPED, config, of_four) == [
        f"on each of the 4 hosts: {base} {images} --mesh.processes 4"
    ]
    gpus = list_commands(TYPED, config, make(chip="h100", hosts=2, **same))
    assert gpus[1] == (
        f"on host 1: {base} {images} --mesh.processes 2 --mesh.process 1 "
        "--mesh.coordinator HOST:PORT"
    )
    found = list_commands((*TYPED, "--data.batch", "9"), config, make(batch=48, rows=2, remat=True))
    assert found == [f"{base} --data.batch 48 --mesh.rows 2 --remat {images}"]
    for line in (found[0], f"{base} {images} --mesh.processes 4"):
        assert is_accepted(line.split()[1:])


def test_a_plan_as_table_page_and_json_says_the_same(tmp_path):
    small = make(
        topology="v6e:2x2", fits=False, advice="give --remat",
        memory=Memory(500, 60, 20, 120, 10, 700, 40), estimate_ms=None, costliest=(), modules={},
    )  # fmt: skip
    rows = dict(table.list_rows([make(), small]))
    assert rows["step, estimate, ms"] == ["12.5", "-"]
    assert rows["share of peak, estimate"] == ["40 %", "-"]
    assert rows["images per second, estimate"] == ["1,280", "-"]
    assert "gathers of a step" not in rows
    assert "--remat" in table.list_sentences(small)[-1]
    html = page.render_page([make(), small], [["unet train modern"], []], command="unet plan x")
    for text in ("It fits on 1 of 2", "up_1.conv", "9.00 ms", "unet train modern", "unet plan x"):
        assert text in html
    plain = json.loads(json.dumps(make().to_json()))
    assert plain["memory"]["needed"] == sum((60, 20, 120, 10, 700, 40))
    assert plain["images_per_s"] == 1280
    assert plain["hours"] == 5000 * 12.5 / 3.6e6


def test_the_verb_plans_on_this_machines_processor(tmp_path):
    flags = "--net.widths 4 6 --data.batch 4 --data.crop-px 16 --mesh.data 2 --data.synthetic 4"
    done = run_unet(
        f"unet plan cells --topology cpu:8 {flags} --json a.json --report a.html", tmp_path
    )
    assert done.status == 0, done.text
    (plan,) = json.loads((tmp_path / "a.json").read_text())["plans"]
    assert (plan["data"], plan["batch"], plan["fits"], plan["estimate_ms"]) == (2, 4, True, None)
    assert plan["commands"][0].endswith(f"unet train cells {flags} --out RUN")
    assert "It fits on cpu:8" in (tmp_path / "a.html").read_text()


def test_a_plan_that_does_not_fit_says_by_how_much_and_ends_with_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr("unet_spec.memory.free_bytes", lambda: 8 * 10**5)
    flags = "--net.widths 4 6 --data.batch 8 --data.crop-px 16 --mesh.data 1"
    done = run_unet(f"unet plan cells --topology cpu:8 {flags}", tmp_path)
    assert done.status == 1
    advice = re.search(r"too few; give (--data\.batch \d+)", done.text)
    assert advice is not None, done.text
    smaller = run_unet(f"unet plan cells --topology cpu:8 {flags} {advice[1]}", tmp_path)
    assert smaller.status == 0, smaller.text


@pytest.mark.skipif(NO_TPU_COMPILER, reason="libtpu has wheels for Linux on x86 alone")
@pytest.mark.parametrize("name", TPUS)
def test_the_facts_of_a_chip_are_those_of_its_compiler(name):
    """Its memory is what a refusal names, and its clock such that a large product nearly reaches
    the peak and a large sum the memory's rate."""
    chip = CHIPS[name]
    topology = parse_topology(f"{name}:{chip.slices[4]}")
    devices = compiler.list_devices(topology)
    assert (len(devices), len({d.process_index for d in devices})) == (topology.devices, 1)
    everywhere = NamedSharding(Mesh(np.array(devices[:1]), ("all",)), PartitionSpec())

    def compile_for_chip(function, *shapes, dtype=jnp.float32):
        arguments = [jax.ShapeDtypeStruct(s, dtype, sharding=everywhere) for s in shapes]
        with compiler.quiet_stderr():
            return jax.jit(function).lower(*arguments).compile()

    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        compile_for_chip(lambda x: x + 1, (100 * GIB,))
    refusal = parse_refusal(str(refused.value))
    assert refusal is not None
    assert refusal.limit_bytes == chip.memory_bytes
    assert chip.clock_hz is not None
    assert chip.bytes_per_s is not None
    side = 8192
    product = compile_for_chip(jnp.dot, (side, side), (side, side), dtype=jnp.bfloat16)
    cycles = read_program(product.as_text()).cycles
    assert cycles is not None
    assert 0.65 < 2 * side**3 / cycles * chip.clock_hz / chip.peak_flops["bfloat16"] <= 1
    total = compile_for_chip(lambda x: x + 1, (16384, 16384))
    cycles = read_program(total.as_text()).cycles
    assert cycles is not None
    assert 0.65 < 8 * 16384**2 / cycles * chip.clock_hz / chip.bytes_per_s <= 1


SMALL = ("--net.widths 4 6 --data.crop-px 16 --augment.no-flips --augment.no-quarter-turns "
         "--optimizer.name sgd --schedule.name constant")  # fmt: skip


@pytest.mark.skipif(NO_TPU_COMPILER, reason="libtpu has wheels for Linux on x86 alone")
def test_a_tpu_that_is_not_here_gets_a_plan(tmp_path, capfd):
    done = run_unet(f"unet plan cells --topology v5e:2x2 {SMALL} --json a.json", tmp_path)
    assert done.status == 0, done.text
    (plan,) = json.loads((tmp_path / "a.json").read_text())["plans"]
    assert (plan["devices"], plan["hosts"], plan["memory"]["limit"]) == (4, 1, 15.75 * GIB)
    assert plan["estimate_ms"] > plan["arithmetic_ms"] > 0
    assert plan["modules"].keys() >= {"down_1.conv", "up_1.conv", "neck", "out", "loss"}
    assert [one["kind"] for one in plan["exchanges"]] == ["sums"]
    assert 0 < plan["memory"]["weights"] < plan["memory"]["needed"]
    assert capfd.readouterr().err == ""  # what libtpu writes there is kept back


@pytest.mark.skipif(NO_GPU_COMPILER, reason="the wheel of XLA's CUDA compiler is not installed")
def test_a_gpu_that_is_not_here_gets_a_plan_without_times(tmp_path):
    """In a process of its own, because this one has looked for a GPU, and knows its compiler no
    more."""
    words = f"plan cells --topology h100:2 {SMALL} --json a.json".split()
    done = subprocess.run(
        [sys.executable, "-m", "unet_cli", *words],
        cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (plan,) = json.loads((tmp_path / "a.json").read_text())["plans"]
    assert (plan["devices"], plan["estimate_ms"], plan["bytes_moved"]) == (2, None, None)
    assert plan["arithmetic_ms"] > 0
    assert plan["fits"]
    assert "estimates no time" in done.stdout


@pytest.mark.parametrize(
    ("installed", "chips", "variables", "expected"),
    [
        ("libtpu", (), {}, "cpu"),
        ("jax_plugins", (), {}, "cpu"),
        (None, (), {}, None),
        ("libtpu", ("/dev/accel0",), {}, None),
        ("libtpu", (), {"TPU_WORKER_ID": "0"}, None),
        ("libtpu", (), {"TPU_SKIP_MDS_QUERY": "1"}, "cpu"),
        ("libtpu", (), {"JAX_PLATFORMS": "tpu"}, "tpu"),
    ],
)
def test_jax_looks_for_no_chip_where_only_its_compiler_is(
    installed, chips, variables, expected, monkeypatch
):
    module = SimpleNamespace(find_spec=lambda name: name == installed)
    monkeypatch.setattr(environment, "importlib", SimpleNamespace(util=module))
    found = SimpleNamespace(glob=lambda pattern: chips if pattern == "/dev/accel*" else ())
    monkeypatch.setattr(environment, "glob", found)
    for name in [name for name in os.environ if environment._VARIABLES.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    environment.leave_out_accelerators()
    assert os.environ.get("JAX_PLATFORMS") == expected
