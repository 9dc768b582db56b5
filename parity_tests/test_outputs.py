"""The output function of a net in numpy equals torch's."""

import numpy as np
import pytest
import torch

from unet_spec import UNetConfig
from unet_spec.outputs import apply_output

TORCHS = {"logits": lambda x: x, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(1)}
# units in the last place; seen 2 in both types
ULPS = 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("output", TORCHS)
def test_probabilities_equal_torchs(output, dtype):
    logits = (5 * np.random.default_rng(0).standard_normal((2, 3, 5, 7))).astype(dtype)
    before = logits.copy()
    ours = apply_output(UNetConfig(classes=3, output=output), logits, axis=1)
    theirs = TORCHS[output](torch.tensor(logits)).numpy()
    assert ours.dtype == dtype
    assert ours.shape == logits.shape
    np.testing.assert_array_max_ulp(ours, theirs, ULPS)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_extreme_logits_give_0_and_1_without_a_warning(output):
    logits = np.array([[1e4, -1e4], [-1e30, 1e30]], np.float32)
    ours = apply_output(UNetConfig(output=output), logits, axis=1)
    np.testing.assert_array_equal(ours, [[1, 0], [0, 1]])


def test_softmax_adds_up_to_1_along_the_axis_of_the_channels():
    logits = np.random.default_rng(0).standard_normal((2, 5, 7, 4))
    ours = apply_output(UNetConfig(classes=4, output="softmax"), logits, axis=-1)
    np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-15)
    assert np.abs(ours.sum(1) - 1).max() > 0.1
