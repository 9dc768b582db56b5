"""The operations of a net equal those that torch counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unet_spec import PAPER, SLIDES, UNetConfig, geometry
from unet_spec.flops import forward_gflop
from unet_torch import UNet

SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10))
NETS = {
    "slides": SLIDES,
    "paper": PAPER,
    "odd": replace(SMALL, fit="zeros"),
    "cropped": replace(SMALL, fit="crop"),
    "one convolution": replace(SMALL, padding="valid", convolutions=1),
    "three convolutions": replace(SMALL, padding="valid", convolutions=3),
    "interpolation": replace(SMALL, up="nearest", up_widths=(12, 4)),
    "interpolation alone": replace(
        SMALL, up="bilinear", up_convolution=False, up_widths=(12, 4), up_middle="half",
        convolutions=3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("net", NETS)
def test_operations_equal_torchs_own_count(net):
    config = NETS[net]
    height = geometry.next_legal(config, 189)
    width = geometry.next_legal(config, height + 1)
    with torch.device("meta"):
        model, x = UNet(config), torch.empty(1, config.in_channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert round(forward_gflop(config, height, width) * 1e9) == counter.get_total_flops()
