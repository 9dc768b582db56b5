"""One pass through PyTorch's net; it needs no JAX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unet_parity.twins import Masks, Pass
from unet_spec import UNetConfig
from unet_spec.parameters import Tensors
from unet_torch.model import UNet


def torch_pass(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    cotangent: np.ndarray,
    *,
    dtype: str = "float32",
    train: bool = False,
    keep: Masks = (None, None),
    device: str = "cpu",
) -> Pass:
    """Run a pass through the reference.

    Args:
        tensors: of a `state_dict`.
        x: (b, in_channels, h, w).
        cotangent: (b, classes, h', w'), the gradient of the loss by the output.
        dtype: of parameters and arithmetic.
        train: batch statistics and dropout as in training.
        keep: masks of the two dropouts, (b, c, h, w).
        device: on which it runs, such as `cuda`.
    """
    model = torch_model(config, tensors, dtype=dtype, train=train).to(device)
    return run_module(model, x, cotangent, keep)


def best_device() -> str:
    """Return the device on which torch is fastest here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_model(config: UNetConfig, tensors: Tensors, *, dtype: str, train: bool) -> UNet:
    """Build the reference with these tensors."""
    with torch.device("meta"):
        model = UNet(config)
    kind = getattr(torch, dtype)
    state = {
        name: torch.tensor(t, dtype=kind if np.issubdtype(t.dtype, np.floating) else None)
        for name, t in tensors.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_().train(train)
    return model


def run_module(
    model: UNet, x: np.ndarray, cotangent: np.ndarray, keep: Masks = (None, None)
) -> Pass:
    """Run forward and backward through the reference, in the dtype of its parameters and on their
    device."""
    weight = next(model.parameters())
    options: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    leaf = torch.tensor(x, requires_grad=True, **options)
    masks = [None if mask is None else torch.tensor(mask).to(weight.device) for mask in keep]
    output = model(leaf, masks)
    output.backward(torch.tensor(cotangent, **options))
    return Pass(
        numpy_of(output),
        gradient_of(leaf),
        {name: gradient_of(p) for name, p in model.named_parameters()},
        {name: numpy_of(buffer) for name, buffer in model.named_buffers()},
    )


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of its own; bfloat16, which numpy does not have, as float64."""
    values = tensor.detach().double() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return values.cpu().numpy().copy()


def run_backward(outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> None:
    """Send gradients back from those outputs that depend on what is differentiated.

    Args:
        cotangents: the gradient of each output.
    """
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])


def gradient_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of its own with the gradient of a tensor; 0 where it has none."""
    return numpy_of(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
