"""U-Net in PyTorch, the reference. `unet_jax.model` is its twin, line for line."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unet_spec import Preprocessing, UNetConfig
from unet_spec.batch import check_batch
from unet_spec.config import UpLevel
from unet_torch.layers import Dropout, conv_block, initialise, match_sizes, up_sampling


class DoubleConv(nn.Module):
    """The 3x3 convolutions of a level, two in the slides' net, each with norm and activation."""

    def __init__(
        self, in_channels: int, middle_channels: int, out_channels: int, config: UNetConfig,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        middle = [middle_channels] * (config.convolutions - 1)
        blocks = []
        for before, after in pairwise([in_channels, *middle, out_channels]):
            blocks += conv_block(before, after, config)
        self.conv = nn.Sequential(*blocks)
        self.drop = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b c h w"], keep: Tensor | None = None
    ) -> Float[Tensor, "b k h2 w2"]:
        return self.drop(self.conv(x), keep)


class Down(nn.Module):
    """A level of the contracting path: the map for the skip, and its half for the next level."""

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, dropout: float = 0.0
    ):
        super().__init__()
        self.conv = DoubleConv(in_channels, out_channels, out_channels, config, dropout)
        self.pool = nn.MaxPool2d(2)

    def forward(
        self, x: Float[Tensor, "b c h w"], keep: Tensor | None = None
    ) -> tuple[Float[Tensor, "b k h2 w2"], Float[Tensor, "b k h3 w3"]]:
        skip = self.conv(x, keep)
        return skip, self.pool(skip)


class Up(nn.Module):
    """A level of the expanding path: up-sampling, concatenation with the skip, convolutions."""

    def __init__(self, channels: UpLevel, config: UNetConfig):
        super().__init__()
        self.config = config
        self.up = up_sampling(channels.in_channels, channels.up_channels, config)
        self.conv = DoubleConv(
            channels.up_channels + channels.skip_channels,
            channels.middle_channels, channels.out_channels, config,
        )  # fmt: skip

    def forward(
        self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b k h2 w2"]
    ) -> Float[Tensor, "b n h3 w3"]:
        x, skip = match_sizes(self.up(x), skip, self.config)
        pair = [x, skip] if self.config.concat == "up_first" else [skip, x]
        return self.conv(torch.cat(pair, dim=1))


class UNet(nn.Module):
    """A `UNet` maps a batch (b, in_channels, h, w) to logits (b, classes, h', w').

    With padding=same h' and w' are h and w, with padding=valid smaller. `state_dict` has
    the slides' names. A new net is in training mode; `model.eval()` switches to inference.

    Args:
        config: which U-Net; the default is the net of the slides.

    Attributes:
        preprocessing: how `predict` turns an image into the input; `save` writes it.
        class_names: a name for each class, or (); `save` writes them.

    Raises:
        InputError: a batch in another layout or of an illegal size, when the net is called.
    """

    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[str, ...] = ()

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        for level, (in_channels, out_channels) in enumerate(config.downs, start=1):
            dropout = config.dropout if level == config.depth else 0.0
            setattr(self, f"down_{level}", Down(in_channels, out_channels, config, dropout))
        above, lowest = config.widths[-2:]
        self.neck = DoubleConv(above, lowest, lowest, config, config.dropout)
        for level, channels in enumerate(config.ups, start=1):
            setattr(self, f"up_{level}", Up(channels, config))
        self.out = nn.Conv2d(config.out_channels, config.classes, 1)
        initialise(self)

    def forward(
        self, x: Float[Tensor, "b c h w"], keep: Sequence[Tensor | None] = (None, None)
    ) -> Float[Tensor, "b k h2 w2"]:
        """Return the logits of a batch.

        Args:
            x: the input; height and width legal for the config (`unet_spec.geometry`).
            keep: masks for the dropout of the last level and of the neck, each of the shape
                that it falls on, 1 where a value stays. Drawn at random without them.

        Raises:
            InputError: another layout, other channels, or an illegal size, with the
                nearest legal ones.
        """
        check_batch(self.config, x.shape, "b c h w")
        skips = []
        for level in range(1, self.config.depth + 1):
            drop = keep[0] if level == self.config.depth else None
            skip, x = getattr(self, f"down_{level}")(x, drop)
            skips.append(skip)
        x = self.neck(x, keep[1])
        for level in range(1, self.config.depth + 1):
            x = getattr(self, f"up_{level}")(x, skips.pop())
        return self.out(x)
