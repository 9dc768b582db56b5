"""Which U-Net is meant: the axes on which two nets may differ, as one frozen config."""

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from unet_spec.errors import ConfigError, FieldError
from unet_spec.fields import check_types, from_json


@dataclass(frozen=True)
class UNetConfig:
    """A `UNetConfig` says which U-Net is meant; the default is the net of the slides.

    Each axis exists in both twins. `PAPER` is the unpadded net of the text (Ronneberger,
    Fischer, Brox, 2015, section 2).

    Raises:
        InputError: a field has a value that it does not allow.
    """

    in_channels: int = 1
    """The input image has this many channels."""
    classes: int = 2
    """The output has this many channels: one logit for each class and pixel."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Each level has this many channels, from the top to the neck; a max-pool halves the size
    between two levels."""
    padding: Literal["same", "valid"] = "same"
    """A 3x3 convolution pads with zeros (`same`), or it does not and the skips are cropped
    (`valid`)."""
    norm: Literal["none", "batch", "group", "instance"] = "none"
    """This normalisation follows each 3x3 convolution, with a learned scale and shift."""
    norm_place: Literal["before", "after"] = "before"
    """The normalisation stands before or after the activation."""
    groups: int = 8
    """The channels are normalised in this many groups with `norm=group`; it divides every
    width."""
    bias: bool = True
    """The 3x3 convolutions add a bias; the up-convolutions and the last layer always do."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """This activation follows each 3x3 convolution."""
    negative_slope: float = 0.01
    """The activation `leaky_relu` has this slope below zero."""
    up: Literal["transposed", "bilinear", "bilinear_aligned", "nearest"] = "transposed"
    """A map is doubled in size by a 2x2 transposed convolution with stride 2, or by an
    interpolation (`bilinear_aligned` is torch's `align_corners=True`) and a 1x1 convolution."""
    concat: Literal["up_first", "skip_first"] = "up_first"
    """The channels of the up-sampled map stand before or after those of the skip."""
    fit: Literal["error", "zeros", "edge", "crop"] = "error"
    """A size that a pool does not halve evenly is refused (`error`); or the up-sampled map is
    padded at its bottom and right with zeros (`zeros`) or its edge (`edge`); or the skip is
    cropped (`crop`), and with it the output."""
    dropout: float = 0.0
    """Dropout sets this part of the values to 0 in training, on the last level and the neck."""

    def __post_init__(self) -> None:
        if isinstance(self.widths, list):
            object.__setattr__(self, "widths", tuple(self.widths))
        check_types(self)
        for name in ("in_channels", "classes", "groups"):
            if getattr(self, name) < 1:
                raise FieldError(self, name, "needs at least 1")
        if len(self.widths) < 2:
            raise FieldError(self, "widths", "needs at least 2 levels")
        if min(self.widths) < 1:
            raise FieldError(self, "widths", "needs positive channel counts")
        if self.norm == "group" and any(width % self.groups for width in self.widths):
            raise FieldError(
                self,
                "widths",
                "needs multiples of {groups=} with {norm=group}",
                remedy="change either",
            )
        if self.padding == "valid" and self.fit in ("zeros", "edge"):
            raise ConfigError(
                self,
                "{fit=} needs {padding=same}: with {padding=valid} the skip is always cropped; "
                "use {fit=error} or {fit=crop}",
            )
        if not 0 <= self.dropout < 1:
            raise FieldError(self, "dropout", "is a rate in [0, 1)")

    @property
    def depth(self) -> int:
        """Return the number of max-pools, which is that of up-samplings."""
        return len(self.widths) - 1

    @property
    def downs(self) -> tuple[tuple[int, int], ...]:
        """Return the (in, out) channels of `down_1`, `down_2`, and so on."""
        return tuple(pairwise((self.in_channels, *self.widths[:-1])))

    @property
    def ups(self) -> tuple[tuple[int, int], ...]:
        """Return the (in, out) channels of `up_1` (the deepest), `up_2`, and so on."""
        return tuple(pairwise(reversed(self.widths)))

    def to_json(self) -> str:
        """Return the config as JSON, with its fields in the order of the alphabet."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "UNetConfig":
        """Return the config that `to_json` wrote.

        Raises:
            InputError: not JSON, an unknown field, or a value that a field does not allow.
        """
        return from_json(cls, text)


PAPER = UNetConfig(padding="valid")
"""The net of the paper's text: 572 x 572 in, 388 x 388 out."""
