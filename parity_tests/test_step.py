import dataclasses
import re
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import unet_jax.model
import unet_torch
from unet_jax.forms import max_pool
from unet_spec import InputError, UNetConfig, geometry
from unet_spec.recipe import Optimizer, Schedule
from unet_train import step as step_module
from unet_train.config import AugmentConfig, DataConfig, LossConfig, MeshConfig, TrainConfig
from unet_train.devices import placement as placements
from unet_train.devices.collectives import count_collectives, largest_bytes
from unet_train.devices.placement import make_placement
from unet_train.input.crops import Batch
from unet_train.metrics import foreground_iou
from unet_train.run.states import to_weight_file
from unet_train.step import (
    State,
    accumulate_gradients,
    compile_steps,
    dropout_keys,
    init_state,
    jit_steps,
    prepare_batch,
    shapes_of_crops,
    update_state,
)

ONE = TrainConfig(
    net=UNetConfig(widths=(4, 6)),
    data=DataConfig(batch=4, crop_px=32, synthetic=4),
    augment=AugmentConfig(flips=False, quarter_turns=False),
    mesh=MeshConfig(data=1),
    steps=6,
    validate_every=3,
)


def batch(config, *, seed=0):
    """A random batch of crops."""
    rng = np.random.default_rng(seed)
    count, side = config.data.batch, config.data.crop_px
    kind = jnp.result_type(float)
    x = jnp.asarray(rng.normal(size=(count, side, side, config.net.in_channels)), kind)
    truth = jnp.asarray(rng.integers(0, config.net.mask_classes, (count, side, side)), jnp.uint8)
    return Batch(x, truth, None)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# nobody else may compute in it
Widened = dataclasses.make_dataclass(
    "Widened", [("compute", Literal["float64"], "float64")], bases=(TrainConfig,), frozen=True
)


def widened(config, state):
    """The state, and the config, of a run in float64."""
    values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    config = Widened(**{**values, "compute": "float64"})

    def wide(array):
        return array.astype(float) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return config, jax.tree.map(wide, state)


def furthest(one, other):
    """Largest difference of two trees, relative to the largest value of each array."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst


def _torchs_loss(logits, truth):
    return torch.nn.functional.cross_entropy(logits, truth)


def _torchs_binary_loss(logits, truth):
    """Of a single channel, or of each channel by itself."""
    classes = logits.shape[1]
    hot = torch.nn.functional.one_hot(truth, max(2, classes)).movedim(-1, 1)[:, -classes:]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, hot.float())


HEADS = {
    "classes": (ONE.net, _torchs_loss),
    "one channel": (replace(ONE.net, classes=1), _torchs_binary_loss),
    "sigmoid": (replace(ONE.net, classes=3, output="sigmoid"), _torchs_binary_loss),
    "one channel, sigmoid": (replace(ONE.net, classes=1, output="sigmoid"), _torchs_binary_loss),
}


@pytest.mark.parametrize("head", HEADS)
def test_one_step_equals_torchs_forward_backward_and_adamw(head):
    """The same weights and batch through torch, with torch's own AdamW, in float32."""
    net, torchs_loss = HEADS[head]
    config = replace(
        ONE,
        net=net,
        class_names=(),
        optimizer=Optimizer(weight_decay=0.1),
        schedule=Schedule("one_cycle", max_lr=1e-2),
    )
    steps = jit_steps(config)
    state, seen = steps.init(), batch(config)
    twin = unet_torch.weights.from_weights(to_weight_file(config, state)).train()
    rate = 1e-2 / 25  # the first step of the schedule
    optimizer = torch.optim.AdamW(twin.parameters(), lr=rate, weight_decay=0.1)
    logits = twin(torch.tensor(np.array(seen.x)).permute(0, 3, 1, 2))
    truth = torch.tensor(np.array(seen.truth, np.int64))
    loss = torchs_loss(logits, truth)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
    optimizer.step()
    state, metrics = steps.step(state, seen)
    assert abs(float(metrics.loss) - loss.item()) < 1e-6
    assert abs(float(metrics.grad_norm) - norm.item()) < 1e-5 * norm.item()
    assert abs(float(metrics.lr) - rate) < 1e-5 * rate
    answers = torch.cat([torch.zeros_like(logits), logits], 1) if net.classes == 1 else logits
    pairs = net.mask_classes * truth + answers.argmax(1)
    counts = torch.bincount(pairs.ravel(), minlength=net.mask_classes**2)
    np.testing.assert_array_equal(np.asarray(metrics.confusion).ravel(), counts)
    after = to_weight_file(config, state).tensors
    for name, tensor in twin.state_dict().items():
        # Adam's first step is lr * sign(gradient): a wrong one differs by 2 * lr
        worst = np.abs(after[name] - tensor.numpy()).max()
        assert worst < 0.02 * rate, (name, worst)


