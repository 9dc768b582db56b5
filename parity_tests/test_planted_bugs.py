"""Bugs that a port can have, planted one by one; the check named beside each must catch it.

`EXACT` is the exact proof; `FLOAT64`, for nets in which numbers are rounded, is the comparison in
float64. The healthy net passes the same check in the same test.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from parity_tests.float64 import problems
from unet_jax import layers, model
from unet_jax.layers import BatchNorm, Dropout, GroupNorm, UpConv
from unet_parity import exact
from unet_spec import UNetConfig, layout

EXACT, FLOAT64 = "exact", "float64"
FP32 = exact.RUNGS[0]

SAME = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10), groups=2)
VALID = replace(SAME, padding="valid")
NEAREST = replace(SAME, up="nearest")
BATCH = replace(SAME, norm="batch")
GROUP = replace(SAME, norm="group")
EQUAL = replace(SAME, widths=(6, 6, 6, 6))


class Bug(NamedTuple):
    """A bug, the net that it shows in, who must catch it, and in which mode."""

    plant: Callable[[pytest.MonkeyPatch], Any]
    config: UNetConfig
    catcher: str = EXACT
    train: bool = True


def around(owner: Any, name: str, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], Any]:
    """Plants `wrong(right, *args)` in place of `right(*args)`."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))

    return plant


def constant(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], Any]:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def axes(kind: str, wrong: tuple[int, ...]) -> Callable[[pytest.MonkeyPatch], Any]:
    return lambda monkeypatch: monkeypatch.setitem(layout._AXES, kind, wrong)


def exchanged(first: str, second: str) -> Callable[[pytest.MonkeyPatch], Any]:
    """Two modules that swap their arrays, on the way in and on the way out."""
    names = {first: second, second: first}
    pattern = re.compile(rf"^({re.escape(first)}|{re.escape(second)})(?=\.)")
    module = importlib.import_module("unet_jax.functional")
    return around(module, "_name", lambda right, path: pattern.sub(
        lambda match: names[match[0]], right(path)
    ))  # fmt: skip


def windows(x):
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def mirrored_windows(right, self, x):
    y = right(self, x)
    return windows(y)[:, :, ::-1, :, ::-1].reshape(y.shape)


def mirrored_kernel(right, parameter, tensor):
    return right(parameter, tensor[..., ::-1, ::-1] if parameter.kind == "conv" else tensor)


def padded_off_by_one(right, *args, padding=0, **kwargs):
    return right(*args, padding=[(2, 0), (2, 0)] if padding else 0, **kwargs)


def without_relu_at_neck(right, in_channels, out_channels, *args):
    *block, act = right(in_channels, out_channels, *args)
    return [*block, (lambda x: x) if in_channels == out_channels == SAME.widths[-1] else act]


def skip_after_pool(right, self, *args):
    _, pooled = right(self, *args)
    return layers.interpolated(pooled, mode="nearest"), pooled


