from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import unet_jax
from unet_jax.functional import fill_arrays, to_arrays
from unet_jax.layers import Dropout, Numerics
from unet_jax.weights import from_weights
from unet_parity.differences import difference
from unet_parity.oracle import (
    GRADIENT_BOUND,
    OUTPUT_BOUND,
    random_input,
    random_tensors,
)
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig, layout
from unet_spec.weight_file import WeightFile

SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10))
BATCH = replace(SMALL, norm="batch")
DROPPED = replace(SMALL, dropout=0.3)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield Numerics(jnp.float64, jnp.float64, "highest")


def arrays(config, *, seed=1):
    """Random trained arrays, in JAX's layout and the widest type in force."""
    tensors = layout.to_jax(config, random_tensors(config, seed=seed))
    return {name: jnp.asarray(a, jnp.result_type(float)) for name, a in tensors.items()}


def image(batch=2):
    return jax.random.normal(jax.random.key(1), (batch, 12, 20, 3))


def test_apply_equals_the_module():
    model = from_weights(WeightFile(BATCH, random_tensors(BATCH, seed=1)))
    called = nnx.jit(lambda model, x: model(x))
    called(model, image())  # moves the statistics away from their start
    held = to_arrays(model)
    model.eval()
    apply = jax.jit(unet_jax.functional(BATCH).apply, static_argnames="train")
    np.testing.assert_array_equal(apply(held, image()), called(model, image()))

    stats = {name: held.pop(name) for name in list(held) if "running" in name or "num" in name}
    model.train()
    logits, updated = apply(held, image(), stats, train=True)
    np.testing.assert_array_equal(logits, called(model, image()))
    for name, array in updated.items():
        np.testing.assert_array_equal(array, to_arrays(model)[name], err_msg=name)


def test_training_returns_new_statistics_and_leaves_the_old():
    init, apply = unet_jax.functional(BATCH)
    apply = jax.jit(apply, static_argnames="train")
    params, stats = jax.jit(init)(jax.random.key(0))
    before = {name: np.array(array) for name, array in stats.items()}
    _, updated = apply(params, image(), stats, train=True)
    assert updated.keys() == stats.keys()
    for name in stats:
        np.testing.assert_array_equal(stats[name], before[name], err_msg=name)
        assert not np.array_equal(updated[name], before[name]), f"{name} is stale"


def test_a_net_without_batch_norm_has_no_statistics():
    init, apply = unet_jax.functional(SMALL)
    params, stats = jax.jit(init)(jax.random.key(0))
    assert stats == {}
    assert jax.jit(apply, static_argnames="train")(params, image(), train=True)[1] == {}


def test_jit_equals_no_jit(float64):
    _, apply = unet_jax.functional(SMALL, numerics=float64)
    params = arrays(SMALL)
    x = jax.random.normal(jax.random.key(1), (2, 12, 20, 3), jnp.float64)
    assert difference(np.asarray(apply(params, x)), np.asarray(jax.jit(apply)(params, x))) <= (
        OUTPUT_BOUND
    )


def test_grad_of_a_jitted_loss_equals_torch(float64):
    _, apply = unet_jax.functional(SMALL, numerics=float64)
    tensors = random_tensors(SMALL, seed=1)
    x, cotangent, _ = random_input(SMALL, seed=0, size=(12, 20))
    truth = torch_pass(SMALL, tensors, x, cotangent, dtype="float64").gradients

    @jax.jit
    @jax.grad
    def gradients(params):
        logits = apply(params, jnp.asarray(x.transpose(0, 2, 3, 1)))
        return (logits * cotangent.transpose(0, 2, 3, 1)).sum()

    found = layout.to_torch(SMALL, {n: np.asarray(g) for n, g in gradients(arrays(SMALL)).items()})
    for name, gradient in truth.items():
        assert difference(gradient, found[name]) <= GRADIENT_BOUND, name


def test_vmap_over_nets_equals_one_net_after_the_other(float64):
    _, apply = unet_jax.functional(SMALL, numerics=float64)
    nets = [arrays(SMALL, seed=seed) for seed in range(3)]
    ensemble = jax.tree.map(lambda *each: jnp.stack(each), *nets)
    x = jax.random.normal(jax.random.key(1), (2, 12, 20, 3), jnp.float64)
    together = jax.vmap(apply, in_axes=(0, None))(ensemble, x)
    assert together.shape == (3, 2, 12, 20, 4)
    for index in range(3):
        alone = apply(nets[index], x)
        assert difference(np.asarray(alone), np.asarray(together[index])) <= OUTPUT_BOUND


