"""The port in Flax NNX. It never imports torch."""

from unet_jax.functional import Functional as Functional
from unet_jax.functional import functional as functional
from unet_jax.layers import Numerics as Numerics
from unet_jax.model import UNet as UNet
from unet_jax.predict import predict as predict
from unet_jax.weights import load as load
from unet_jax.weights import save as save
