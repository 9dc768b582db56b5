"""Which layer of a file stands where in a U-Net: found by channels, in the order of the file.

A level of the expanding path begins with a convolution that takes the channels of the skip and of
the up-sampled map together. With the chains of channels this determines a plain U-Net, whatever
the order in which it was defined.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from unet_spec.layers_of_file import FileLayers, Layer

MOST = 24
"""At most so many assignments are returned."""
# so many are ranked, and so many steps are searched for them: nets with many equal blocks
_RANKED, _STEPS = 2000, 200_000


class Level(NamedTuple):
    """A `Level` holds the 3x3 convolutions of a level, and where it stands in the file."""

    place: int
    convolutions: tuple[Layer, ...]

    @property
    def in_channels(self) -> int:
        return self.convolutions[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.convolutions[-1].out_channels

    @property
    def middle_channels(self) -> set[int]:
        return {layer.out_channels for layer in self.convolutions[:-1]}


@dataclass(frozen=True)
class Assignment:
    """An `Assignment` says which layers of a file are which layers of a U-Net.

    Attributes:
        downs: the levels of the contracting path, from the top to the neck.
        rises: the levels of the expanding path, from the deepest up.
        ups: what doubles the map before each of `rises`; () for an interpolation alone.
        out: the last layer.
    """

    downs: tuple[Level, ...]
    rises: tuple[Level, ...]
    ups: tuple[Layer, ...]
    out: Layer


class Rules(NamedTuple):
    """A `Rules` says how channels meet; other than the default, only to explain a refusal.

    Attributes:
        skips: a level of the expanding path also takes the channels of the skip.
        equal: the up-sampled map has as many channels as the skip.
    """

    skips: bool = True
    equal: bool = True


def assign(layers: FileLayers, rules: Rules = Rules()) -> tuple[Assignment, ...]:
    """Assign the layers of a file to those of a U-Net, in up to `MOST` ways.

    More than one way is possible where blocks have equal channels. The first keeps most to the
    order of the file.
    """
    for depth, count in _shapes(layers):
        for levels in _cut_into_levels(layers.of_kind("conv"), count):
            search = _Search(layers, levels, depth, rules)
            found = list(islice(search.run(), _RANKED))
            if found:
                return tuple(sorted(found, key=_disorder)[:MOST])
    return ()


def _shapes(layers: FileLayers) -> Iterator[tuple[int, int]]:
    """Yield each depth with the number of convolutions of a level that the numbers allow."""
    total = len(layers.of_kind("conv"))
    ups, points = len(layers.of_kind("up_conv")), len(layers.of_kind("point"))
    if ups:
        depths = [ups] if points == 1 else []
    elif points > 1:
        depths = [points - 1]
    else:
        # two convolutions for a level are by far the most usual
        depths = sorted(range(1, total // 2 + 1), key=lambda d: abs(total - 2 * (2 * d + 1)))
    for depth in depths if points else []:
        if total and total % (2 * depth + 1) == 0:
            yield depth, total // (2 * depth + 1)


def _cut_into_levels(convolutions: tuple[Layer, ...], count: int) -> Iterator[list[Level]]:
    """Yield the levels where each is a run in the file, then where all first ones come first."""
    number = len(convolutions) // count
    runs = [convolutions[i * count : (i + 1) * count] for i in range(number)]
    turns = [convolutions[i::number] for i in range(number)]
    for cut in (runs, turns)[: 1 if count == 1 else 2]:
        if all(a.out_channels == b.in_channels for level in cut for a, b in pairwise(level)):
            yield [Level(place, level) for place, level in enumerate(cut)]


def is_chain(assignment: Assignment) -> bool:
    """Return whether the channels of an assignment meet, as they do in those of `assign`."""
    downs, rises, ups = assignment.downs, assignment.rises, assignment.ups
    below = [downs[-1], *rises[:-1]]
    skips = downs[-2::-1]
    if any(a.out_channels != b.in_channels for a, b in pairwise(downs)):
        return False
    if any(not level.middle_channels <= {level.out_channels} for level in downs):
        return False
    for number, (rise, skip, source) in enumerate(zip(rises, skips, below, strict=True)):
        channels = source.out_channels
        if ups:
            fits = ups[number].in_channels == channels
            channels = ups[number].out_channels
            if not fits or channels != skip.out_channels:
                return False
        if rise.in_channels != channels + skip.out_channels:
            return False
    return assignment.out.in_channels == rises[-1].out_channels


class _Search:
    """A `_Search` walks through a net from its input, with every layer that fits its channels."""

    def __init__(self, layers: FileLayers, levels: list[Level], depth: int, rules: Rules):
        self.levels, self.depth, self.rules = levels, depth, rules
        self.points = layers.of_kind("point")
        ups = layers.of_kind("up_conv")
        self.ups = ups or (self.points if len(self.points) > 1 else ())
        self.steps = 0

    def run(self) -> Iterator[Assignment]:
        for first in self.levels:
            if first.middle_channels <= {first.out_channels}:
                yield from self._go_down((first,))

    def _go_down(self, downs: tuple[Level, ...]) -> Iterator[Assignment]:
        self.steps += 1
        if self.steps > _STEPS:
            return
        if len(downs) == self.depth + 1:
            yield from self._go_up(downs, (), ())
            return
        for level in self._left(downs):
            fits = level.in_channels == downs[-1].out_channels
            if fits and level.middle_channels <= {level.out_channels}:
                yield from self._go_down((*downs, level))

    def _go_up(
        self, downs: tuple[Level, ...], rises: tuple[Level, ...], ups: tuple[Layer, ...]
    ) -> Iterator[Assignment]:
        self.steps += 1
        if self.steps > _STEPS:
            return
        below = (rises or downs)[-1].out_channels
        if len(rises) == self.depth:
            yield from self._end(downs, rises, ups, below)
            return
        skip = downs[self.depth - 1 - len(rises)].out_channels
        for up, channels in self._double(ups, below, skip):
            needed = channels + skip if self.rules.skips else channels
            for level in self._left((*downs, *rises)):
                if level.in_channels == needed:
                    yield from self._go_up(downs, (*rises, level), ups + up)

    def _left(self, used: Sequence[Level]) -> Iterator[Level]:
        """Yield the levels that are left, those behind the last one in the file first."""
        last = used[-1].place
        for level in (*self.levels[last + 1 :], *self.levels[:last]):
            if level not in used:
                yield level

    def _double(
        self, used: tuple[Layer, ...], below: int, skip: int
    ) -> Iterator[tuple[tuple[Layer, ...], int]]:
        """Yield what may double a map, with the channels that it gives."""
        if not self.ups:
            yield (), below
        for up in self.ups:
            fits = up.out_channels == skip or not self.rules.equal
            if up not in used and up.in_channels == below and fits:
                yield (up,), up.out_channels

    def _end(
        self,
        downs: tuple[Level, ...],
        rises: tuple[Level, ...],
        ups: tuple[Layer, ...],
        channels: int,
    ) -> Iterator[Assignment]:
        for out in self.points:
            if out not in ups and out.in_channels == channels:
                yield Assignment(downs, rises, ups, out)


def _disorder(assignment: Assignment) -> float:
    """Count where an assignment leaves the order of the file.

    A decoder may be defined from the bottom up or from the top down, and its up-convolutions are
    defined in the same order as its levels.
    """
    downs = [level.place for level in assignment.downs]
    rises = [level.place for level in assignment.rises]
    ups = [layer.place for layer in assignment.ups]
    disorder = float(_descents(downs))
    for places in (rises, ups):
        disorder += min(_descents(places), 0.5 + _descents(places[::-1]))
    if ups and _ranks(rises) != _ranks(ups):
        disorder += 1
    return disorder


def _descents(places: list[int]) -> int:
    return sum(a > b for a, b in pairwise(places))


def _ranks(places: list[int]) -> list[int]:
    return [sorted(places).index(place) for place in places]
