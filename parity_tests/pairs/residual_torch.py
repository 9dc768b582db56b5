"""A small residual net for images, as one writes it in PyTorch."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions around which the input goes, by a projection where shapes change."""

    def __init__(self, in_width: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after the last ReLU."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Theirs(nn.Module):
    """The net: a strided stem, a pool, two blocks, a global mean and a linear head."""

    def __init__(self, width: int, channels: int = 3, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.block1 = Block(width, width)
        self.block2 = Block(width, width + 3, stride=2)
        self.head = nn.Linear(width + 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return one score per class."""
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = self.block2(self.block1(x))
        return self.head(x.mean(dim=(2, 3)))
