import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from unet_spec.errors import InputError
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
    """Channels of the input image."""
    classes: int = 2
    """Channels of the output: one logit per class and pixel."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels at each level, from the top to the neck; one max-pool between neighbours."""
    padding: Literal["same", "valid"] = "same"
    """Of the 3x3 convolutions: `same` pads with zeros, `valid` does not and crops the skips."""
    norm: Literal["none", "batch", "group", "instance"] = "none"
    """Normalisation after each 3x3 convolution, with learned scale and shift."""
    norm_place: Literal["before", "after"] = "before"
    """Whether the normalisation comes before or after the activation."""
    groups: int = 8
    """Number of groups of `norm=group`; divides every width."""
    bias: bool = True
    """Bias in the 3x3 convolutions; the up-convolutions and the last layer always have one."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Activation after each 3x3 convolution."""
    negative_slope: float = 0.01
    """Slope of `activation=leaky_relu` below zero."""
    up: Literal["transposed", "bilinear", "bilinear_aligned", "nearest"] = "transposed"
    """Up-sampling by 2: a 2x2 transposed convolution with stride 2; or an interpolation
    (`bilinear_aligned` is torch's `align_corners=True`) followed by a 1x1 convolution."""
    concat: Literal["up_first", "skip_first"] = "up_first"
    """Order of the channels where the up-sampled map and the skip are concatenated."""
    fit: Literal["error", "zeros", "edge", "crop"] = "error"
    """For sizes that a pool does not halve evenly: refuse them; or pad the up-sampled map at
    its bottom and right with zeros or its edge; or crop the skip (and so the output)."""
    dropout: float = 0.0
    """Rate of dropout at the end of the contracting path: on the last level and the neck."""

    def __post_init__(self) -> None:
        if isinstance(self.widths, list):
            object.__setattr__(self, "widths", tuple(self.widths))
        check_types(self)
        for name in ("in_channels", "classes", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} needs at least 1, got {getattr(self, name)}")
        if len(self.widths) < 2:
            raise InputError(f"widths needs at least 2 levels, got {self.widths}")
        if min(self.widths) < 1:
            raise InputError(f"widths needs positive channel counts, got {self.widths}")
        if self.norm == "group" and any(width % self.groups for width in self.widths):
            raise InputError(
                f"groups={self.groups} must divide every width with norm=group, got {self.widths}"
            )
        if self.padding == "valid" and self.fit in ("zeros", "edge"):
            raise InputError(
                f"fit={self.fit} needs padding=same: with padding=valid the skip is always "
                "cropped; use fit=error or fit=crop"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is a rate in [0, 1), got {self.dropout}")

    @property
    def depth(self) -> int:
        """Number of max-pools, and of up-samplings."""
        return len(self.widths) - 1

    @property
    def downs(self) -> tuple[tuple[int, int], ...]:
        """(in, out) channels of `down_1`, `down_2`, ..."""
        return tuple(pairwise((self.in_channels, *self.widths[:-1])))

    @property
    def ups(self) -> tuple[tuple[int, int], ...]:
        """(in, out) channels of `up_1` (the deepest), `up_2`, ..."""
        return tuple(pairwise(reversed(self.widths)))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "UNetConfig":
        """The config that `to_json` wrote.

        Raises:
            InputError: not JSON, an unknown field, or a value that a field does not allow.
        """
        return from_json(cls, text)


PAPER = UNetConfig(padding="valid")
"""The net of the paper's text: 572 x 572 in, 388 x 388 out."""
