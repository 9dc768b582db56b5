"""No bug hides at a size that was not compared in depth, or in `predict`."""

from dataclasses import replace

import numpy as np
import pytest

from parity_tests.planted import around
from unet_jax import model
from unet_jax.predict import predict_both
from unet_parity import other_sizes, verify
from unet_parity.oracle import random_tensors
from unet_parity.other_sizes import find_margin, list_sizes
from unet_spec import PAPER, SLIDES, Preprocessing, UNetConfig, geometry
from unet_spec.weight_file import WeightFile

NET = UNetConfig(widths=(4, 6))
ODD = replace(NET, fit="zeros")
WEIGHTS = WeightFile(NET, random_tensors(NET, seed=1))


@pytest.fixture(autouse=True)
def _a_machine_that_has_time_for_512_pixels(monkeypatch):
    monkeypatch.setattr(other_sizes, "_time", lambda *arguments: 0.5)


def run(config=NET, **options):
    return verify.verify(config, steps=0, say=lambda text: None, **options)


def mirrored_if(is_wrong):
    """A net that mirrors inputs of some heights."""

    def call(right, self, x, *args, **options):
        return right(self, x[:, ::-1] if is_wrong(x.shape[1]) else x, *args, **options)

    return around(model.UNet, "__call__", call)


# ---- which sizes


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("config", [NET, ODD, SLIDES, PAPER], ids=["net", "odd", "slides", "paper"])
def test_sizes_are_legal_and_as_large_as_there_is_time_for(config, norm):
    config = replace(config, norm=norm)
    quick = list(list_sizes(config, lambda size: 1e-3))
    slow = list(list_sizes(config, lambda size: 99.0))
    assert all(geometry.is_legal(config, side) for size in [*quick, *slow] for side in size)
    assert max(slow[-1]) < 256 or config.padding == "valid"
    assert min(quick[-1]) >= 1024
    assert any(height % 2 for height, _ in quick) == (config.fit != "error")
    neck = [geometry.levels(config, side).neck for side in quick[0]]
    assert norm == "none" or min(neck) > 1


def test_a_pass_of_the_largest_size_takes_as_long_as_allowed():
    sizes = list(list_sizes(NET, lambda size: 1.0))
    assert sizes[-1][0] == 256  # four times as many pixels once: 4 s, and not twice: 16 s


# ---- bugs


def test_a_bug_above_256_pixels_is_found(monkeypatch):
    mirrored_if(lambda height: height > 256)(monkeypatch)
    report = run()
    assert report.verdict == "different"
    height, width = report.sizes[-1].size
    assert height > 256
    assert report.reasons[0].startswith(f"inputs of {height} x {width} pixels: JAX's output is ")


def test_a_bug_at_odd_sizes_is_found_and_located(monkeypatch):
    assert run(ODD).verdict == "identical"
    mirrored_if(lambda height: height % 2)(monkeypatch)
    report = run(ODD)
    assert report.verdict == "different"
    assert "pixels: the net: what reaches the input of down_1 differs by" in report.reasons[0]
    assert "it looks like a map upside down; JAX's output is " in report.reasons[0]


@pytest.mark.parametrize("window_px", [None, 32])
def test_a_bug_in_predict_is_found(monkeypatch, window_px):
    settings = Preprocessing(window_px=window_px)
    weights = replace(WEIGHTS, preprocessing=settings)
    right = run(weights=weights)
    assert right.verdict == "equivalent"
    assert right.prediction.unexplained == 0
    assert "predict on a random image of" in right.scope.compared

    def swapped(forward):
        return lambda *arguments: forward(*arguments)[..., ::-1]

    names = predict_both.__globals__  # the package has a function of the module's name
    make = names["_make_forward"]
    monkeypatch.setitem(names, "_make_forward", lambda net: swapped(make(net)))
    wrong = run(weights=weights)
    assert wrong.verdict == "different"
    assert "JAX's probabilities are" in wrong.reasons[0]


def test_a_wrong_class_beside_right_probabilities_is_found(monkeypatch):
    def predict(net, image):
        mask, probabilities = predict_both(net, image)
        mask[:2, :3] = 1 - mask[:2, :3]
        return mask, probabilities

    monkeypatch.setattr("unet_parity.other_sizes.predict_in_jax", predict)
    report = run(weights=WEIGHTS)
    assert report.prediction.unexplained == report.prediction.differing == 6
    assert report.reasons[0].endswith("6 pixels have a class that rounding does not explain")


def test_a_margin_is_between_the_two_largest_or_from_one_half():
    probabilities = np.array([[[0.2, 0.5, 0.3]]])
    np.testing.assert_allclose(find_margin(replace(NET, classes=3), probabilities), [[0.2]])
    single = find_margin(replace(NET, classes=1), np.array([[[0.7]]]))
    np.testing.assert_allclose(single, [[0.2]])
