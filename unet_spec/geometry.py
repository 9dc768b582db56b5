"""What sizes do in a U-Net, in whole numbers. Height and width never mix: all is per axis."""

from dataclasses import dataclass, replace

import numpy as np

from unet_spec.config import UNetConfig
from unet_spec.errors import InputError

Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Levels:
    """A `Levels` holds the sizes that one size becomes at each level, in pixels.

    Attributes:
        skips: after the convolutions of `down_1`, `down_2`, ..., before the pool.
        neck: after the convolutions of the neck.
        ups: after the up-sampling of `up_1` (the deepest), ..., before the crop or padding.
        output: of the net.
    """

    skips: tuple[int, ...]
    neck: int
    ups: tuple[int, ...]
    output: int


def levels(config: UNetConfig, size_px: int) -> Levels:
    """Follow a height or a width through the levels of the net.

    Raises:
        InputError: an illegal size; it says the rule and the nearest legal sizes.
    """
    sizes = _trace_size(config, size_px)
    if sizes is None:
        near = " and ".join(map(str, nearest_legal(config, size_px)))
        rule = "halve an even size" if config.fit == "error" else "leave something of it"
        raise InputError(
            f"size {size_px} px is not legal: with padding={config.padding} each of the "
            f"{config.depth} pools must {rule}; the nearest legal sizes: {near}"
        )
    return sizes


def _trace_size(config: UNetConfig, size_px: int) -> Levels | None:
    """Follow a size through the net; None if a level has nothing left, or cannot be halved."""
    shrink = _shrink(config)
    skips, ups, size = [], [], size_px
    for _ in range(config.depth):
        size -= shrink
        skips.append(size)
        if size < 2:
            return None
        if config.fit == "error" and size % 2:
            return None
        size //= 2
    neck = size = size - shrink
    for skip in reversed(skips):
        ups.append(2 * size)
        # an up-sampled map is padded to the skip's size, or the skip is cropped to its own
        size = skip if config.fit in ("zeros", "edge") else 2 * size
        size -= shrink
    if min(neck, *ups, size) <= 0:
        return None
    return Levels(tuple(skips), neck, tuple(ups), size)


def check(config: UNetConfig, height_px: int, width_px: int) -> None:
    """Refuse an illegal input size before anything is compiled: `InputError`."""
    for size_px in (height_px, width_px):
        levels(config, size_px)


def output_size(config: UNetConfig, size_px: int) -> int:
    """Return the height (or width) of the output for a legal one of the input.

    >>> output_size(UNetConfig(padding="valid"), 572)
    388
    """
    return levels(config, size_px).output


def is_legal(config: UNetConfig, size_px: int) -> bool:
    """Say whether the net takes an input of this height (or width)."""
    return _trace_size(config, size_px) is not None


