# mypy: disable-error-code="union-attr, operator, assignment, arg-type, return-value"
import dataclasses
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unet_jax import recipe
from unet_spec import InputError
from unet_train import checkpoint, manifest
from unet_train.checkpoint import SPARE, Checkpoints
from unet_train.manifest import NotWholeError


class State(NamedTuple):
    """As of a run, with every type that an array may have, dots in names, {} and None."""

    params: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    optimizer: recipe.OptimizerState
    ema: dict[str, jax.Array]
    step: jax.Array
    stopped: jax.Array


def _state(step: int) -> State:
    """A function of its step, bit by bit: numpy's, because what XLA makes of the bits of a NaN
    depends on how it compiles, and the processes of a test compile differently."""
    bits = np.random.default_rng(step).integers(0, 2**32, (16, 5), np.uint32)
    floats = {
        "down_1.conv.conv.0.weight": bits.view(np.float32),  # NaN and -0.0 as well
        "out.bias": bits[:8, 0].astype(np.uint16).view(jnp.bfloat16),
    }
    params = {n: jnp.asarray(a) for n, a in floats.items()}
    slots = {
        "exp_avg": {n: jnp.asarray(np.flip(a)) for n, a in floats.items()},
        "seen": {"a": jnp.asarray(bits[:, 1])},
    }
    now, lr = jnp.asarray(step, jnp.int32), jnp.asarray(bits[0, 0] / 7, jnp.float32)
    return State(params, {}, recipe.OptimizerState(now, lr, slots, None), {}, now + 0, now % 2 == 0)


def _bits(tree: Any) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Everything that a tree holds."""
    return [
        (jax.tree_util.keystr(path), str(array.dtype), array.shape, np.asarray(array).tobytes())
        for path, array in jax.tree.flatten_with_path(tree)[0]
    ]


def _assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(_bits(found), _bits(wanted), strict=True):
        assert one == other


def _placed(state: State, devices: int, *, sharded: bool) -> State:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))

    def put(array: jax.Array) -> jax.Array:
        spec = PartitionSpec("data") if sharded and array.ndim else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(put, state)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of the steps 1, 2 and 3, whole."""
    with Checkpoints(tmp_path / "checkpoints", keep=3, say=_fail) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _state(step), card={"step": step})
    return checkpoints.folder


def _fail(text: str) -> None:
    raise AssertionError(text)


def _restored(folder: Path) -> tuple[int, list[str]]:
    """The step that comes back, with its very values, and what was said."""
    said: list[str] = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        found = checkpoints.restore(_state(0))
    assert found is not None
    _assert_same(found.state, _state(found.step))
    return found.step, said


def test_the_state_comes_back_bit_for_bit(tmp_path):
    state, card = _state(7), {"best": {"step": 3, "score": 0.1 + 0.2}}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(7, state, card=card)
        found = checkpoints.restore(state)
    assert (found.step, found.card) == (7, card)
    _assert_same(found.state, state)


PLACES = {"one": (1, False), "everywhere": (8, False), "sharded": (8, True), "two": (2, True)}


@pytest.mark.parametrize("place", ["one", "everywhere", "sharded"])
def test_what_is_written_is_the_state_at_the_call(tmp_path, place):
    """The caller gives the buffers to the next steps while orbax still writes."""
    devices, sharded = PLACES[place]

    @jax.jit
    def init():
        return {str(i): jnp.arange(40_000.0).reshape(8, -1) + i for i in range(12)}

    state = _placed(init(), devices, sharded=sharded)
    step = jax.jit(lambda s: jax.tree.map(lambda a: 3 * a + 1, s), donate_argnums=0)
    step = step.lower(state).compile()
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(4):
            snapshot = jax.tree.map(lambda array: np.array(array, copy=True), state)
            checkpoints.save(number, state, card={})
            for _ in range(5):
                state = step(state)
            _assert_same(checkpoints.restore(state).state, snapshot)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    """Buffers that come from a file may be donated as well."""
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + a.astype(bool), s), donate_argnums=0)
    state = step(_state(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, card={})
        found = checkpoints.restore(state).state
    for _ in range(20):
        state, found = step(state), step(found)
    _assert_same(found, state)


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", ["everywhere", "sharded"])
def test_a_checkpoint_of_8_devices_is_restored_onto_others(tmp_path, source, target):
    devices, sharded = PLACES[target]
    like = _placed(_state(0), devices, sharded=sharded)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, _placed(_state(5), 8, sharded=PLACES[source][1]), card={})
        found = checkpoints.restore(like)
    _assert_same(found.state, _state(5))
    assert jax.tree.map(lambda a: a.sharding, found.state) == jax.tree.map(
        lambda a: a.sharding, like
    )


