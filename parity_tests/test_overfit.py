from dataclasses import replace

import numpy as np
import pytest

from parity_tests.tiny import TINY, quiet
from unet_spec import InputError, UNetConfig
from unet_train import overfit
from unet_train.config import LossConfig
from unet_train.input import synthetic
from unet_train.overfit import learn_one_batch

EMPTY = np.zeros(synthetic.SHAPE, np.uint8)


def test_the_smoke_test_knows_a_net_that_learns_from_one_that_does_not(monkeypatch):
    config = replace(TINY, net=UNetConfig(widths=(8, 12)), loss=LossConfig())
    assert learn_one_batch(config, progress=quiet())
    monkeypatch.setattr(overfit, "LR", 0.0)
    monkeypatch.setattr(overfit, "STEPS", 20)
    assert not learn_one_batch(config, progress=quiet())


def test_the_smoke_test_proves_nothing_on_masks_without_objects(monkeypatch):
    draw_cells = synthetic.draw_cells
    monkeypatch.setattr(synthetic, "draw_cells", lambda seed: (draw_cells(seed)[0], EMPTY))
    with pytest.raises(InputError, match="background alone"):
        learn_one_batch(TINY, progress=quiet())
