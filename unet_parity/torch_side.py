"""What every comparison needs of PyTorch alone: values as numpy arrays, and its precision."""

from collections.abc import Sequence

import numpy as np
import torch


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of its own; bfloat16, which numpy does not have, as float64."""
    values = tensor.detach().double() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return values.numpy().copy()


def gradient_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an array of its own with the gradient of a tensor; 0 where it has none."""
    return numpy_of(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


def run_backward(outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> None:
    """Send gradients back from those outputs that depend on what is differentiated.

    Args:
        cotangents: the gradient of each output.
    """
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])


def use_full_precision() -> None:
    """Have torch compute real float32 products, also on NVIDIA GPUs, whose convolutions are TF32
    otherwise.

    JAX's precision is given to every product instead (`unet_jax.Numerics`).
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def describe_torch() -> dict[str, str]:
    """Describe torch's device, and the precision of its products."""
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return {
        "torch_device": "cpu",
        "torch_threads": str(torch.get_num_threads()),
        "torch_precision": f"float32 products in float32, TF32 {'on' if tf32 else 'off'}",
    }
