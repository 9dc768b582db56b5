"""What sizes do in a U-Net, in plain integers. Height and width never mix: all is per axis."""

from dataclasses import dataclass, replace
from itertools import count

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError

Interval = tuple[int, int]


@dataclass(frozen=True)
class Levels:
    """How one size runs through the levels, in pixels.

    Attributes:
        skips: after the two convolutions of `down_1`, `down_2`, ..., before the pool.
        neck: after the two convolutions of the neck.
        ups: after the up-sampling of `up_1` (the deepest), ..., before the crop or padding.
        output: of the net.
    """

    skips: tuple[int, ...]
    neck: int
    ups: tuple[int, ...]
    output: int


def levels(config: UNetConfig, size_px: int) -> Levels:
    """How `size_px`, a height or a width, runs through the levels.

    Raises:
        InputError: an illegal size; it says the rule and the nearest legal sizes.
    """
    found = _run_through(config, size_px)
    if found is None:
        near = " and ".join(map(str, nearest_legal(config, size_px)))
        rule = "halve an even size" if config.fit == "error" else "leave something of it"
        raise InputError(
            f"size {size_px} px is not legal: with padding={config.padding} each of the "
            f"{config.depth} pools must {rule}; the nearest legal sizes: {near}"
        )
    return found


def _run_through(config: UNetConfig, size_px: int) -> Levels | None:
    shrink = 4 if config.padding == "valid" else 0
    skips, ups, size = [], [], size_px
    for _ in range(config.depth):
        size -= shrink
        skips.append(size)
        if size < 2 or (config.fit == "error" and size % 2):
            return None
        size //= 2
    neck = size = size - shrink
    for skip in reversed(skips):
        ups.append(2 * size)
        size = (skip if config.fit in ("zeros", "edge") else 2 * size) - shrink
    return Levels(tuple(skips), neck, tuple(ups), size) if min(neck, *ups, size) > 0 else None


def check(config: UNetConfig, height_px: int, width_px: int) -> None:
    """Refuse an illegal input size before anything is compiled: `InputError`."""
    for size_px in (height_px, width_px):
        levels(config, size_px)


def output_size(config: UNetConfig, size_px: int) -> int:
    """Height (or width) of the output for a legal height (or width) of the input.

    >>> output_size(UNetConfig(padding="valid"), 572)
    388
    """
    return levels(config, size_px).output


def is_legal(config: UNetConfig, size_px: int) -> bool:
    """Whether the net takes an input of this height (or width)."""
    return _run_through(config, size_px) is not None


def next_legal(config: UNetConfig, size_px: int) -> int:
    """The smallest legal size of at least `size_px`."""
    return next(size for size in count(max(1, size_px)) if is_legal(config, size))


def nearest_legal(config: UNetConfig, size_px: int) -> tuple[int, ...]:
    """The legal sizes next to `size_px` on either side: below (if there is one) and above."""
    below = (size for size in range(size_px - 1, 0, -1) if is_legal(config, size))
    return (*((first,) if (first := next(below, None)) else ()), next_legal(config, size_px))


def margin(config: UNetConfig) -> int:
    """Pixels that each side of the output lacks of the input, with `fit=error`.

    >>> margin(UNetConfig(padding="valid"))
    92
    """
    size = next_legal(replace(config, fit="error"), 1)
    return (size - output_size(config, size)) // 2


def receptive_field(config: UNetConfig) -> int:
    """Side in pixels of the square that one output pixel sees, the largest over all phases of
    the pooling grid.

    Exact for every axis but `up=bilinear_aligned`, whose sampling points drift with the size:
    there it is an upper bound. What `norm=group` and `norm=instance` see, the whole map, is
    left out.
    """
    return max(last - first + 1 for first, last in map(_seen(config), _phases(config)))


def reach(config: UNetConfig) -> int:
    """The largest distance in pixels between a pixel of the output and one that it sees."""
    seen, offset = _seen(config), margin(config)
    return max(
        max(pixel + offset - seen(pixel)[0], seen(pixel)[1] - pixel - offset)
        for pixel in _phases(config)
    )


def _phases(config: UNetConfig) -> range:
    return range(2**config.depth)


def _seen(config: UNetConfig):
    """A function from a pixel of the output to the interval of the input that it sees, worked
    out backwards; an interval may reach over the border."""
    same = config.padding == "same"
    sizes = levels(config, next_legal(replace(config, fit="error"), 1))

    def double_conv(interval: Interval) -> Interval:
        return (interval[0] - 2, interval[1] + 2) if same else (interval[0], interval[1] + 4)

    def pool(interval: Interval) -> Interval:
        return 2 * interval[0], 2 * interval[1] + 1

    def up(interval: Interval) -> Interval:
        before, after = {"bilinear": (-1, 1), "bilinear_aligned": (-1, 2)}.get(config.up, (0, 0))
        return (interval[0] + before) // 2, (interval[1] + after) // 2

    def through_downs(level: int, interval: Interval) -> Interval:
        for _ in range(level):
            interval = pool(double_conv(interval))
        return double_conv(interval)

    def through_ups(level: int, interval: Interval) -> Interval:
        if level == config.depth:
            return through_downs(level, interval)
        interval = double_conv(interval)
        crop = (sizes.skips[level] - sizes.ups[config.depth - 1 - level]) // 2
        skip = through_downs(level, (interval[0] + crop, interval[1] + crop))
        deep = through_ups(level + 1, up(interval))
        return min(skip[0], deep[0]), max(skip[1], deep[1])

    return lambda pixel: through_ups(0, (pixel, pixel))
