import io
import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console

import unet_jax
import unet_torch
from parity_tests.tiny import TINY, quiet
from unet_spec import InputError, Preprocessing, UNetConfig, training_state, weight_file
from unet_spec.recipe import Recipe, Schedule
from unet_train import loop, plan
from unet_train.check import nonfinite
from unet_train.check.nonfinite import explain_nonfinite
from unet_train.config import LossConfig, MeshConfig
from unet_train.devices import signals
from unet_train.devices.placement import make_placement
from unet_train.input.crops import choose_samples, cut_batch
from unet_train.input.samples import load_samples
from unet_train.input.split import split_samples
from unet_train.report import validation
from unet_train.report.metrics_log import read_metrics
from unet_train.report.progress import Progress, StepBar
from unet_train.report.validation import validate
from unet_train.run.states import to_weight_file
from unet_train.step import compile_steps, prepare_batch

# what a run ends in, byte for byte
ENDS = ("weights.safetensors", "best.safetensors", "checkpoints/6.safetensors")


def test_a_run_leaves_whole_files_that_both_frameworks_open(run):
    folder, result = run
    model, twin = unet_jax.load(result.weights), unet_torch.load(result.weights)
    assert model.class_names == twin.class_names == ("background", "cell")
    image = np.random.default_rng(0).integers(0, 255, (37, 51), np.uint8)
    assert unet_jax.predict(model, image).shape == (37, 51)
    kinds = {(line["kind"], line["step"]) for line in read_metrics(folder)}
    assert {("validation", 3), ("validation", 6), ("train", 6)} <= kinds
    assert json.loads((folder / "config.json").read_text())["steps"] == 6
    assert (result.step, result.stopped_by) == (6, None)
    for name in ("best.safetensors", "report.html", "augmented.png"):
        assert (folder / name).stat().st_size
    assert list((folder / "pictures").glob("*.png"))


def test_a_run_equals_its_steps_by_hand(run):
    placement = make_placement(TINY)
    steps = compile_steps(TINY, placement)
    training, _ = split_samples(load_samples(TINY), holdout=TINY.data.holdout, seed=TINY.seed)
    state = steps.init()
    for step in range(TINY.steps):
        crops = cut_batch(training, step, data=TINY.data, net=TINY.net, seed=TINY.seed)
        state, _ = steps.step(state, placement.put(crops, batch=TINY.data.batch))
    found = weight_file.read(run[0] / "weights.safetensors").tensors
    for name, expected in to_weight_file(TINY, state).tensors.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_run_does_all_that_its_config_says(tmp_path, monkeypatch):
    config = replace(
        TINY,
        net=UNetConfig(widths=(4, 6), padding="valid"),
        data=replace(TINY.data, crop_px=48),
        loss=LossConfig(border_w0=4, border_sigma_px=3, ignore_index=255),
        preprocessing=Preprocessing(sqrt=True),
        class_names=("nothing", "something"),
        keep=1,
    )
    seen = []

    def falling(model, samples, **named):
        seen.append(named)
        return replace(validate(model, samples, **named), mean_image_iou=1 / len(seen))

    monkeypatch.setattr(loop, "validate", falling)
    out = tmp_path / "run"
    result = loop.run(config, out, progress=quiet())
    assert seen == 2 * [{"ignore_index": 255}]
    assert (result.best_step, result.best_mean_image_iou) == (3, 1)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "3.safetensors", "6.safetensors",
    ]  # fmt: skip
    last, best = (weight_file.read(out / f"{name}.safetensors") for name in ("weights", "best"))
    assert (last.tensors["out.bias"] != best.tensors["out.bias"]).any()
    for weights in (last, best, training_state.read(out).weights):
        assert weights.preprocessing == config.preprocessing
        assert weights.class_names == config.class_names
        assert weights.config == config.net


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_a_net_of_one_channel_learns_two_classes(tmp_path, output):
    net = replace(TINY.net, classes=1, output=output, dropout=0.0)
    config = replace(TINY, net=net, steps=60, validate_every=60, checkpoint_every=60, ema=0.0)
    samples = load_samples(config)
    loop.run(config, tmp_path / "run", progress=quiet())
    path = tmp_path / "run" / "weights.safetensors"
    model, twin = unet_jax.load(path), unet_torch.load(path)
    assert model.config == twin.config == net
    assert model.class_names == twin.class_names == ("background", "cell")
    scores = validate(model, samples)
    assert np.shape(scores.confusion) == (2, 2)
    assert scores.rand_score is not None
    everything = np.mean(np.concatenate([sample.mask.ravel() for sample in samples]))
    assert scores.pooled_iou[1] > everything + 0.1, "no better than one class everywhere"
    for sample, mask in zip(samples, scores.masks, strict=True):
        assert {*np.unique(mask)} == {0, 1}
        np.testing.assert_array_equal(unet_torch.predict(twin, sample.image), mask)