def _largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(folder: Path) -> None:
    path = _largest(folder / "d")
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = _largest(folder / "d")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _lose(folder: Path) -> None:
    _largest(folder / "d").unlink()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _unseal(folder: Path) -> None:
    (folder / manifest.NAME).unlink()


def _forge(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_text(path.read_text().replace('"card": {"step": 3}', '"card": {"step": 4}'))


DAMAGES = {
    "truncated": (_truncate, "bytes, and had"),
    "flipped bit": (_flip, "other bytes than were written"),
    "lost file": (_lose, "is missing"),
    "empty folder": (_empty, "manifest.json, which is written last, is missing"),
    "no manifest": (_unseal, "manifest.json, which is written last, is missing"),
    "forged manifest": (_forge, "manifest.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_word_and_written_again(saved, damage):
    harm, reason = DAMAGES[damage]
    harm(saved / "3")
    step, said = _restored(saved)
    assert step == 2
    assert len(said) == 1
    assert said[0].startswith(f"{saved / '3'}: ")
    assert reason in said[0]
    with Checkpoints(saved, say=_fail) as checkpoints:
        checkpoints.save(3, _state(3), card={})
    assert _restored(saved) == (3, [])


def test_a_flipped_bit_in_any_file_is_noticed(saved):
    rng = random.Random(0)
    manifest.verified(saved / "3")
    for path in [path for path in (saved / "3").rglob("*") if path.is_file()]:
        data = path.read_bytes()
        for place in rng.sample(range(len(data)), min(len(data), 20)):
            harmed = bytearray(data)
            harmed[place] ^= 1 << rng.randrange(7)
            path.write_bytes(harmed)
            with pytest.raises(NotWholeError):
                manifest.verified(saved / "3")
        path.write_bytes(data)
    manifest.verified(saved / "3")


def test_where_nothing_is_whole_the_folder_and_the_remedy_are_named(saved):
    for step, (harm, _) in zip((1, 2, 3), DAMAGES.values(), strict=False):
        harm(saved / str(step))
    said: list[str] = []
    with (
        Checkpoints(saved, say=said.append) as checkpoints,
        pytest.raises(InputError, match=r"remove .* to begin again") as refusal,
    ):
        checkpoints.restore(_state(0))
    assert str(saved) in str(refusal.value)
    assert [text.partition(":")[0] for text in said] == [str(saved / s) for s in "321"]


SCORES = (None, 0.5, 0.7, 0.6, 0.7, float("nan"), None, 0.65)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_ones_and_the_best_one_are_kept(tmp_path, keep):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step, score in enumerate(SCORES):
            checkpoints.save(step, {"a": jnp.ones(3)}, card={}, score=score)
            checkpoints.wait()
            # Python's max has the first of equals
            scored = [i for i in range(step + 1) if SCORES[i] is not None and SCORES[i] < 1]
            best = max(scored, key=lambda i: SCORES[i], default=step)
            last = range(max(0, step + 1 - keep), step + 1)
            assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
                str(i) for i in {*last, best}
            )


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(saved):
    _flip(saved / "3")
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, _state(4), card={})
    assert sorted(path.name for path in saved.iterdir()) == ["2", "4"]


def test_one_that_restore_found_damaged_does_not_push_out_a_whole_one(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, _state(4), card={})  # 3 and 4 are kept, and known to be whole
        checkpoints.wait()
        _flip(saved / "4")
        assert checkpoints.restore(_state(0)).step == 3
        checkpoints.save(5, _state(5), card={})
    assert sorted(path.name for path in saved.iterdir()) == ["3", "5"]


def test_no_checkpoint_is_hashed_twice_by_a_process(saved, monkeypatch):
    hashed: list[str] = []
    verified = manifest.verified

    def counted(folder: Path) -> manifest.Manifest:
        hashed.append(folder.name)
        return verified(folder)

    monkeypatch.setattr(manifest, "verified", counted)
    with Checkpoints(saved, keep=6) as checkpoints:
        checkpoints.restore(_state(0))
        for step in (4, 5, 6):
            checkpoints.save(step, _state(step), card={})
    assert sorted(hashed) == ["1", "2", "3"]


def test_what_a_kill_left_is_not_mentioned_and_soon_removed(saved):
    for name in ("4.part", "5.part.orbax-checkpoint-tmp", "1.gone"):
        shutil.copytree(saved / "3", saved / name)
    (saved / "1.gone" / manifest.NAME).unlink()
    (saved / "notes").mkdir()
    assert _restored(saved) == (3, [])
    with Checkpoints(saved, keep=1) as checkpoints:
        checkpoints.save(4, _state(4), card={})
    assert sorted(path.name for path in saved.iterdir()) == ["4", "notes"]


def test_a_disk_without_room_is_refused_before_anything_is_written(saved, monkeypatch):
    needed = sum(array.nbytes for array in jax.tree.leaves(_state(4))) + SPARE
    before = sorted(saved.rglob("*"))
    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(needed - 1))
        with pytest.raises(InputError, match=f"step 4 could not be written .*{needed - 1:,} are"):
            checkpoints.save(4, _state(4), card={})
        assert sorted(saved.rglob("*")) == before
        monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(needed))
        checkpoints.save(4, _state(4), card={})
    assert _restored(saved) == (4, [])


