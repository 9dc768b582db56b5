"""Subnormal numbers, which JAX takes for 0 on a CPU: counted, and named as the cause."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from unet_parity import integer_cases, oracle, page, report, subnormal, training, verify
from unet_parity.comparison import draw_numbers
from unet_spec import UNetConfig
from unet_spec.weight_file import WeightFile

NET = UNetConfig(widths=(4, 6))
PLACE = "down_1.conv.conv.2"


def run(tensors, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_cases, "RUNGS", integer_cases.RUNGS[:1])
        weights = WeightFile(NET, tensors)
        return verify.verify(
            NET, weights=weights, other_sizes=False, say=lambda text: None, **options
        )


def with_channels(weight, bias):
    """The tensors of a net with every second channel of a convolution scaled by `weight`."""
    tensors = {name: t.copy() for name, t in oracle.random_tensors(NET, seed=0).items()}
    tensors[f"{PLACE}.weight"][::2] *= np.float32(weight)
    tensors[f"{PLACE}.bias"][::2] = bias
    return tensors


def show(result):
    console = Console(file=io.StringIO(), width=100)
    report.show(result, console)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module")
def dead():
    """Channels of subnormal weights: a ReLU passes a gradient there in torch, and none in JAX."""
    return run(with_channels(1e-38, 1e-40), steps=2)


def test_this_device_takes_them_for_0():
    assert subnormal.are_zero_in_jax()  # else nothing below says anything
    assert float(np.float32(2.0**-130)) > 0


def test_subnormal_weights_are_named_as_the_cause(dead):
    assert dead.verdict == "different"
    first = dead.reasons[0]
    assert first.startswith("the cause is the subnormal numbers of float32")
    assert f"{PLACE}.weight ({dead.subnormal.tensors[f'{PLACE}.weight']})" in first
    assert first.endswith("with 0 in their place the verdict is equivalent")
    assert f"furthest is {PLACE}" in dead.reasons[1]


def test_they_are_counted_before_the_verdict_in_every_report(dead):
    tensors = with_channels(1e-38, 1e-40)
    expected = {
        name: int(((t != 0) & (np.abs(t) < np.finfo(np.float32).smallest_normal)).sum())
        for name, t in tensors.items()
    }
    assert dead.subnormal.tensors == {name: n for name, n in expected.items() if n}
    assert dead.to_json()["subnormal"]["tensors"] == dead.subnormal.tensors
    sentence = str(dead.subnormal)
    assert (
        f"{sum(expected.values())} of {sum(t.size for t in tensors.values())} weights" in sentence
    )
    shown = show(dead)
    assert shown.index("subnormal numbers of float32") < shown.index("verdict:")
    assert f"<p>{sentence}</p>" in page.make_page(replace(dead, reasons=("another",)))


def test_a_healthy_net_has_none_and_nothing_is_said_of_them():
    result = run(oracle.random_tensors(NET, seed=0), steps=0)
    assert (bool(result.subnormal), str(result.subnormal)) == (False, "")
    assert "subnormal" not in show(result)
    assert "subnormal numbers of float32" not in page.make_page(result)


def test_a_few_among_others_are_counted_and_do_no_harm():
    tensors = {name: t.copy() for name, t in oracle.random_tensors(NET, seed=0).items()}
    tensors[f"{PLACE}.weight"][0, 0, 0, 0] = 1e-40
    result = run(tensors, steps=1)
    assert (result.verdict, result.subnormal.tensors) == ("equivalent", {f"{PLACE}.weight": 1})


def test_subnormal_numbers_that_the_net_computes_are_the_cause_too():
    """The weights are normal, their products are not."""
    tensors = with_channels(1e-20, 0.0)
    tensors["down_1.conv.conv.0.weight"] *= np.float32(1e-20)
    tensors["down_1.conv.conv.0.bias"][:] = 0
    result = run(tensors, steps=2)
    assert not result.subnormal
    assert result.verdict == "different"
    assert result.reasons[0].startswith("the cause is the subnormal numbers of float32 among what")
    assert PLACE in result.reasons[0]
    assert result.reasons[0].endswith("takes them for 0 too the verdict is equivalent")


def test_an_input_of_them_is_counted():
    x = np.full((1, 1, 8, 8), 1e-39, np.float32)
    counted = subnormal.count_given({}, x)
    assert counted.in_input == 64
    assert "64 values of the input" in str(counted)
    numbers = draw_numbers(NET, oracle.random_tensors(NET, seed=0), x=x)
    assert subnormal.find_computed(NET, numbers, train=False) == {}  # the biases are larger


def test_another_fault_is_not_put_down_to_them(monkeypatch):
    """With a difference that stays where they are 0, nothing is said of a cause."""
    monkeypatch.setattr(training, "FACTOR", -1.0)
    result = run(with_channels(1e-38, 1e-40), steps=1)
    assert result.verdict == "different"
    assert not any("the cause is" in reason for reason in result.reasons)
