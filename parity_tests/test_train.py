import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from rich.console import Console

import unet_jax
import unet_torch
from train import loop
from train.config import CELLS, DataConfig, TrainConfig
from train.losses import cross_entropy
from train.metrics import confusion, foreground_iou, iou
from train.progress import Progress
from train.step import make_step
from unet_parity.oracle import OUTPUT_BOUND
from unet_spec import InputError, UNetConfig, training_state
from unet_spec.recipe import Optimizer, Recipe, Schedule

TINY = TrainConfig(
    net=UNetConfig(widths=(4, 6), norm="batch", dropout=0.2),
    data=DataConfig(batch=2, crop_px=32, synthetic=4),
    steps=6,
    validate_every=3,
)


def _quiet():
    return Progress(Console(quiet=True))


def test_cross_entropy_equals_torchs():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(2, 5, 7, 3)) * 9, rng.integers(0, 3, (2, 5, 7))
    with jax.enable_x64(True):
        # the loss computes in float32 or, here, is cast to it: compared at its resolution
        ours = float(cross_entropy(jax.numpy.asarray(logits), jax.numpy.asarray(truth)))
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).movedim(-1, 1), torch.tensor(truth)
    )
    assert abs(ours - float(theirs)) <= 4 * np.finfo(np.float32).eps * float(theirs)


def test_confusion_counts_equal_a_loop():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (4, 5)), rng.integers(0, 3, (4, 5))
    counted = np.zeros((3, 3))
    for p, t in zip(predicted.ravel(), truth.ravel(), strict=True):
        counted[t, p] += 1
    np.testing.assert_array_equal(confusion(predicted, truth, classes=3), counted)


def test_iou_of_a_known_matrix():
    matrix = np.array([[6, 2], [1, 3]])
    np.testing.assert_allclose(iou(matrix), [6 / 9, 3 / 6], rtol=OUTPUT_BOUND)
    assert foreground_iou(matrix) == 0.5
    assert foreground_iou(np.array([[9, 0], [0, 0]])) == 1.0


def test_one_step_equals_torchs_forward_backward_and_adamw():
    """The same weights and batch through torch, with torch's own AdamW, in float32."""
    config = replace(
        TINY,
        net=UNetConfig(widths=(4, 6)),
        optimizer=Optimizer(weight_decay=0.1),
        schedule=Schedule("one_cycle", max_lr=1e-2),
    )
    init, step = make_step(config)
    state = init()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 32, 32, 1)).astype(np.float32)
    truth = rng.integers(0, 2, (2, 32, 32))
    twin = unet_torch.weights.from_weights(loop.to_weight_file(config, state)).train()
    rate = 1e-2 / 25  # the first step of the schedule
    optimizer = torch.optim.AdamW(twin.parameters(), lr=rate, weight_decay=0.1)
    logits = twin(torch.tensor(x).permute(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(truth))
    loss.backward()
    optimizer.step()
    state, metrics = step(state, x, truth)
    assert abs(float(metrics.loss) - loss.item()) < 1e-6
    after = loop.to_weight_file(config, state).tensors
    for name, tensor in twin.state_dict().items():
        # Adam's first step is lr * sign(gradient): a wrong one differs by 2 * lr
        worst = np.abs(after[name] - tensor.numpy()).max()
        assert worst < 0.02 * rate, (name, worst)


def test_the_step_is_compiled_once_and_counts():
    init, step = make_step(TINY)
    state = init()
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    truth = np.zeros((2, 32, 32), np.uint8)
    for _ in range(3):
        state, _ = step(state, x, truth)
    assert int(state.step) == 3
    assert int(state.stats["neck.conv.1.num_batches_tracked"]) == 3
    assert step._cache_size() == 1  # type: ignore[attr-defined]


def test_overfits_one_image_to_perfection():
    config = replace(
        TINY,
        net=UNetConfig(widths=(8, 12)),
        schedule=Schedule("one_cycle", max_lr=1e-2, pct_start=0.2, cycle_momentum=False),
        steps=120,
    )
    init, step = make_step(config)
    state = init()
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    truth = (x[..., 0] > 0).astype(np.uint8)
    for _ in range(120):
        state, metrics = step(state, x, truth)
    assert foreground_iou(np.asarray(metrics.confusion)) > 0.99


def test_a_run_leaves_whole_files_that_both_frameworks_open(tmp_path):
    result = loop.run(TINY, tmp_path / "run", progress=_quiet())
    model, twin = unet_jax.load(result.weights), unet_torch.load(result.weights)
    assert model.class_names == twin.class_names == ("background", "cell")
    image = np.random.default_rng(0).integers(0, 255, (37, 51), np.uint8)
    assert unet_jax.predict(model, image).shape == (37, 51)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6
    assert list((tmp_path / "run" / "pictures").glob("*.png"))


def test_a_run_leaves_the_state_that_training_goes_on_from(tmp_path):
    loop.run(TINY, tmp_path / "run", progress=_quiet())
    state = training_state.read(tmp_path / "run")
    assert state.step == TINY.steps
    assert state.recipe == TINY.recipe == Recipe(TINY.optimizer, TINY.schedule).for_steps(6)
    assert all(tensor.any() for tensor in state.slots["exp_avg_sq"].values())


def test_equal_runs_end_in_equal_bytes(tmp_path):
    for name in ("one", "two"):
        loop.run(TINY, tmp_path / name, progress=_quiet())
    one, two = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_an_existing_run_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        loop.run(TINY, tmp_path / "run", progress=_quiet())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    config = replace(TINY, schedule=Schedule("one_cycle", max_lr=1e30))
    with pytest.raises(InputError, match=r"lower --schedule\.max-lr"):
        loop.run(config, tmp_path / "run", progress=_quiet())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"data": DataConfig(crop_px=33)}, "crop_px=33"),
        ({"data": DataConfig(holdout=1.0)}, "holdout"),
        ({"steps": 0}, "steps"),
        ({"optimizer": Optimizer("sgd", dampening=0.5), "schedule": Schedule()}, "dampening"),
        ({"class_names": ("one",)}, "class_names"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, names):
    with pytest.raises(InputError, match=names):
        replace(CELLS, **change)


def test_bfloat16_compute_keeps_float32_parameters():
    init, step = make_step(replace(TINY, compute="bfloat16"))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    state, metrics = step(init(), x, np.zeros((2, 32, 32), np.uint8))
    assert {a.dtype for a in state.params.values()} == {np.dtype("float32")}
    assert np.isfinite(float(metrics.loss))