class _Usage(NamedTuple):
    free: int


@pytest.mark.parametrize("asked", ["save", "wait", "close"])
def test_a_disk_that_fills_up_is_one_sentence_at_the_next_call(saved, asked, capfd):
    """Files of more than a few bytes cannot be written, as under a quota. Of many arrays, most fail
    after orbax has given up."""
    checkpoints = Checkpoints(saved, keep=3, say=_fail)
    state = {str(i): jnp.arange(9_000.0) + i for i in range(90)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        checkpoints.save(4, state, card={})
        call = {"save": lambda: checkpoints.save(5, state, card={})}
        with pytest.raises(InputError) as refusal:
            call.get(asked, getattr(checkpoints, asked))()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(refusal.value).startswith(f"{saved}: the checkpoint of step 4 could not be written")
    assert "File too large)" in str(refusal.value)
    assert capfd.readouterr() == ("", "")
    assert _restored(saved) == (3, [])
    if asked != "close":
        checkpoints.save(4, _state(4), card={})
        checkpoints.close()
        assert _restored(saved) == (4, [])


def test_what_comes_late_of_a_failed_save_is_silent_and_other_errors_are_not(monkeypatch, tmp_path):
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    checkpoint._silence_what_comes_late.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpoints(tmp_path).close()
        warnings.warn(
            "coroutine 'async_serialize_from_host.<locals>.write_fragment' was never awaited",
            RuntimeWarning, stacklevel=1,
        )  # fmt: skip
        with pytest.raises(RuntimeWarning, match="other"):
            warnings.warn("coroutine 'other' was never awaited", RuntimeWarning, stacklevel=1)
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "other")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    checkpoint._silence_what_comes_late.cache_clear()
    assert seen == [other]


