import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parity_tests.tiny import TINY
from unet_spec import InputError, UNetConfig, safetensors_file, training_state, weight_file
from unet_spec.parameters import parameters
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_spec.safetensors_file import NotWholeError
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_train.devices.processes import gather_to_host
from unet_train.run.checkpoints import Checkpoints, restore
from unet_train.run.states import resume_state, to_training_state
from unet_train.step import init_state

NET = UNetConfig(widths=(3, 4), norm="batch")
RECIPE = Recipe(Optimizer(lr=0.1), Schedule("plateau"))


def state_at(step: int) -> TrainingState:
    """A function of its step, bit by bit; subnormal numbers are among the values."""
    draw = np.random.default_rng(step)

    def tensors(names: Any) -> dict[str, np.ndarray]:
        return {
            p.name: np.full((), step, np.int64)
            if p.kind == "count"
            else (draw.integers(0, 2**32, p.shape, np.uint32) & 0xBFFFFFFF).view(np.float32)
            for p in names
        }

    every = list(parameters(NET))
    slots = {slot: tensors(p for p in every if p.trained) for slot in RECIPE.slots}
    scheduler = {
        "lr": float(np.float32(draw.random())), "last_epoch": step, "best": float("inf"),
        "num_bad_epochs": 3, "cooldown_counter": 0,
    }  # fmt: skip
    average = tensors(p for p in every if p.kind != "count")
    return TrainingState(
        WeightFile(NET, tensors(every)), RECIPE, step, slots, scheduler, average, "a device"
    )


def bits(state: TrainingState) -> Any:
    """Everything that a state holds."""
    groups = {"": state.weights.tensors, **state.slots, "average": state.average}
    tensors = {
        f"{group}/{name}": (str(t.dtype), t.shape, t.tobytes())
        for group, ts in groups.items()
        for name, t in ts.items()
    }
    plain = (state.step, state.recipe, dict(state.scheduler), state.devices, state.weights.config)
    return plain, tensors


