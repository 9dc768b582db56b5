"""A recorded output of a net is that net's, whoever recorded it; that of another net is not."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from unet_parity import oracle
from unet_parity.jax_twin import JaxRun
from unet_parity.torch_twin import torch_model
from unet_spec import InputError, UNetConfig
from unet_spec.judgement import HALF_FACTOR, Judgement, is_representable, judge_output
from unet_spec.outputs import apply_output

SLIM = UNetConfig(in_channels=3, classes=4, widths=(8, 12, 20))
NETS = {
    "base_8": SLIM,
    "base_8_groups": replace(SLIM, norm="group", groups=4, activation="leaky_relu"),
    "base_8_batch_sigmoid": replace(SLIM, norm="batch", output="sigmoid", up="bilinear"),
    "base_16_softmax": replace(SLIM, widths=(16, 32, 64), output="softmax"),
    "base_16_instance": replace(SLIM, widths=(16, 32, 64), norm="instance", bias=False),
    "base_64": UNetConfig(),
}


@cache
def given(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors and input of a net."""
    config = NETS[name]
    size = (32, 48) if name == "base_64" else None
    return oracle.random_tensors(config, seed=1), oracle.random_input(config, seed=2, size=size)[0]


def run_torch(
    name: str,
    dtype: str,
    config: UNetConfig | None = None,
    *,
    channels_last: bool = False,
    autocast: bool = False,
) -> np.ndarray:
    """What the original gives in torch, its output function inside; values of `dtype`."""
    tensors, x = given(name)
    config = config or NETS[name]
    model = torch_model(config, tensors, dtype=dtype, train=False).requires_grad_(False)
    batch = torch.tensor(x, dtype=getattr(torch, dtype))
    if channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(batch)
    functions = {"logits": lambda y: y, "sigmoid": torch.sigmoid,
                 "softmax": lambda y: torch.softmax(y, 1)}  # fmt: skip
    output = functions[config.output](logits)
    return (output.float() if output.dtype == torch.bfloat16 else output).numpy()


def run_jax(name: str, dtype: str) -> np.ndarray:
    tensors, x = given(name)
    config = NETS[name]
    cotangent = np.zeros_like(run_torch(name, "float32"))
    logits = JaxRun(config, dtype=dtype, jit=False)(tensors, x, cotangent).output
    return apply_output(config, logits, axis=1)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.tensor(values).bfloat16().float().numpy()


