"""What may fall the other way in float32 than in float64: ReLUs near 0, and pools that waver."""

import torch

from unet_parity.pair.operations import Operation


def count_ties(operation: Operation) -> int:
    """Count the values of a ReLU near 0, and the windows of a pool that noise decides otherwise."""
    name = operation.name.removesuffix("_")
    x = operation.tensors[0] if operation.tensors else None
    if x is None or not x.is_floating_point():
        return 0
    near = 2.0**-20 * float(x.abs().max())
    if name in ("relu", "leaky_relu", "clamp_min", "hardtanh", "threshold"):
        return int((x.abs() < near).sum())
    if name == "max_pool2d_with_indices":
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        _, shaken = operation.run_with([x + near * noise])
        return int((shaken != operation.outputs[1]).sum())
    return 0
