"""A net of depthwise and pointwise convolutions without norms, as one writes it in PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mix(nn.Module):
    """A depthwise convolution that mixes pixels, then a pointwise one that mixes channels."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed pixels; the input goes around the depthwise part."""
        x = x + F.relu(self.depthwise(x))
        return F.relu(self.pointwise(x))


class Theirs(nn.Module):
    """The net: patches, two blocks, a dilated convolution, a way back up and a head."""

    def __init__(self, width: int, channels: int = 3, classes: int = 5):
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(channels, width, 2, stride=2), nn.ReLU())
        self.block1 = Mix(width)
        self.block2 = Mix(width)
        self.dilated = nn.Conv2d(width, width + 1, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(width + 1, width, 3, stride=2, padding=1, output_padding=1)
        self.enlarge = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one score per pixel and class, for an even height and width."""
        patches = self.patches(x)
        x = self.block2(self.block1(patches))
        x = self.up(F.relu(self.dilated(x)))
        return self.head(torch.cat([x, self.enlarge(patches)], dim=1))
