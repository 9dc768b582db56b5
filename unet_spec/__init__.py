"""`unet_spec` is what both frameworks agree on: which U-Net, its sizes, names and weight file.

It needs numpy and safetensors, and imports no framework.

- `UNetConfig` says which U-Net is meant. Two of them have names: `SLIDES`, the default, is the
  net of the slides' code (padded: h x w pixels in, h x w out; base width 64), and `PAPER` that
  of the paper's text (unpadded: 572 x 572 pixels in, 388 x 388 out).
- `Preprocessing` says how an image becomes the net's input.
- `InputError` is raised where what the user gave cannot be used.

Its modules hold the rest: `geometry` (legal sizes, sizes of outputs), `parameters` (the table of
names and shapes), `layout` (torch's layout to JAX's and back), `weight_file` (read and write),
`preprocessing.prepare` (an image to the input (h, w, c)).

>>> from unet_spec import PAPER, SLIDES, InputError, UNetConfig, geometry
>>> geometry.output_size(PAPER, 572), geometry.output_size(SLIDES, 512)
(388, 512)
>>> try:
...     UNetConfig(widths=(64,))
... except InputError as error:
...     print(error)
widths needs at least 2 levels, got (64,)
"""

import importlib.metadata

from unet_spec.config import PAPER, UNetConfig
from unet_spec.errors import InputError
from unet_spec.preprocessing import Preprocessing

__all__ = ["PAPER", "SLIDES", "InputError", "Preprocessing", "UNetConfig"]

SLIDES = UNetConfig()
"""The net of the slides' code: padded, base width 64."""

try:
    __version__ = importlib.metadata.version("unet-twins")
except importlib.metadata.PackageNotFoundError:  # a checkout that is used without installing it
    __version__ = "unknown"