accumulated = jax.jit(accumulate_gradients, static_argnums=0)
stepped = jax.jit(update_state, static_argnums=0)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(dice=1.0, focal=0.5, ignore_index=1)],
                         ids=["cross_entropy", "sum_with_ignored"])  # fmt: skip
def test_accumulated_gradients_equal_those_of_the_large_batch(float64, loss):
    config, state = widened(ONE, init_state(ONE))
    config = replace(config, loss=loss)
    seen = batch(config)
    whole = accumulated(config, state, seen)
    for count in (2, 4):
        parts = accumulated(replace(config, accumulate=count), state, seen)
        assert furthest(whole, parts) <= 1e-12


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_step_with_remat_equals_one_without(float64, norm):
    config = replace(ONE, net=replace(ONE.net, norm=norm))
    config, state = widened(config, init_state(config))
    seen = batch(config)
    plain = stepped(config, state, seen)
    again = stepped(replace(config, remat=True), state, seen)
    assert furthest(plain, again) <= 1e-12


def test_remat_computes_the_convolutions_of_every_level_again():
    def convolutions(remat):
        config = replace(ONE, remat=remat)
        steps: Any = jit_steps(config)
        text = steps.step.lower(steps.init(), batch(config)).as_text()
        return text.count("stablehlo.convolution"), text.count("optimization_barrier")

    (plain, none), (again, barriers) = convolutions(False), convolutions(True)
    # two of each of the three levels; the barriers keep XLA from folding them into one
    assert (none, again - plain) == (0, 6)
    assert barriers >= 3


def test_the_average_of_weights_equals_a_loop(float64):
    config = replace(ONE, net=replace(ONE.net, norm="batch"), ema=0.3)
    config, state = widened(config, init_state(config))
    averaged = {**state.params, **{n: a for n, a in state.stats.items() if "batches" not in n}}
    assert len(averaged) > len(state.params)
    expected = {name: np.array(a) for name, a in averaged.items()}
    for number in range(5):
        state, _ = stepped(config, state, batch(config, seed=number))
        decay = min(0.3, (1 + number) / (10 + number))
        for name in expected:
            array = np.asarray({**state.params, **state.stats}[name])
            expected[name] = decay * expected[name] + (1 - decay) * array
    assert furthest(expected, state.ema) <= 1e-14
    file = to_weight_file(config, state)
    for name in ("out.bias", next(n for n in state.stats if "running_var" in n)):
        np.testing.assert_array_equal(file.tensors[name], np.asarray(state.ema[name]))


def test_the_step_is_compiled_once_and_counts(monkeypatch):
    traces, train_step = [], step_module.train_step

    def traced(*arguments):
        """JAX runs this when it compiles, and not when it computes."""
        traces.append(arguments)
        return train_step(*arguments)

    monkeypatch.setattr(step_module, "train_step", traced)
    config = replace(ONE, net=replace(ONE.net, norm="batch", dropout=0.2))
    steps = jit_steps(config)
    state = steps.init()
    for _ in range(3):
        state, _ = steps.step(state, batch(config))
    assert int(state.step) == 3
    assert int(state.stats["neck.conv.1.num_batches_tracked"]) == 3
    assert len(traces) == 1


def test_overfits_one_image_to_perfection():
    config = replace(
        ONE,
        net=UNetConfig(widths=(8, 12)),
        data=DataConfig(batch=1, crop_px=32),
        schedule=Schedule("one_cycle", max_lr=1e-2, pct_start=0.2, cycle_momentum=False),
        steps=120,
    )
    steps = jit_steps(config)
    state = steps.init()
    x = batch(config).x
    truth = (x[..., 0] > 0).astype(jnp.uint8)
    for _ in range(120):
        state, metrics = steps.step(state, Batch(x, truth, None))
    assert foreground_iou(np.asarray(metrics.confusion)) > 0.99


