import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import unet_jax
import unet_torch
from unet_jax.layers import he_normal
from unet_spec import UNetConfig, layout
from unet_spec.parameters import parameters

# so wide that every kernel holds at least 30,000 values: the standard deviation of a standard
# deviation is 1 / sqrt(2 n) = 0.4 % of it
WIDE = UNetConfig(in_channels=70, classes=500, widths=(64, 96, 130), norm="batch")
TOLERANCE = 0.02


def torch_arrays(config):
    torch.manual_seed(0)
    return {n: t.numpy(force=True) for n, t in unet_torch.UNet(config).state_dict().items()}


def jax_arrays(config):
    params, stats = unet_jax.functional(config).init(jax.random.key(0))
    return layout.to_torch(config, {n: np.asarray(a) for n, a in {**params, **stats}.items()})


TWINS = {"torch": torch_arrays, "jax": jax_arrays}


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("twin", TWINS)
def test_kernels_are_normal_with_the_standard_deviation_of_he(twin, up):
    config = UNetConfig(**{**vars(WIDE), "up": up})
    arrays = TWINS[twin](config)
    kernels = [p for p in parameters(config) if p.kind in ("conv", "up_conv")]
    assert len(kernels) == 13
    for name, shape, kind in kernels:
        values = arrays[name]
        # (out, in, h, w): in * h * w; the up-convolution's (in, out, 2, 2): 4 * out
        inputs = 4 * shape[1] if kind == "up_conv" else np.prod(shape[1:])
        enough = values.size > 30_000 or shape[2:] == (1, 1) or kind == "up_conv"
        assert enough, name
        expected = np.sqrt(2 / inputs)
        assert abs(values.std() / expected - 1) < TOLERANCE, name
        assert abs(values.mean()) < TOLERANCE * expected, name
        # a truncated normal ends at 2.3 of its standard deviations
        assert np.abs(values).max() > 3 * expected, name


def test_a_kernel_drawn_in_a_row_is_flaxs():
    key, shape = jax.random.key(0), (3, 3, 5, 7)
    theirs = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")(key, shape, jnp.float32)
    np.testing.assert_array_equal(he_normal(key, shape, jnp.float32, inputs=45), theirs)


@pytest.mark.parametrize("twin", TWINS)
def test_biases_are_0_and_norms_neutral(twin):
    arrays = TWINS[twin](WIDE)
    for name, shape, _ in parameters(WIDE):
        if len(shape) == 4:
            continue
        neutral = 1 if name.endswith("running_var") or name.endswith(".weight") else 0
        np.testing.assert_array_equal(arrays[name], np.full(shape, neutral), err_msg=name)


def test_other_keys_give_other_weights():
    init, _ = unet_jax.functional(UNetConfig(widths=(6, 8)))
    one, again, other = (init(jax.random.key(seed))[0]["out.weight"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_no_two_kernels_of_a_net_are_equal():
    params, _ = unet_jax.functional(UNetConfig(widths=(6, 6, 6))).init(jax.random.key(0))
    seen = [a.tobytes() for n, a in params.items() if n.endswith("weight")]
    assert len(set(seen)) == len(seen)