def another_machine(name: str) -> np.ndarray:
    """Torch without oneDNN: its own convolutions, which add in another order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        return run_torch(name, "float32")


def one_thread(name: str) -> np.ndarray:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_torch(name, "float32")
    finally:
        torch.set_num_threads(threads)


RECORDERS: dict[str, Callable[[str], np.ndarray]] = {
    "float64": lambda name: run_torch(name, "float64"),
    "float64_rounded": lambda name: run_torch(name, "float64").astype(np.float32),
    "torch": lambda name: run_torch(name, "float32"),
    "torch_one_thread": one_thread,
    "torch_channels_last": lambda name: run_torch(name, "float32", channels_last=True),
    "torch_elsewhere": another_machine,
    "jax": lambda name: run_jax(name, "float32"),
    "float16": lambda name: run_torch(name, "float16"),
    "float16_of_the_output": lambda name: run_torch(name, "float32").astype(np.float16),
    "bfloat16": lambda name: run_torch(name, "bfloat16"),
    "bfloat16_of_the_output": lambda name: round_to_bfloat16(run_torch(name, "float32")),
    "bfloat16_autocast": lambda name: run_torch(name, "float32", autocast=True),
    "bfloat16_jax": lambda name: round_to_bfloat16(run_jax(name, "bfloat16")),
}


@cache
def truth_and_runs(name: str) -> tuple[np.ndarray, Callable[[str], list[np.ndarray]]]:
    """The truth, and torch alone beside it."""
    config = NETS[name]
    logits = replace(config, output="logits")

    @cache
    def run(precision: str) -> list[np.ndarray]:
        output = run_torch(name, precision, logits).astype(np.float64)
        return [apply_output(config, output, axis=1)]

    return apply_output(config, run_torch(name, "float64", logits), axis=1), run


def judge(name: str, recorded: np.ndarray) -> Judgement:
    return judge_output(recorded, *truth_and_runs(name))


AT_BASE_64 = ("float64_rounded", "torch_elsewhere", "jax", "bfloat16")


@pytest.mark.parametrize(
    ("name", "recorder"),
    [(n, r) for n in NETS for r in RECORDERS if n != "base_64" or r in AT_BASE_64],
)
def test_rounding_explains_whatever_recorded_the_same_net(name, recorder):
    judgement = judge(name, RECORDERS[recorder](name))
    assert judgement.holds
    half = next((half for half in ("bfloat16", "float16") if half in recorder), "float32")
    assert judgement.precision == half
    # the factors are no looser than they need to be by more than they were measured with
    assert judgement.error <= 2.6 * judgement.nearest or "of_the_output" in recorder
    assert (judgement.explain_precision() == "") == (half == "float32")


def test_types_of_few_digits_round_alike_everywhere():
    """What `HALF_FACTOR` rests on."""
    for name in list(NETS)[:-1]:
        runs = ("bfloat16", "bfloat16_autocast", "bfloat16_jax")
        errors = [judge(name, RECORDERS[recorder](name)).error for recorder in runs]
        assert max(errors) / min(errors) < HALF_FACTOR / 2


OTHERS: dict[str, dict[str, Any]] = {
    "concat": {"concat": "skip_first"},
    "group_count": {"groups": 2},
    "no_sigmoid": {"output": "logits"},
    "interpolation": {"up": "bilinear_aligned"},
    "slope": {"negative_slope": 0.2},
}


@pytest.mark.parametrize("type_", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("base_8", "concat"),
        ("base_8_groups", "group_count"),
        ("base_8_groups", "slope"),
        ("base_8_batch_sigmoid", "no_sigmoid"),
        ("base_8_batch_sigmoid", "interpolation"),
        ("base_16_softmax", "concat"),
        ("base_16_softmax", "no_sigmoid"),
        ("base_64", "concat"),
    ],
)
def test_the_output_of_another_net_is_refused_in_every_type(name, other, type_):
    recorded = run_torch(name, type_, replace(NETS[name], **OTHERS[other]))
    judgement = judge(name, recorded)
    assert not judgement.holds
    assert judgement.precision == (type_ if "16" in type_ else "float32")


def test_a_run_that_is_far_from_the_truth_does_not_excuse_the_recorded_output():
    """The twin with a bug is not the one that the recorded output is judged beside."""
    truth, run = truth_and_runs("base_8")
    wrong = run_torch("base_8", "float32", replace(SLIM, concat="skip_first"))
    misshapen, nothing = wrong[:, :, 1:], wrong * np.float32(np.nan)
    judgement = judge_output(
        wrong, truth, lambda precision: [wrong, misshapen, nothing, *run(precision)]
    )
    assert judgement == judge("base_8", wrong)
    assert not judgement.holds


def test_integers_are_judged_in_float32_though_every_type_holds_them():
    truth = np.arange(-8.0, 8.0).reshape(1, 1, 4, 4)
    calls = []

    def run(precision):
        calls.append(precision)
        return [truth.astype(np.float32)]

    assert judge_output(truth.astype(np.float32), truth, run).precision == "float32"
    assert calls == ["float32"]
    assert not judge_output(truth + (truth == 3), truth, run).holds
    assert calls == ["float32", "float32", "bfloat16"]


@pytest.mark.parametrize("type_", ["float32", "float16", "bfloat16"])
def test_storing_a_value_rounds_it_even_if_computing_it_rounded_nothing(type_):
    truth = apply_output(NETS["base_8_batch_sigmoid"], np.arange(-8.0, 8.0).reshape(1, 4, 2, 2),
                         axis=1)  # fmt: skip
    stored = torch.tensor(truth, dtype=getattr(torch, type_)).float().numpy()
    judgement = judge_output(stored, truth, lambda precision: [truth])
    assert judgement.holds
    assert judgement.precision == type_
    assert not judge_output(stored + 4 * (stored - truth), truth, lambda precision: [truth]).holds


@pytest.mark.parametrize(
    ("value", "types"),
    [
        (1.5, {"float32", "float16", "bfloat16"}),
        (1 + 2**-10, {"float32", "float16"}),
        (2.0**100, {"float32", "bfloat16"}),
        (1 + 2**-20, {"float32"}),
        (1 + 2**-40, set()),
    ],
)
def test_a_type_holds_what_it_gives_back(value, types):
    values = np.array([0.0, 1.0, value])
    assert {t for t in ("float32", "float16", "bfloat16") if is_representable(values, t)} == types


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda y: y[:, :, 1:], "recorded output has the shape"),
        (lambda y: (y > 0).astype(np.int64), "holds int64, not floats"),
        (lambda y: y / 0, "NaN or infinite"),
    ],
    ids=["shape", "classes", "infinite"],
)
def test_what_is_no_output_is_refused(change, sentence):
    with np.errstate(all="ignore"), pytest.raises(InputError, match=sentence):
        judge("base_8", change(run_torch("base_8", "float32")))


def test_nothing_is_said_where_no_net_computes():
    truth = np.ones((1, 1, 2, 2))
    with pytest.raises(InputError, match="no net here gives finite values in float32"):
        judge_output(truth, truth, lambda precision: [truth * np.nan])
