"""`unet_torch` is the U-Net in PyTorch, the reference for `unet_jax`.

Batches are (b, c, h, w): images, channels, height and width in pixels. It never imports jax.

`UNet` builds a net, `load` and `save` read and write weight files, `predict` gives the class of
every pixel of an image, and `predict_probabilities` the probability of each class.
`unet_spec.UNetConfig` says which U-Net is meant; `unet_spec.SLIDES` (padded, the default) and
`unet_spec.PAPER` (unpadded, 572 pixels in, 388 out) are two of them. Wrong input is refused with
`unet_spec.InputError`. Two more modules are for those who move a run to JAX: `recipe` (torch's
optimizers and schedulers from plain values) and `training_state`.

>>> import pathlib, tempfile
>>> import numpy, torch, unet_torch
>>> from unet_spec import UNetConfig
>>> model = unet_torch.UNet(UNetConfig(widths=(4, 6)))
>>> model(torch.ones(2, 1, 8, 12)).shape
torch.Size([2, 2, 8, 12])
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder) / "cells.safetensors"
...     unet_torch.save(model, path)
...     again = unet_torch.load(path)
>>> unet_torch.predict(again, numpy.zeros((13, 21))).shape
(13, 21)
>>> unet_torch.predict_probabilities(again, numpy.zeros((13, 21))).shape
(13, 21, 2)
"""

from unet_spec import __version__ as __version__
from unet_torch.model import UNet
from unet_torch.predict import predict, predict_probabilities
from unet_torch.weights import load, save

__all__ = ["UNet", "load", "predict", "predict_probabilities", "save"]
