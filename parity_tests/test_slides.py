import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import unet_jax
import unet_torch
from parity_tests import slides
from unet_spec import PAPER, SLIDES, UNetConfig
from unet_spec.parameters import parameter_count, parameters

TENSORS, PARAMETERS, CONVOLUTIONS = 46, 31_030_658, 23
KEYS = [
    f"{block}.{index}.{kind}"
    for block in ("down_1.conv.conv", "down_2.conv.conv", "down_3.conv.conv", "down_4.conv.conv",
                  "neck.conv")
    for index in (0, 2)
    for kind in ("weight", "bias")
] + [
    f"up_{level}.{module}.{kind}"
    for level in (1, 2, 3, 4)
    for module in ("up", "conv.conv.0", "conv.conv.2")
    for kind in ("weight", "bias")
] + ["out.weight", "out.bias"]  # fmt: skip


@pytest.mark.parametrize("base", [6, 64], ids=["narrow", "full_width"])
def test_slides_and_reference_load_one_another_and_agree_bit_for_bit(base):
    torch.manual_seed(0)
    printed = slides.UNet(step_down=base)
    config = UNetConfig(widths=tuple(base * 2**level for level in range(5)))
    reference = unet_torch.UNet(config)
    x = torch.randn(2, 1, 32, 48)

    reference.load_state_dict(printed.state_dict(), strict=True)
    assert torch.equal(reference(x), printed(x))

    again = slides.UNet(step_down=base)
    assert not torch.equal(again(x), reference(x)), "other weights give the same output"
    again.load_state_dict(reference.state_dict(), strict=True)
    assert torch.equal(again(x), reference(x))


def test_counts_are_the_literals():
    with torch.device("meta"):
        nets = [slides.UNet(), unet_torch.UNet(SLIDES), unet_torch.UNet(PAPER)]
    for net in nets:
        assert list(net.state_dict()) == KEYS
        assert len(KEYS) == TENSORS
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS
        modules = [m for m in net.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
        assert len(modules) == CONVOLUTIONS


def test_port_and_table_have_the_literals_too():
    arrays, _ = jax.eval_shape(unet_jax.functional(SLIDES).init, jax.random.key(0))
    assert sorted(arrays) == sorted(KEYS)
    assert sum(int(np.prod(array.shape)) for array in arrays.values()) == PARAMETERS
    assert [p.name for p in parameters(SLIDES)] == KEYS
    assert parameter_count(SLIDES) == PARAMETERS
    kernels = [p for p in parameters(SLIDES) if p.kind in ("conv", "up_conv")]
    assert len(kernels) == CONVOLUTIONS


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [(PAPER, 572, 388), (PAPER, 188, 4), (SLIDES, 512, 512), (SLIDES, 16, 16)],
    ids=["paper", "paper_smallest", "slides", "slides_smallest"],
)
def test_output_sizes_are_the_literals_in_both_frameworks(config, size, expected):
    with torch.device("meta"):
        logits = unet_torch.UNet(config)(torch.empty(1, 1, size, size))
    assert logits.shape == (1, 2, expected, expected)

    init, apply = unet_jax.functional(config)
    params, _ = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    assert jax.eval_shape(apply, params, x).shape == (1, expected, expected, 2)
