from dataclasses import replace

import numpy as np
import pytest

from unet_spec import UNetConfig
from unet_train.config import DataConfig, LossConfig, TrainConfig
from unet_train.input import samples
from unet_train.input.border_weights import border_weights, label_objects
from unet_train.input.samples import Drawn, Room, Samples

CONFIG = TrainConfig(net=UNetConfig(widths=(4, 6)), data=DataConfig(crop_px=32, synthetic=2))
BORDERED = replace(CONFIG, loss=LossConfig(border_w0=7, border_sigma_px=3, ignore_index=255))


def test_another_seed_draws_other_cells():
    first, second = (Drawn(0, replace(CONFIG, seed=seed)).load() for seed in (0, 1))
    assert (first.image != second.image).any()
    assert first.weight is None


@pytest.mark.parametrize("numbered", [False, True], ids=["by class", "by number"])
def test_weights_are_those_of_the_objects_with_the_settings_of_the_loss(monkeypatch, numbered):
    sample = Drawn(0, CONFIG).load()
    mask = sample.mask.copy()
    mask[60:80, 60:80] = 255
    objects = None
    if numbered:
        objects = (mask == 1).astype(np.int32) * (1 + (np.arange(mask.shape[1]) > 90))
    known = replace(sample, mask=mask, objects=objects)
    monkeypatch.setattr(samples, "make_sample", lambda *_: known)
    found = Drawn(0, BORDERED).load()
    expected = border_weights(
        label_objects(mask, ignore_index=255) if objects is None else objects, w0=7, sigma_px=3
    )
    np.testing.assert_array_equal(found.weight, expected)
    other = label_objects(mask) if objects is None else label_objects(mask, ignore_index=255)
    assert (border_weights(other, w0=7, sigma_px=3) != expected).any()


def test_samples_are_kept_while_there_is_room_and_decoded_again_where_there_is_none():
    sources = [Drawn(number, CONFIG) for number in range(4)]
    each = sources[0].load().bytes
    kept = Samples(sources, Room(2 * each))
    for _ in range(3):
        for index in range(4):
            np.testing.assert_array_equal(kept[index].image, sources[index].load().image)
    assert kept.decoded == 2 + 3 * 2
    assert kept[0] is kept[0]
    assert kept[3] is not kept[3]


def test_both_sides_of_a_split_share_the_room():
    sources = [Drawn(number, CONFIG) for number in range(4)]
    room = Room(3 * sources[0].load().bytes)
    sides = Samples(sources[:2], room), Samples(sources[2:], room)
    for _ in range(2):
        for side in sides:
            assert len(list(side)) == 2
    assert [side.decoded for side in sides] == [2, 2 + 1]
    assert room.used_bytes == room.limit_bytes


@pytest.mark.parametrize("config", [CONFIG, BORDERED], ids=["plain", "with border weights"])
def test_what_a_sample_takes_is_known_before_it_is_decoded(config):
    source = Drawn(0, config)
    assert (source.bytes, source.shape) == (source.load().bytes, source.load().mask.shape)
