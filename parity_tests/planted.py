"""Bugs that a port can have, planted one by one in JAX's net.

`EXACT` bugs must be caught by the exact proof; `FLOAT64` bugs, in nets in which numbers are
rounded, by the comparison in float64; `FLOAT32` bugs, which float64 does not have, by the errors
in float32; `STRUCTURE` bugs by names and shapes. Each names the module that it was planted in.
`python -m parity_tests.planted` writes the table in docs/parity.md.
"""

import importlib
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from unet_jax import forms, layers, model
from unet_jax.layers import BatchNorm, Dropout, GroupNorm, UpConv
from unet_parity import exact, integer_cases, oracle, verify
from unet_parity.comparison import Comparer, Numbers, compare_twins
from unet_parity.differences import module_of
from unet_parity.fault import Fault
from unet_spec import UNetConfig, layout

EXACT, FLOAT64, FLOAT32, STRUCTURE = "exact", "float64", "float32", "structure"
FP32 = integer_cases.RUNGS[0]
TABLE = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = "<!-- planted bugs -->", "<!-- end of planted bugs -->"

SAME = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10), groups=2)
VALID = replace(SAME, padding="valid")
NEAREST = replace(SAME, up="nearest")
BATCH = replace(SAME, norm="batch")
GROUP = replace(SAME, norm="group")
EQUAL = replace(SAME, widths=(6, 6, 6, 6))
THREE = replace(SAME, widths=(6, 8), convolutions=3)
ALONE = replace(
    SAME, up="nearest", up_convolution=False, up_widths=(6, 4), up_middle="half",
    concat="skip_first",
)  # fmt: skip
SINGLE = replace(SAME, widths=(6, 8), classes=1, output="sigmoid")


class Bug(NamedTuple):
    """A bug, the module that it sits in, the net that it shows in, and who must catch it."""

    plant: Callable[[pytest.MonkeyPatch], Any]
    module: str
    config: UNetConfig = SAME
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


def called(*numbers):
    """The convolutions of each level that are called, with their activations, by their numbers."""

    def run(right, self, x):
        for number in numbers:
            for layer in self.layers[2 * number : 2 * number + 2]:
                x = layer(x)
        return x

    return around(nnx.Sequential, "__call__", run)


def with_channels(change):
    """Another `UpLevel` for each level of the expanding path."""
    return around(model, "Up", lambda r, channels, *args, **kwargs: r(
        change(channels), *args, **kwargs
    ))  # fmt: skip


def skip_after_pool(right, self, *args):
    _, pooled = right(self, *args)
    return layers.interpolate(pooled, mode="nearest"), pooled


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


def one_weight(name, ulps=1000):
    """One value of a tensor moved by so many units in the last place, on its way into JAX."""

    def wrong(right, parameter, tensor):
        array = right(parameter, tensor)
        if parameter.name == name:
            where = np.unravel_index(np.abs(array).argmax(), array.shape)
            array[where] += ulps * np.spacing(array[where])
        return array

    return around(layout, "_to_jax", wrong)


def changed(name, change):
    """One tensor changed on its way into JAX."""
    return around(
        layout,
        "_to_jax",
        lambda right, p, tensor: right(p, change(tensor) if p.name == name else tensor),
    )


def in_half(tensor):
    return tensor.astype(np.float16).astype(tensor.dtype)


def with_input(change):
    return around(model.UNet, "__call__", lambda r, self, x, *rest: r(self, change(x), *rest))


def with_output(change):
    return around(model.UNet, "__call__", lambda r, self, *rest: change(r(self, *rest)))


def cropped_at_a_corner(right, x, skip, config):
    return x, skip[:, : x.shape[1], : x.shape[2]]


def padded_at_the_top(right, x, skip, config):
    missing = [(0, 0), *((skip.shape[i] - x.shape[i], 0) for i in (1, 2)), (0, 0)]
    return jnp.pad(x, missing), skip


def last_maximum(right):
    return jnp.flip(forms.max_pool(jnp.flip(right, (1, 2))), (1, 2))


def without_bias(right, *args, **kwargs):
    convolution = right(*args, **kwargs)
    plain = type(convolution).__call__
    return lambda x: plain(convolution, x) - convolution.bias[...]


def in_bfloat16(right, *args, **kwargs):
    def product(x, kernel, *rest, **options):
        if x.dtype == jnp.float32:
            x, kernel = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernel))
        return lax.conv_general_dilated(x, kernel, *rest, **options)

    return right(*args, conv_general_dilated=product, **kwargs)


def half_precision_moments(right, x, over):
    if x.dtype != jnp.float32:
        return right(x, over)
    return tuple(a.astype(jnp.float32) for a in right(x.astype(jnp.bfloat16), over))


