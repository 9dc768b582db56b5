import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import unet_jax
import unet_torch
from train import data, loop, mesh, overfit, run_folder, start
from train.config import (
    CELLS,
    MODERN,
    AugmentConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    TrainConfig,
)
from train.data import Batch
from train.progress import Progress, StepBar
from train.record import read
from train.samples import load
from train.step import compiled, init
from train.tripwire import diagnose
from unet_spec import InputError, Preprocessing, UNetConfig, training_state, weight_file
from unet_spec.parameters import parameters
from unet_spec.recipe import Optimizer, Recipe, Schedule
from unet_spec.weight_file import WeightFile

TINY = TrainConfig(
    net=UNetConfig(widths=(4, 6), norm="batch", dropout=0.2),
    data=DataConfig(batch=2, crop_px=32, synthetic=4),
    augment=AugmentConfig(rotation_deg=10, elastic_px=2, noise=0.1),
    loss=LossConfig(dice=0.5),
    mesh=MeshConfig(data=1),
    steps=6,
    validate_every=3,
    checkpoint_every=2,
    ema=0.9,
)
# what `unet train cells` gives with the data of TINY
FLAGS = replace(CELLS, data=TINY.data, mesh=TINY.mesh, ema=TINY.ema)
SHOWN = run_folder.fingerprints(load(TINY))


def quiet():
    return Progress(Console(quiet=True))


def begin(out, config, told=()):
    """A run of the samples of TINY that was killed before its first checkpoint."""
    started = {"told": sorted(told), "sha256": start.fingerprint(config.start)}
    run_folder.begin(out, config, shown=SHOWN, started=started)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, result) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, loop.run(TINY, folder, progress=quiet(), command="unet train cells")


def test_a_run_leaves_whole_files_that_both_frameworks_open(run):
    folder, result = run
    model, twin = unet_jax.load(result.weights), unet_torch.load(result.weights)
    assert model.class_names == twin.class_names == ("background", "cell")
    image = np.random.default_rng(0).integers(0, 255, (37, 51), np.uint8)
    assert unet_jax.predict(model, image).shape == (37, 51)
    kinds = {(line["kind"], line["step"]) for line in read(folder)}
    assert {("validation", 3), ("validation", 6), ("train", 6)} <= kinds
    assert json.loads((folder / "config.json").read_text())["steps"] == 6
    assert (result.step, result.stopped_by) == (6, None)
    for name in ("best.safetensors", "report.html", "augmented.png"):
        assert (folder / name).stat().st_size
    assert list((folder / "pictures").glob("*.png"))


def test_a_run_equals_its_steps_by_hand(run):
    placement = mesh.place(TINY)
    steps = compiled(TINY, placement)
    training, _ = data.split(load(TINY), holdout=TINY.data.holdout, seed=TINY.seed)
    state = steps.init()
    for step in range(TINY.steps):
        crops = data.batch(training, step, data=TINY.data, net=TINY.net, seed=TINY.seed)
        seen = steps.prepare(placement.put(crops, batch=TINY.data.batch), np.int32(step))
        state, _ = steps.step(state, seen)
    found = weight_file.read(run[0] / "weights.safetensors").tensors
    for name, expected in loop.to_weight_file(TINY, state).tensors.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_run_leaves_the_state_that_training_goes_on_from(run):
    state = training_state.read(run[0] / "last")
    assert state.step == TINY.steps
    assert state.recipe == TINY.recipe == Recipe(TINY.optimizer, TINY.schedule).for_steps(6)
    assert all(tensor.any() for tensor in state.slots["exp_avg_sq"].values())


def _stop_at(step: int, monkeypatch):
    settle = StepBar.settle

    def stop(bar):
        settle(bar)
        if bar._done == step - 1:  # it saves there
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StepBar, "settle", stop)


def _stop_in_validation(step: int, monkeypatch):
    validated = loop._Run.validated

    def stop(going, *arguments):
        if int(going.state.step) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return validated(going, *arguments)

    monkeypatch.setattr(loop._Run, "validated", stop)


