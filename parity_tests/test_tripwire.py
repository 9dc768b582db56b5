"""The tripwire computes a step again, outside of what was compiled, and finds what that found."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests.tiny import TINY
from unet_spec import UNetConfig
from unet_spec.recipe import Optimizer
from unet_train.check.nonfinite import explain_nonfinite
from unet_train.config import DataConfig, MeshConfig, TrainConfig
from unet_train.input.crops import Batch
from unet_train.step import init_state, update_state

CONFIG = TrainConfig(
    net=UNetConfig(widths=(4, 6), dropout=0.5),
    data=DataConfig(batch=4, crop_px=4, synthetic=4),
    mesh=MeshConfig(data=1),
)
NAMES = ["a.png", "b.png", "c.png", "d.png"]


def batch():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 4, 4, 1)), jnp.float32)
    return Batch(x, jnp.asarray(rng.integers(0, 2, (4, 4, 4)), jnp.uint8), None)


def on_the_edge():
    """A state whose neck gives ones, of which `up_1.up` makes too much where dropout leaves all
    six of a pixel: 6 * 2 * 3e37 is more than float32's 3.4e38, 5 * 2 * 3e37 is not."""
    state = init_state(CONFIG)
    params = dict(state.params)
    params["neck.conv.2.weight"] = jnp.zeros((3, 3, 6, 6))
    params["neck.conv.2.bias"] = jnp.ones(6)
    params["up_1.up.weight"] = jnp.full((2, 2, 6, 4), 3e37)
    params["up_1.conv.conv.0.weight"] *= 1e-37
    return state._replace(params=params)


def test_the_tripwire_drops_what_each_part_of_the_step_drops():
    config, state = replace(CONFIG, accumulate=2), on_the_edge()
    step = jax.jit(update_state, static_argnums=0)
    told, finite = [], []
    for number in range(6):
        state = state._replace(step=jnp.asarray(number, jnp.int32))
        finite.append(bool(np.isfinite(step(config, state, batch())[1].loss)))
        told.append("up_1.up is the first" not in explain_nonfinite(config, state, batch(), NAMES))
    assert told == finite
    assert 0 < sum(finite) < len(finite)


@pytest.mark.parametrize("image", range(4))
def test_the_tripwire_names_the_image_of_a_part(image):
    config, state, seen = replace(CONFIG, accumulate=2), init_state(CONFIG), batch()
    weight = jnp.full((3, 3, 1, 4), 1e30)
    state = state._replace(params={**state.params, "down_1.conv.conv.0.weight": weight})
    seen = seen._replace(x=seen.x.at[image].set(1e30))
    told = explain_nonfinite(config, state, seen, NAMES)
    assert told == (
        "down_1.conv.conv.0 is the first module whose output is not finite, in " + NAMES[image]
    )


PLAIN = replace(TINY, net=UNetConfig(widths=(4, 6)))


def infected(where):
    """(state, batch) of PLAIN in which something will not be finite."""
    state = init_state(PLAIN)
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
    if where in ("gradient", "its norm"):  # of the first weights: so many times what comes back
        times = 1e37 if where == "gradient" else 1e25
        x = times * x
        factors = {"down_1.conv.conv.0.weight": 1 / times, "out.weight": 1e6}
        params = {name: a * factors.get(name, 1) for name, a in state.params.items()}
        state = state._replace(params=params)
    if where == "update":  # no gradient reaches what lies before these zeros
        state = state._replace(
            params={**state.params, "out.weight": jnp.zeros_like(state.params["out.weight"])}
        )
    if where == "norm of updates":
        state = state._replace(optimizer=state.optimizer._replace(lr=jnp.asarray(1e25)))
    return state, Batch(x, truth, None)


def configured(where):
    """PLAIN, for an update with an optimizer that divides by the gradient's size alone."""
    return replace(PLAIN, optimizer=Optimizer("adam", eps=0.0)) if where == "update" else PLAIN


@pytest.mark.parametrize(
    "where",
    ["module", "loss", "gradient", "its norm", "update", "norm of updates", "nothing"],
)
def test_a_step_that_makes_something_infinite_changes_nothing(where):
    config, (state, seen) = configured(where), infected(where)
    following, metrics = jax.jit(update_state, static_argnums=0)(config, state, seen)
    assert bool(following.stopped) == (where != "nothing")
    assert np.isfinite(metrics.loss) == (where not in ("module", "loss"))
    if where != "nothing":
        for name, array in state.params.items():
            np.testing.assert_array_equal(following.params[name], array)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("input", "the input made from b.png holds NaN"),
        ("weights", "up_1.up.bias holds NaN"),
        ("module", "down_1.conv.conv.0 is the first module whose output is not finite, in b.png"),
        ("loss", "every module is finite, but the loss is not, in a.png"),
        ("gradient", "output is finite, but the gradient of down_1.conv.conv.0.weight is not"),
        ("update", "gradients are finite, but the update of down_1.conv.conv.0.weight"),
        ("its norm", "all gradients are finite, but so large that their norm is not"),
        ("norm of updates", "all updates are finite, but so large that their norm is not"),
        ("nothing", "outside of the compiled step every module, gradient and update is finite"),
    ],
)
def test_the_tripwire_names_module_and_image(where, told):
    state, batch = infected(where)
    assert told in explain_nonfinite(configured(where), state, batch, ["a.png", "b.png"])
