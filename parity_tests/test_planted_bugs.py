"""Every planted bug is caught, and named; the healthy net passes the same check."""

import numpy as np
import pytest

from parity_tests import planted
from unet_parity import oracle
from unet_parity.twins import JaxRun, torch_pass


@pytest.mark.parametrize("name", planted.BUGS)
def test_planted_bug_is_caught_and_named_as_the_table_says(request, name):
    bug = planted.BUGS[name]
    if bug.catcher == planted.FLOAT32:
        request.getfixturevalue("optimised")
    assert planted.healthy(bug.config, bug.catcher, bug.train), "the healthy net does not pass"
    with planted.planted(name):
        line, fault = planted.row(name)
    assert "NOT CAUGHT" not in line
    assert fault is not None
    assert fault.module == bug.module
    assert line in planted.TABLE.read_text(), "python -m parity_tests.planted writes the table"


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
