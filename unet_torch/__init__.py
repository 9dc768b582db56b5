"""The reference in PyTorch. It never imports jax."""

from unet_torch.model import UNet as UNet
from unet_torch.predict import predict as predict
from unet_torch.weights import load as load
from unet_torch.weights import save as save
