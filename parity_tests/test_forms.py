"""Every form of an operation gives what torch gives, on whatever platform it is meant for."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parity_tests.planted import around
from parity_tests.test_layers import assert_both_equal
from unet_jax import Numerics, forms, functional, layers
from unet_parity import exact, integer_cases, oracle
from unet_parity.comparison import Comparer, Numbers
from unet_spec import UNetConfig

# 8, 4 and 2 columns are folded on the three levels, at the sizes of WIDE_PX
FOLDED = UNetConfig(in_channels=3, classes=4, widths=(16, 32, 64))
WIDE_PX = (12, 32)
VALID = replace(FOLDED, widths=(64, 64), padding="valid")
VALID_PX = (18, 22)
PLATFORMS = pytest.mark.parametrize("platform", forms.PLATFORMS)


@pytest.fixture
def kernels(monkeypatch):
    """The counts of columns of all kernels that were folded."""
    counts = []

    def note(right, kernel, count, *args, **kwargs):
        counts.append(count)
        return right(kernel, count, *args, **kwargs)

    around(forms, "fold_kernel", note)(monkeypatch)
    return counts


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


def torch_gradients(output, cotangent, *leaves):
    """The gradients of leaves; the cotangent is in JAX's layout."""
    arriving = torch.tensor(np.asarray(cotangent).transpose(0, 3, 1, 2))
    return [gradient.numpy() for gradient in torch.autograd.grad(output, leaves, arriving)]


def lower(function, *arrays, platform):
    lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,))
    return str(lowered.as_text())


