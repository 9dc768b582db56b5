"""Which U-Net is meant: the axes on which two nets may differ, as one frozen config."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from unet_spec.errors import ConfigError, FieldError, InputError
from unet_spec.fields import check_fields, from_json
from unet_spec.ranges import Channels, Range
from unet_spec.wording import LONGEST_NAME, is_name

MOST_LEVELS = 16
"""Of a net in a file or in flags; with this many, the smallest size is 2**15 pixels already."""
MOST_CONVOLUTIONS = 100
"""Of a level of such a net; a million would keep the reader of a file busy for an hour."""


class UpLevel(NamedTuple):
    """An `UpLevel` holds the channels of one level of the expanding path.

    Attributes:
        in_channels: of the map from the level below.
        up_channels: of that map after the up-sampling.
        skip_channels: of the map that it is concatenated with.
        middle_channels: between the convolutions.
        out_channels: of the last convolution.
    """

    in_channels: int
    up_channels: int
    skip_channels: int
    middle_channels: int
    out_channels: int


@dataclass(frozen=True)
class UNetConfig:
    """A `UNetConfig` says which U-Net is meant; the default is the net of the slides.

    Each axis exists in both twins. `PAPER` is the unpadded net of the text (Ronneberger,
    Fischer, Brox, 2015, section 2).

    Raises:
        InputError: a field has a value that it does not allow.
    """

    in_channels: Channels = 1
    """The input image has this many channels."""
    classes: Channels = 2
    """The output has this many channels: one logit for each class and pixel. A single channel
    tells two classes apart: its logit is that of the second."""
    widths: tuple[Channels, ...] = (64, 128, 256, 512, 1024)
    """Each level has this many channels, from the top to the neck; a max-pool halves the size
    between two levels."""
    convolutions: Annotated[int, Range(1, MOST_CONVOLUTIONS)] = 2
    """Each level has this many 3x3 convolutions."""
    padding: Literal["same", "valid"] = "same"
    """A 3x3 convolution pads with zeros (`same`), or it does not and the skips are cropped
    (`valid`)."""
    norm: Literal["none", "batch", "group", "instance"] = "none"
    """This normalisation follows each 3x3 convolution, with a learned scale and shift."""
    norm_place: Literal["before", "after"] = "before"
    """The normalisation stands before or after the activation."""
    groups: Channels = 8
    """The channels are normalised in this many groups with `norm=group`; it divides every
    width."""
    bias: bool = True
    """The 3x3 convolutions add a bias; the up-convolutions and the last layer always do."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """This activation follows each 3x3 convolution."""
    negative_slope: Annotated[float, Range(-100, 100, rule="is a number from -100 to 100")] = 0.01
    """The activation `leaky_relu` has this slope below zero."""
    up: Literal["transposed", "bilinear", "bilinear_aligned", "nearest"] = "transposed"
    """A map is doubled in size by a 2x2 transposed convolution with stride 2, or by an
    interpolation (`bilinear_aligned` is torch's `align_corners=True`) and a 1x1 convolution."""
    up_convolution: bool = True
    """An interpolation is followed by a 1x1 convolution, which gives the map as many channels as
    the skip has; without it the map keeps its channels."""
    up_widths: tuple[Channels, ...] = ()
    """The levels of the expanding path have this many channels, from the deepest to the top; by
    default as many as their skips have."""
    up_middle: Literal["output", "half"] = "output"
    """Between the convolutions of the expanding path there are as many channels as behind them
    (`output`), or half as many as before them (`half`)."""
    concat: Literal["up_first", "skip_first"] = "up_first"
    """The channels of the up-sampled map stand before or after those of the skip."""
    fit: Literal["error", "zeros", "edge", "crop"] = "error"
    """A size that a pool does not halve evenly is refused (`error`); or the up-sampled map is
    padded at its bottom and right with zeros (`zeros`) or its edge (`edge`); or the skip is
    cropped (`crop`), and with it the output."""
    dropout: Annotated[float, Range(0, below=1, rule="is a rate in [0, 1)")] = 0.0
    """Dropout sets this part of the values to 0 in training, on the last level and the neck."""
    output: Literal["logits", "sigmoid", "softmax"] = "logits"
    """The original net ends in this function. The net here always gives logits; the losses and
    comparisons with recorded outputs apply the function, and no mask depends on it."""

    def __post_init__(self) -> None:
        for name in ("widths", "up_widths"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        if len(self.widths) < 2:
            raise FieldError(self, "widths", "needs at least 2 levels")
        if self.up_widths and len(self.up_widths) != self.depth:
            raise FieldError(
                self, "up_widths", "needs one channel count for each pool of {widths=}"
            )
        if self.up == "transposed" and not self.up_convolution:
            raise ConfigError(
                self,
                "{up_convolution=} needs an interpolation, and {up=} is a convolution itself; use "
                "{up=nearest}, {up=bilinear} or {up=bilinear_aligned}",
            )
        if self.up_middle == "half" and any(sum(up[1:3]) % 2 for up in self.ups):
            raise ConfigError(
                self,
                "{up_middle=half} halves the channels of an up-sampled map and its skip, and an "
                "odd number of them has no half; use {up_middle=output} or other {widths}",
            )
        if self.norm == "group":
            self._check_groups()
        if self.padding == "valid" and self.fit in ("zeros", "edge"):
            raise ConfigError(
                self,
                "{fit=} needs {padding=same}: with {padding=valid} the skip is always cropped; "
                "use {fit=error} or {fit=crop}",
            )

    def _check_groups(self) -> None:
        """Refuse channels of a 3x3 convolution that are not so many equal groups."""
        if any(width % self.groups for width in self.widths):
            raise FieldError(
                self,
                "widths",
                "needs multiples of {groups=} with {norm=group}",
                remedy="change either",
            )
        for up in self.ups:
            for width in (up.middle_channels, up.out_channels):
                if width % self.groups:
                    raise ConfigError(
                        self,
                        "{norm=group} needs multiples of {groups=}, and a convolution of the "
                        "expanding path gives {width} channels; change {groups}, {up_widths} or "
                        "{up_middle}",
                        width=width,
                    )

    @property
    def depth(self) -> int:
        """Return the number of max-pools, which is that of up-samplings."""
        return len(self.widths) - 1

    @property
    def downs(self) -> tuple[tuple[int, int], ...]:
        """Return the (in, out) channels of `down_1`, `down_2`, and so on."""
        return tuple(pairwise((self.in_channels, *self.widths[:-1])))

    @property
    def ups(self) -> tuple[UpLevel, ...]:
        """Return the channels of `up_1` (the deepest), `up_2`, and so on."""
        skips = tuple(reversed(self.widths[:-1]))
        below, levels = self.widths[-1], []
        for skip, out in zip(skips, self.up_widths or skips, strict=True):
            up = skip if self.up_convolution else below
            middle = (up + skip) // 2 if self.up_middle == "half" else out
            levels.append(UpLevel(below, up, skip, middle, out))
            below = out
        return tuple(levels)

    @property
    def out_channels(self) -> int:
        """Return the channels of the map before the last layer."""
        return self.ups[-1].out_channels

    @property
    def mask_classes(self) -> int:
        """Return how many classes a pixel of a mask may have."""
        return max(2, self.classes)

    def to_json(self) -> str:
        """Return the config as JSON, with its fields in the order of the alphabet."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "UNetConfig":
        """Return the config that `to_json` wrote.

        Raises:
            InputError: not JSON, an unknown field, a value that a field does not allow, or a net
                beyond the bounds of `check_bounds`.
        """
        config = from_json(cls, text)
        try:
            check_bounds(config)
        except ConfigError as error:  # what a file says was typed by nobody
            raise InputError(f"{cls.__name__}: {error}") from error
        return config


def check_bounds(config: UNetConfig) -> None:
    """Refuse a net of more levels than a file or a flag may ask for; Python code may make it.

    Raises:
        FieldError: it has more.
    """
    if len(config.widths) > MOST_LEVELS:
        raise FieldError(config, "widths", "needs at most {most} levels", most=MOST_LEVELS)


def check_class_names(names: Iterable[str]) -> None:
    """Refuse names of classes that no table, picture or file name can show.

    Raises:
        InputError: one has line breaks or other characters without a shape, or is very long.
    """
    for name in names:
        if not is_name(name):
            raise InputError(
                f"a class has the name {name[:100]!r}; give one of at most "
                f"{LONGEST_NAME} characters that can be printed"
            )


PAPER = UNetConfig(padding="valid")
"""The net of the paper's text: 572 x 572 in, 388 x 388 out."""
