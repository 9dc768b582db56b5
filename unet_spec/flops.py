"""Floating point operations of a net's convolutions, computed directly."""

from itertools import pairwise

from unet_spec import UNetConfig, geometry


def forward_gflop(config: UNetConfig, height_px: int, width_px: int) -> float:
    """Return the 10^9 operations of the convolutions in a forward pass over one image.

    2 k k c_in c_out h w each, over the pixels of its output; over those of its input for the 2x2
    up-convolution. The slides' net, and the paper's:

    >>> [round(forward_gflop(UNetConfig(), size, size), 1) for size in (256, 512)]
    [96.2, 384.8]
    >>> round(forward_gflop(UNetConfig(padding="valid"), 572, 572), 1)
    300.9
    """
    rows, columns = (geometry.levels(config, size) for size in (height_px, width_px))
    border = 2 if config.padding == "valid" else 0

    def count_level(first: int, middle: int, last: int, height: int, width: int) -> int:
        """Count those of a level; its last convolution gives a map of this height and width."""
        channels = (first, *(middle,) * (config.convolutions - 1), last)
        count = 0
        # from the last to the first, whose maps are larger by what the later ones take off
        for later, (in_, out) in enumerate(reversed(list(pairwise(channels)))):
            more = later * border
            count += 2 * 9 * in_ * out * (height + more) * (width + more)
        return count

    above, lowest = config.widths[-2:]
    total = count_level(above, lowest, lowest, rows.neck, columns.neck)
    for (in_, out), height, width in zip(config.downs, rows.skips, columns.skips, strict=True):
        total += count_level(in_, out, out, height, width)
    if config.up_convolution:
        for level, height, width in zip(config.ups, rows.ups, columns.ups, strict=True):
            total += 2 * level.in_channels * level.up_channels * height * width
    for level, height, width in zip(config.ups, _ends(rows), _ends(columns), strict=True):
        _, up, skip, middle, out = level
        total += count_level(up + skip, middle, out, height, width)
    total += 2 * config.out_channels * config.classes * rows.output * columns.output
    return total / 1e9


def _ends(sizes: geometry.Levels) -> tuple[int, ...]:
    """Return the sizes after the convolutions of `up_1`, `up_2`, ...: half of what the next one
    makes."""
    return (*(size // 2 for size in sizes.ups[1:]), sizes.output)