def interleaved_groups(right, self, x):
    """Groups over every other channel instead of over neighbours."""
    c = x.shape[-1]
    order = jnp.arange(c).reshape(c // self.groups, self.groups).T.ravel()
    back = jnp.argsort(order)
    weight, bias = self.weight[...], self.bias[...]
    self.weight[...], self.bias[...] = weight[order], bias[order]
    y = right(self, x[..., order])[..., back]
    self.weight[...], self.bias[...] = weight, bias
    return y


def unbiased_moments(right, x, over):
    mean, var = right(x, over)
    count = x.size // mean.size
    return mean, var * (count / (count - 1))


def running_in_training(right, self, x):
    self.use_running_average = True
    return right(self, x)


def biased_tracking(right, self, mean, var, *, count):
    return right(self, mean, var * ((count - 1) / count), count=count)


def uncounted(right, self, *args, count):
    before = self.num_batches_tracked[...]
    right(self, *args, count=count)
    self.num_batches_tracked[...] = before


def unscaled_dropout(right, self, x, keep=None, rngs=None):
    return right(self, x, keep, rngs) * (1 if self.deterministic else 1 - self.rate)


ALIGN_CORNERS = {"bilinear": "bilinear_aligned", "bilinear_aligned": "bilinear"}

BUGS = {
    # layouts and names
    "convolution_kernel_transposed": Bug(axes("conv", (3, 2, 1, 0)), SAME),
    "convolution_kernel_mirrored": Bug(around(layout, "_to_jax", mirrored_kernel), SAME),
    "up_convolution_mirrored": Bug(around(UpConv, "__call__", mirrored_windows), SAME),
    "up_convolution_kernel_transposed": Bug(axes("up_conv", (3, 2, 0, 1)), SAME),
    "up_convolution_in_and_out_swapped": Bug(axes("up_conv", (2, 3, 1, 0)), EQUAL),
    "levels_exchanged": Bug(exchanged("down_2", "down_3"), EQUAL),
    "last_two_up_convolutions_exchanged": Bug(exchanged("up_2.up", "up_3.up"), EQUAL),
    # wiring
    "concat_swapped": Bug(around(model, "fitted", lambda r, *a: r(*a)[::-1]), SAME),
    "crop_off_by_one": Bug(
        around(model, "fitted", lambda r, x, skip, c: r(x, jnp.roll(skip, 1, 1), c)), VALID
    ),
    "padding_off_by_one": Bug(around(layers, "conv", padded_off_by_one), SAME),
    "relu_missing_at_the_neck": Bug(around(model, "conv_block", without_relu_at_neck), SAME),
    "relu_gradient_split_at_zero": Bug(
        constant(layers, "activation", lambda x, *, slope: jnp.maximum(x, 0)), SAME
    ),
    "up_convolution_bias_missing": Bug(
        around(UpConv, "__call__", lambda r, self, x: r(self, x) - self.bias[...]), SAME
    ),
    "skip_taken_after_the_pool": Bug(around(model.Down, "__call__", skip_after_pool), SAME),
    "pool_splits_ties": Bug(
        constant(model, "max_pool", lambda x: windows(x).max(axis=(2, 4))), SAME
    ),
    "pool_averages": Bug(constant(model, "max_pool", lambda x: windows(x).mean(axis=(2, 4))), SAME),
    "nearest_off_by_one": Bug(
        around(layers, "interpolated", lambda r, x, *, mode: jnp.roll(r(x, mode=mode), 1, 2)),
        NEAREST,
    ),
    # what rounds
    "align_corners_flipped": Bug(
        around(layers, "interpolated", lambda r, x, *, mode: r(x, mode=ALIGN_CORNERS[mode])),
        replace(SAME, up="bilinear"),
        FLOAT64,
    ),
    "align_corners_flipped_back": Bug(
        around(layers, "interpolated", lambda r, x, *, mode: r(x, mode=ALIGN_CORNERS[mode])),
        replace(SAME, up="bilinear_aligned"),
        FLOAT64,
    ),
    "leaky_slope_of_another_framework": Bug(
        around(layers, "activation", lambda r, x, *, slope: r(x, slope=0.3)),
        replace(SAME, activation="leaky_relu"),
        FLOAT64,
    ),
    "stale_batch_statistics": Bug(
        constant(BatchNorm, "_track", lambda *a, **k: None), BATCH, FLOAT64
    ),
    "running_statistics_in_training": Bug(
        around(BatchNorm, "__call__", running_in_training), BATCH, FLOAT64
    ),
    "batch_statistics_in_inference": Bug(
        constant(layers, "BatchNorm", lambda c, n: GroupNorm(c, c, n)), BATCH, FLOAT64, train=False
    ),
    "unbiased_variance_in_batch_norm": Bug(
        around(layers, "moments", unbiased_moments), BATCH, FLOAT64
    ),
    "unbiased_variance_in_group_norm": Bug(
        around(layers, "moments", unbiased_moments), GROUP, FLOAT64
    ),
    "biased_variance_tracked": Bug(around(BatchNorm, "_track", biased_tracking), BATCH, FLOAT64),
    "batches_not_counted": Bug(around(BatchNorm, "_track", uncounted), BATCH, FLOAT64),
    "momentum_not_complemented": Bug(constant(layers, "MOMENTUM", 0.9), BATCH, FLOAT64),
    "eps_of_flax_in_group_norm": Bug(constant(layers, "EPS", 1e-6), GROUP, FLOAT64),
    "eps_of_flax_in_batch_norm": Bug(constant(layers, "EPS", 1e-6), BATCH, FLOAT64),
    "groups_interleaved": Bug(around(GroupNorm, "__call__", interleaved_groups), GROUP, FLOAT64),
    "dropout_not_scaled": Bug(
        around(Dropout, "__call__", unscaled_dropout), replace(SAME, dropout=0.3), FLOAT64
    ),
}


certified = lru_cache(exact.find_case)


@lru_cache
def healthy(config: UNetConfig, catcher: str, train: bool) -> bool:
    return not found(config, catcher, train)


def found(config: UNetConfig, catcher: str, train: bool) -> bool:
    """Whether the check finds a difference between the twins."""
    if catcher == FLOAT64:
        return bool(problems(config, 12, 20, train=train))
    case, certificate = certified(config, FP32)
    row = exact.compare(config, case, FP32, certificate)
    assert not row.refused
    return not row.holds


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught_and_the_healthy_net_passes(name, monkeypatch):
    bug = BUGS[name]
    check = bug.config, bug.catcher, bug.train
    assert healthy(*check), "the healthy net does not pass"
    bug.plant(monkeypatch)
    assert found(*check), f"{name} went unnoticed"
