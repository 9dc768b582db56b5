import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from parity_tests.tiny import TINY, quiet
from unet_spec import InputError, UNetConfig
from unet_train import loop, overfit
from unet_train.config import LossConfig
from unet_train.input import synthetic
from unet_train.overfit import learn_one_batch
from unet_train.report.progress import Progress

EMPTY = np.zeros(synthetic.SHAPE, np.uint8)


def test_the_smoke_test_knows_a_net_that_learns_from_one_that_does_not(monkeypatch):
    config = replace(TINY, net=UNetConfig(widths=(8, 12)), loss=LossConfig())
    assert learn_one_batch(config, progress=quiet())
    monkeypatch.setattr(overfit, "LR", 0.0)
    monkeypatch.setattr(overfit, "STEPS", 20)
    assert not learn_one_batch(config, progress=quiet())


def test_the_smoke_test_needs_one_image_alone():
    config = replace(TINY, net=UNetConfig(widths=(8, 12)), loss=LossConfig())
    config = replace(config, data=replace(config.data, synthetic=1))
    stream = io.StringIO()
    assert learn_one_batch(config, progress=Progress(Console(file=stream, width=200)))
    assert "1 to train on, 0 held out" in stream.getvalue()
    assert "is in no held-out image" not in stream.getvalue()


def test_a_run_needs_a_second_image_to_validate_with(tmp_path):
    config = replace(TINY, data=replace(TINY.data, synthetic=1))
    with pytest.raises(InputError, match="1 image is too few: one to train on and one to hold out"):
        loop.run(config, tmp_path / "run", progress=quiet())
    assert not (tmp_path / "run").exists()


def test_the_smoke_test_proves_nothing_on_masks_without_objects(monkeypatch):
    draw_cells = synthetic.draw_cells
    monkeypatch.setattr(synthetic, "draw_cells", lambda seed: (draw_cells(seed)[0], EMPTY))
    with pytest.raises(InputError, match="background alone"):
        learn_one_batch(TINY, progress=quiet())
