from dataclasses import replace

import numpy as np
import pytest

from parity_tests.tiny import TINY, quiet
from unet_spec import InputError, UNetConfig
from unet_train import overfit
from unet_train.config import LossConfig
from unet_train.samples import load


def test_the_smoke_test_knows_a_net_that_learns_from_one_that_does_not(monkeypatch):
    config = replace(TINY, net=UNetConfig(widths=(8, 12)), loss=LossConfig())
    assert overfit.overfit(config, progress=quiet())
    monkeypatch.setattr(overfit, "LR", 0.0)
    monkeypatch.setattr(overfit, "STEPS", 20)
    assert not overfit.overfit(config, progress=quiet())


def test_the_smoke_test_proves_nothing_on_masks_without_objects(monkeypatch):
    empty = [replace(sample, mask=np.zeros_like(sample.mask)) for sample in load(TINY)]
    monkeypatch.setattr(overfit, "load", lambda _: empty)
    with pytest.raises(InputError, match="background alone"):
        overfit.overfit(TINY, progress=quiet())
