"""Floating point operations of a net's convolutions, computed directly."""

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

    def double_conv(in_: int, out: int, height: int, width: int) -> int:
        first = in_ * (height + border) * (width + border)
        return 2 * 9 * out * (first + out * height * width)

    total = double_conv(config.widths[-2], config.widths[-1], rows.neck, columns.neck)
    for (in_, out), height, width in zip(config.downs, rows.skips, columns.skips, strict=True):
        total += double_conv(in_, out, height, width)
    for (in_, out), height, width in zip(config.ups, rows.ups, columns.ups, strict=True):
        total += 2 * in_ * out * height * width
    for (_, out), height, width in zip(config.ups, _ends(rows), _ends(columns), strict=True):
        total += double_conv(2 * out, out, height, width)
    total += 2 * config.widths[0] * config.classes * rows.output * columns.output
    return total / 1e9


def _ends(sizes: geometry.Levels) -> tuple[int, ...]:
    """Return the sizes after the convolutions of `up_1`, `up_2`, ...: half of what the next one
    makes."""
    return (*(size // 2 for size in sizes.ups[1:]), sizes.output)
