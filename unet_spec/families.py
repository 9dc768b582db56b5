"""U-Nets that many people use under the names of one repository, and what that repository's code
fixes although no tensor shows it.

A family is matched by all of its names: a fork that numbers its levels in another way is not of
the family, because what else it changed is not known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Layers(NamedTuple):
    """A `Layers` names the convolutions and norms of a level, behind the name of the level.

    `{number}` counts convolutions from 1 and `{index}` from 0; `{conv}` and `{norm}` are their
    places in an `nn.Sequential` with `step` modules for each convolution.

    Attributes:
        conv: the name of a convolution.
        norm: the name of its norm, or None without norms.
        place: whether the norm stands before or after the activation.
        step: modules for each convolution.
    """

    conv: str
    norm: str | None = None
    place: Literal["before", "after"] = "before"
    step: int = 1

    def names(self, level: str, convolutions: int) -> Iterator[tuple[str, str | None]]:
        """Yield the names of the convolutions of a level, each with that of its norm."""
        for index in range(convolutions):
            at = index * self.step
            values = {
                "number": index + 1,
                "index": index,
                "conv": at,
                "norm": at + (1 if self.place == "before" else 2),
            }
            norm = None if self.norm is None else level + self.norm.format(**values)
            yield level + self.conv.format(**values), norm


@dataclass(frozen=True)
class Family:
    """A `Family` is a repository's U-Net: the names of its layers, and what its code fixes.

    In the names of levels, `{number}` and `{index}` count in the direction of the data from 1 and
    from 0, `{level}` counts from the top, 1, to the neck, and `{even}` and `{odd}` are twice the
    index and one more.

    Attributes:
        name: what readers call it.
        first: the name of the top level, up to its convolutions.
        down: that of the other levels of the contracting path.
        neck: that of the lowest level.
        up: names of what doubles a map; "" is an interpolation without tensors.
        level: the name of a level of the expanding path, up to its convolutions.
        out: the name of the last layer.
        layers: what may follow the name of a level.
        depth: the number of pools, where its code fixes that.
        conventions: the value of each field of the config that the code fixes.
        defaults: the value of each field that an argument of the constructor decides, where the
            caller leaves that argument out. They settle nothing.
        doubt: what the code did in some of its versions and no field of the config can say.
    """

    name: str
    first: str
    down: str
    neck: str
    up: tuple[str, ...]
    level: str
    out: str
    layers: tuple[Layers, ...]
    depth: int | None = None
    conventions: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    doubt: str = ""


class Names(NamedTuple):
    """A `Names` holds the names of the layers of a net of a family.

    Attributes:
        levels: for each level, from the first convolution of the net to the last, its
            convolutions, each with its norm or None.
        ups: what doubles a map, from the deepest level up; "" without tensors.
        out: the last layer.
        place: where the norms stand.
    """

    levels: tuple[tuple[tuple[str, str | None], ...], ...]
    ups: tuple[str, ...]
    out: str
    place: Literal["before", "after"]

    def all(self) -> set[str]:
        """Return the names of all layers with tensors."""
        layers = {name for level in self.levels for pair in level for name in pair if name}
        return layers | {name for name in self.ups if name} | {self.out}


def possible_names(family: Family, *, depth: int, convolutions: int) -> Iterator[Names]:
    """Yield each way in which the layers of such a net of a family may be named."""
    if family.depth not in (None, depth):
        return
    for layers in family.layers:
        for up in family.up:
            downs = [_fill(family.first, 0, depth)]
            downs += [_fill(family.down, index, depth) for index in range(1, depth)]
            downs += [_fill(family.neck, depth, depth)]
            rises = [_fill(family.level, index, depth, up=True) for index in range(depth)]
            yield Names(
                tuple(tuple(layers.names(level, convolutions)) for level in (*downs, *rises)),
                tuple(_fill(up, index, depth, up=True) for index in range(depth)),
                family.out,
                layers.place,
            )


def _fill(name: str, index: int, depth: int, *, up: bool = False) -> str:
    level = depth - index if up else index + 1
    return name.format(
        number=index + 1, index=index, level=level, even=2 * index, odd=2 * index + 1
    )


_SEQUENTIAL = (
    Layers("{conv}", step=2),
    Layers("{conv}", "{norm}", "before", step=3),
    Layers("{conv}", "{norm}", "after", step=3),
)

OWN = Family(
    name="this project",
    first="down_{number}.conv.conv.",
    down="down_{number}.conv.conv.",
    neck="neck.conv.",
    up=("up_{number}.up", "up_{number}.up.1", ""),
    level="up_{number}.conv.conv.",
    out="out",
    layers=_SEQUENTIAL,
)
"""The slides' names. What their tensors do not show, the flags and their defaults say."""

