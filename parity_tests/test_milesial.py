"""milesial's bilinear net as a config equals the same net in plain torch."""

import numpy as np
import pytest
import torch

from parity_tests.milesial import BilinearUNet
from unet_parity import oracle
from unet_parity.jax_twin import jax_pass
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig
from unet_spec.parameters import parameter_count, parameters


def bilinear(base: int, *, in_channels: int = 3, classes: int = 1) -> UNetConfig:
    return UNetConfig(
        in_channels=in_channels, classes=classes, widths=(base, 2 * base, 4 * base, 8 * base,
        8 * base), norm="batch", bias=False, up="bilinear_aligned", up_convolution=False,
        up_widths=(4 * base, 2 * base, base, base), up_middle="half", concat="skip_first",
        fit="zeros",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("in_channels", "classes", "count"),
    [(3, 1, 17_262_977), (1, 1, 17_261_825), (3, 2, 17_263_042)],
)
def test_tensors_and_parameters_are_those_of_the_net_in_plain_torch(in_channels, classes, count):
    config = bilinear(64, in_channels=in_channels, classes=classes)
    with torch.device("meta"):
        plain = BilinearUNet(in_channels, classes)
    shapes = [tuple(tensor.shape) for tensor in plain.state_dict().values()]
    assert [p.shape for p in parameters(config)] == shapes
    assert sum(p.numel() for p in plain.parameters()) == parameter_count(config) == count


@pytest.mark.parametrize("size", [(32, 48), (23, 41)], ids=["even", "odd"])
def test_both_twins_give_the_output_of_the_net_in_plain_torch(size):
    config = bilinear(4, classes=2)
    tensors = oracle.random_tensors(config, seed=1)
    x, cotangent, _ = oracle.random_input(config, seed=0, size=size)
    plain = BilinearUNet(3, 2, base=4).double().eval()
    in_order = zip(plain.state_dict(), tensors.values(), strict=True)
    plain.load_state_dict({name: torch.tensor(tensor) for name, tensor in in_order})
    with torch.no_grad():
        expected = plain(torch.tensor(x, dtype=torch.double)).numpy()
    scale = np.abs(expected).max()
    assert len(np.unique(expected)) > 1000, "a constant output proves nothing"
    ours = torch_pass(config, tensors, x, cotangent, dtype="float64").output
    theirs = jax_pass(config, tensors, x, cotangent, dtype="float64", jit=False).output
    assert ours.shape == theirs.shape == expected.shape
    np.testing.assert_array_equal(ours, expected)
    assert np.abs(theirs - expected).max() <= oracle.OUTPUT_BOUND * scale
