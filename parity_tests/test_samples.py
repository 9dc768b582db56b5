from dataclasses import replace

import numpy as np
import pytest

from unet_spec import UNetConfig
from unet_train.config import DataConfig, LossConfig, TrainConfig
from unet_train.input import samples
from unet_train.input.border_weights import border_weights, label_objects
from unet_train.input.samples import load_samples

CONFIG = TrainConfig(net=UNetConfig(widths=(4, 6)), data=DataConfig(crop_px=32, synthetic=2))
BORDERED = replace(CONFIG, loss=LossConfig(border_w0=7, border_sigma_px=3, ignore_index=255))


def test_another_seed_draws_other_cells():
    first, second = (load_samples(replace(CONFIG, seed=seed))[0] for seed in (0, 1))
    assert (first.image != second.image).any()
    assert first.weight is None


@pytest.mark.parametrize("numbered", [False, True], ids=["by class", "by number"])
def test_weights_are_those_of_the_objects_with_the_settings_of_the_loss(monkeypatch, numbered):
    (sample, _) = load_samples(CONFIG)
    mask = sample.mask.copy()
    mask[60:80, 60:80] = 255
    objects = None
    if numbered:
        objects = (mask == 1).astype(np.int32) * (1 + (np.arange(mask.shape[1]) > 90))
    known = replace(sample, mask=mask, objects=objects)
    monkeypatch.setattr(samples, "_read_or_draw", lambda _: [known])
    (found,) = load_samples(BORDERED)
    expected = border_weights(
        label_objects(mask, ignore_index=255) if objects is None else objects, w0=7, sigma_px=3
    )
    np.testing.assert_array_equal(found.weight, expected)
    other = label_objects(mask) if objects is None else label_objects(mask, ignore_index=255)
    assert (border_weights(other, w0=7, sigma_px=3) != expected).any()
