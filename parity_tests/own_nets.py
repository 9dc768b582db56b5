"""U-Nets as people write them in torch: other names, activations in the code, in place, shared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_spec import UNetConfig
from unet_spec.origin import Origin
from unet_spec.parameters import parameters

WIDTHS = (4, 6, 8)


class DoubleConv(nn.Module):
    """milesial's names; ReLUs in the code, in place."""

    def __init__(
        self, in_channels: int, out_channels: int, eps: float, momentum: float, middle: int = 0
    ):
        super().__init__()
        middle = middle or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle, eps, momentum),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels, eps, momentum),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.double_conv(x), inplace=True)


class Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, eps: float, momentum: float):
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2), DoubleConv(in_channels, out_channels, eps, momentum)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    swapped = False
    crops = False

    def __init__(self, in_channels: int, out_channels: int, eps: float, momentum: float):
        super().__init__()
        self.up: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = DoubleConv(2 * out_channels, out_channels, eps, momentum)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        if self.crops:
            skip = skip[:, :, : x.shape[2], : x.shape[3]]
        else:
            x = F.pad(x, [0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]])
        return self.conv(torch.cat([x, skip] if self.swapped else [skip, x], dim=1))


class Named(nn.Module):
    """milesial's U-Net of three levels."""

    def __init__(self, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        top, middle, neck = WIDTHS
        self.inc = DoubleConv(3, top, eps, momentum)
        self.down1 = Down(top, middle, eps, momentum)
        self.down2 = Down(middle, neck, eps, momentum)
        self.up1 = Up(neck, middle, eps, momentum)
        self.up2 = Up(middle, top, eps, momentum)
        self.outc = nn.Conv2d(top, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inc(x)
        second = self.down1(first)
        x = self.up1(self.down2(second), second)
        return self.outc(self.up2(x, first))


class NarrowUp(Up):
    """An interpolation, and convolutions with half as many channels between them."""

    def __init__(self, in_channels: int, out_channels: int, eps: float, momentum: float):
        super().__init__(in_channels, out_channels, eps, momentum)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(in_channels, out_channels, eps, momentum, in_channels // 2)


class Narrow(Named):
    """milesial's bilinear net of three levels."""

    def __init__(self) -> None:
        super().__init__()
        eps, momentum = 1e-5, 0.1
        self.inc = DoubleConv(3, 4, eps, momentum)
        self.down1 = Down(4, 8, eps, momentum)
        self.down2 = Down(8, 8, eps, momentum)
        self.up1 = NarrowUp(16, 4, eps, momentum)
        self.up2 = NarrowUp(8, 4, eps, momentum)


class Dropping(Named):
    """With a dropout in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.3, self.training))


class Shared(nn.Module):
    """Flat names; one ReLU in place and one pool for all, and a sigmoid at the end."""

    slope = 0.0
    detaches = False
    without = ""  # the convolution behind which the activation is missing

    def __init__(self) -> None:
        super().__init__()
        top, middle, neck = WIDTHS
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        for name, in_channels, out_channels in (
            ("enc1", 3, top), ("enc2", top, middle), ("bottleneck", middle, neck),
            ("dec2", 2 * middle, middle), ("dec1", 2 * top, top),
        ):  # fmt: skip
            setattr(self, f"{name}_a", nn.Conv2d(in_channels, out_channels, 3, padding=1))
            setattr(self, f"{name}_b", nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.upconv2 = nn.ConvTranspose2d(neck, middle, 2, stride=2)
        self.upconv1 = nn.ConvTranspose2d(middle, top, 2, stride=2)
        self.final = nn.Conv2d(top, 2, 1)

    def block(self, name: str, x: Tensor) -> Tensor:
        for part in ("a", "b"):
            x = getattr(self, f"{name}_{part}")(x)
            if self.slope:
                x = F.leaky_relu_(x, self.slope)
            elif f"{name}_{part}" != self.without:
                x = self.relu(x)
        return x

    def end(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def forward(self, x: Tensor) -> Tensor:
        first = self.block("enc1", x)
        second = self.block("enc2", self.pool(first))
        x = self.block("bottleneck", self.pool(second))
        second = second.detach() if self.detaches else second
        x = self.block("dec2", torch.cat([self.upconv2(x), second], 1))
        x = self.block("dec1", torch.cat([self.upconv1(x), first], 1))
        return self.end(self.final(x))


NAMED = UNetConfig(
    in_channels=3, classes=2, widths=WIDTHS, norm="batch", bias=False, concat="skip_first"
)
NARROW = replace(
    NAMED, widths=(4, 8, 8), up="bilinear_aligned", up_convolution=False, up_widths=(4, 4),
    up_middle="half", fit="zeros",
)  # fmt: skip
SHARED = UNetConfig(in_channels=3, classes=2, widths=WIDTHS, output="sigmoid")


@dataclass(frozen=True)
class Own:
    """A net of somebody's own, the config that it has, and where a bug in it is told."""

    config: UNetConfig
    make: Callable[[], nn.Module]

    def origin(self, prefix: str = "") -> Origin:
        """Their names beside ours, which come in one order."""
        names = zip(self.make().state_dict(), _in_order_of_calls(self), strict=True)
        return Origin(tuple((prefix + theirs, ours) for theirs, ours in names), {}, None)


def _in_order_of_calls(own: Own) -> Iterator[str]:
    names = [p.name for p in parameters(own.config)]
    if own.config == SHARED:  # its up-convolutions come behind all others
        yield from (n for n in names if ".up." not in n and not n.startswith("out"))
        yield from (n for n in names if ".up." in n)
        yield from (n for n in names if n.startswith("out"))
    else:
        yield from names


OWN = {
    "named": Own(NAMED, Named),
    "shared": Own(SHARED, Shared),
    "narrow": Own(NARROW, Narrow),
    "odd": Own(replace(NAMED, fit="zeros"), Named),
}