def test_an_error_under_way_is_not_hidden_by_that_of_a_checkpoint(saved, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(manifest, "seal", full)
    checkpoints = Checkpoints(saved)
    checkpoints.save(4, _state(4), card={})
    with pytest.raises(KeyError, match="mine"), checkpoints:
        raise KeyError("mine")
    assert _restored(saved) == (3, [])


def _without(state: State) -> State:
    return state._replace(params={"out.bias": state.params["out.bias"]})


def _other_shape(state: State) -> State:
    return state._replace(step=jnp.zeros(2, jnp.int32))


def _other_type(state: State) -> State:
    return state._replace(step=jnp.zeros((), jnp.float32))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_without, r"params/down_1\.conv\.conv\.0\.weight: float32\[16, 5\] in place of nothing"),
        (_other_shape, r"step: int32\[\] in place of int32\[2\]"),
        (_other_type, r"step: int32\[\] in place of float32\[\]"),
    ],
    ids=["fewer", "shape", "type"],
)
def test_a_checkpoint_of_another_state_is_refused(saved, change, names):
    with Checkpoints(saved) as checkpoints, pytest.raises(InputError, match=names) as refusal:
        checkpoints.restore(change(_state(0)))
    assert str(refusal.value).startswith(f"{saved / '3'}: 1 of its arrays")


def test_a_whole_checkpoint_that_orbax_does_not_read_is_one_sentence(saved):
    path = saved / "3"
    about = manifest.read(path)
    (path / manifest.NAME).unlink()
    (path / "_METADATA").write_text('{"tree": "of a later orbax"}')
    manifest.seal(path, dataclasses.replace(about, orbax="99.0"))
    with Checkpoints(saved) as checkpoints, pytest.raises(InputError) as refusal:
        checkpoints.restore(_state(0))
    assert str(refusal.value).startswith(f"{path}: orbax 99.0 wrote this checkpoint, and orbax")


def test_the_card_is_that_of_the_call(tmp_path):
    card = {"best": [1]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), card=card)
        card["best"].append(2)
        assert checkpoints.restore(_state(0)).card == {"best": [1]}


@pytest.mark.parametrize("restored", [False, True])
def test_a_step_saved_again_gets_card_and_score_and_keeps_its_files(tmp_path, restored):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, _state(1), card={}, score=0.5)
        checkpoints.save(2, _state(2), card={"scored": 1})
        checkpoints.wait()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "2").rglob("*")}
        del before[tmp_path / "2" / manifest.NAME]
        if restored:
            checkpoints = Checkpoints(tmp_path, keep=1)
            checkpoints.restore(_state(0))
        checkpoints.save(2, _state(2), card={"scored": 2}, score=0.7)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]  # the best one, too
    with Checkpoints(tmp_path, say=_fail) as checkpoints:
        assert checkpoints.restore(_state(0)).card == {"scored": 2}
    assert _restored(tmp_path) == (2, [])


@pytest.mark.parametrize("rename", [0, 1, 2])
def test_a_kill_while_a_step_is_saved_again_leaves_it_whole(tmp_path, monkeypatch, rename):
    """Before each of the renames there may be; the only checkpoint of the run."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, _state(2), card={})
    checkpoints.wait()
    count, replace = itertools.count(), os.replace

    def killed(*paths: Any) -> None:
        if next(count) == rename:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with suppress(KeyboardInterrupt):
        checkpoints.save(2, _state(2), card={}, score=0.5)
        checkpoints.close()
    monkeypatch.undo()
    assert _restored(tmp_path) == (2, [])


def _save_until_killed(folder: Path, announced: Path, kill_at: int | None) -> None:
    """Save step after step, and write down each one that the next `save` has seen through."""
    if kill_at is not None:
        _die_before_file_operation(kill_at, str(folder))
    with Checkpoints(folder, keep=1, say=_fail) as checkpoints:
        found = checkpoints.restore(_state(0))
        first = 0 if found is None else found.step
        for step in itertools.count(first + 1):
            checkpoints.save(step, _state(step), card={})
            checkpoints.save(step, _state(step), card={}, score=-abs(step % 7 - 3))
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
    rng, reached = random.Random(0), 0
    moments: list[int | None] = [None] * 5 + [rng.randrange(400) for _ in range(7)]
    for kill_at in moments:
        before = announced.stat().st_size if announced.exists() else 0
        process = context.Process(target=_save_until_killed, args=(folder, announced, kill_at))
        process.start()
        if kill_at is None:
            _wait_until(lambda b=before: announced.exists() and announced.stat().st_size > b)
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        last = int(announced.read_text().split()[-1])
        step, said = _restored(folder)
        assert step >= max(last, reached)
        assert said == []
        reached = step
    assert reached > len(moments)


def _wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