def fast_variance(right, x, over):
    """Flax's default, E[x^2] - E[x]^2, of values far from 0."""
    if x.dtype != jnp.float32:
        return right(x, over)
    mean = (x + 1000).mean(over, keepdims=True)
    return mean - 1000, jnp.square(x + 1000).mean(over, keepdims=True) - mean**2


def group_norm_without_bias(right, self, x):
    return right(self, x) - self.bias[...]


def detached_bias(right, self, x):
    y = right(self, x)
    return y - self.bias[...] + lax.stop_gradient(self.bias[...])


ALIGN_CORNERS = {"bilinear": "bilinear_aligned", "bilinear_aligned": "bilinear"}
LEAKY = replace(SAME, activation="leaky_relu")
DROPOUT = replace(SAME, dropout=0.3)
ODD = replace(SAME, fit="zeros")
BILINEAR, ALIGNED = replace(SAME, up="bilinear"), replace(SAME, up="bilinear_aligned")
ALIGNED_ALONE = replace(ALONE, up="bilinear_aligned")

FIRST = "down_1.conv.conv.0"
NET = "the net"

BUGS = {
    # layouts and names
    "convolution kernel transposed": Bug(axes("conv", (3, 2, 1, 0)), FIRST),
    "convolution kernel mirrored": Bug(around(layout, "_to_jax", mirrored_kernel), FIRST),
    "up-convolution mirrored": Bug(around(UpConv, "__call__", mirrored_windows), "up_1.up"),
    "up-convolution kernel transposed": Bug(axes("up_conv", (3, 2, 0, 1)), "up_1.up"),
    "up-convolution, in and out swapped": Bug(axes("up_conv", (2, 3, 1, 0)), "up_1.up", EQUAL),
    "levels exchanged": Bug(exchanged("down_2", "down_3"), "down_2.conv.conv.0", EQUAL),
    "last two up-convolutions exchanged": Bug(exchanged("up_2.up", "up_3.up"), "up_2.up", EQUAL),
    "two convolutions of the neck exchanged": Bug(
        exchanged("neck.conv.0", "neck.conv.2"), "neck.conv.0", EQUAL
    ),
    "second and third convolution of the neck exchanged": Bug(
        exchanged("neck.conv.2", "neck.conv.4"), "neck.conv.2", THREE
    ),
    # single values
    "one weight of the first layer off by 1,000 ULP": Bug(
        one_weight(f"{FIRST}.weight"), FIRST, SAME, FLOAT64
    ),
    "one weight of an up-convolution off by 1,000 ULP": Bug(
        one_weight("up_1.up.weight"), "up_1.up", SAME, FLOAT64
    ),
    "one bias of the neck off by 1,000 ULP": Bug(
        one_weight("neck.conv.2.bias"), "neck.conv.2", SAME, FLOAT64
    ),
    "one weight of the last layer off by 1,000 ULP": Bug(
        one_weight("out.weight"), "out", SAME, FLOAT64
    ),
    "one weight of a batch norm off by 1,000 ULP": Bug(
        one_weight("neck.conv.1.weight"), "neck.conv.1", BATCH, FLOAT64
    ),
    "one running variance off by 1,000 ULP": Bug(
        one_weight("down_2.conv.conv.4.running_var"), "down_2.conv.conv.4", BATCH, FLOAT64,
        train=False,
    ),
    "one tensor in half precision": Bug(
        changed("up_2.conv.conv.0.weight", in_half), "up_2.conv.conv.0", SAME, FLOAT64
    ),
    "one tensor of zeros": Bug(changed("neck.conv.0.bias", np.zeros_like), "neck.conv.0"),
    "output channels rolled": Bug(
        changed("out.weight", lambda t: np.roll(t, 1, axis=0)), "out"
    ),
    # wiring
    "concat swapped": Bug(around(model, "match_sizes", lambda r, *a: r(*a)[::-1]), "up_1"),
    "crop off by one": Bug(
        around(model, "match_sizes", lambda r, x, skip, c: r(x, jnp.roll(skip, 1, 1), c)),
        "up_1", VALID,
    ),
    "crop at a corner": Bug(around(model, "match_sizes", cropped_at_a_corner), "up_1", VALID),
    "padded at the top and left": Bug(around(model, "match_sizes", padded_at_the_top), "up_2", ODD),
    "skip missing": Bug(
        around(model, "match_sizes", lambda r, x, skip, c: r(x, jnp.zeros_like(skip), c)), "up_1"
    ),
    "skip without a gradient": Bug(
        around(model, "match_sizes", lambda r, x, skip, c: r(x, lax.stop_gradient(skip), c)), "up_2"
    ),
    "skip taken after the pool": Bug(around(model.Down, "__call__", skip_after_pool), "down_1"),
    "input channels reversed": Bug(with_input(lambda x: x[..., ::-1]), NET),
    "input upside down": Bug(with_input(lambda x: x[:, ::-1]), NET),
    "height and width swapped": Bug(with_input(lambda x: x.swapaxes(1, 2)), NET),
    "sigmoid inside the net": Bug(with_output(jax.nn.sigmoid), NET, SAME, FLOAT64),
    "sigmoid inside a net of one channel": Bug(
        with_output(jax.nn.sigmoid), NET, SINGLE, FLOAT64
    ),
    "single channel of the other sign": Bug(with_output(lambda y: -y), NET, SINGLE),
    "second of three convolutions left out": Bug(called(0, 2), "down_1.conv.conv", THREE),
    "second of three convolutions applied twice": Bug(
        called(0, 1, 1), "down_1.conv.conv", THREE
    ),
    "order of three convolutions swapped": Bug(called(0, 2, 1), "down_1.conv.conv", THREE),
    "concat swapped in a narrower expanding path": Bug(
        around(model, "match_sizes", lambda r, *a: r(*a)[::-1]), "up_1", ALONE
    ),
    "channels between the convolutions as many as behind them": Bug(
        with_channels(lambda up: up._replace(middle_channels=up.out_channels)),
        "up_1.conv.conv.0", ALONE, STRUCTURE,
    ),
    "1x1 convolution after an interpolation that has none": Bug(
        around(model, "up_sampling", lambda r, in_, out, config, *a: r(
            in_, out, replace(config, up_convolution=True), *a)), "up_1.up.1", ALONE, STRUCTURE
    ),
    # layers
    "padding off by one": Bug(around(layers, "conv", padded_off_by_one), FIRST),
    "padding by reflection": Bug(
        around(layers, "conv", lambda r, *a, padding=0, **k: r(
            *a, padding="REFLECT" if padding else 0, **k)), FIRST
    ),
    "padding by wrapping around": Bug(
        around(layers, "conv", lambda r, *a, padding=0, **k: r(
            *a, padding="CIRCULAR" if padding else 0, **k)), FIRST
    ),
    "ReLU missing at the neck": Bug(
        around(model, "conv_block", without_relu_at_neck), "neck.conv.3"
    ),
    "ReLU's gradient split at zero": Bug(
        constant(layers, "activation", lambda x, *, slope: jnp.maximum(x, 0)), "up_2.conv.conv.3"
    ),
    "GELU for ReLU": Bug(
        constant(layers, "activation", lambda x, *, slope: jax.nn.gelu(x, approximate=False)),
        "down_1.conv.conv.1", SAME, FLOAT64,
    ),
    "ReLU6 for ReLU": Bug(
        constant(layers, "activation", lambda x, *, slope: jnp.clip(x, 0, 6)), "down_1.conv.conv.1"
    ),
    "up-convolution's bias missing": Bug(
        around(UpConv, "__call__", lambda r, self, x: r(self, x) - self.bias[...]), "up_1.up"
    ),
    "up-convolution's bias not trained": Bug(around(UpConv, "__call__", detached_bias), "up_2.up"),
    "pool shares ties": Bug(
        constant(model, "max_pool", lambda x: windows(x).max(axis=(2, 4))), "down_2.pool"
    ),
    "pool takes the last of equals": Bug(constant(model, "max_pool", last_maximum), "down_2.pool"),
    "pool averages": Bug(
        constant(model, "max_pool", lambda x: windows(x).mean(axis=(2, 4))), "down_1.pool"
    ),
    "nearest off by one": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: jnp.roll(r(x, mode=mode), 1, 2)),
        "up_1.up.0", NEAREST,
    ),
    "interpolation without a convolution off by one": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: jnp.roll(r(x, mode=mode), 1, 2)),
        "up_1.up.0", ALONE,
    ),
    "nearest for bilinear without a convolution": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: r(x, mode="nearest")),
        "up_1.up.0", ALIGNED_ALONE, FLOAT64,
    ),
    "no align_corners without a convolution": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: r(x, mode=ALIGN_CORNERS[mode])),
        "up_1.up.0", ALIGNED_ALONE, FLOAT64,
    ),
    "align_corners where it is not": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: r(x, mode=ALIGN_CORNERS[mode])),
        "up_1.up.0", BILINEAR, FLOAT64,
    ),
    "no align_corners where it is": Bug(
        around(layers, "interpolate", lambda r, x, *, mode: r(x, mode=ALIGN_CORNERS[mode])),
        "up_1.up.0", ALIGNED, FLOAT64,
    ),
    "leaky slope of another framework": Bug(
        around(layers, "activation", lambda r, x, *, slope: r(x, slope=0.3)),
        "down_1.conv.conv.1", LEAKY, FLOAT64,
    ),
    "dropout not scaled": Bug(
        around(Dropout, "__call__", unscaled_dropout), "down_2.conv.drop", DROPOUT, FLOAT64
    ),
    # norms and statistics
    "stale batch statistics": Bug(
        constant(BatchNorm, "_track", lambda *a, **k: None), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "running statistics in training": Bug(
        around(BatchNorm, "__call__", running_in_training), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "biased variance tracked": Bug(
        around(BatchNorm, "_track", biased_tracking), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "batches not counted": Bug(
        around(BatchNorm, "_track", uncounted), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "momentum not complemented": Bug(
        constant(layers, "MOMENTUM", 0.9), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "unbiased variance in batch norm": Bug(
        around(layers, "moments", unbiased_moments), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "unbiased variance in group norm": Bug(
        around(layers, "moments", unbiased_moments), "down_1.conv.conv.1", GROUP, FLOAT64
    ),
    "Flax's eps in group norm": Bug(
        constant(layers, "EPS", 1e-6), "down_1.conv.conv.1", GROUP, FLOAT64
    ),
    "Flax's eps in batch norm": Bug(
        constant(layers, "EPS", 1e-6), "down_1.conv.conv.1", BATCH, FLOAT64
    ),
    "groups interleaved": Bug(
        around(GroupNorm, "__call__", interleaved_groups), "down_1.conv.conv.1", GROUP, FLOAT64
    ),
    "group norm's bias missing": Bug(
        around(GroupNorm, "__call__", group_norm_without_bias), "down_1.conv.conv.1", GROUP,
        FLOAT64,
    ),
    "batch statistics in inference": Bug(
        constant(layers, "BatchNorm", lambda c, n: GroupNorm(c, c, n)), "down_1.conv.conv.1",
        BATCH, STRUCTURE,
    ),
    # precision, which float64 does not have
    "products of bfloat16": Bug(
        around(layers, "conv", in_bfloat16), FIRST, SAME, FLOAT32
    ),
    "moments in bfloat16": Bug(
        around(layers, "moments", half_precision_moments), "down_1.conv.conv.1", GROUP, FLOAT32
    ),
    "variance as E[x^2] - E[x]^2": Bug(
        around(layers, "moments", fast_variance), "down_1.conv.conv.1", GROUP, FLOAT32
    ),
}  # fmt: skip


certified = lru_cache(exact.find_case)


@dataclass(frozen=True)
class Diagnosis:
    """What the check that a bug is for says of it.

    Attributes:
        module: the first at fault.
        fault: of the checks that say what differs.
    """

    module: str
    fault: Fault | None = None

    @property
    def looks_like(self) -> str:
        return "" if self.fault is None else self.fault.looks_like


def diagnose(bug: Bug) -> Diagnosis | None:
    """Run the check that a bug is for; None if it finds nothing."""
    config = bug.config
    if bug.catcher == STRUCTURE:
        differences = verify.compare_shapes(config)
        return Diagnosis(module_of(differences[0].tensor)) if differences else None
    if bug.catcher == EXACT:
        case, truth = certified(config, FP32)
        row = exact.compare_exactly(config, case, FP32, truth)
        assert not row.refused
        if row.holds:
            return None
        assert row.fault is not None
        return Diagnosis(row.fault.module, row.fault)
    tensors = oracle.random_tensors(config, seed=1)
    if bug.catcher == FLOAT32:
        compared = compare_twins(config, tensors, train=bug.train)
        assert not compared.faults
        wrong = [layer for layer in compared.layers if not layer.holds]
        return Diagnosis(wrong[0].name) if wrong else None
    x, cotangent, keep = oracle.random_input(config, seed=0, size=(12, 20))
    comparer = Comparer(config, train=bug.train)
    faults = comparer.faults(Numbers(tensors, x, cotangent, keep))
    return Diagnosis(faults[0].module, faults[0]) if faults else None


@lru_cache
def passes(config: UNetConfig, catcher: str, train: bool) -> bool:
    """Whether a net without a bug passes the check."""
    return diagnose(Bug(lambda m: None, "", config, catcher, train)) is None


def row(name: str, diagnosis: Diagnosis | None) -> str:
    """A line of the table."""
    if diagnosis is None:
        return f"| {name} | NOT CAUGHT | nothing |  |"
    return f"| {name} | {BUGS[name].catcher} | {diagnosis.module} | {diagnosis.looks_like} |"


@contextmanager
def planted(name: str):
    with pytest.MonkeyPatch.context() as monkeypatch:
        BUGS[name].plant(monkeypatch)
        yield


def table() -> str:
    """All lines, as they stand in docs/parity.md."""
    lines = ["| planted in JAX's net | caught by | named as at fault | it looks like |"]
    lines.append("|---|---|---|---|")
    for name in BUGS:
        with planted(name):
            lines.append(row(name, diagnose(BUGS[name])))
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    text = TABLE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    TABLE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")
