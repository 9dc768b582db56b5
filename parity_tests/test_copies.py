import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from unet_spec import UNetConfig
from unet_train.check import near_duplicates
from unet_train.check.near_duplicates import (
    MIN_CORRELATION,
    compute_fingerprint,
    find_near_duplicates,
)
from unet_train.config import TrainConfig
from unet_train.input import synthetic
from unet_train.input.samples import make_sample

CONFIG = TrainConfig(net=UNetConfig(widths=(4, 6)))
# measured over the images of these tests: unrelated ones reach 0.44, copies keep 0.9955
UNRELATED, COPIED = 0.5, 0.99


def _sample(image):
    mask = np.zeros(image.shape[:2], np.uint8)
    return make_sample("a", image, mask, CONFIG)


def _find(training, validation):
    samples = [*training, *validation]
    fingerprints = np.stack([compute_fingerprint(sample.x) for sample in samples])
    names = [sample.name for sample in samples]
    return find_near_duplicates(names, fingerprints, training=len(training))


def _cells(seed, **shape):
    return synthetic.draw_cells(seed, **shape)[0]


def _likeness(images, others):
    """Of each of the others, the correlation with the image that it looks like most."""
    samples = [[_sample(one) for one in part] for part in (images, others)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "MIN_CORRELATION", 0.0)
        return [pair.correlation for pair in _find(*samples) if pair.held_out]


def _jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=40)
    return np.asarray(Image.open(stream))


def _noisy(image):
    noise = np.random.default_rng(0).normal(0, 15, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


COPIES = {
    "same": lambda image: image,
    "brighter": lambda image: (0.6 * image + 80).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 0.6).astype(np.uint8),
    "noisy": _noisy,
    "jpeg": _jpeg,
    "half as large": lambda image: np.asarray(Image.fromarray(image).resize((96, 80))),
    "turned": np.rot90,
    "mirrored": np.fliplr,
    "mirrored and turned": np.transpose,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_correlates_with_its_original_however_changed(copied):
    images = [_cells(i) for i in range(6)]
    found = _likeness(images, [np.ascontiguousarray(copied(image)) for image in images])
    assert len(found) == 6
    assert min(found) > COPIED > MIN_CORRELATION, min(found)


def test_unrelated_images_do_not_look_alike():
    found = _likeness([_cells(i) for i in range(40)], [_cells(100 + i) for i in range(40)])
    assert len(found) > 20
    assert max(found) < UNRELATED < MIN_CORRELATION, max(found)


def test_a_lamp_that_all_images_share_does_not_make_them_alike():
    """Cells of a tenth of the brightness, on a field that is darker in the corners by half."""
    rows, columns = np.mgrid[-1:1:160j, -1:1:192j]
    lamp = 200 * (1 - 0.25 * (rows**2 + columns**2))

    def lit(seed):
        return (lamp + 0.1 * _cells(seed)).astype(np.uint8)

    found = _likeness([lit(i) for i in range(20)], [lit(100 + i) for i in range(20)])
    assert max(found) < UNRELATED, max(found)


def test_blank_images_do_not_look_alike():
    blank = np.full((64, 80), 9, np.uint8)
    assert _likeness([blank], [blank, blank + 1]) == []


def test_a_copy_is_found_among_more_images_than_are_compared_at_once():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (300, 20, 24), np.uint8)
    samples = [dataclasses.replace(_sample(image), name=f"{i}") for i, image in enumerate(noise)]
    copy = [dataclasses.replace(samples[i], name=f"copy of {i}") for i in (2, 290)]
    found = _find([*samples, copy[0]], [copy[1]])
    assert sorted((pair.name, pair.like, pair.held_out) for pair in found) == [
        ("copy of 2", "2", False),
        ("copy of 290", "290", True),
    ]