# ---- operations


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 4])
def test_unfold_undoes_fold(count, parts):
    x = jnp.arange(2.0 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    folded = forms.fold(x, count, parts)
    np.testing.assert_array_equal(forms.unfold(folded, count, parts), x)
    # column 1 of the first part stands right behind column 0 of it
    first = 12 // parts
    np.testing.assert_array_equal(folded[0, 0, 0, first : 2 * first], x[0, 0, 1, :first])


@pytest.mark.parametrize(
    ("in_", "out", "size", "pad", "folded"),
    [
        (1, 64, 3, 1, [2]), (64, 64, 3, 1, [2]), (128, 64, 3, 1, [2]), (3, 32, 3, 1, [4]),
        (64, 32, 3, 1, [4]), (96, 32, 3, 1, [4]), (16, 16, 3, 1, [8]), (64, 64, 3, 0, [2]),
        (3, 32, 3, 0, []), (64, 2, 1, 0, [2]), (64, 128, 3, 1, []), (3, 24, 3, 1, []),
    ],
)  # fmt: skip
@PLATFORMS
def test_convolution_equals_torch_on_integers(kernels, platform, in_, out, size, pad, folded):
    rng = np.random.default_rng(0)
    weight, x = integers(rng, out, in_, size, size), integers(rng, 2, in_, 5, 16)
    kernel = jnp.asarray(weight.transpose(2, 3, 1, 0))

    def ours(x, kernel):
        return forms.convolve(
            x, kernel, (1, 1), ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip

    with forms.force_forms(platform):
        assert_both_equal(
            lambda x: F.conv2d(x, torch.tensor(weight), padding=pad),
            partial(ours, kernel=kernel),
            x,
        )
        assert sorted(set(kernels)) == (folded if platform == "tpu" else [])
        image = jnp.asarray(x.transpose(0, 2, 3, 1))
        y, pull = jax.vjp(partial(ours, image), kernel)
        cotangent = jnp.asarray(integers(rng, *y.shape))
        (gradient,) = pull(cotangent)
    leaf = torch.tensor(weight, requires_grad=True)
    (theirs,) = torch_gradients(F.conv2d(torch.tensor(x), leaf, padding=pad), cotangent, leaf)
    np.testing.assert_array_equal(gradient, theirs.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("size", [(4, 16), (5, 16), (4, 17), (5, 6), (2, 2)])
@pytest.mark.parametrize("channels", [64, 32, 16, 3])
@PLATFORMS
def test_pool_gives_ties_and_nan_where_torch_does(platform, channels, size):
    rng = np.random.default_rng(0)
    few = rng.integers(-1, 2, (2, channels, *size)).astype(np.float32)
    strange = rng.choice([np.nan, -np.inf, np.inf, -1, 0, 1], few.shape).astype(np.float32)
    with forms.force_forms(platform):
        for x in (few, strange):
            assert_both_equal(torch.nn.MaxPool2d(2), forms.max_pool, x)


@pytest.mark.parametrize(("in_", "out"), [(128, 64), (64, 32), (32, 16), (5, 3), (256, 128)])
@PLATFORMS
def test_up_convolution_equals_torch_on_integers(platform, in_, out):
    rng = np.random.default_rng(0)
    weight, bias = integers(rng, in_, out, 2, 2), integers(rng, out)
    x = integers(rng, 2, in_, 3, 8)
    kernel = jnp.asarray(weight.transpose(2, 3, 0, 1))
    with forms.force_forms(platform):
        ours = partial(forms.up_convolve, precision="highest")
        assert_both_equal(
            lambda x: F.conv_transpose2d(x, torch.tensor(weight), torch.tensor(bias), stride=2),
            lambda x: ours(x, kernel, jnp.asarray(bias)), x,
        )  # fmt: skip
        image = jnp.asarray(x.transpose(0, 2, 3, 1))
        y, pull = jax.vjp(partial(ours, image), kernel, jnp.asarray(bias))
        cotangent = jnp.asarray(integers(rng, *y.shape))
        gradients = pull(cotangent)
        _, tangent = jax.jvp(lambda k: ours(image, k, jnp.zeros(out)), (kernel,), (kernel,))
    first, second = (torch.tensor(array, requires_grad=True) for array in (weight, bias))
    output = F.conv_transpose2d(torch.tensor(x), first, second, stride=2)
    theirs = torch_gradients(output, cotangent, first, second)
    np.testing.assert_array_equal(gradients[0], theirs[0].transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(gradients[1], theirs[1])
    # linear in the kernel: its derivative along the kernel is the output without the bias
    np.testing.assert_array_equal(tangent, y - bias)


@PLATFORMS
def test_relu_passes_no_gradient_at_0(platform):
    x = np.array([-2, -0.0, 0.0, 3, -1e-30, 1e-30], np.float32).reshape(1, 1, 2, 3)
    with forms.force_forms(platform):
        assert_both_equal(torch.nn.ReLU(), forms.relu, x)


# ---- moments

SPREADS = [1.0, 1e-2, 1e-4]
"""Of values around 1: float32 has 24 bits, so the squares of the last differ in none of them."""


def moment_errors(x, axes):
    """The largest errors of mean and variance, relative to spread and variance."""
    truth = x.astype(np.float64)
    mean, var = truth.mean(axes, keepdims=True), truth.var(axes, keepdims=True)
    ours_mean, ours_var = (np.asarray(a, np.float64) for a in forms.moments(jnp.asarray(x), axes))
    assert ours_mean.shape == mean.shape
    assert ours_var.shape == var.shape
    return (np.abs(ours_mean - mean) / np.sqrt(var)).max(), (np.abs(ours_var - var) / var).max()


def with_spread(spread, *, slope=0.0):
    """Maps of 64 channels around 1, whose mean changes down the rows by `slope` spreads."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 32, 32, 64)) + slope * np.linspace(-1, 1, 32)[:, None, None]
    return (1 + spread * x).astype(np.float32)


@pytest.mark.parametrize("slope", [0.0, 10.0], ids=["even", "sloping"])
@pytest.mark.parametrize("grouped", [False, True], ids=["batch", "group"])
@pytest.mark.parametrize("spread", SPREADS)
def test_moments_in_one_pass_lose_no_more_than_in_two(optimised, spread, grouped, slope):
    x = with_spread(spread, slope=slope)
    axes = (2, 1, 0)
    if grouped:
        x, axes = x.reshape(2, 32, 32, 8, 8), (2, 1, 4)
    errors = {}
    for platform in forms.PLATFORMS:
        with forms.force_forms(platform):
            errors[platform] = moment_errors(x, axes)
    for ours, theirs in zip(errors["tpu"], errors["cpu"], strict=True):
        # 4 ULP of float32, where the other form has fewer
        assert ours <= max(8 * theirs, 2.0**-21), errors


def test_unshifted_moments_in_one_pass_would_be_noticed(optimised):
    """The same test of E[x^2] - E[x]^2 is red."""

    def unshifted(x, axes):
        mean = x.mean(axes, keepdims=True)
        return mean, jnp.square(x).mean(axes, keepdims=True) - jnp.square(mean)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(forms, "_moments_in_one", unshifted)
        with pytest.raises(AssertionError):
            test_moments_in_one_pass_lose_no_more_than_in_two(None, 1e-2, False, 0.0)


# ---- whole nets


@lru_cache
def certified(config, size):
    return exact.find_case(config, integer_cases.RUNGS[0], size=size)


def prove(config, size):
    case, truth = certified(config, size)
    row = exact.compare_exactly(config, case, integer_cases.RUNGS[0], truth, locate=False)
    assert not row.refused
    return row


@pytest.mark.parametrize(
    ("config", "size"), [(FOLDED, WIDE_PX), (VALID, VALID_PX)], ids=["same", "valid"]
)
def test_forms_of_tpu_are_identical_to_torch_in_every_bit(kernels, config, size):
    with forms.force_forms("tpu"):
        assert prove(config, size).holds
    assert set(kernels) >= ({8, 4, 2} if config is FOLDED else {2})


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_forms_of_tpu_equal_torch_in_float64(norm):
    config = replace(FOLDED, widths=(32, 64), norm=norm, groups=4)
    tensors = oracle.random_tensors(config, seed=1)
    x, cotangent, keep = oracle.random_input(config, seed=0, size=(12, 16))
    with forms.force_forms("tpu"):
        comparer = Comparer(config, train=True)
        assert not comparer.faults(Numbers(tensors, x, cotangent, keep))


def tap_off_by_one(right, kernel, count, parts, before):
    """Kernels of the last of the folded columns stand one column too far to the right."""
    wide, padding = right(kernel, count, parts, before)
    if kernel.shape[1] < 3:
        return wide, padding
    last = wide.shape[3] - kernel.shape[3]
    return wide.at[..., last:].set(jnp.roll(wide[..., last:], wide.shape[2] // count, 2)), padding


def last_of_equals(first, second):
    return jnp.where((second >= first) | (second != second), second, first)


PLANTED = {
    "a folded kernel's tap off by one": around(forms, "fold_kernel", tap_off_by_one),
    "a tie to the last maximum": lambda m: m.setattr(forms, "_first_max", last_of_equals),
    "up-kernel mirrored": around(
        forms, "_spread", lambda r, x, kernel, p: r(x, kernel[::-1, ::-1], p)
    ),
    "up-kernel's columns exchanged": around(
        layers, "up_convolve", lambda r, x, kernel, bias, **k: r(x, kernel[:, ::-1], bias, **k)
    ),
    "parts of a concatenation exchanged": around(
        forms, "fold", lambda r, x, count, parts=1: r(
            jnp.roll(x, x.shape[3] // parts, 3), count, parts
        )
    ),
    "ReLU's gradient everywhere": lambda m: m.setattr(
        forms, "_relu_of_output", lambda x: x + jax.lax.stop_gradient(jnp.maximum(x, 0) - x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_in_a_form_of_tpu_breaks_the_proof(monkeypatch, bug):
    PLANTED[bug](monkeypatch)
    with forms.force_forms("tpu"):
        assert not prove(FOLDED, WIDE_PX).holds


# ---- the choice


def loss_of(config, numerics=Numerics()):
    init, apply = functional(config, numerics=numerics)
    params, stats = init(jax.random.key(0))

    def loss(params, x):
        y = apply(params, x, stats, train=True)[0] if stats else apply(params, x)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    return loss, params, jax.random.normal(jax.random.key(1), (2, *WIDE_PX, config.in_channels))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_lowered_step_holds_the_forms_of_its_platform_alone(norm):
    loss, params, x = loss_of(replace(FOLDED, norm=norm))
    step = jax.grad(loss)
    texts = {platform: lower(step, params, x, platform=platform) for platform in ("cpu", "tpu")}
    for platform, text in texts.items():
        with forms.force_forms(platform):
            forced = lower(lambda *args: jax.grad(loss)(*args), params, x, platform=platform)
        for operation in ("convolution", "dot_general", "select", "reduce"):
            word = f"stablehlo.{operation}"
            assert text.count(word) == forced.count(word), (platform, operation)
    # mirrored kernels of the up-convolution, in the forward pass already
    assert "stablehlo.reverse" in lower(loss, params, x, platform="tpu")
    assert "stablehlo.reverse" not in lower(loss, params, x, platform="cpu")
    assert lower(step, params, x, platform="cuda").count("stablehlo.convolution") == texts[
        "cpu"
    ].count("stablehlo.convolution")


def test_the_choice_is_gone_from_the_compiled_step():
    loss, params, x = loss_of(FOLDED)
    chosen = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text() or ""
    with forms.force_forms("cpu"):
        again = jax.jit(lambda *args: jax.grad(loss)(*args))
        forced = again.lower(params, x).compile().as_text() or ""
    assert "conditional(" not in chosen
    assert "[2,12,4,24]" not in chosen, "the net's input, folded by 8"
    for operation in ("fusion(", "convolution(", "dot(", "copy("):
        assert chosen.count(operation) == forced.count(operation), operation


def test_one_exported_program_serves_several_platforms():
    loss, params, x = loss_of(FOLDED)
    exported = export.export(jax.jit(loss), platforms=("cpu", "tpu"))(params, x)
    assert set(exported.platforms) == {"cpu", "tpu"}
    assert "tensor<2x12x4x24xf32>" in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(params, x), jax.jit(loss)(params, x))


@PLATFORMS
def test_remat_and_vmap_give_the_same_gradients(platform):
    with jax.enable_x64(True), forms.force_forms(platform):
        numerics = Numerics(jnp.float64, jnp.float64, "highest")
        loss, params, x = loss_of(FOLDED, numerics)
        again, _, _ = loss_of(FOLDED, replace(numerics, remat=True))
        x, params = jax.tree.map(lambda a: a.astype(jnp.float64), (x, params))
        truth = jax.jit(jax.grad(loss))(params, x)
        ours = jax.jit(jax.grad(again))(params, x)
        each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x[None])
        for name, value in truth.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-12 * scale)
            np.testing.assert_allclose(each[name][0], value, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)], ids=["data", "data_and_rows"])
def test_forms_of_tpu_exchange_no_maps_between_devices(shape, norm):
    # a bias that a norm takes away again would have a gradient of rounding alone
    config = replace(FOLDED, widths=(32, 64), norm=norm, groups=4, bias=norm == "none")
    mesh = Mesh(
        np.array(jax.devices()[:8]).reshape(shape),
        ("data", "rows"),
        axis_types=(AxisType.Auto,) * 2,
    )
    images, everywhere = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data", "rows"), ())
    )
    with jax.enable_x64(True), forms.force_forms("tpu"):
        loss, params, _ = loss_of(config, Numerics(jnp.float64, jnp.float64, "highest"))
        params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3), jnp.float64)
        truth = jax.jit(jax.grad(loss))(params, x)
        step = jax.jit(jax.grad(loss), in_shardings=(everywhere, images), out_shardings=everywhere)
        compiled = step.lower(params, x).compile()
        ours = compiled(jax.device_put(params, everywhere), jax.device_put(x, images))
    text = compiled.as_text() or ""
    assert "all-gather(" not in text
    assert "all-to-all(" not in text
    for name, value in truth.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_derivatives_forward_and_backward_agree_in_every_form(norm):
    with jax.enable_x64(True):
        numerics = Numerics(jnp.float64, jnp.float64, "highest")
        loss, params, x = loss_of(replace(FOLDED, norm=norm), numerics)
        x, params = jax.tree.map(lambda a: a.astype(jnp.float64), (x, params))
        direction = jnp.cos(jnp.arange(x.size, dtype=jnp.float64)).reshape(x.shape)
        slopes = []
        for platform in forms.PLATFORMS:
            with forms.force_forms(platform):
                gradient = jax.jit(jax.grad(lambda x: loss(params, x)))(x)
                along = jax.jit(lambda x: jax.jvp(lambda x: loss(params, x), (x,), (direction,)))
                slopes += [(gradient * direction).sum(), along(x)[1]]
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-12)


def test_a_platform_without_forms_is_refused():
    with pytest.raises(ValueError, match="known are cpu, tpu"), forms.force_forms("gpu"):
        pass
    named_wrong = forms.force_forms("cpu", pool="tpu")
    with pytest.raises(ValueError, match="no operation is called pool"), named_wrong:
        pass
