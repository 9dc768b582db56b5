from itertools import product
from typing import Any, Literal

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import unet_jax
import unet_torch
from unet_parity.jax_net import find_module
from unet_parity.verify import check_structure
from unet_spec import UNetConfig, layout
from unet_spec.parameters import check_tensors, parameters

PADDINGS: tuple[Literal["same", "valid"], ...] = ("same", "valid")
NORMS = ("none", "batch", "group", "instance")
UPS = ("transposed", "bilinear", "bilinear_aligned", "nearest")


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("norm", NORMS)
def test_names_and_shapes_of_both_twins_equal_the_table(norm, place, up):
    for bias, padding in product((True, False), PADDINGS):
        widths = (6, 9, 7, 8) if bias else (7, 5)
        config = UNetConfig(
            in_channels=3, classes=4, widths=widths, norm=norm, norm_place=place, groups=1, up=up,
            bias=bias, padding=padding,
        )  # fmt: skip
        _assert_table(config)


DECODERS: dict[str, dict[str, Any]] = {
    "one convolution": {"convolutions": 1},
    "three convolutions": {"convolutions": 3, "up_middle": "half"},
    "interpolation alone": {"up": "bilinear", "up_convolution": False},
    "wider": {"up_widths": (12, 10, 14)},
    "narrower, and interpolation alone": {
        "up": "nearest", "up_convolution": False, "up_widths": (9, 7, 3), "up_middle": "half",
    },
    "narrower, and interpolation with a convolution": {
        "up": "bilinear_aligned", "up_widths": (4, 3, 5), "convolutions": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_names_and_shapes_of_every_expanding_path_equal_the_table(decoder, norm):
    config = UNetConfig(
        in_channels=3, classes=1, widths=(5, 9, 7, 11), norm=norm, groups=1, **DECODERS[decoder]
    )
    _assert_table(config)


def _assert_table(config):
    """The names, their order and the shapes of both twins are those of the table."""
    table = {p.name: p.shape for p in parameters(config)}

    with torch.device("meta"):
        reference = unet_torch.UNet(config)
    result = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    assert list(result.items()) == list(table.items()), config

    port = jax.eval_shape(unet_jax.functional(config).init, jax.random.key(0))
    blank = {name: np.zeros(shape, np.float32) for name, shape in table.items()}
    expected = {name: a.shape for name, a in layout.to_jax(config, blank).items()}
    assert {n: a.shape for part in port for n, a in part.items()} == expected, config


def test_an_interpolation_alone_has_no_tensors_and_stands_at_the_same_paths():
    config = UNetConfig(widths=(6, 8), up="nearest", up_convolution=False)
    assert not [p.name for p in parameters(config) if p.name.startswith("up_1.up")]
    reference = unet_torch.UNet(config)
    port = unet_jax.UNet(config, rngs=nnx.Rngs(0))
    for path in ("up_1.up", "up_1.up.0"):
        assert reference.get_submodule(path) is not None
        assert find_module(port, path) is not None
    assert find_module(port, "up_1.up.1") is None


def test_trained_tensors_of_the_table_are_the_parameters_of_both_twins():
    config = UNetConfig(widths=(6, 8), norm="batch")
    trained = {p.name for p in parameters(config) if p.trained}
    assert {name for name, _ in unet_torch.UNet(config).named_parameters()} == trained
    params, stats = jax.eval_shape(unet_jax.functional(config).init, jax.random.key(0))
    assert params.keys() == trained
    assert stats.keys() == {p.name for p in parameters(config) if not p.trained}


def test_structure_of_a_net_with_another_width_is_reported(monkeypatch):
    config = UNetConfig(widths=(6, 8))
    assert check_structure(config)["problems"] == []
    monkeypatch.setattr("unet_parity.verify.JaxUNet", lambda config, rngs: unet_jax.UNet(
        UNetConfig(widths=(6, 9)), rngs=rngs
    ))  # fmt: skip
    problems = check_structure(config)["problems"]
    assert "JAX: neck.conv.0.weight is (3, 3, 6, 9), not (3, 3, 6, 8)" in problems


def test_every_mismatch_is_collected_before_the_refusal():
    config = UNetConfig(widths=(6, 8))
    tensors: dict[str, np.ndarray] = {
        p.name: np.zeros(p.shape, np.float32) for p in parameters(config)
    }
    check_tensors(config, tensors, source="these")
    del tensors["out.bias"], tensors["up_1.up.bias"]
    tensors["head"] = np.zeros(3, np.float32)
    tensors["out.weight"] = np.zeros((2, 6, 1), np.float32)
    with pytest.raises(ValueError, match="these: ") as refusal:
        check_tensors(config, tensors, source="these")
    for words in ("missing: up_1.up.bias, out.bias", "unexpected: head",
                  "mis-shaped: out.weight (2, 6, 1) instead of (2, 6, 1, 1)"):  # fmt: skip
        assert words in str(refusal.value)