def test_a_finished_run_writes_again_what_was_lost_of_its_end(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    (out / "weights.safetensors").unlink()
    loop.run(TINY, out, progress=quiet())
    name = "weights.safetensors"
    assert (out / name).read_bytes() == (run[0] / name).read_bytes()


def test_a_run_with_fewer_steps_than_were_done_ends_with_its_files(tmp_path, monkeypatch):
    config = replace(TINY, schedule=Schedule(), validate_every=6)
    _stop_at(5, monkeypatch)
    stopped = loop.run(config, tmp_path / "run", progress=quiet())
    assert (stopped.step, stopped.weights, stopped.best_mean_image_iou) == (5, None, None)
    monkeypatch.undo()
    result = loop.run(replace(config, steps=3), tmp_path / "run", progress=quiet())
    assert result.step == 5
    assert result.weights is not None
    assert _validations(tmp_path / "run") == [5]


def test_who_asks_twice_at_once_is_one_and_who_asks_again_is_not_kept_waiting(monkeypatch):
    killed = []
    kill = os.kill
    with signals.collect_signals() as asked:
        kill(os.getpid(), signal.SIGTERM)
        kill(os.getpid(), signal.SIGTERM)
        assert asked == ["SIGTERM"]
        monkeypatch.setattr(signals, "AGAIN_S", 0.0)
        monkeypatch.setattr(os, "kill", lambda *told: killed.append(told))
        kill(os.getpid(), signal.SIGTERM)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_leaves_the_state_that_training_goes_on_from(run):
    state = training_state.read(run[0])
    assert state.step == TINY.steps
    assert state.recipe == TINY.recipe == Recipe(TINY.optimizer, TINY.schedule).for_steps(6)
    assert all(tensor.any() for tensor in state.slots["exp_avg_sq"].values())


def _stop_at(step: int, monkeypatch):
    wait_for = StepBar.wait_for

    def stop(bar, batch):
        if bar._done == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return wait_for(bar, batch)

    monkeypatch.setattr(StepBar, "wait_for", stop)


def _stop_in_validation(step: int, monkeypatch):
    score_weights = loop.score_weights
    done = []

    def stop(*arguments):
        done.append(TINY.validate_every)
        if sum(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return score_weights(*arguments)

    monkeypatch.setattr(loop, "score_weights", stop)


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
    assert first.best_step == (None if at == 3 else 3)  # it does not stay for a validation
    monkeypatch.undo()
    second = loop.run(replace(TINY, keep=1), tmp_path / "run", progress=quiet())
    assert second.step == 6
    assert second.mean_image_iou == run[1].mean_image_iou
    for name in ENDS:
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes(), name
    assert _validations(tmp_path / "run") == [3, 6]


def test_a_run_that_was_killed_has_the_curves_of_one_that_was_not(tmp_path, monkeypatch):
    config = replace(TINY, steps=60, validate_every=50, checkpoint_every=25)
    loop.run(config, tmp_path / "whole", progress=quiet())
    wait_for = StepBar.wait_for

    def die(bar, batch):
        if bar._done == 47:
            raise KeyboardInterrupt
        return wait_for(bar, batch)

    monkeypatch.setattr(StepBar, "wait_for", die)
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, tmp_path / "run", progress=quiet())
    monkeypatch.undo()
    assert read_metrics(tmp_path / "run")[-1]["step"] == 45
    stream = io.StringIO()
    loop.run(config, tmp_path / "run", progress=Progress(Console(file=stream, width=200)))
    assert "going on at step 25 of 60" in stream.getvalue()
    curves = []
    for name in ("whole", "run"):
        lines = read_metrics(tmp_path / name)
        # the rest are speeds, and the memory of a process
        names = ("step", "kind", "loss", "iou", "lr", "grad_norm", "mean_image_iou")
        curves.append([{name: line.get(name) for name in names} for line in lines])
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[0] if line["kind"] == "train"] == [
        1,
        21,
        25,
        45,
        50,
        60,
    ]