MILESIAL = Family(
    name="milesial/Pytorch-UNet",
    first="inc.double_conv.",
    down="down{index}.maxpool_conv.1.double_conv.",
    neck="down{index}.maxpool_conv.1.double_conv.",
    up=("up{number}.up", ""),
    level="up{number}.conv.double_conv.",
    out="outc.conv",
    layers=(Layers("{conv}", "{norm}", "before", step=3),),
    depth=4,
    conventions={
        "padding": "same",
        "norm_place": "before",
        "activation": "relu",
        "up": "bilinear_aligned",
        "concat": "skip_first",
        "fit": "zeros",
        "output": "logits",
    },
)

# its versions differ: in some a sigmoid ends the net, in some the skip is cropped on odd sizes
MILESIAL_OLD = Family(
    name="milesial/Pytorch-UNet before 2019",
    first="inc.conv.conv.",
    down="down{index}.mpconv.1.conv.",
    neck="down{index}.mpconv.1.conv.",
    up=("up{number}.up", ""),
    level="up{number}.conv.conv.",
    out="outc.conv",
    layers=(Layers("{conv}", "{norm}", "before", step=3),),
    depth=4,
    conventions={
        "padding": "same",
        "norm_place": "before",
        "activation": "relu",
        "up": "bilinear_aligned",
        "concat": "skip_first",
    },
)

MATEUSZBUDA = Family(
    name="mateuszbuda/brain-segmentation-pytorch",
    first="encoder{level}.enc{level}",
    down="encoder{level}.enc{level}",
    neck="bottleneck.bottleneck",
    up=("upconv{level}",),
    level="decoder{level}.dec{level}",
    out="conv",
    layers=(Layers("conv{number}", "norm{number}", "before"),),
    depth=4,
    conventions={
        "padding": "same",
        "norm_place": "before",
        "activation": "relu",
        "concat": "up_first",
        "fit": "error",
        "output": "sigmoid",
    },
)

JVANVUGT = Family(
    name="jvanvugt/pytorch-unet",
    first="down_path.{index}.block.",
    down="down_path.{index}.block.",
    neck="down_path.{index}.block.",
    up=("up_path.{index}.up", "up_path.{index}.up.1"),
    level="up_path.{index}.conv_block.block.",
    out="last",
    layers=(Layers("{conv}", step=2), Layers("{conv}", "{norm}", "after", step=3)),
    conventions={
        "norm_place": "after",
        "activation": "relu",
        "up": "bilinear",
        "concat": "up_first",
        "fit": "crop",
        "output": "logits",
    },
    defaults={"padding": "valid"},
    doubt="some of its versions pool by the average, which this project cannot",
)

ALADDINPERSSON = Family(
    name="aladdinpersson/Machine-Learning-Collection",
    first="downs.{index}.conv.",
    down="downs.{index}.conv.",
    neck="bottleneck.conv.",
    up=("ups.{even}",),
    level="ups.{odd}.conv.",
    out="final_conv",
    layers=(Layers("{conv}", "{norm}", "before", step=3),),
    # it resizes the map on odd sizes, which no `fit` does
    conventions={
        "padding": "same",
        "norm_place": "before",
        "activation": "relu",
        "concat": "skip_first",
        "fit": "error",
        "output": "logits",
    },
)

MONAI = Family(
    name="MONAI BasicUNet",
    first="conv_0.",
    down="down_{index}.convs.",
    neck="down_{index}.convs.",
    up=("upcat_{level}.upsample.deconv",),
    level="upcat_{level}.convs.",
    out="final_conv",
    layers=(
        Layers("conv_{index}.conv", "conv_{index}.adn.N", "before"),
        Layers("conv_{index}.conv"),
    ),
    depth=4,
    conventions={
        "padding": "same",
        "norm_place": "before",
        "concat": "skip_first",
        "fit": "edge",
        "output": "logits",
    },
    defaults={"norm": "instance", "activation": "leaky_relu", "negative_slope": 0.1},
)

FAMILIES = (OWN, MILESIAL, MILESIAL_OLD, MATEUSZBUDA, JVANVUGT, ALADDINPERSSON, MONAI)