def test_a_step_that_is_not_finite_changes_nothing_and_none_after_it_does():
    steps = jit_steps(ONE)
    state = steps.init()
    seen = batch(ONE)
    state, _ = steps.step(state, seen)
    before = jax.tree.map(np.array, state)
    state, metrics = steps.step(state, seen._replace(x=seen.x.at[1, 3, 4, 0].set(jnp.inf)))
    assert not np.isfinite(float(metrics.loss))
    state, metrics = steps.step(state, seen)
    assert np.isfinite(float(metrics.loss))
    assert bool(state.stopped)
    assert not bool(before.stopped)
    assert furthest(before._replace(stopped=state.stopped), state) == 0


def test_bfloat16_computes_the_convolutions_and_keeps_parameters_and_loss_in_float32():
    losses = {}
    for config in (ONE, replace(ONE, compute="bfloat16")):
        steps: Any = jit_steps(config)
        state, seen = steps.init(), batch(config)
        text = steps.step.lower(state, seen).as_text()
        convolutions = re.findall("stablehlo.convolution.*", text)
        assert {"bf16" in line for line in convolutions} == {config is not ONE}
        softmax = re.findall("stablehlo.(?:exponential|log) .*", text)
        assert {"xf32>" in line for line in softmax} == {True}
        state, metrics = steps.step(state, seen)
        assert {a.dtype for a in state.params.values()} == {np.dtype("float32")}
        assert metrics.loss.dtype == np.dtype("float32")
        losses[config.compute] = float(metrics.loss)
    # bfloat16 rounds to 8 bits, 4e-3; of five batches the losses were up to 2.4e-3 apart
    assert 0 < abs(losses["bfloat16"] / losses["float32"] - 1) < 4e-3


def test_float32_is_asked_for_in_full():
    steps: Any = jit_steps(ONE)
    text = steps.step.lower(steps.init(), batch(ONE)).as_text()
    products = re.findall("stablehlo.(?:convolution|dot_general).*", text)
    assert len(products) > 10
    # one is the confusion, of zeros and ones, which no precision rounds
    assert sum("HIGHEST" not in line for line in products) == 1


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_truth_and_weight_are_of_what_the_net_answers_for(padding):
    """The image holds its own truth."""
    net = UNetConfig(widths=(4, 6, 8), padding=padding)
    crop_px = geometry.next_legal(net, 48)
    config = replace(ONE, net=net, data=replace(ONE.data, crop_px=crop_px))
    truth = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, crop_px, crop_px)), jnp.uint8)
    crops = Batch(truth[..., None].astype(jnp.float32), truth, truth.astype(jnp.float32))
    seen = prepare_batch(config, crops, jnp.asarray(5))
    margin = geometry.margin(net)
    inside = slice(margin, crop_px - margin)
    assert seen.truth.shape[1] == geometry.output_size(net, crop_px)
    np.testing.assert_array_equal(seen.x[:, inside, inside, 0], seen.truth)
    np.testing.assert_array_equal(seen.truth, seen.weight)


