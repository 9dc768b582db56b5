import io
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import unet_jax
import unet_torch
from parity_tests.tiny import TINY, quiet
from unet_spec import InputError, Preprocessing, UNetConfig, training_state, weight_file
from unet_spec.preprocessing import Statistics
from unet_spec.recipe import Recipe, Schedule
from unet_train import loop
from unet_train.check import nonfinite
from unet_train.check.nonfinite import explain_nonfinite
from unet_train.config import LossConfig, MeshConfig
from unet_train.devices import signals
from unet_train.devices.placement import make_placement
from unet_train.input import prefetch, synthetic
from unet_train.input.crops import choose_samples, cut_batch
from unet_train.input.dataset import open_dataset
from unet_train.input.samples import Drawn
from unet_train.report import validation
from unet_train.report.metrics_log import read_metrics
from unet_train.report.progress import Progress, StepBar
from unet_train.report.validation import validate
from unet_train.run.states import to_weight_file
from unet_train.setup import make_setup
from unet_train.step import compile_steps, prepare_batch

pytestmark = pytest.mark.usefixtures("compiled_once")

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
    training = open_dataset(TINY).training
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
    assert [named["ignore_index"] for named in seen] == [255, 255]
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
    dataset = open_dataset(config)
    samples = [*dataset.training, *dataset.validation]
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
    for sample in samples:
        mask = unet_jax.predict(model, sample.image)
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

    def stop(*arguments, **named):
        done.append(TINY.validate_every)
        if sum(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return score_weights(*arguments, **named)

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
    draw_cells, empty = synthetic.draw_cells, np.zeros(synthetic.SHAPE, np.uint8)
    monkeypatch.setattr(synthetic, "draw_cells", lambda seed: (draw_cells(seed)[0], empty))
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
    config = replace(TINY, schedule=Schedule("one_cycle", max_lr=1e6))
    with pytest.raises(InputError, match=r"is not finite: .*; lower --schedule\.max-lr"):
        loop.run(config, tmp_path / "run", progress=quiet())


def test_a_run_names_the_image_that_is_not_finite(tmp_path, monkeypatch):
    config = replace(TINY, data=replace(TINY.data, synthetic=7))
    training = open_dataset(config).training
    count = len(training)
    first, second, third = (
        choose_samples(count, step, data=TINY.data, seed=TINY.seed) for step in range(3)
    )
    assert second[0] not in (*first, third[0])
    bad = training.names[second[0]]
    damaged = replace(training[second[0]], statistics=Statistics(np.nan, 1.0))
    load = Drawn.load
    monkeypatch.setattr(Drawn, "load", lambda one: damaged if one.name == bad else load(one))
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


def _images(folder, count):
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number in range(count):
        image, mask = synthetic.draw_cells(number, height=64, width=80)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(255 * mask).save(folder / "masks" / f"{number}.png")
    settings = replace(TINY.data, images=folder / "images", masks=folder / "masks", cache_gb=0)
    return replace(TINY, data=settings, checkpoint_every=100, validate_every=100)


@pytest.mark.parametrize("harm", ["gone", "damaged", "other"])
def test_an_image_that_is_lost_ends_the_run_which_goes_on_once_it_is_back(
    tmp_path, monkeypatch, harm
):
    config = _images(tmp_path, 12)
    loop.run(config, tmp_path / "whole", progress=quiet())
    training = open_dataset(config).training
    early = [
        choose_samples(len(training), step, data=config.data, seed=config.seed) for step in range(5)
    ]
    # of the fourth step, and not of those before
    number = next(n for n in early[3] if n not in {*early[0], *early[1], *early[2]})
    path = tmp_path / "images" / training.names[number]
    content, facts = path.read_bytes(), path.stat()
    wait_for = StepBar.wait_for
    waits: list[Any] = []

    def lose(bar, batch):
        """Harm the image while the first step waits for its batch: later ones are not made yet."""
        if not waits:
            path.unlink()
            if harm != "gone":
                path.write_bytes(content[: len(content) // 2] if harm == "damaged" else content)
        waits.append(batch)
        return wait_for(bar, batch)

    monkeypatch.setattr(prefetch, "AHEAD", 1)
    monkeypatch.setattr(StepBar, "wait_for", lose)
    stream = io.StringIO()
    progress = Progress(Console(file=stream, width=200))
    with pytest.raises((InputError, OSError), match=re.escape(path.name)):
        loop.run(config, tmp_path / "run", progress=progress)
    assert "saved at step 3; once it is mended" in stream.getvalue()
    monkeypatch.undo()
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert loop.run(config, tmp_path / "run", progress=quiet()).step == TINY.steps
    name = "weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_weights_of_the_classes_are_the_inverse_of_their_shares(tmp_path):
    config = replace(_images(tmp_path, 4), loss=LossConfig(balance=True), steps=1)
    masks = np.stack([sample.mask for sample in open_dataset(config).training])
    shares = [(masks == number).mean() for number in (0, 1)]
    stream = io.StringIO()
    progress = Progress(Console(file=stream, width=200))
    found = make_setup(config, progress).config.loss.class_weights
    assert "class weights by the pixels of 3 images to train on: " in stream.getvalue()
    assert found == pytest.approx([1 / (2 * share) for share in shares], rel=1e-5)
    assert sum(w * s for w, s in zip(found, shares, strict=True)) == pytest.approx(1)
    loop.run(config, tmp_path / "run", progress=quiet())
    assert f"{found[1]}" in (tmp_path / "run" / "report.html").read_text()
    loop.run(config, tmp_path / "run", progress=quiet())  # it may go on
    both = replace(config, loss=LossConfig(balance=True, class_weights=(1.0, 2.0)))
    with pytest.raises(InputError, match=r"balance takes class_weights from the data"):
        make_setup(both, quiet())