def test_every_image_of_a_batch_is_computed_alone(float64):
    _, apply = unet_jax.functional(SMALL, numerics=float64)
    params = arrays(SMALL)
    x = jax.random.normal(jax.random.key(1), (2, 12, 20, 3), jnp.float64)
    together = np.asarray(apply(params, x))
    for index in range(2):
        alone = np.asarray(apply(params, x[index : index + 1]))
        assert difference(alone, together[index : index + 1]) <= OUTPUT_BOUND


def drawn_masks(monkeypatch, key):
    """The masks that the two dropouts of a net draw, and the logits that follow."""
    masks = []
    bernoulli = jax.random.bernoulli

    def recorded(*args):
        masks.append(bernoulli(*args))
        return masks[-1]

    monkeypatch.setattr(jax.random, "bernoulli", recorded)
    init, apply = unet_jax.functional(replace(DROPPED, widths=(6, 8, 16)))
    params, _ = init(jax.random.key(0))
    logits, _ = apply(params, jnp.ones((4, 48, 64, 3)), train=True, key=key)
    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
    return [np.asarray(mask) for mask in masks], np.asarray(logits)


def test_dropout_drops_its_rate_at_two_sites_with_masks_of_their_own(monkeypatch):
    (level, neck), _ = drawn_masks(monkeypatch, jax.random.key(2))
    assert level.shape == (4, 24, 32, 8)
    assert neck.shape == (4, 12, 16, 16)
    for mask in (level, neck):
        # five standard deviations of a binomial
        assert abs(mask.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / mask.size)
    shared = min(level.size, neck.size)
    agree = (level.ravel()[:shared] == neck.ravel()[:shared]).mean()
    # independent masks agree on 0.7^2 + 0.3^2 of their values, equal ones on all
    assert abs(agree - 0.58) < 5 * np.sqrt(0.58 * 0.42 / shared)


def test_dropout_is_a_function_of_its_key(monkeypatch):
    _, one = drawn_masks(monkeypatch, jax.random.key(2))
    _, again = drawn_masks(monkeypatch, jax.random.key(2))
    _, other = drawn_masks(monkeypatch, jax.random.key(3))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_dropout_keeps_the_mean():
    x = jnp.ones((2, 64, 64, 8))
    y = Dropout(0.3)(x, rngs=nnx.Rngs(dropout=0))
    assert set(np.unique(y)) == {0, np.float32(1 / np.float32(0.7))}
    assert abs(float(y.mean()) - 1) < 5 * np.sqrt(0.3 / 0.7 / x.size)


def test_dropout_without_masks_or_key_is_refused():
    init, apply = unet_jax.functional(DROPPED)
    params, _ = init(jax.random.key(0))
    with pytest.raises(ValueError, match="needs masks"):
        apply(params, image(), train=True)
    assert apply(params, image()).shape == (2, 12, 20, 4)


def test_a_missing_array_is_named():
    init, apply = unet_jax.functional(SMALL)
    params, _ = init(jax.random.key(0))
    del params["neck.conv.2.weight"]
    with pytest.raises(KeyError, match=r"neck\.conv\.2\.weight"):
        apply(params, image())


def test_arrays_of_a_model_can_be_taken_out_and_put_back():
    one, other = (
        unet_jax.UNet(replace(BATCH, widths=(6, 8)), rngs=nnx.Rngs(seed)) for seed in (0, 1)
    )
    held = to_arrays(one)
    copy = fill_arrays(other, held)
    assert list(to_arrays(copy)) == list(held)
    for name, array in to_arrays(copy).items():
        np.testing.assert_array_equal(array, held[name], err_msg=name)
    assert not np.array_equal(to_arrays(other)["out.weight"], held["out.weight"])


def test_a_jitted_training_step_lowers_the_loss():
    """The loop that a user writes around `(init, apply)`."""
    init, apply = unet_jax.functional(BATCH)
    params, stats = init(jax.random.key(0))
    x = image()
    target = (x[..., 0] > 0).astype(jnp.int32)

    @jax.jit
    def step(params, stats):
        def loss(params):
            logits, new = apply(params, x, stats, train=True)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)
            return -picked.mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), new, value

    values = []
    for _ in range(5):
        params, stats, value = step(params, stats)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]
    assert int(stats["neck.conv.1.num_batches_tracked"]) == 5
