"""What both frameworks agree on: config, sizes, names, layouts, the weight file."""

from unet_spec.config import PAPER as PAPER
from unet_spec.config import UNetConfig as UNetConfig
from unet_spec.errors import InputError as InputError
from unet_spec.preprocessing import Preprocessing as Preprocessing

SLIDES = UNetConfig()
"""The net of the slides' code: padded, base width 64."""
