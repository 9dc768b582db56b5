"""The bilinear net of milesial's Pytorch-UNet, written anew in plain torch: a second witness.

It is the net that people use most of all, and not that of the slides: an interpolation without a
convolution after it, and each level of the expanding path as narrow as the level above it. The
modules have names of their own; their order is that of the original, and so is that of the tensors.
"""

import torch
from torch import nn
from torch.nn import functional as F


def convolve_twice(before: int, middle: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
        nn.Conv2d(middle, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


class BilinearUNet(nn.Module):
    """The net for a narrow base width too; 64 is the original's."""

    def __init__(self, in_channels: int, classes: int, base: int = 64):
        super().__init__()
        down = [(in_channels, base), (base, 2 * base), (2 * base, 4 * base), (4 * base, 8 * base)]
        up = [(16 * base, 4 * base), (8 * base, 2 * base), (4 * base, base), (2 * base, base)]
        self.contract = nn.ModuleList(convolve_twice(one, two, two) for one, two in down)
        self.lowest = convolve_twice(8 * base, 8 * base, 8 * base)
        self.expand = nn.ModuleList(convolve_twice(one, one // 2, two) for one, two in up)
        self.last = nn.Conv2d(base, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.contract:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.lowest(x)
        for level in self.expand:
            skip = skips.pop()
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = level(torch.cat([skip, x], dim=1))
        return self.last(x)