def write_steps(folder: Path, steps: Any, *, best: int | None = None, **options: Any) -> None:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, partial(state_at, step), best=best)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 1, 2 and 3, whole."""
    write_steps(tmp_path / "checkpoints", (1, 2, 3), keep=3)
    return tmp_path / "checkpoints"


def fail(text: str) -> None:
    raise AssertionError(text)


def restored(folder: Path) -> tuple[int, list[str]]:
    """The step that comes back, with its very values, and what was said."""
    sentences: list[str] = []
    state = restore(folder, say=sentences.append)
    assert state is not None
    assert bits(state) == bits(state_at(state.step))
    return state.step, sentences


def test_the_state_comes_back_bit_for_bit(tmp_path):
    assert restore(tmp_path / "checkpoints", say=fail) is None
    write_steps(tmp_path / "checkpoints", [7])
    assert restored(tmp_path / "checkpoints") == (7, [])


def test_stock_safetensors_reads_all_of_it_under_torchs_names(folder):
    with safetensors.safe_open(folder / "3.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["unet"])
    state = state_at(3)
    prefixes = {"": state.weights.tensors, "average/": state.average}
    prefixes |= {f"{slot}/": group for slot, group in state.slots.items()}
    assert len(tensors) == sum(map(len, prefixes.values()))
    for prefix, group in prefixes.items():
        for name, tensor in group.items():
            assert tensors[prefix + name].tobytes() == tensor.tobytes()
    assert card["training"]["step"] == 3
    content = (folder / "3.safetensors").read_bytes()
    blank = content.replace(card["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == card["sha256"]


def test_a_checkpoint_is_a_weight_file_of_what_predicts(folder):
    state, weights = state_at(3), weight_file.read(folder / "3.safetensors")
    counts = {p.name for p in parameters(NET) if p.kind == "count"}
    assert counts
    for name, tensor in weights.tensors.items():
        expected = (state.weights.tensors if name in counts else state.average)[name]
        assert tensor.tobytes() == expected.tobytes()


def _place(tree: Any, devices: int, *, sharded: bool) -> Any:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))

    def put(array: jax.Array) -> jax.Array:
        parts = sharded and array.ndim > 0 and array.shape[-1] % devices == 0
        spec = PartitionSpec(*[None] * (array.ndim - 1), "data") if parts else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


PLACES = {"one": (1, False), "everywhere": (8, False), "sharded": (8, True), "two": (2, True)}
RUN = dataclasses.replace(TINY, net=dataclasses.replace(TINY.net, widths=(8, 16)))


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", ["everywhere", "sharded"])
def test_a_state_of_8_devices_resumes_on_others_to_the_bit(tmp_path, source, target):
    fresh = init_state(RUN)
    state = jax.tree.map(lambda a: a + jnp.asarray(3, a.dtype), fresh)._replace(
        stopped=jnp.zeros((), bool)
    )
    devices, sharded = PLACES[source]
    host = gather_to_host(_place(state, devices, sharded=sharded))
    training_state.write(tmp_path / "a.safetensors", to_training_state(RUN, host))
    devices, sharded = PLACES[target]
    like = _place(fresh, devices, sharded=sharded)
    resumed = resume_state(training_state.read(tmp_path / "a.safetensors"), like)
    for one, other, model in zip(*map(jax.tree.leaves, (resumed, state, like)), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert one.sharding == model.sharding


@pytest.mark.parametrize("place", ["one", "everywhere", "sharded"])
def test_what_is_written_is_the_state_at_the_call(tmp_path, place):
    """The caller gives the buffers to the next steps while the thread still writes."""
    devices, sharded = PLACES[place]
    state = _place(init_state(RUN), devices, sharded=sharded)
    tripled = jax.jit(
        lambda s: jax.tree.map(lambda a: 3 * a + 1 if a.dtype == jnp.float32 else a, s),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path / "c", keep=9) as checkpoints:
        for number in range(4):
            state = state._replace(
                step=state.step * 0 + number,
                optimizer=state.optimizer._replace(step=state.optimizer.step * 0 + number),
            )
            snapshot = jax.tree.map(lambda array: np.array(array, copy=True), state)
            host, held = gather_to_host(state), threading.Event()

            def make(host=host, held=held):
                held.wait(20)
                return to_training_state(RUN, host)

            checkpoints.save(number, make, best=None)
            for _ in range(5):
                state = tripled(state)
            jax.block_until_ready(state)
            held.set()
            checkpoints.wait()
            written = training_state.read(tmp_path / "c" / f"{number}.safetensors")
            assert bits(written) == bits(to_training_state(RUN, snapshot))


def test_buffers_that_come_from_a_file_may_be_donated(tmp_path):
    state = init_state(RUN)
    training_state.write(tmp_path / "a.safetensors", to_training_state(RUN, gather_to_host(state)))
    resumed = resume_state(training_state.read(tmp_path / "a.safetensors"), state)
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + a.astype(bool), s), donate_argnums=0)
    for _ in range(20):
        state, resumed = step(state), step(resumed)
    for one, other in zip(*map(jax.tree.leaves, (resumed, state)), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _swap_steps(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(rb"\"step\": 3", rb"\"step\": 4"))


DAMAGES = {
    "truncated": (_truncate, "not a whole safetensors file"),
    "flipped bit": (_flip, "other bytes than were written"),
    "empty": (_empty, "the file is empty"),
    "forged card": (_swap_steps, "other bytes than were written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_word_and_written_again(folder, damage):
    harm, reason = DAMAGES[damage]
    path = folder / "3.safetensors"
    before = path.read_bytes()
    harm(path)
    assert path.read_bytes() != before
    step, sentences = restored(folder)
    assert step == 2
    assert len(sentences) == 1
    assert sentences[0].startswith(f"this checkpoint is skipped: {path}: ")
    assert reason in sentences[0]
    write_steps(folder, [3])
    assert restored(folder) == (3, [])


def test_a_flipped_bit_anywhere_in_the_file_is_noticed_and_the_one_before_is_taken(folder):
    draw, path = random.Random(0), folder / "3.safetensors"
    (folder / "1.safetensors").unlink()
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    places = [*range(8), *draw.sample(range(8, header), 60)]
    places += draw.sample(range(header, len(content)), 60)
    for word in (b"__metadata__", b"unet", b"sha256", b"version", b"training", b"step"):
        start = content.index(word)
        places += range(start, start + len(word))
    for place in places:
        harmed = bytearray(content)
        harmed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(harmed)
        step, sentences = restored(folder)
        assert (step, len(sentences)) == (2, 1), place
    path.write_bytes(content)
    assert restored(folder) == (3, [])


def test_where_nothing_is_whole_the_folder_and_the_remedy_are_named(folder):
    for step, (harm, _) in zip((1, 2, 3), DAMAGES.values(), strict=False):
        harm(folder / f"{step}.safetensors")
    sentences: list[str] = []
    with pytest.raises(InputError, match=r"remove .* to begin again") as refusal:
        restore(folder, say=sentences.append)
    assert str(folder) in str(refusal.value)
    assert [text.split(": ")[1] for text in sentences] == [
        str(folder / f"{step}.safetensors") for step in (3, 2, 1)
    ]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_ones_and_the_best_one_stay(tmp_path, keep):
    bests = (None, None, 1, 1, 1, 4, 4)
    with Checkpoints(tmp_path / "c", keep=keep) as checkpoints:
        for step, best in enumerate(bests):
            checkpoints.save(step, partial(state_at, step), best=best)
            checkpoints.wait()
            last = range(max(0, step + 1 - keep), step + 1)
            stay = {*last, best} & {*range(step + 1)}
            assert training_state.list_steps(tmp_path / "c") == sorted(stay)


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(folder):
    _flip(folder / "3.safetensors")
    write_steps(folder, [4], keep=2)
    assert names(folder) == ["2.safetensors", "4.safetensors"]


def test_no_checkpoint_is_hashed_twice_by_a_process(folder, monkeypatch):
    hashed: list[str] = []
    check_hash = safetensors_file._check_hash

    def count(path: Path, digest: str) -> None:
        hashed.append(path.name)
        check_hash(path, digest)

    monkeypatch.setattr(safetensors_file, "_check_hash", count)
    write_steps(folder, (4, 5, 6), keep=6)
    assert sorted(hashed) == ["1.safetensors", "2.safetensors", "3.safetensors"]


def test_other_files_in_the_folder_are_left_alone(folder):
    (folder / "notes").mkdir()
    shutil.copy(folder / "1.safetensors", folder / "mine.safetensors")
    assert restored(folder) == (3, [])
    write_steps(folder, [4], keep=1)
    assert names(folder) == ["4.safetensors", "mine.safetensors", "notes"]


@pytest.mark.parametrize("call", ["save", "wait", "close"])
def test_a_disk_that_fills_up_is_one_sentence_at_the_next_call(folder, call, capfd):
    """Files of more than a few bytes cannot be written, as under a quota."""
    checkpoints = Checkpoints(folder, keep=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = names(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
    try:
        checkpoints.save(4, partial(state_at, 4), best=None)
        calls = {"save": lambda: checkpoints.save(5, partial(state_at, 5), best=None)}
        with pytest.raises(InputError) as refusal:
            calls.get(call, getattr(checkpoints, call))()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(refusal.value).startswith(f"{folder}: the checkpoint of step 4 could not be written")
    assert "File too large)" in str(refusal.value)
    assert capfd.readouterr() == ("", "")
    assert names(folder) == before
    assert restored(folder) == (3, [])
    if call != "close":
        checkpoints.save(4, partial(state_at, 4), best=None)
        checkpoints.close()
        assert restored(folder) == (4, [])


def test_an_error_under_way_is_not_hidden_by_that_of_a_checkpoint(folder):
    def full() -> TrainingState:
        raise OSError("no space left on device")

    checkpoints = Checkpoints(folder)
    checkpoints.save(4, full, best=None)
    with pytest.raises(KeyError, match="mine"), checkpoints:
        raise KeyError("mine")
    assert restored(folder) == (3, [])


class Moment(NamedTuple):
    """When a process is killed: after a while, or before its n-th file operation."""

    operation: int | None


def _save_until_killed(folder: Path, announced: Path, moment: Moment) -> None:
    """Save step after step, and write down each one that the next `save` has waited for."""
    if moment.operation is not None:
        _die_before_file_operation(moment.operation, str(folder))
    state = restore(folder, say=fail)
    first = 0 if state is None else state.step
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in itertools.count(first + 1):
            checkpoints.save(step, partial(state_at, step), best=step - step % 7)
            with announced.open("a") as stream:
                stream.write(f"{step - 1}\n")


def _die_before_file_operation(number: int, folder: str) -> None:
    """Python tells hooks of each file that is opened, renamed or removed, before it is."""
    count = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event == "open" or event.startswith(("os.", "shutil."))
        if changes and arguments and folder in str(arguments[0]) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_run_that_is_killed_at_any_moment_loses_nothing_that_was_announced(tmp_path):
    """By SIGKILL, after a time and before the n-th file operation, again and again in one folder;
    each run goes on from what the one before it left."""
    context = multiprocessing.get_context("forkserver")  # which imports JAX once for all of them
    context.set_forkserver_preload([__name__])
    folder, announced = tmp_path / "checkpoints", tmp_path / "announced"
    draw, reached = random.Random(0), 0
    moments = [Moment(None)] * 5 + [Moment(draw.randrange(100)) for _ in range(7)]
    for moment in moments:
        before = announced.stat().st_size if announced.exists() else 0
        process = context.Process(target=_save_until_killed, args=(folder, announced, moment))
        process.start()
        if moment.operation is None:
            _wait_until(lambda b=before: announced.exists() and announced.stat().st_size > b)
            time.sleep(draw.uniform(0, 0.4))
            process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        last = int(announced.read_text().split()[-1])
        step, sentences = restored(folder)
        assert step >= max(last, reached)
        assert sentences == []
        reached = step
    assert reached > len(moments)


def _wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_that_is_missing_is_not_whole(tmp_path):
    with pytest.raises(NotWholeError, match="there is no such file"):
        training_state.read(tmp_path / "1.safetensors")
