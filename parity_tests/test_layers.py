"""Every layer that Flax or XLA would do otherwise, against torch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from unet_jax import forms, layers
from unet_jax.layers import Numerics
from unet_parity.differences import difference
from unet_parity.oracle import GRADIENT_BOUND, OUTPUT_BOUND
from unet_spec import UNetConfig
from unet_torch.layers import Dropout, match_sizes


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield Numerics(jnp.float64, jnp.float64, "highest")


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def nchw(array):
    return np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2))


def both_ways(torch_layer, jax_layer, x, seed=0):
    """(output, gradient of the input) of torch and of JAX, in torch's layout."""
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch_layer(leaf)
    cotangent = np.random.default_rng(seed).integers(-3, 4, theirs.shape).astype(x.dtype)
    theirs.backward(torch.tensor(cotangent))
    assert leaf.grad is not None
    ours, pull = jax.vjp(jax_layer, jnp.asarray(nhwc(x)))
    (gradient,) = pull(jnp.asarray(nhwc(cotangent)))
    return (theirs.detach().numpy(), leaf.grad.numpy()), (nchw(ours), nchw(gradient))


def assert_both_equal(torch_layer, jax_layer, x):
    for theirs, ours in zip(*both_ways(torch_layer, jax_layer, x), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


SIZES = [(4, 6), (5, 6), (4, 7), (5, 7), (2, 3)]


@pytest.mark.parametrize("size", SIZES, ids=["even", "odd_rows", "odd_columns", "odd", "one"])
def test_max_pool_sends_the_gradient_of_a_tie_where_torch_does(size):
    x = np.random.default_rng(0).integers(-1, 2, (2, 3, *size)).astype(np.float32)
    assert_both_equal(nn.MaxPool2d(2), forms.max_pool, x)


@pytest.mark.parametrize("size", SIZES[:4], ids=["even", "odd_rows", "odd_columns", "odd"])
def test_max_pool_lets_nan_and_infinities_through_as_torch_does(size):
    rng = np.random.default_rng(0)
    x = rng.choice([np.nan, -np.inf, np.inf, -1, 0, 1], (2, 3, *size)).astype(np.float32)
    assert_both_equal(nn.MaxPool2d(2), forms.max_pool, x)


def test_first_max_is_first_in_reading_order():
    """Each of the four places of a window as the only maximum, and all ties of two."""
    for mask in range(1, 16):
        window = np.array([mask >> place & 1 for place in range(4)], np.float32)
        gradient = jax.grad(lambda x: forms.max_pool(x).sum())(window.reshape(1, 2, 2, 1))
        assert int(gradient.ravel().argmax()) == int(window.argmax()), window
        assert gradient.sum() == 1


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3], ids=["relu", "leaky", "steep"])
def test_activation_and_its_gradient_at_0_equal_torch(slope):
    x = np.array([-2, -0.0, 0.0, 3, -1e-30, 1e-30], np.float32).reshape(1, 1, 2, 3)
    act = nn.ReLU() if slope == 0 else nn.LeakyReLU(slope)
    assert_both_equal(act, lambda x: layers.activation(x, slope=slope), x)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 2)], ids=["pixel", "wide", "high"])
def test_up_convolution_equals_torch_bit_for_bit_on_integers(size):
    rng = np.random.default_rng(0)
    theirs = nn.ConvTranspose2d(5, 3, 2, stride=2)
    weight = rng.integers(-4, 5, (5, 3, 2, 2)).astype(np.float32)
    bias = rng.integers(-4, 5, 3).astype(np.float32)
    theirs.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    ours = layers.UpConv(5, 3, Numerics(precision="highest"), nnx.Rngs(0))
    ours.kernel[...], ours.bias[...] = jnp.asarray(weight.transpose(2, 3, 0, 1)), jnp.asarray(bias)
    assert_both_equal(theirs, ours, rng.integers(-4, 5, (2, 5, *size)).astype(np.float32))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5), (4, 1), (2, 3), (6, 5)],
    ids=["pixel", "row", "column", "small", "large"],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bilinear_aligned"])
def test_interpolation_equals_torch(mode, size, float64):
    aligned = {"bilinear": False, "bilinear_aligned": True}.get(mode)
    theirs = nn.Upsample(scale_factor=2, mode=mode.partition("_")[0], align_corners=aligned)
    x = np.random.default_rng(0).normal(size=(2, 3, *size))
    (their_y, their_g), (our_y, our_g) = both_ways(
        theirs, lambda x: layers.interpolate(x, mode=mode), x
    )
    assert our_y.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert difference(their_y, our_y) <= (0 if mode == "nearest" else OUTPUT_BOUND)
    assert difference(their_g, our_g) <= GRADIENT_BOUND


def affine(channels):
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 2, channels), rng.normal(size=channels)


