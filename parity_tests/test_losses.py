"""The losses against torch in float64; the map of weights against its formula, pixel by pixel."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unet_spec import InputError
from unet_train.config import LossConfig
from unet_train.input.border_weights import border_weights, label_objects
from unet_train.losses import compute_counts, loss

ROUNDING = 1e-14  # in float64; seen 1.3e-15 of the largest value
SHAPE, CLASSES = (4, 5, 7), 3
WEIGHTS = (0.5, 2.0, 3.0)

CASES = {
    "cross-entropy": LossConfig(),
    "cross-entropy-class-weights": LossConfig(class_weights=WEIGHTS),
    "cross-entropy-ignore": LossConfig(class_weights=WEIGHTS, ignore_index=255),
    "cross-entropy-ignore-a-class": LossConfig(ignore_index=1),
    "dice": LossConfig(cross_entropy=0, dice=1),
    "dice-ignore": LossConfig(cross_entropy=0, dice=1, ignore_index=255),
    "focal": LossConfig(cross_entropy=0, focal=1),
    "focal-weak": LossConfig(cross_entropy=0, focal=1, focal_gamma=0.3),
    "focal-ignore": LossConfig(cross_entropy=0, focal=1, class_weights=WEIGHTS, ignore_index=255),
    "sum": LossConfig(
        cross_entropy=0.7, dice=1.3, focal=0.4, class_weights=WEIGHTS, ignore_index=255
    ),
}
cases = pytest.mark.parametrize("config", CASES.values(), ids=CASES)
maps = pytest.mark.parametrize("mapped", [False, True], ids=["no-map", "map"])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _batch(config, *, mapped=False, scale=3.0):
    """Logits, truth and map; a part of the pixels is ignored, and the whole of image 2."""
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(*SHAPE, CLASSES))
    truth = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
    if config.ignore_index is not None:
        truth[rng.random(SHAPE) < 0.3] = truth[2] = config.ignore_index
    return logits, truth, rng.exponential(2.0, SHAPE) if mapped else None


def _ours(logits, truth, weight, config, over=None, output="logits"):
    truth, weight = jax.tree.map(jnp.asarray, (truth, weight))
    value, gradient = jax.value_and_grad(
        lambda logits: loss(logits, truth, weight, config=config, output=output, over=over)
    )(jnp.asarray(logits))
    return np.asarray(value), np.asarray(gradient)


def _torchs(logits, truth, weight, config):
    """The same in torch, written out by hand."""
    variable = torch.tensor(logits, requires_grad=True)
    log_p = variable.log_softmax(-1).movedim(-1, 1)
    target = torch.tensor(truth).long()
    counted = target != (-100 if config.ignore_index is None else config.ignore_index)
    classes = logits.shape[-1]
    by_class = torch.tensor(config.class_weights or (1.0,) * classes, dtype=torch.float64)
    target = torch.where(counted, target, 0)
    nll = -log_p.gather(1, target[:, None])[:, 0]
    alpha = by_class[target] * counted
    total = config.cross_entropy * _torchs_mean(nll, alpha, weight, counted)
    focal = alpha * (1 - torch.exp(-nll)) ** config.focal_gamma * nll
    total = total + config.focal * focal.sum() / alpha.sum()
    total = total + config.dice * _torchs_dice(log_p.exp(), target, counted)
    return total.item(), torch.autograd.grad(total, variable)[0].numpy()


def _torchs_mean(nll, alpha, weight, counted):
    pixels = alpha if weight is None else alpha + torch.tensor(weight) * counted
    return (pixels * nll).sum() / pixels.sum()


def _torchs_dice(p, target, counted):
    images = []
    for i in range(len(p)):
        for k in range(1, p.shape[1]):
            found, true = p[i, k][counted[i]], (target[i] == k)[counted[i]]
            both, total = (found * true).sum(), found.sum() + true.sum()
            if counted[i].any():
                images.append(1 - (2 * both + 1) / (total + 1))
    return sum(images) / len(images)


def _assert_equal(ours, theirs):
    for name, one, other in zip(("loss", "gradient"), ours, theirs, strict=True):
        assert np.shape(one) == np.shape(other), name
        worst, scale = np.abs(one - other).max(), np.abs(other).max()
        assert scale > 0, f"{name}: zeros prove nothing"
        assert worst <= ROUNDING * scale, (name, worst, scale)


@maps
@cases
def test_loss_and_gradient_equal_torchs(config, mapped):
    logits, truth, weight = _batch(config, mapped=mapped)
    _assert_equal(_ours(logits, truth, weight, config), _torchs(logits, truth, weight, config))


@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["plain", "class-weights"])
@pytest.mark.parametrize("ignored", [None, 255], ids=["all", "ignore"])
def test_cross_entropy_equals_torchs_own(weights, ignored):
    config = LossConfig(class_weights=weights, ignore_index=ignored)
    logits, truth, _ = _batch(config)
    variable = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        variable.movedim(-1, 1),
        torch.tensor(truth).long(),
        weight=torch.tensor(weights, dtype=torch.float64) if weights else None,
        ignore_index=-100 if ignored is None else ignored,
    )
    gradient = torch.autograd.grad(theirs, variable)[0].numpy()
    _assert_equal(_ours(logits, truth, None, config), (theirs.item(), gradient))


@maps
@cases
def test_losses_of_parts_add_up_to_that_of_the_whole(config, mapped):
    logits, truth, weight = _batch(config, mapped=mapped)
    over = compute_counts(*jax.tree.map(jnp.asarray, (truth, weight)), config=config)
    parts = [
        _ours(logits[part], truth[part], None if weight is None else weight[part], config, over)
        for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4))
    ]
    summed = sum(value for value, _ in parts), np.concatenate([slope for _, slope in parts])
    _assert_equal(summed, _ours(logits, truth, weight, config))


def _single(case, *, mapped=False):
    """Logits of one channel with truth, map and config of two classes."""
    weights = case.class_weights[:2]
    config = replace(case, class_weights=weights)
    logits, truth, weight = _batch(config, mapped=mapped)
    return logits[..., :1], np.where(truth == 2, 1, truth), weight, config


@maps
@cases
def test_a_single_channel_has_the_loss_of_two_classes_of_which_one_has_the_logit_0(config, mapped):
    single, truth, weight, config = _single(config, mapped=mapped)
    both = np.concatenate([np.zeros_like(single), single], -1)
    value, gradient = _torchs(both, truth, weight, config)
    _assert_equal(_ours(single, truth, weight, config), (value, gradient[..., 1:]))


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
@pytest.mark.parametrize("weights", [(), WEIGHTS[:2]], ids=["plain", "class-weights"])
def test_cross_entropy_of_a_single_channel_is_torchs_binary_one(weights, output):
    logits, truth, _, config = _single(LossConfig(class_weights=weights))
    by_pixel = torch.tensor(np.array(weights or (1.0, 1.0))[truth][..., None])
    variable = torch.tensor(logits, requires_grad=True)
    target = torch.tensor(truth[..., None], dtype=torch.float64)
    summed = torch.nn.BCEWithLogitsLoss(weight=by_pixel, reduction="sum")(variable, target)
    theirs = summed / by_pixel.sum()
    gradient = torch.autograd.grad(theirs, variable)[0].numpy()
    ours = _ours(logits, truth, None, config, output=output)
    _assert_equal(ours, (theirs.item(), gradient))


def _torchs_by_channel(logits, truth, weight, config):
    """The losses of classes that are asked one by one, written out by hand in torch."""
    variable = torch.tensor(logits, requires_grad=True)
    target = torch.tensor(truth).long()
    counted = target != (-100 if config.ignore_index is None else config.ignore_index)
    by_class = torch.tensor(config.class_weights or (1.0,) * CLASSES, dtype=torch.float64)
    target = torch.where(counted, target, 0)
    hot = torch.nn.functional.one_hot(target, CLASSES).double()
    entropy = torch.nn.BCEWithLogitsLoss(reduction="none")(variable, hot)
    alpha = by_class[target] * counted
    total = config.cross_entropy * _torchs_mean(entropy.mean(-1), alpha, weight, counted)
    focal = ((1 - torch.exp(-entropy)) ** config.focal_gamma * entropy).mean(-1)
    total = total + config.focal * (alpha * focal).sum() / alpha.sum()
    p = variable.sigmoid().movedim(-1, 1)
    total = total + config.dice * _torchs_dice(p, target, counted)
    return total.item(), torch.autograd.grad(total, variable)[0].numpy()


@maps
@cases
def test_losses_by_sigmoid_equal_torchs(config, mapped):
    logits, truth, weight = _batch(config, mapped=mapped)
    ours = _ours(logits, truth, weight, config, output="sigmoid")
    _assert_equal(ours, _torchs_by_channel(logits, truth, weight, config))


def test_cross_entropy_by_sigmoid_is_torchs_binary_mean_against_the_one_hot_mask():
    logits, truth, _ = _batch(LossConfig())
    variable = torch.tensor(logits, requires_grad=True)
    hot = torch.nn.functional.one_hot(torch.tensor(truth).long(), CLASSES).double()
    theirs = torch.nn.BCEWithLogitsLoss()(variable, hot)
    gradient = torch.autograd.grad(theirs, variable)[0].numpy()
    ours = _ours(logits, truth, None, LossConfig(), output="sigmoid")
    _assert_equal(ours, (theirs.item(), gradient))


def test_softmax_of_the_original_is_the_softmax_of_the_losses():
    logits, truth, weight = _batch(CASES["sum"], mapped=True)
    ours = _ours(logits, truth, weight, CASES["sum"], output="softmax")
    for one, other in zip(ours, _ours(logits, truth, weight, CASES["sum"]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["plain", "class-weights"])
def test_focal_loss_with_gamma_0_is_cross_entropy(weights):
    entropy = LossConfig(class_weights=weights, ignore_index=255)
    focal = replace(entropy, cross_entropy=0, focal=1, focal_gamma=0)
    logits, truth, _ = _batch(entropy)
    _assert_equal(_ours(logits, truth, None, focal), _ours(logits, truth, None, entropy))


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@cases
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_loss_and_gradient_are_finite_at_extreme_logits(config, dtype, output):
    logits, truth, _ = _batch(config)
    extreme = np.where(logits > 0, 1e4, -1e4).astype(dtype)
    value, gradient = _ours(extreme, truth, None, config, output=output)
    assert np.isfinite(value), value
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_loss_of_a_certain_and_right_pixel_is_0_with_slope_0(gamma):
    config = LossConfig(cross_entropy=0, focal=1, focal_gamma=gamma)
    truth = np.zeros((1, 2, 2), np.uint8)
    logits = np.zeros((1, 2, 2, CLASSES))
    logits[..., 0] = 1e4
    value, gradient = _ours(logits, truth, None, config)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@maps
@cases
def test_a_batch_in_which_no_pixel_counts_has_loss_0_and_gradient_0(config, mapped):
    config = replace(config, ignore_index=255)
    logits, truth, weight = _batch(config, mapped=mapped)
    value, gradient = _ours(logits, np.full_like(truth, 255), weight, config)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@cases
def test_ignored_pixels_count_nothing(config):
    config = replace(config, ignore_index=255)
    logits, truth, weight = _batch(config, mapped=True)
    ignored = truth == 255
    value, gradient = _ours(logits, truth, weight, config)
    np.testing.assert_array_equal(gradient[ignored], 0)
    logits[ignored] += np.arange(CLASSES)
    weight[ignored] += 1
    assert _ours(logits, truth, weight, config)[0] == value


def test_a_map_that_is_equal_everywhere_changes_nothing():
    logits, truth, _ = _batch(LossConfig())
    _assert_equal(
        _ours(logits, truth, np.full(SHAPE, 10.0), LossConfig()),
        _ours(logits, truth, None, LossConfig()),
    )


# of the loss; seen 2.1e-7, and 1e-3 where the softmax itself was in bfloat16
FLOAT32_LOSS = 1e-6


@cases
def test_bfloat16_logits_have_a_loss_in_float32(config):
    logits, truth, _ = _batch(config)
    halved = jnp.asarray(logits, jnp.bfloat16)
    exact = loss(halved.astype(jnp.float64), jnp.asarray(truth), config=config)
    with jax.enable_x64(False):
        ours = loss(halved, jnp.asarray(truth), config=config)
    assert ours.dtype == jnp.float32
    assert abs(float(ours) - float(exact)) <= FLOAT32_LOSS * float(exact)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_no_loss_gathers_or_scatters(output):
    logits, truth, weight = _batch(CASES["sum"], mapped=True)
    slope = jax.grad(lambda z, t, w: loss(z, t, w, config=CASES["sum"], output=output))
    text = jax.jit(slope).lower(logits, truth, weight).as_text()
    assert "exponential" in text
    assert "gather" not in text
    assert "scatter" not in text


def test_class_weights_of_another_number_are_refused():
    logits, truth, _ = _batch(LossConfig())
    with pytest.raises(InputError, match=r"class_weights needs 3 values"):
        _ours(logits, truth, None, LossConfig(class_weights=(1.0, 2.0)))


def _border_weights(objects, w0, sigma_px):
    """The formula as printed, pixel by pixel and object by object."""
    places = {n: np.argwhere(objects == n) for n in np.unique(objects) if n}
    weights = np.zeros(objects.shape)
    for at in np.argwhere(objects == 0):
        nearest = sorted(np.sqrt(((at - p) ** 2).sum(1).min()) for p in places.values())
        if len(nearest) > 1:
            weights[tuple(at)] = w0 * np.exp(-((nearest[0] + nearest[1]) ** 2) / (2 * sigma_px**2))
    return weights


def _assert_weights(objects, *, w0=10.0, sigma_px=5.0):
    ours = border_weights(objects, w0=w0, sigma_px=sigma_px)
    literal = _border_weights(objects, w0, sigma_px)
    assert ours.dtype == np.float32
    assert ours.shape == objects.shape
    half = 2.0**-24  # float32's rounding, and what lies beyond the reach
    np.testing.assert_allclose(ours, literal, rtol=half, atol=half * w0)


def _maps():
    """Maps of a few rectangles, the later over the earlier, of far and near numbers."""
    whole, frame = np.zeros((9, 12), np.int32), np.zeros((40, 70), np.int32)
    two, touching = whole.copy(), whole.copy()
    two[2:5, 1:4], two[3:6, 7:10] = 1, 2_000_000_000
    touching[2:5, 3:6], touching[2:5, 6:8] = 5, 2
    frame[:3, :2], frame[-1, -4:], frame[18:22, 30:33] = 1, 2, 3
    scattered = whole.copy()
    scattered[0, 0] = scattered[8, 11] = 4
    scattered[4, 6] = 7
    row = np.zeros((3, 70), np.int32)
    row[1, [2, 10, 25, 52]] = 1, 2, 3, 4  # the widest gap is just within the reach of 5 px
    one = np.where(two == 1, 1, 0)
    return {
        "two": two, "touching": touching, "at-the-border": frame, "one-in-two-places": scattered,
        "row": row, "one": one, "none": whole, "no-background": whole + 3,
    }  # fmt: skip


@pytest.mark.parametrize("sigma_px", [0.7, 5.0], ids=["narrow", "papers"])
@pytest.mark.parametrize("objects", _maps().values(), ids=_maps())
def test_border_weights_equal_the_papers_formula(objects, sigma_px):
    _assert_weights(objects, sigma_px=sigma_px)


@pytest.mark.parametrize("name", ["one", "none", "no-background"])
def test_border_weights_are_0_without_two_objects_and_a_background(name):
    np.testing.assert_array_equal(border_weights(_maps()[name], w0=10.0, sigma_px=5.0), 0)
    assert border_weights(_maps()["touching"], w0=10.0, sigma_px=5.0).max() > 5


@settings(max_examples=60)
@given(
    objects=arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 14)),
                   elements=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3, 900])),
    w0=st.floats(0.1, 100), sigma_px=st.floats(0.3, 8),
)  # fmt: skip
def test_border_weights_equal_the_papers_formula_on_any_map(objects, w0, sigma_px):
    _assert_weights(objects, w0=w0, sigma_px=sigma_px)


def test_border_weight_between_two_pixels_is_known():
    objects = np.array([[1, 0, 2]])
    np.testing.assert_allclose(
        border_weights(objects, w0=10.0, sigma_px=5.0),
        [[0, 10 * np.exp(-4 / 50), 0]],
        rtol=2.0**-24,
    )


def test_objects_hang_together_by_edges_within_a_class():
    mask = np.array([[1, 1, 0, 2], [0, 0, 1, 2], [255, 0, 2, 0]], np.uint8)
    numbers = label_objects(mask, ignore_index=255)
    np.testing.assert_array_equal(numbers, [[1, 1, 0, 3], [0, 0, 2, 3], [0, 0, 4, 0]])
    assert numbers.dtype == np.int32


def test_objects_of_a_foreground_are_those_of_its_mask():
    mask = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1]], np.uint8)
    np.testing.assert_array_equal(label_objects(mask == 1), label_objects(mask))
    assert label_objects(mask).max() == 3
    assert not label_objects(np.zeros((3, 4), np.uint8)).any()