def test_a_run_that_is_stopped_before_its_first_step_begins_again(run, tmp_path, monkeypatch):
    shown = Progress.steps

    def stop(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return shown(*arguments, **named)

    monkeypatch.setattr(Progress, "steps", stop)
    first = loop.run(TINY, tmp_path / "run", progress=quiet())
    assert (first.stopped_by, first.step) == ("SIGTERM", 0)
    monkeypatch.undo()
    assert loop.run(TINY, tmp_path / "run", progress=quiet()).step == 6
    for name in ENDS:
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes(), name


def _validations(run):
    """At which steps."""
    return [line["step"] for line in read_metrics(run) if line["kind"] == "validation"]


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


@pytest.fixture
def background(monkeypatch):
    """Samples whose masks hold nothing, and a net that finds nothing."""
    samples = [replace(s, mask=np.zeros_like(s.mask)) for s in load_samples(TINY)]
    monkeypatch.setattr(plan, "load_samples", lambda _: samples)
    monkeypatch.setattr(validation, "predict", lambda _, image: np.zeros(image.shape[:2], np.uint8))


def test_a_run_with_nothing_to_score_ends_without_a_score_and_says_so(tmp_path, background):
    config = replace(TINY, patience=1, validate_every=2)
    stream = io.StringIO()
    result = loop.run(config, tmp_path / "run", progress=Progress(Console(file=stream, width=200)))
    assert result.step == 6, "a score that does not exist counts against patience"
    assert (result.mean_image_iou, result.best_step, result.best_mean_image_iou) == 3 * (None,)
    assert result.pooled_iou == [1.0, None]
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert "nothing to score in the held-out images" in stream.getvalue()
    assert "IoU n/a (mean of images), n/a (pooled)" in stream.getvalue()
    assert "class 1 (cell) is in no image to train on" in stream.getvalue()
    lines = read_metrics(tmp_path / "run")
    assert [line["mean_image_iou"] for line in lines if line["kind"] == "validation"] == 3 * [None]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Nothing to score in 1 held-out image after 6 steps" in report
    assert "class 1 (cell) is in no image to train on" in report
    again = loop.run(config, tmp_path / "run", progress=quiet())
    assert (again.step, again.best_step) == (6, None)


def test_a_validation_without_a_score_is_never_the_best_and_exhausts_no_patience():
    scores = (None, 0.5, None, 0.4, None, 0.3, 0.6)
    validations, seen = loop.Validations(), []
    for step, score in enumerate(scores, start=1):
        validations = validations.add(step, score)
        seen.append((validations.last_step, validations.best_step, validations.since_best))
    assert seen == [(1, 0, 0), (2, 2, 0), (3, 2, 0), (4, 2, 1), (5, 2, 1), (6, 2, 2), (7, 7, 0)]


def test_other_devices_are_told(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    stream = io.StringIO()
    config = replace(TINY, mesh=MeshConfig(data=2))
    loop.run(config, tmp_path / "run", progress=Progress(Console(file=stream, width=200)))
    assert "not to the bit" in stream.getvalue()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    config = replace(TINY, schedule=Schedule("one_cycle", max_lr=1e30))
    with pytest.raises(InputError, match=r"is not finite: .*; lower --schedule\.max-lr"):
        loop.run(config, tmp_path / "run", progress=quiet())


def test_a_run_names_the_image_that_is_not_finite(tmp_path, monkeypatch):
    config = replace(TINY, data=replace(TINY.data, synthetic=7))
    samples = load_samples(config)
    training, _ = split_samples(samples, holdout=TINY.data.holdout, seed=TINY.seed)
    first, second, third = (
        [sample.name for sample in choose_samples(training, step, data=TINY.data, seed=TINY.seed)]
        for step in range(3)
    )
    bad = second[0]
    assert bad not in (*first, third[0])
    monkeypatch.setattr(
        plan, "load_samples",
        lambda _: [replace(s, x=s.x * (np.nan if s.name == bad else 1)) for s in samples],
    )  # fmt: skip
    asked = []

    def noted(config, state, batch, names):
        asked.append(batch)
        return explain_nonfinite(config, state, batch, names)

    monkeypatch.setattr(nonfinite, "explain_nonfinite", noted)
    with pytest.raises(InputError, match=rf"step 2 is not finite: .* made from {bad} holds"):
        loop.run(config, tmp_path / "run", progress=quiet())
    crops = cut_batch(training, 1, data=TINY.data, net=TINY.net, seed=TINY.seed)
    seen = jax.jit(prepare_batch, static_argnums=0)(config, crops, np.int32(1))
    assert not np.isfinite(asked[0].x[0]).any()
    np.testing.assert_allclose(asked[0].x[1], seen.x[1], atol=1e-6)


def test_a_rate_that_falls_linearly_to_its_end_is_written_and_read(tmp_path):
    linear = Schedule("one_cycle", max_lr=1e-2, anneal_strategy="linear")
    config = replace(TINY, schedule=linear)
    loop.run(config, tmp_path / "run", progress=quiet())
    state = training_state.read(tmp_path / "run")
    assert state.scheduler["lr"] < 0, "torch's own goes a step further than it is used"
    assert training_state.leave_out_schedule(state).recipe.optimizer.lr == 0
    assert loop.run(config, tmp_path / "run", progress=quiet()).step == 6


def test_no_signal_is_caught_after_a_run(run):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