def test_seed_and_step_are_those_of_the_augmentation():
    config, crops = replace(ONE, augment=AugmentConfig()), batch(ONE)
    made = [
        np.asarray(prepare_batch(replace(config, seed=seed), crops, jnp.asarray(step)).x)
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert all((one != other).any() for one, other in combinations(made, 2))


def test_a_step_augments_by_its_own_number():
    config, crops = replace(ONE, augment=AugmentConfig()), batch(ONE)

    def at(number):
        state = init_state(config)
        return state._replace(step=jnp.asarray(number, jnp.int32))

    _, found = jit_steps(config).step(at(5), crops)
    by_hand = [
        float(stepped(config, at(5), prepare_batch(config, crops, jnp.asarray(n)))[1].loss)
        for n in (0, 4, 5, 6)
    ]
    apart = [abs(float(found.loss) / loss - 1) for loss in by_hand]
    assert apart[2] < 1e-6  # float32
    assert min(apart[0], apart[1], apart[3]) > 1e-5


def test_the_seed_is_that_of_the_weights_and_of_the_dropout():
    first, second = (init_state(replace(ONE, seed=seed)) for seed in (0, 1))
    name = "down_1.conv.conv.0.weight"
    assert (first.params[name] != second.params[name]).any()
    keys = [jax.random.key_data(dropout_keys(seed, first.step, parts=2)) for seed in (0, 1)]
    assert len({tuple(np.asarray(key)) for key in np.concatenate(keys)}) == 4


def test_pixels_that_count_nothing_are_not_in_the_confusion_of_a_step():
    config = replace(ONE, loss=LossConfig(ignore_index=1))
    seen = batch(config)
    _, metrics = stepped(config, init_state(config), seen)
    assert metrics.confusion.sum() == (seen.truth != 1).sum()
    assert metrics.confusion[1].sum() == 0


def test_plateau_watches_the_loss():
    watching = Schedule("plateau", factor=0.1, patience=0, threshold=0.0)
    config = replace(ONE, optimizer=Optimizer("sgd", lr=0.05), schedule=watching)
    state, seen, found = init_state(config), batch(config), []
    for _ in range(5):
        state, metrics = stepped(config, state, seen)
        found.append((float(metrics.loss), float(metrics.lr)))
    assert found == sorted(found, reverse=True)  # the loss falls at every step
    assert {lr for _, lr in found} == {np.float32(0.05)}


def test_dropout_is_a_function_of_the_step():
    still = Optimizer("sgd", lr=0.0)
    config = replace(ONE, net=replace(ONE.net, dropout=0.5), optimizer=still, schedule=Schedule())
    steps = jit_steps(config)
    state, found = steps.init(), []
    for step in (0, 1, 0):
        state = state._replace(step=jnp.asarray(step, jnp.int32))
        state, metrics = steps.step(state, batch(config))
        found.append(float(metrics.loss))
    assert found[0] == found[2] != found[1]


PADDED = TrainConfig(
    net=UNetConfig(widths=(4, 6, 8), norm="batch"),
    data=DataConfig(batch=8, crop_px=64, synthetic=4),
    augment=AugmentConfig(rotation_deg=10, elastic_px=2, gamma=0.5),
    steps=3,
)
MESHES = {"data": (4, 1), "rows": (1, 4), "both": (2, 4)}


def trained(config):
    """(state, losses, text of the step) after three steps."""
    placement = make_placement(config)
    steps = compile_steps(config, placement)
    state, losses = steps.init(), []
    for number in range(3):
        made = jax.tree.map(np.asarray, batch(config, seed=number))
        state, metrics = steps.step(state, placement.put(made, batch=config.data.batch))
        losses.append(float(metrics.loss))
    return jax.tree.map(np.asarray, state), losses, steps.step


def moved(text, *, parts):
    """What collectives move that should stay where it is: a map put together, or as many bytes as
    the smallest map has, the lowest before its convolutions, of one part of the images."""
    channels, lowest_px = min(PADDED.net.widths[-2:]), PADDED.data.crop_px >> PADDED.net.depth
    smallest = 4 * PADDED.data.batch // parts * lowest_px**2 * channels
    found = ["gathered"] * (largest_bytes(text, "all-gather", "all-to-all") > 0)
    return found + ["large"] * (largest_bytes(text) >= smallest)


@pytest.fixture(scope="module")
def alone():
    return trained(replace(PADDED, mesh=MeshConfig(data=1)))


@pytest.mark.parametrize("meshed", MESHES)
def test_a_mesh_of_devices_equals_one_device(alone, meshed):
    count, rows = MESHES[meshed]
    _, losses, step = trained(replace(PADDED, mesh=MeshConfig(data=count, rows=rows)))
    # float32 sums in another order; 2e-6 was the largest seen
    np.testing.assert_allclose(losses, alone[1], rtol=2e-5)
    counted = count_collectives(step.as_text())
    assert counted["all-reduce"]
    # rows: their borders go to the neighbour, and no map is ever put together
    assert (counted["collective-permute"] > 0) == (rows > 1)
    assert moved(step.as_text(), parts=count) == []
    assert (
        step.memory_analysis().temp_size_in_bytes
        < alone[2].memory_analysis().temp_size_in_bytes / 2
    )


@pytest.mark.parametrize("meshed", ["data", "rows"])
def test_the_smallest_map_that_a_step_puts_together_is_seen(monkeypatch, meshed):
    count, rows = MESHES[meshed]
    config = replace(PADDED, mesh=MeshConfig(data=count, rows=rows))
    placement = make_placement(config)
    lowest_px = config.data.crop_px >> config.net.depth

    def together(x):
        x = max_pool(x)
        there = placement.everywhere if x.shape[1] == lowest_px else placement.rows
        return jax.lax.with_sharding_constraint(x, there)

    monkeypatch.setattr(unet_jax.model, "max_pool", together)
    steps: Any = jit_steps(config, placement)
    shapes = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        (state := jax.eval_shape(lambda: init_state(config))), placement.state(state),
    )  # fmt: skip
    crops = shapes_of_crops(config, placement)
    text = steps.step.lower(shapes, crops).compile().as_text()
    assert moved(text, parts=count) == ["gathered", "large"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", lambda name: "0.0"),
        ("usable_cores", lambda: 64),
        ("cpu_model", lambda: "another"),
    ],
)
def test_the_mesh_tells_all_that_bits_depend_on(monkeypatch, name, value):
    placement = make_placement(PADDED)
    before = placement.describe()
    assert replace(placement, shard_parameters=True).describe() != before
    monkeypatch.setattr(placements, name, value)
    assert placement.describe() != before