@pytest.mark.parametrize("groups", [1, 2, 3, 6], ids=["layer", "two", "three", "instance"])
def test_group_norm_equals_torch(groups, float64):
    weight, bias = affine(6)
    theirs = nn.GroupNorm(groups, 6).double() if groups < 6 else nn.InstanceNorm2d(6, affine=True)
    theirs.double().load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    ours = layers.GroupNorm(6, groups, float64)
    ours.weight[...], ours.bias[...] = jnp.asarray(weight), jnp.asarray(bias)
    x = np.random.default_rng(0).normal(3, 2, (2, 6, 4, 7))
    (their_y, their_g), (our_y, our_g) = both_ways(theirs, ours, x)
    assert difference(their_y, our_y) <= OUTPUT_BOUND
    assert difference(their_g, our_g) <= GRADIENT_BOUND


def test_batch_norm_equals_torch_over_training_steps_and_in_inference(float64):
    weight, bias = affine(5)
    theirs = nn.BatchNorm2d(5).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(weight))
        theirs.bias.copy_(torch.tensor(bias))
    ours = layers.BatchNorm(5, float64)
    ours.weight[...], ours.bias[...] = jnp.asarray(weight), jnp.asarray(bias)
    rng = np.random.default_rng(0)
    for step in range(1, 6):
        x = rng.normal(step, 2, (2, 5, 3, 4))
        output = theirs(torch.tensor(x)).detach().numpy()
        assert difference(output, nchw(ours(jnp.asarray(nhwc(x))))) <= OUTPUT_BOUND
        for name in ("running_mean", "running_var"):
            expected = getattr(theirs, name).numpy()
            assert difference(expected, np.asarray(getattr(ours, name)[...])) <= OUTPUT_BOUND, name
        assert theirs.num_batches_tracked == step
        assert ours.num_batches_tracked[...] == step
    theirs.eval()
    ours.eval()
    (their_y, their_g), (our_y, our_g) = both_ways(theirs, ours, x)
    assert difference(their_y, our_y) <= OUTPUT_BOUND
    assert difference(their_g, our_g) <= GRADIENT_BOUND
    assert int(ours.num_batches_tracked[...]) == 5, "inference counted a batch"


def test_batch_norm_of_one_value_is_refused_as_in_torch():
    with pytest.raises(ValueError, match="more than one value per channel"):
        layers.BatchNorm(3, Numerics())(jnp.ones((1, 1, 1, 3)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(3)(torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("mode", ["zeros", "edge", "crop"])
def test_fitted_equals_torch(mode):
    config = UNetConfig(fit=mode)
    rng = np.random.default_rng(0)
    x, skip = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 5, 5, 7))
    theirs = match_sizes(torch.tensor(x), torch.tensor(skip), config)
    ours = layers.match_sizes(jnp.asarray(nhwc(x)), jnp.asarray(nhwc(skip)), config)
    for their, our in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(nchw(our), their.numpy().astype(np.float32), strict=True)


BF16 = Numerics(dtype=jnp.bfloat16)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
def test_bfloat16_stays_bfloat16_and_parameters_float32(norm):
    config = UNetConfig(widths=(6, 8), norm=norm, groups=2)
    block = layers.conv_block(3, 6, config, BF16, nnx.Rngs(0))
    x = jnp.ones((2, 4, 6, 3), jnp.bfloat16)
    for layer in block:
        x = layer(x)
        assert x.dtype == jnp.bfloat16
        if isinstance(layer, nnx.Module):
            for leaf in jax.tree.leaves(nnx.state(layer, nnx.Any(nnx.Param, nnx.BatchStat))):
                assert leaf.dtype in (jnp.float32, jnp.int32)


@pytest.mark.parametrize("up", ["transposed", "nearest", "bilinear", "bilinear_aligned"])
def test_up_sampling_keeps_bfloat16(up):
    config = UNetConfig(widths=(6, 8), up=up)
    layer = layers.up_sampling(8, 6, config, BF16, nnx.Rngs(0))
    assert layer(jnp.ones((2, 4, 6, 8), jnp.bfloat16)).dtype == jnp.bfloat16


def test_statistics_of_a_bfloat16_batch_are_taken_in_float32():
    """257 values of 1 and of 2: in bfloat16 the sum would stop at 256."""
    x = jnp.asarray(np.random.default_rng(0).integers(1, 3, (2, 16, 24, 3)), jnp.bfloat16)
    narrow, wide = layers.BatchNorm(3, BF16), layers.BatchNorm(3, Numerics())
    narrow(x)
    wide(x.astype(jnp.float32))
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(getattr(narrow, name)[...], getattr(wide, name)[...])


def test_dropout_scales_what_it_keeps_as_torch_does():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    keep = rng.random(x.shape) < 0.25  # a rate of 3/4: dividing by 1/4 rounds nothing
    theirs = Dropout(0.75)(torch.tensor(x), torch.tensor(keep)).numpy()
    ours = layers.Dropout(0.75)(jnp.asarray(nhwc(x)), jnp.asarray(nhwc(keep)))
    np.testing.assert_array_equal(nchw(ours), theirs)
    np.testing.assert_array_equal(theirs == 0, ~keep)
