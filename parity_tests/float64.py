"""Both twins in float64 on ordinary weights."""

import numpy as np

from unet_parity import oracle
from unet_parity.jax_twin import jax_pass
from unet_parity.torch_twin import torch_pass
from unet_spec import UNetConfig


def problems(config: UNetConfig, height: int, width: int, *, train: bool) -> tuple[str, ...]:
    """What is out of bounds between the twins: outputs, gradients, statistics, by name."""
    tensors = oracle.random_tensors(config, seed=1)
    x, cotangent, keep = oracle.random_input(config, seed=0, size=(height, width))
    arguments = (config, tensors, x, cotangent)
    truth = torch_pass(*arguments, dtype="float64", train=train, keep=keep)
    port = jax_pass(*arguments, dtype="float64", train=train, keep=keep, jit=False)
    assert len(np.unique(truth.output)) > 16, "a constant output proves nothing"
    assert truth.input_gradient.any(), "a dead net proves nothing"
    # the float32 passes are left out: float64 stands in for both
    return oracle.measure_agreement(truth, port, truth, truth, mode="float64").problems
