"""U-Nets as ten people might have written them, each with its own names and its own choices.

None of their names is in the tables of families. What leaves no trace in tensors varies: the order
of the concatenation, padding, odd sizes, norms, activations, interpolation and the last function.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from unet_spec import UNetConfig


class ForeignNet(NamedTuple):
    """A `ForeignNet` is a net with what it really is.

    Attributes:
        make: builds it, in evaluation mode and with the same values at every call.
        config: what it really is.
        size: a height and width in pixels that its pools halve evenly.
        odd_size: a height and width that they do not; None where it refuses those.
    """

    make: Callable[[], nn.Module]
    config: UNetConfig
    size: tuple[int, int]
    odd_size: tuple[int, int] | None


def pad_to(x: Tensor, skip: Tensor, mode: str = "constant") -> Tensor:
    rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
    return F.pad(x, (0, columns, 0, rows), mode=mode)


def crop_to(skip: Tensor, x: Tensor) -> Tensor:
    top = (skip.shape[2] - x.shape[2]) // 2
    left = (skip.shape[3] - x.shape[3]) // 2
    return skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]


class FlatStages(nn.Module):
    """Flat `enc1.0` and `dec1.0`, the skip first, zeros on odd sizes, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.enc1 = self.stage(1, 6)
        self.enc2 = self.stage(6, 10)
        self.bottom = self.stage(10, 14)
        self.up2 = nn.ConvTranspose2d(14, 10, 2, stride=2)
        self.dec2 = self.stage(20, 10)
        self.up1 = nn.ConvTranspose2d(10, 6, 2, stride=2)
        self.dec1 = self.stage(12, 6)
        self.head = nn.Conv2d(6, 1, 1)

    @staticmethod
    def stage(in_, out):
        return nn.Sequential(
            nn.Conv2d(in_, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1),
            nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        e1 = self.enc1(x)
        e2 = self.enc2(F.max_pool2d(e1, 2))
        x = self.bottom(F.max_pool2d(e2, 2))
        x = self.dec2(cat([e2, pad_to(self.up2(x), e2)], 1))
        x = self.dec1(cat([e1, pad_to(self.up1(x), e1)], 1))
        return torch.sigmoid(self.head(x))


class NumberedConvs(nn.Module):
    """`conv1` to `conv6`: 4 and 5 are the decoder, 6 the last layer; the norm after the ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1 = self.block(3, 5)
        self.conv2 = self.block(5, 8)
        self.conv3 = self.block(8, 12)
        self.upconv1 = nn.ConvTranspose2d(12, 8, 2, 2)
        self.conv4 = self.block(16, 8)
        self.upconv2 = nn.ConvTranspose2d(8, 5, 2, 2)
        self.conv5 = self.block(10, 5)
        self.conv6 = nn.Conv2d(5, 4, 1)
        self.pool = nn.MaxPool2d(2)

    @staticmethod
    def block(in_, out):
        return nn.Sequential(
            nn.Conv2d(in_, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x):
        c1 = self.conv1(x)
        c2 = self.conv2(self.pool(c1))
        c3 = self.conv3(self.pool(c2))
        c4 = self.conv4(cat((self.upconv1(c3), c2), dim=1))
        c5 = self.conv5(cat((self.upconv2(c4), c1), dim=1))
        return self.conv6(c5)


class StageLists(nn.Module):
    """ModuleLists, of which one alternates up-convolutions and stages; 2 groups, slope 0.2."""

    class Stage(nn.Module):
        def __init__(self, in_, out):
            super().__init__()
            layers: list[nn.Module] = []
            for channels in (in_, out):
                layers += [nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.GroupNorm(2, out)]
                layers += [nn.LeakyReLU(0.2)]
            self.layers = nn.Sequential(*layers)

        def forward(self, x):
            return self.layers(x)

    def __init__(self):
        super().__init__()
        self.falls = nn.ModuleList([self.Stage(2, 4), self.Stage(4, 6), self.Stage(6, 10)])
        self.rises = nn.ModuleList()
        for in_, out in ((12, 10), (10, 6), (6, 4)):
            self.rises.append(nn.ConvTranspose2d(in_, out, 2, 2))
            self.rises.append(self.Stage(2 * out, out))
        self.turn = self.Stage(10, 12)
        self.classify = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        skips = []
        for stage in self.falls:
            skips.append(stage(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.turn(x)
        for up, stage in zip(self.rises[::2], self.rises[1::2], strict=True):
            x = stage(cat([skips.pop(), up(x)], 1))
        return self.classify(x).softmax(dim=1)


class UpsBeforeDowns(nn.Module):
    """The last layer and the decoder are defined first; 4 groups, nearest, the edge repeated."""

    class Stage(nn.Module):
        def __init__(self, in_, out):
            super().__init__()
            self.first = nn.Conv2d(in_, out, 3, padding=1)
            self.first_norm = nn.GroupNorm(4, out)
            self.second = nn.Conv2d(out, out, 3, padding=1)
            self.second_norm = nn.GroupNorm(4, out)

        def forward(self, x):
            x = F.relu(self.first_norm(self.first(x)))
            return F.relu(self.second_norm(self.second(x)))

    def __init__(self):
        super().__init__()
        self.scores = nn.Conv2d(4, 2, 1)
        self.expand = nn.ModuleList([self.Stage(16, 8), self.Stage(8, 4)])
        self.shrink_channels = nn.ModuleList([nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)])
        self.middle = self.Stage(8, 16)
        self.contract = nn.ModuleList([self.Stage(1, 4), self.Stage(4, 8)])

    def forward(self, x):
        skips = []
        for stage in self.contract:
            skips.append(stage(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for reduce, stage in zip(self.shrink_channels, self.expand, strict=True):
            x = reduce(F.interpolate(x, scale_factor=2, mode="nearest"))
            skip = skips.pop()
            x = stage(cat([pad_to(x, skip, "replicate"), skip], 1))
        return self.scores(x)


class EncoderWithNeck(nn.Module):
    """The encoder's last block is the neck; no padding, so that skips are cropped; a sigmoid."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([self.block(1, 5), self.block(5, 7), self.block(7, 9)])
        self.decoder = nn.ModuleList([self.block(14, 7), self.block(10, 5)])
        self.upward = nn.ModuleList(
            [nn.ConvTranspose2d(9, 7, 2, stride=2), nn.ConvTranspose2d(7, 5, 2, stride=2)]
        )
        self.final = nn.Sequential(nn.Conv2d(5, 2, 1), nn.Sigmoid())

    @staticmethod
    def block(in_, out):
        return nn.Sequential(nn.Conv2d(in_, out, 3), nn.ReLU(), nn.Conv2d(out, out, 3), nn.ReLU())

    def forward(self, x):
        maps: list[Tensor] = []
        for block in self.encoder:
            x = block(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        maps.pop()
        for up, block in zip(self.upward, self.decoder, strict=True):
            x = up(x)
            x = block(cat([x, crop_to(maps.pop(), x)], 1))
        return self.final(x)


class ConvsThenNorms(nn.Module):
    """All convolutions in one list, then all norms in another; slope 0.1."""

    def __init__(self):
        super().__init__()
        channels = [(3, 6), (6, 6), (6, 8), (8, 8), (8, 10), (10, 10)]
        channels += [(16, 8), (8, 8), (12, 6), (6, 6)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in channels)
        self.lifts = nn.ModuleList(
            [nn.ConvTranspose2d(10, 8, 2, 2), nn.ConvTranspose2d(8, 6, 2, 2)]
        )
        self.last = nn.Conv2d(6, 2, 1)

    def pair(self, x, start):
        for index in (start, start + 1):
            x = F.leaky_relu(self.norms[index](self.convs[index](x)), 0.1)
        return x

    def forward(self, x):
        a = self.pair(x, 0)
        b = self.pair(F.max_pool2d(a, 2), 2)
        x = self.pair(F.max_pool2d(b, 2), 4)
        x = self.pair(cat([b, self.lifts[0](x)], 1), 6)
        x = self.pair(cat([a, self.lifts[1](x)], 1), 8)
        return self.last(x)


class TiedNorms(nn.Module):
    """Each norm is an attribute and also stands in a Sequential, so that it has two names."""

    class Block(nn.Module):
        def __init__(self, in_, out):
            super().__init__()
            self.bn_a = nn.BatchNorm2d(out)
            self.bn_b = nn.BatchNorm2d(out)
            self.run = nn.Sequential(
                nn.Conv2d(in_, out, 3, padding=1), self.bn_a, nn.ReLU(),
                nn.Conv2d(out, out, 3, padding=1), self.bn_b, nn.ReLU(),
            )  # fmt: skip

        def forward(self, x):
            return self.run(x)

    class Rise(nn.Module):
        def __init__(self, in_, out):
            super().__init__()
            self.sample = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(in_, out, 1)
            )
            self.block = TiedNorms.Block(2 * out, out)

        def forward(self, x, skip):
            return self.block(cat([self.sample(x), skip], 1))

    def __init__(self):
        super().__init__()
        self.a = self.Block(3, 4)
        self.b = self.Block(4, 7)
        self.c = self.Block(7, 9)
        self.d = self.Rise(9, 7)
        self.e = self.Rise(7, 4)
        self.f = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        return self.f(self.e(self.d(c, b), a))


class PlainInterpolation(nn.Module):
    """Bilinear between aligned corners and no convolution after it: 20 + 12 channels give 12."""

    def __init__(self):
        super().__init__()
        self.fall1 = self.two(3, 4)
        self.fall2 = self.two(4, 8)
        self.fall3 = self.two(8, 12)
        self.fall4 = self.two(12, 20)
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.rise3 = self.two(20 + 12, 12)
        self.rise2 = self.two(12 + 8, 8)
        self.rise1 = self.two(8 + 4, 4)
        self.to_classes = nn.Conv2d(4, 6, 1)

    @staticmethod
    def two(in_, out):
        return nn.Sequential(
            nn.Conv2d(in_, out, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        one = self.fall1(x)
        two = self.fall2(F.max_pool2d(one, 2))
        three = self.fall3(F.max_pool2d(two, 2))
        x = self.fall4(F.max_pool2d(three, 2))
        x = self.rise3(cat([self.grow(x), three], dim=1))
        x = self.rise2(cat([self.grow(x), two], dim=1))
        x = self.rise1(cat([self.grow(x), one], dim=1))
        return self.to_classes(x)


class NamedByScale(nn.Module):
    """Blocks named by the scale that they lead to; 3 convolutions, instance norm, slope 0.1."""

    def __init__(self):
        super().__init__()
        self.encode = nn.ModuleDict(
            {"x1": self.three(1, 6), "x2": self.three(6, 6), "x4": self.three(6, 9)}
        )
        self.twice = nn.ModuleDict(
            {"x1": nn.ConvTranspose2d(6, 6, 2, 2), "x2": nn.ConvTranspose2d(9, 6, 2, 2)}
        )
        self.decode = nn.ModuleDict({"x1": self.three(12, 6), "x2": self.three(12, 6)})
        self.logits = nn.Conv2d(6, 5, 1)

    @staticmethod
    def three(in_, out):
        layers: list[nn.Module] = []
        for channels in (in_, out, out):
            layers += [nn.Conv2d(channels, out, 3, padding=1)]
            layers += [nn.InstanceNorm2d(out, affine=True), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers)

    def forward(self, x):
        x1 = self.encode["x1"](x)
        x2 = self.encode["x2"](F.max_pool2d(x1, 2))
        x4 = self.encode["x4"](F.max_pool2d(x2, 2))
        x2 = self.decode["x2"](cat([x2, pad_to(self.twice["x2"](x4), x2)], 1))
        x1 = self.decode["x1"](cat([x1, pad_to(self.twice["x1"](x2), x1)], 1))
        return self.logits(x1).softmax(1)


class NarrowDecoder(nn.Module):
    """Interpolation alone, a narrower decoder whose first convolution halves; a sigmoid."""

    def __init__(self):
        super().__init__()
        self.stem = self.two(2, 4, 4)
        self.contract1 = self.two(4, 8, 8)
        self.contract2 = self.two(8, 16, 16)
        self.contract3 = self.two(16, 16, 16)
        self.extend1 = self.two(32, 16, 8)
        self.extend2 = self.two(16, 8, 4)
        self.extend3 = self.two(8, 4, 4)
        self.predict = nn.Conv2d(4, 1, 1)

    @staticmethod
    def two(in_, middle, out):
        return nn.Sequential(
            nn.Conv2d(in_, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        skips = [self.stem(x)]
        for block in (self.contract1, self.contract2):
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = self.contract3(F.max_pool2d(skips[-1], 2))
        for block in (self.extend1, self.extend2, self.extend3):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            skip = skips.pop()
            x = block(cat([skip, pad_to(x, skip)], 1))
        return self.predict(x).sigmoid()


def build(kind: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a net whose every tensor is random, those of the norms included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind()
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) * 0.3
                module.running_var = torch.rand(module.num_features) + 0.5
    return net.eval()


_CONFIGS: dict[type[nn.Module], UNetConfig] = {
    FlatStages: UNetConfig(
        1, 1, widths=(6, 10, 14), concat="skip_first", fit="zeros", output="sigmoid"
    ),
    NumberedConvs: UNetConfig(3, 4, widths=(5, 8, 12), norm="batch", norm_place="after"),
    StageLists: UNetConfig(
        2, 3, widths=(4, 6, 10, 12), norm="group", groups=2, bias=False, activation="leaky_relu",
        negative_slope=0.2, concat="skip_first", output="softmax",
    ),
    UpsBeforeDowns: UNetConfig(
        1, 2, widths=(4, 8, 16), norm="group", groups=4, up="nearest", fit="edge"
    ),
    EncoderWithNeck: UNetConfig(
        1, 2, widths=(5, 7, 9), padding="valid", fit="crop", output="sigmoid"
    ),
    ConvsThenNorms: UNetConfig(
        3, 2, widths=(6, 8, 10), norm="batch", bias=False, activation="leaky_relu",
        negative_slope=0.1, concat="skip_first",
    ),
    TiedNorms: UNetConfig(3, 3, widths=(4, 7, 9), norm="batch", up="bilinear"),
    PlainInterpolation: UNetConfig(
        3, 6, widths=(4, 8, 12, 20), up="bilinear_aligned", up_convolution=False
    ),
    NamedByScale: UNetConfig(
        1, 5, widths=(6, 6, 9), convolutions=3, norm="instance", activation="leaky_relu",
        negative_slope=0.1, concat="skip_first", fit="zeros", output="softmax",
    ),
    NarrowDecoder: UNetConfig(
        2, 1, widths=(4, 8, 16, 16), norm="batch", bias=False, up="bilinear", up_convolution=False,
        up_widths=(8, 4, 4), up_middle="half", concat="skip_first", fit="zeros", output="sigmoid",
    ),
}  # fmt: skip

_SIZES: dict[type[nn.Module], tuple[int, int]] = {EncoderWithNeck: (52, 60)}
_ODD_SIZES: dict[type[nn.Module], tuple[int, int]] = {
    FlatStages: (27, 33),
    UpsBeforeDowns: (27, 33),
    EncoderWithNeck: (51, 57),
    NamedByScale: (27, 33),
    NarrowDecoder: (29, 37),
}

NETS = {
    kind.__name__: ForeignNet(
        partial(build, kind, seed), config, _SIZES.get(kind, (24, 32)), _ODD_SIZES.get(kind)
    )
    for seed, (kind, config) in enumerate(_CONFIGS.items())
}
"""The ten nets, by the name of their class."""
