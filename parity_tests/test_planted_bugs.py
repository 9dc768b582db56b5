"""Every planted bug is caught, and named; the healthy net passes the same check."""

import numpy as np
import pytest

from parity_tests import planted
from unet_parity import oracle
from unet_parity.compared import Compared, Kind
from unet_parity.jax_twin import JaxRun
from unet_parity.torch_twin import torch_pass


@pytest.mark.parametrize("name", planted.BUGS)
def test_planted_bug_is_caught_and_named_as_the_table_says(request, name):
    bug = planted.BUGS[name]
    if bug.catcher == planted.FLOAT32:
        request.getfixturevalue("optimised")
    assert planted.passes(bug.config, bug.catcher, bug.train), "the healthy net does not pass"
    with planted.planted(name):
        diagnosis = planted.diagnose(bug)
    assert diagnosis is not None
    assert diagnosis.module == bug.module
    line = planted.row(name, diagnosis)
    assert line in planted.TABLE.read_text(), "python -m parity_tests.planted writes the table"


# a bug for each kind of what is compared
BUG_OF_KIND = {
    Kind.OUTPUT: "convolution kernel transposed",
    Kind.STATISTIC: "momentum not complemented",
    Kind.INPUT_GRADIENT: "pool shares ties",
    Kind.PARAMETER_GRADIENT: "up-convolution's bias not trained",
    Kind.ARRIVING_VALUE: "concat swapped",
    Kind.ARRIVING_GRADIENT: "skip without a gradient",
}


@pytest.mark.parametrize("kind", Kind)
def test_other_words_do_not_change_the_diagnosis(monkeypatch, kind):
    bug = planted.BUGS[BUG_OF_KIND[kind]]
    monkeypatch.setattr(Compared, "__str__", lambda self: "nothing that anybody could read")
    with planted.planted(BUG_OF_KIND[kind]):
        diagnosis = planted.diagnose(bug)
    assert diagnosis is not None
    assert diagnosis.fault is not None
    assert diagnosis.fault.compared.kind is kind
    assert "nothing that anybody could read" in str(diagnosis.fault)
    assert planted.row(BUG_OF_KIND[kind], diagnosis) in planted.TABLE.read_text()


def test_each_kind_has_words_of_its_own():
    words = {kind: str(Compared(kind, ("up_1", "input"), "bias")) for kind in Kind}
    assert len(set(words.values())) == len(Kind)
    of_a_tensor = {kind for kind, sentence in words.items() if "bias" in sentence}
    assert of_a_tensor == {Kind.STATISTIC, Kind.PARAMETER_GRADIENT}


def test_the_catalogue_is_as_large_as_it_says():
    assert len(planted.BUGS) >= 40


@pytest.mark.parametrize(
    ("name", "passes"), [("Flax's eps in group norm", True), ("convolution kernel mirrored", False)]
)
def test_a_tolerance_lets_a_bug_pass_that_the_verdict_catches(name, passes):
    """What the README says of `atol=1e-4`; that the bug is caught is tested above."""
    bug = planted.BUGS[name]
    tensors = oracle.random_tensors(bug.config, seed=0)
    x, cotangent, _ = oracle.random_input(bug.config, seed=0)
    right = torch_pass(bug.config, tensors, x, cotangent).output
    with planted.planted(name):
        wrong = JaxRun(bug.config, dtype="float32")(tensors, x, cotangent).output
    assert np.allclose(wrong, right, rtol=0, atol=1e-4) == passes
    assert not np.allclose(wrong, right, rtol=0, atol=1e-5)