@pytest.mark.parametrize(
    ("stop", "at"),
    [(_stop_at, 3), (_stop_at, 5), (_stop_in_validation, 3), (_stop_in_validation, 6)],
    ids=["where it would validate", "between", "in a validation", "in the last validation"],
)
def test_a_run_that_is_stopped_and_goes_on_ends_in_the_bytes_of_one_that_was_not(
    run, tmp_path, monkeypatch, stop, at
):
    stop(at, monkeypatch)
    first = loop.run(TINY, tmp_path / "run", progress=quiet())
    assert (first.stopped_by, first.step) == ("SIGTERM", at)
    assert first.best_step == (0 if at == 3 else 3)  # it does not stay for a validation
    monkeypatch.undo()
    second = loop.run(replace(TINY, keep=1), tmp_path / "run", progress=quiet())
    assert second.step == 6
    assert second.mean_image_iou == run[1].mean_image_iou
    for name in ("weights.safetensors", "best.safetensors", "last/training_state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes(), name
    assert _validations(tmp_path / "run") == [3, 6]


def _validations(run):
    """At which steps."""
    return [line["step"] for line in read(run) if line["kind"] == "validation"]


def test_a_run_that_patience_has_ended_does_not_go_on(tmp_path, monkeypatch):
    still = Schedule("one_cycle", max_lr=0.0)
    config = replace(
        TINY, net=UNetConfig(widths=(4, 6)), schedule=still, ema=0.0, steps=12, patience=1
    )
    first = loop.run(config, tmp_path / "run", progress=quiet())
    assert (first.step, first.best_step) == (6, 3)
    again = loop.run(config, tmp_path / "run", progress=quiet())
    assert again.step == 6
    assert again.mean_image_iou == first.mean_image_iou
    assert again.loss is None
    _stop_at(6, monkeypatch)
    config = replace(config, checkpoint_every=5)
    stopped = loop.run(config, tmp_path / "stopped", progress=quiet())
    assert (stopped.stopped_by, stopped.step) == ("SIGTERM", 6)
    monkeypatch.undo()
    again = loop.run(config, tmp_path / "stopped", progress=quiet())
    assert (again.step, again.mean_image_iou) == (6, first.mean_image_iou)
    assert _validations(tmp_path / "stopped") == [3, 6]


def test_other_devices_are_told(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    stream = io.StringIO()
    config = replace(TINY, mesh=MeshConfig(data=2))
    loop.run(config, tmp_path / "run", progress=Progress(Console(file=stream, width=200)))
    assert "not to the bit" in stream.getvalue()


def test_a_kill_while_a_run_begins_leaves_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "to_plain", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        begin(tmp_path / "run", TINY)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_half_written_is_removed(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    killed = """
import os
from pathlib import Path
from unet_spec.files import written, written_folder
with written_folder(Path("new")) as new, written(new / "a"), written(Path("last/b")):
    with written(Path("weights.safetensors")):
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed], cwd=out).returncode == 9
    assert len(list(out.rglob(".*"))) == 4
    run_folder.clear(out)
    assert not list(out.rglob(".*"))


def test_a_run_takes_up_its_start_without_the_start(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "start")
    given = replace(FLAGS, steps=9, start=tmp_path / "start")
    told = start.known(given)
    config = start.adopted(given, told)
    begin(tmp_path / "run", config, told)
    shutil.rmtree(tmp_path / "start")
    assert start.adopted(given, start.known(given, run=tmp_path / "run")) == config


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"net": replace(TINY.net, widths=(4, 8))}, "net.widths was"),
        ({"optimizer": replace(TINY.optimizer, lr=1.0)}, "optimizer.lr was 0.002, now 1.0"),
        ({"steps": 12}, "steps was 6, now 12"),  # the schedule ends at the last step
    ],
    ids=["seed", "net", "optimizer", "steps"],
)
def test_another_config_is_refused_by_name(run, change, names):
    with pytest.raises(InputError, match=names):
        run_folder.check(run[0], replace(TINY, **change), SHOWN)


def test_what_the_weights_do_not_depend_on_may_change(run):
    changed = replace(TINY, mesh=MeshConfig(data=2), validate_every=2)
    assert run_folder.check(run[0], changed, SHOWN) == [
        "mesh.data was 1, now 2",
        "validate_every was 3, now 2",
    ]


def test_what_an_older_version_did_not_know_it_did_as_by_default(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    plain = run_folder.read_config(run[0])
    del plain["augment"]["illumination"], plain["accumulate"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(plain))
    assert run_folder.check(tmp_path / "run", TINY, SHOWN) == []
    lit = replace(TINY, augment=replace(TINY.augment, illumination=0.5))
    with pytest.raises(InputError, match=r"augment\.illumination was 0\.0, now 0\.5"):
        run_folder.check(tmp_path / "run", lit, SHOWN)


def test_images_that_are_gone_new_or_changed_are_refused_by_name(run):
    samples = load(TINY)
    mask = samples[1].mask.copy()
    mask[3, 4] = 1 - mask[3, 4]
    now = [replace(samples[0], name="other"), replace(samples[1], mask=mask), *samples[2:]]
    told = "gone: synthetic 0; new: other; changed: synthetic 1"
    with pytest.raises(InputError, match=rf"are not those .* \({told}\); bring them back"):
        run_folder.check(run[0], TINY, run_folder.fingerprints(now))


def test_other_object_numbers_are_other_images():
    (sample, *_) = load(TINY)
    one = replace(sample, objects=sample.mask.astype(np.int32))
    two = replace(sample, objects=2 * sample.mask.astype(np.int32))
    assert run_folder.fingerprints([one]) != run_folder.fingerprints([two])


def test_a_run_that_is_under_way_is_left_alone(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    with (
        run_folder.alone(tmp_path / "run"),
        pytest.raises(InputError, match="another command is training there"),
    ):
        loop.run(TINY, tmp_path / "run", progress=quiet())
    with run_folder.alone(tmp_path / "run"):
        pass


def test_a_run_may_begin_in_an_empty_folder(tmp_path):
    before = tmp_path.stat().st_ino
    begin(tmp_path, TINY)
    assert tmp_path.stat().st_ino == before
    assert run_folder.read_config(tmp_path)["steps"] == TINY.steps


def test_an_existing_folder_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists, and holds no run"):
        loop.run(TINY, tmp_path / "run", progress=quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    config = replace(TINY, schedule=Schedule("one_cycle", max_lr=1e30))
    with pytest.raises(InputError, match=r"is not finite: .*; lower --schedule\.max-lr"):
        loop.run(config, tmp_path / "run", progress=quiet())


def test_a_run_names_the_image_that_is_not_finite(tmp_path, monkeypatch):
    config = replace(TINY, data=replace(TINY.data, synthetic=7))
    samples = load(config)
    training, _ = data.split(samples, holdout=TINY.data.holdout, seed=TINY.seed)
    first, second, third = (
        [sample.name for sample in data.chosen(training, step, data=TINY.data, seed=TINY.seed)]
        for step in range(3)
    )
    bad = second[0]
    assert bad not in (*first, third[0])
    monkeypatch.setattr(
        loop, "load",
        lambda _: [replace(s, x=s.x * (np.nan if s.name == bad else 1)) for s in samples],
    )  # fmt: skip
    with pytest.raises(InputError, match=rf"step 2 is not finite: .* made from {bad} holds"):
        loop.run(config, tmp_path / "run", progress=quiet())


PLAIN = replace(TINY, net=UNetConfig(widths=(4, 6)))


def infected(where):
    """(state, batch) of PLAIN in which something will not be finite."""
    state = init(PLAIN)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 1)), jnp.float32)
    truth = jnp.asarray(rng.integers(0, 2, (2, 32, 32)), jnp.uint8)
    if where == "input":
        x = x.at[1, 2, 3, 0].set(jnp.nan)
    if where == "weights":
        bias = state.params["up_1.up.bias"].at[0].set(jnp.inf)
        state = state._replace(params={**state.params, "up_1.up.bias": bias})
    if where == "module":  # finite, but its square is not
        x = x.at[1].set(1e30)
        state = state._replace(
            params={**state.params, "down_1.conv.conv.0.weight": jnp.full((3, 3, 1, 4), 1e30)}
        )
    if where == "loss":  # of each pixel it is finite, the sum is not
        bias = jnp.asarray([1.6e38, -1.6e38])
        state = state._replace(params={**state.params, "out.bias": bias})
    if where == "gradient":  # of the first weights: 1e37 times what comes back, more than 1e2
        x = 1e37 * x
        factors = {"down_1.conv.conv.0.weight": 1e-37, "out.weight": 1e6}
        params = {name: a * factors.get(name, 1) for name, a in state.params.items()}
        state = state._replace(params=params)
    return state, Batch(x, truth, None)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("input", "the input made from b.png holds NaN"),
        ("weights", "up_1.up.bias holds NaN"),
        ("module", "down_1.conv.conv.0 is the first module whose output is not finite, in b.png"),
        ("loss", "every module is finite, but the loss is not, in a.png"),
        ("gradient", "output is finite, but the gradient of down_1.conv.conv.0.weight is not"),
        ("nothing", "outside of the compiled step every module and gradient is finite"),
    ],
)
def test_the_tripwire_names_module_and_image(where, told):
    state, batch = infected(where)
    assert told in diagnose(PLAIN, state, batch, ["a.png", "b.png"])


def test_the_smoke_test_knows_a_net_that_learns_from_one_that_does_not(monkeypatch):
    config = replace(TINY, net=UNetConfig(widths=(8, 12)), loss=LossConfig())
    assert overfit.overfit(config, progress=quiet())
    monkeypatch.setattr(overfit, "LR", 0.0)
    monkeypatch.setattr(overfit, "STEPS", 20)
    assert not overfit.overfit(config, progress=quiet())


def test_the_smoke_test_proves_nothing_on_masks_without_objects(monkeypatch):
    empty = [replace(sample, mask=np.zeros_like(sample.mask)) for sample in load(TINY)]
    monkeypatch.setattr(overfit, "load", lambda _: empty)
    with pytest.raises(InputError, match="background alone"):
        overfit.overfit(TINY, progress=quiet())


def test_a_start_in_the_middle_brings_its_net_recipe_and_step(run):
    source = start.read(run[0])
    given = replace(FLAGS, steps=9, start=run[0])
    config = start.adopted(given, start.known(given))
    assert (config.net, config.recipe) == (TINY.net, TINY.recipe)
    state = start.state_from(config, source, init(config))
    assert int(state.step) == int(state.optimizer.step) == 6
    held = training_state.read(run[0] / "last")
    np.testing.assert_array_equal(state.params["out.bias"], held.weights.tensors["out.bias"])
    np.testing.assert_array_equal(
        state.optimizer.slots["exp_avg"]["out.bias"], held.slots["exp_avg"]["out.bias"]
    )


def test_a_start_from_weights_begins_at_step_0(run):
    source = start.read(run[0] / "best.safetensors")
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    config = start.adopted(given, start.known(given))
    state = start.state_from(config, source, init(config))
    assert int(state.step) == 0
    expected = weight_file.read(run[0] / "best.safetensors").tensors["out.bias"]
    np.testing.assert_array_equal(state.params["out.bias"], expected)
    np.testing.assert_array_equal(state.ema["out.bias"], expected)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"net": replace(CELLS.net, widths=(5, 7))}, r"net\.widths=\(4, 6\), not \(5, 7\); leave"),
        (  # another preset's, so it was asked for
            {"optimizer": MODERN.optimizer}, r"optimizer\.lr=0\.002, not 0\.001; leave out",
        ),
        ({"preprocessing": Preprocessing(mirror=True)}, r"mirror=False, not True; leave out"),
        ({"class_names": ("a", "b")}, r"class_names=.*cell.*, not .*; leave out --class-names"),
    ],
    ids=["net", "optimizer", "preprocessing", "names"],
)  # fmt: skip
def test_a_start_that_a_flag_contradicts_is_refused(run, flags, told):
    config = replace(FLAGS, steps=9, start=run[0], **flags)
    with pytest.raises(InputError, match=told):
        start.adopted(config, start.known(config))


def test_a_start_from_weights_leaves_the_recipe_to_the_flags(run, tmp_path):
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    told = start.known(given)
    begin(tmp_path / "run", start.adopted(given, told), told)
    changed = replace(given, optimizer=MODERN.optimizer)
    again = start.adopted(changed, start.known(changed, run=tmp_path / "run"))
    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.002, now 0\.001"):
        run_folder.check(tmp_path / "run", again, SHOWN)


def test_a_run_without_a_checkpoint_refuses_another_start(run, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(run[0] / "best.safetensors", weights)
    given = replace(FLAGS, start=weights)
    told = start.known(given)
    begin(tmp_path / "run", start.adopted(given, told), told)
    start.refuse_changed(weights, run=tmp_path / "run")
    file = weight_file.read(weights)
    other = {name: np.asarray(2 * tensor) for name, tensor in file.tensors.items()}
    weights.unlink()
    weight_file.write(weights, replace(file, tensors=other))
    with pytest.raises(InputError, match="not the start with which it began"):
        loop.run(given, tmp_path / "run", progress=quiet())


def test_crops_fit_the_net_of_the_start_and_not_that_of_the_preset(run, tmp_path):
    unpadded = UNetConfig(widths=(4, 6), padding="valid")
    tensors = {p.name: np.zeros(p.shape, np.float32) for p in parameters(unpadded)}
    weight_file.write(tmp_path / "w.safetensors", WeightFile(unpadded, tensors))
    for crop_px, legal in ((32, True), (33, False)):
        crops = replace(CELLS.data, crop_px=crop_px)
        given = replace(CELLS, data=crops, start=tmp_path / "w.safetensors")
        if legal:
            assert start.adopted(given, start.known(given)).net == unpadded
        else:
            with pytest.raises(InputError, match="crop_px=33 is not legal for the net; use 32"):
                start.adopted(given, start.known(given))


def test_a_start_at_the_last_step_is_refused(run):
    with pytest.raises(InputError, match="it is at step 6 already"):
        start.known(replace(TINY, start=run[0]))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"data": DataConfig(crop_px=33)}, "crop_px=33"),
        ({"data": DataConfig(holdout=1.0)}, "holdout"),
        ({"steps": 0}, "steps"),
        ({"accumulate": 3}, "accumulate=3 does not divide"),
        ({"ema": 1.0}, "ema"),
        ({"loss": LossConfig(class_weights=(1.0, 2.0, 3.0))}, "class_weights"),
        ({"optimizer": Optimizer("sgd", dampening=0.5), "schedule": Schedule()}, "dampening"),
        ({"class_names": ("one",)}, "class_names"),
        ({"seed": -1}, "seed"),
        ({"data": DataConfig(synthetic=1)}, "synthetic"),
        ({"net": replace(CELLS.net, classes=1)}, "counts the background as well"),
        (
            {"data": DataConfig(mask_values="instances"), "loss": LossConfig(ignore_index=255)},
            "leave out loss.ignore_index",
        ),
    ],
    ids=[
        "crop",
        "holdout",
        "steps",
        "accumulate",
        "ema",
        "weights",
        "dampening",
        "names",
        "seed",
        "synthetic",
        "classes",
        "ignored",
    ],
)
def test_a_config_that_cannot_be_is_refused(change, names):
    with pytest.raises(InputError, match=names):
        replace(CELLS, **change)


@pytest.mark.parametrize(
    ("part", "fields", "names"),
    [
        (LossConfig, {"ignore_index": 256}, "a mask value from 0 to 255, got 256"),
        (LossConfig, {"class_weights": (1.0, float("nan"))}, "class_weights needs finite"),
        (LossConfig, {"border_sigma_px": float("nan")}, "border_sigma_px"),
        (MeshConfig, {"processes": 2, "coordinator": "node0"}, "HOST:PORT.*got node0"),
        (MeshConfig, {"processes": 2, "coordinator": "node0:abc"}, "HOST:PORT.*got node0:abc"),
    ],
)
def test_a_part_of_a_config_that_cannot_be_is_refused(part, fields, names):
    with pytest.raises(InputError, match=names):
        part(**fields)


def test_no_signal_is_caught_after_a_run(run):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