def next_legal(config: UNetConfig, size_px: int) -> int:
    """Return the smallest legal size of at least `size_px`."""
    smallest, step = _list_legal(config)
    steps_up = -(-(size_px - smallest) // step)
    return smallest + step * max(0, steps_up)


def nearest_legal(config: UNetConfig, size_px: int) -> tuple[int, ...]:
    """Return the legal sizes next to `size_px`: one below, if there is one, and one above."""
    above = next_legal(config, size_px)
    smallest, step = _list_legal(config)
    if size_px <= smallest:
        return (above,)
    return smallest + (size_px - 1 - smallest) // step * step, above


def _list_legal(config: UNetConfig) -> tuple[int, int]:
    """Return the smallest legal size, and the step from each legal size to the next one.

    The convolutions of a level take c pixels. A neck of n pixels comes from n + c, and each level
    above it had twice as many pixels and c more, so the input had 2**depth (n + c) and
    c (2**depth - 1) more. Going up, each level doubles the size and takes c, so the output has
    2**depth (n - c) + c pixels, which must be at least 1 without padding to the skips.
    """
    shrink, halving = _shrink(config), 2**config.depth
    smallest_neck = max(1, shrink - (shrink - 1) // halving)
    smallest = halving * (smallest_neck + shrink) + shrink * (halving - 1)
    # where a pool may drop an odd row, each larger size is legal too
    return smallest, halving if config.fit == "error" else 1


def _shrink(config: UNetConfig) -> int:
    """Return how many pixels the 3x3 convolutions of a level take: one off each side, unpadded."""
    return 2 * config.convolutions if config.padding == "valid" else 0


def margin(config: UNetConfig) -> int:
    """Return how many pixels the output lacks on each side of the input, with `fit=error`.

    >>> margin(UNetConfig(padding="valid"))
    92
    """
    size = next_legal(replace(config, fit="error"), 1)
    return (size - output_size(config, size)) // 2


def receptive_field(config: UNetConfig) -> int:
    """Return the side in pixels of the square that one output pixel sees.

    It is the largest over all places that the pixel can have in the grid of the pools.

    Exact for every axis but `up=bilinear_aligned`, whose sampling points drift with the size:
    there it is an upper bound. What `norm=group` and `norm=instance` see, the whole map, is
    left out.
    """
    first, last = _View(config).of_pixels(_list_phases(config))
    return int((last - first).max()) + 1


def reach(config: UNetConfig) -> int:
    """Return the largest distance in pixels between a pixel of the output and one that it sees."""
    pixels = _list_phases(config)
    first, last = _View(config).of_pixels(pixels)
    places = pixels + margin(config)  # of the pixels of the output in the input
    return int(np.maximum(places - first, last - places).max())


def _list_phases(config: UNetConfig) -> np.ndarray:
    """List a pixel for each place that it can have in the grid of the deepest pool."""
    return np.arange(2**config.depth)


class _View:
    """What pixels of the output see of the input, as intervals (first, last), all at once.

    It is worked out backwards, from the output to the input. An interval may reach over the border.
    """

    def __init__(self, config: UNetConfig):
        self.config = config
        self.sizes = levels(config, next_legal(replace(config, fit="error"), 1))

    def of_pixels(self, pixels: np.ndarray) -> Interval:
        """Return the intervals of the input that pixels of the output see."""
        return self._before_up_level((pixels, pixels), 0)

    def _before_up_level(self, interval: Interval, level: int) -> Interval:
        """Go back from the output of a level of the expanding path; level 0 is the widest."""
        if level == self.config.depth:
            return self._before_down_level(interval, level)
        first, last = self._before_convolutions(interval)
        # both halves of the concatenation: the cropped skip, and what comes from below
        crop = (self.sizes.skips[level] - self.sizes.ups[self.config.depth - 1 - level]) // 2
        skip = self._before_down_level((first + crop, last + crop), level)
        deep = self._before_up_level(self._before_up_sampling((first, last)), level + 1)
        return np.minimum(skip[0], deep[0]), np.maximum(skip[1], deep[1])

    def _before_down_level(self, interval: Interval, level: int) -> Interval:
        """Go back from the convolutions of a level of the contracting path to the input."""
        for _ in range(level):
            first, last = self._before_convolutions(interval)
            interval = 2 * first, 2 * last + 1  # the pool
        return self._before_convolutions(interval)

    def _before_convolutions(self, interval: Interval) -> Interval:
        first, last = interval
        # each convolution sees a pixel more on each side
        more = self.config.convolutions
        if self.config.padding == "same":
            return first - more, last + more
        # an unpadded output starts so many pixels further inside
        return first, last + 2 * more

    def _before_up_sampling(self, interval: Interval) -> Interval:
        # how far beyond its own pixel an interpolation looks
        before, after = {"bilinear": (-1, 1), "bilinear_aligned": (-1, 2)}.get(
            self.config.up, (0, 0)
        )
        first, last = interval
        return (first + before) // 2, (last + after) // 2
