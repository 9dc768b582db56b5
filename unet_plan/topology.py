"""The name of a group of chips, as the compiler or the cloud writes it: v5e:4x4, v5p-8, h100:8."""

import math
import re
from dataclasses import dataclass

from unet_plan.chips import ALIASES, CHIPS, Chip
from unet_spec import InputError, memory
from unet_spec.wording import shorten

MOST_CHIPS = 512
"""Of chips without a shape."""
CPU = "cpu"
LONGEST_NAME = 80


@dataclass(frozen=True)
class Topology:
    """A `Topology` is a group of chips that one run uses.

    Attributes:
        name: as the compiler writes it, such as v5e:4x4 or h100:8.
        sides: of the box or rectangle of TPU chips; of other chips their number alone.
        host_sides: those of the chips of one machine.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]
    host_sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Return the number of chips."""
        return math.prod(self.sides)

    @property
    def devices(self) -> int:
        """Return the number of devices that JAX counts."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Return the number of machines, each of which runs the command."""
        return self.chips // math.prod(self.host_sides)


def parse_topology(text: str) -> Topology:
    """Return the topology of a name.

    Raises:
        InputError: no chip has that name, or no group of them that shape.

    >>> parse_topology("v5p-8").name, parse_topology("v5e-16").hosts, parse_topology("H100").chips
    ('v5p:2x2x1', 4, 1)
    """
    match = re.fullmatch(r"(.+?)(?:(:|-)([0-9]{1,5}(?:x[0-9]{1,3}){0,2}))?", text.strip().lower())
    kind, mark, size = match.groups() if match else (text, None, None)
    kind = ALIASES.get(kind, kind)
    if f"{kind}{mark}{size}" in CHIPS:  # a name with a hyphen
        kind, mark, size = f"{kind}{mark}{size}", None, None
    if kind == CPU:
        return _count_chips(text, _describe_cpu(), size)
    if kind not in CHIPS:
        raise InputError(
            f"--topology {shorten(text, LONGEST_NAME)}: no chip of that name is known; known are "
            f"{', '.join(CHIPS)}, with a size as in v5e:4x4, v5e-16 or h100:8"
        )
    chip = CHIPS[kind]
    if chip.platform == "gpu":
        return _count_chips(text, chip, size)
    return _shape_slice(text, chip, mark, size)


def _describe_cpu() -> Chip:
    """Return the processor of this machine, of whose speed nothing is stated."""
    return Chip(
        CPU, CPU, memory.free_bytes() or 0, {}, None, ("what is free of this machine's memory",)
    )


def _count_chips(text: str, chip: Chip, size: str | None) -> Topology:
    """Return so many chips that have no shape: up to 8 GPUs, or whole machines of 8."""
    count = int(size) if size and size.isdigit() else 1 if size is None else 0
    hosts = max(1, -(-count // chip.host_chips)) if chip.platform == "gpu" else 1
    if not 0 < count <= MOST_CHIPS or count % hosts:
        raise InputError(
            f"--topology {text}: {chip.name} takes a number, as in {chip.name}:8; above "
            f"{chip.host_chips} it is a multiple of {chip.host_chips}, which are in one machine"
        )
    return Topology(f"{chip.name}:{count}", chip, (count,), (count // hosts,))


def _shape_slice(text: str, chip: Chip, mark: str | None, size: str | None) -> Topology:
    """Return a slice of TPU chips by its shape, or by the number in the cloud's name for it."""
    if size is not None and mark == "-" and size.isdigit():
        by_count = {chip.counted_cores * count: shape for count, shape in chip.slices.items()}
        size = by_count.get(int(size))
    dimensions = {shape.count("x") + 1 for shape in chip.slices.values()}
    sides = tuple(map(int, size.split("x"))) if size else ()
    host_sides = _sides_of_host(sides)
    divides = all(side % host == 0 and side for side, host in zip(sides, host_sides, strict=True))
    if len(sides) not in dimensions or not divides or math.prod(sides) > max(chip.slices):
        names = [f"{chip.name}:{shape}" for shape in chip.slices.values()]
        clouds = [f"{chip.name}-{chip.counted_cores * count}" for count in chip.slices]
        raise InputError(
            f"--topology {text}: {chip.name} has no such slice; it has {', '.join(names)}, which "
            f"are also {', '.join(clouds)}"
        )
    return Topology(f"{chip.name}:{'x'.join(map(str, sides))}", chip, sides, host_sides)


def _sides_of_host(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides of what one machine holds: 4 chips; of flat slices up to 8 all of them."""
    if len(sides) == 2 and math.prod(sides) in (1, 4, 8):
        return sides
    return (2, 2, 1)[: len(sides)]