@pytest.mark.parametrize(
    ("images", "parts", "taken"), [(16, 1, 8), (6, 1, 6), (8, 2, 4), (7, 7, 1)]
)
def test_by_default_the_most_devices_that_divide_the_batch_are_taken(images, parts, taken):
    config = replace(PADDED, data=replace(PADDED.data, batch=images), accumulate=parts)
    placement = make_placement(config)
    assert placement.mesh.devices.shape == (taken, 1)
    assert placement.describe().startswith("8 devices" if taken == 8 else f"{taken} of 8 devices")


@pytest.mark.parametrize(
    ("crop_px", "mesh", "told"),
    [
        (64, MeshConfig(data=16), "does not fit the number of devices, which is 8"),
        (36, MeshConfig(data=1, rows=2), "use a multiple of 8"),  # its lowest level has 9 rows
        (34, MeshConfig(data=1, rows=4), "use a multiple of 16"),  # its lowest level has 8
        (8, MeshConfig(data=2, rows=2), "XLA computes wrong gradients there; use 16 or more"),
    ],
    ids=["devices", "rows of the lowest level", "rows of other levels", "two rows"],
)
def test_a_mesh_that_does_not_fit_is_refused(crop_px, mesh, told):
    net = replace(PADDED.net, fit="zeros")
    config = replace(PADDED, net=net, data=replace(PADDED.data, crop_px=crop_px), mesh=mesh)
    with pytest.raises(InputError, match=told):
        make_placement(config)


def test_devices_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(InputError, match=r"3 devices do not divide the 8 images"):
        make_placement(replace(PADDED, mesh=MeshConfig(data=3)))


def test_parameters_in_parts_equal_copies_of_them(alone):
    config = replace(PADDED, mesh=MeshConfig(data=4, shard_parameters=True))
    held = make_placement(config).state(jax.eval_shape(lambda: init_state(config)))
    assert not held.params["neck.conv.0.weight"].is_fully_replicated
    _, losses, _ = trained(config)
    np.testing.assert_allclose(losses, alone[1], rtol=2e-5)


def test_state_is_all_that_a_step_changes():
    assert State._fields == ("params", "stats", "optimizer", "ema", "step", "stopped")


def test_clipping_by_norm_reaches_the_step():
    config = replace(ONE, optimizer=Optimizer("sgd", lr=1.0, clip_norm=1e-3), schedule=Schedule())
    steps = jit_steps(config)
    state = steps.init()
    before = jax.tree.map(np.array, state.params)
    state, metrics = steps.step(state, batch(config))
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params, before))
    assert float(metrics.grad_norm) > 1e-2
    assert abs(float(moved) - 1e-3) < 1e-5
