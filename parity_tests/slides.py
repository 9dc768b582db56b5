"""The slides' module with its three mistakes mended, written apart from `unet_torch`: the class
count, the input channels of `Down`, the stride of the up-convolution. Padded, as printed."""

import torch
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, in_, out):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_, out, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out, out, kernel_size=3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.conv(x)


class Down(nn.Module):
    def __init__(self, in_, out):
        super().__init__()
        self.conv = DoubleConv(in_, out)
        self.pool = nn.MaxPool2d(kernel_size=2)

    def forward(self, x):
        conv = self.conv(x)
        return conv, self.pool(conv)


class Up(nn.Module):
    def __init__(self, in_, out):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_, out, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_, out)

    def forward(self, x, skip):
        return self.conv(torch.cat([self.up(x), skip], dim=1))


class UNet(nn.Module):
    def __init__(self, n_channels=1, n_class=2, step_down=64):
        super().__init__()
        self.down_1 = Down(n_channels, step_down)
        self.down_2 = Down(step_down, 2 * step_down)
        self.down_3 = Down(2 * step_down, 4 * step_down)
        self.down_4 = Down(4 * step_down, 8 * step_down)
        self.neck = DoubleConv(8 * step_down, 16 * step_down)
        self.up_1 = Up(16 * step_down, 8 * step_down)
        self.up_2 = Up(8 * step_down, 4 * step_down)
        self.up_3 = Up(4 * step_down, 2 * step_down)
        self.up_4 = Up(2 * step_down, step_down)
        self.out = nn.Conv2d(step_down, n_class, kernel_size=1)

    def forward(self, x):
        skip_1, x = self.down_1(x)
        skip_2, x = self.down_2(x)
        skip_3, x = self.down_3(x)
        skip_4, x = self.down_4(x)
        x = self.neck(x)
        x = self.up_1(x, skip_4)
        x = self.up_2(x, skip_3)
        x = self.up_3(x, skip_2)
        x = self.up_4(x, skip_1)
        return self.out(x)
