"""`unet_jax` is the U-Net in Flax NNX, which computes what `unet_torch` computes.

Batches are (b, h, w, c): images, height and width in pixels, channels. It never imports torch.

- As a module: `UNet` builds one, `load` and `save` read and write weight files, `predict` gives
  the class of every pixel of an image, and `predict_probabilities` the probability of each class.
- As two pure functions, for a loop of your own: `functional`, which returns a `Functional`.
  `read_arrays` and `write_arrays` are the way from a weight file to its `(params, stats)` and back.
- `Numerics` says in what types both compute, such as bfloat16.

`unet_spec.UNetConfig` says which U-Net is meant; `unet_spec.SLIDES` (padded, the default) and
`unet_spec.PAPER` (unpadded, 572 pixels in, 388 out) are two of them. Wrong input is refused with
`unet_spec.InputError`. Two more modules are for those who bring a PyTorch run with them: `recipe`
(optimizers that step as torch's do) and `training_state` (a run in the middle).

>>> import pathlib, tempfile
>>> import jax, numpy, unet_jax
>>> from unet_spec import UNetConfig
>>> config = UNetConfig(widths=(4, 6))
>>> init, apply = unet_jax.functional(config)
>>> params, stats = init(jax.random.key(0))
>>> apply(params, jax.numpy.ones((2, 8, 12, 1)), stats).shape
(2, 8, 12, 2)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder) / "cells.safetensors"
...     unet_jax.write_arrays(path, config, params, stats)
...     model = unet_jax.load(path)
>>> unet_jax.predict(model, numpy.zeros((13, 21))).shape
(13, 21)
>>> unet_jax.predict_probabilities(model, numpy.zeros((13, 21))).shape
(13, 21, 2)
"""

from unet_jax.functional import Functional, functional
from unet_jax.layers import Numerics
from unet_jax.model import UNet
from unet_jax.predict import predict, predict_probabilities
from unet_jax.weights import load, read_arrays, save, write_arrays
from unet_spec import __version__ as __version__

__all__ = [
    "Functional",
    "Numerics",
    "UNet",
    "functional",
    "load",
    "predict",
    "predict_probabilities",
    "read_arrays",
    "save",
    "write_arrays",
]
