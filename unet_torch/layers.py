"""The parts that torch does not have ready-made."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unet_spec import UNetConfig


def conv_block(in_channels: int, out_channels: int, config: UNetConfig) -> list[nn.Module]:
    """Return a 3x3 convolution, normalisation and activation, in the order of the config."""
    pad = 1 if config.padding == "same" else 0
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=pad, bias=config.bias)
    act = nn.ReLU() if config.activation == "relu" else nn.LeakyReLU(config.negative_slope)
    if config.norm == "none":
        return [conv, act]
    norm = normalisation(out_channels, config)
    return [conv, norm, act] if config.norm_place == "before" else [conv, act, norm]


def normalisation(channels: int, config: UNetConfig) -> nn.Module:
    """Build the norm of the config, affine, with torch's eps 1e-5 and momentum 0.1."""
    if config.norm == "batch":
        return nn.BatchNorm2d(channels)
    if config.norm == "group":
        return nn.GroupNorm(config.groups, channels)
    return nn.InstanceNorm2d(channels, affine=True)


def up_sampling(in_channels: int, out_channels: int, config: UNetConfig) -> nn.Module:
    """Build what doubles height and width and gives `out_channels` channels.

    Without a convolution these are the `in_channels`.
    """
    if config.up == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    aligned = {"bilinear": False, "bilinear_aligned": True}.get(config.up)
    mode = "nearest" if config.up == "nearest" else "bilinear"
    up = nn.Upsample(scale_factor=2, mode=mode, align_corners=aligned)
    if not config.up_convolution:
        return nn.Sequential(up)
    return nn.Sequential(up, nn.Conv2d(in_channels, out_channels, 1))


class Dropout(nn.Module):
    """Dropout whose mask can be given, so that two frameworks can drop the same values."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "b c h w"], keep: Tensor | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Drop values where `keep`, of the shape of `x`, is 0; without it, at random."""
        if not self.training or self.rate == 0:
            return x
        if keep is None:
            return F.dropout(x, self.rate)
        return x * keep.to(x.dtype) / (1 - self.rate)


def match_sizes(
    x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b k H W"], config: UNetConfig
) -> tuple[Tensor, Tensor]:
    """Bring the two maps of a concatenation to one size.

    The skip is cropped at its centre, or, for `fit=zeros` and `fit=edge`, the up-sampled map is
    padded at its bottom and right.
    """
    if config.fit in ("zeros", "edge"):
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        mode = "constant" if config.fit == "zeros" else "replicate"
        return F.pad(x, [0, columns, 0, rows], mode=mode), skip
    top = (skip.shape[2] - x.shape[2]) // 2
    left = (skip.shape[3] - x.shape[3]) // 2
    return x, skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def initialise(net: nn.Module) -> None:
    """Draw He's normal initialisation, std sqrt(2 / N), biases 0 (paper, section 3).

    N counts the inputs of one output value; for the 2x2 up-convolution it is 4 x out_channels,
    as in the authors' release. A net without memory (`torch.device("meta")`) has nothing to draw,
    and takes 36 ms to find that out.
    """
    if next(net.parameters()).is_meta:
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
