from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import unet_image
from unet_jax import UNet, predict
from unet_spec import UNetConfig
from unet_train.config import TrainConfig
from unet_train.input import synthetic
from unet_train.input.border_weights import label_objects
from unet_train.input.samples import make_sample
from unet_train.metrics import rand_score
from unet_train.report import pictures, validation
from unet_train.report.pictures import draw_overlays, draw_worst_and_best, write_pictures
from unet_train.report.validation import validate

CONFIG = TrainConfig(net=UNetConfig(widths=(4, 6)))


def sample(number, mask, objects=None):
    """An image whose every value is its number."""
    mask = np.array(mask, np.uint8)
    image = np.full(mask.shape, number, np.uint8)
    return replace(make_sample(f"{number}.png", image, mask, CONFIG), objects=objects)


BLOCK = np.zeros((6, 8), np.uint8)
BLOCK[1:5] = 1
HALVES = np.array([[1] * 4 + [2] * 4], np.int32) * BLOCK  # two objects side by side
FOUND = BLOCK.copy()
FOUND[:, 3:6] = 0
SAMPLES = [
    sample(0, [[0, 1, 1], [0, 0, 255]]),
    sample(1, BLOCK, HALVES),
    sample(2, [[0, 0, 1]]),
]
PREDICTED = [np.array([[0, 1, 0], [1, 0, 1]], np.uint8), FOUND, SAMPLES[2].mask]


NET = UNet(CONFIG.net, rngs=nnx.Rngs(0))


@pytest.fixture
def scores(monkeypatch):
    return _validate(monkeypatch, SAMPLES, PREDICTED)


def test_scores_equal_pixels_counted_by_hand(scores):
    # rows are the truth; by image ((2, 1), (1, 1)), ((16, 0), (12, 20)), ((2, 0), (0, 1))
    assert scores.confusion == [[20, 1], [13, 22]]
    assert [image.iou for image in scores.images] == pytest.approx([1 / 3, 20 / 32, 1])
    assert [image.dice for image in scores.images] == pytest.approx([2 / 4, 40 / 52, 1])
    assert scores.mean_image_iou == pytest.approx((1 / 3 + 20 / 32 + 1) / 3)
    assert scores.pooled_iou == pytest.approx([20 / 34, 22 / 36])
    assert scores.pooled_dice == pytest.approx([40 / 54, 44 / 58])
    assert scores.pixel_error == pytest.approx(14 / 56)
    assert scores.headline["pooled_iou"] == pytest.approx(22 / 36)
    assert [(image.name, image.height, image.width) for image in scores.images][1] == (
        "1.png", 6, 8,
    )  # fmt: skip


def _validate(monkeypatch, samples, predicted, *, classes=2):
    for room in (validation, pictures):
        monkeypatch.setattr(room, "predict", lambda _, image: predicted[int(image[0, 0])])
    net = UNet(replace(CONFIG.net, classes=classes), rngs=nnx.Rngs(0))
    return validate(net, samples, ignore_index=255)


EMPTY = np.zeros((6, 8), np.uint8)
IGNORED = np.full((6, 8), 255, np.uint8)


def test_an_image_with_nothing_to_score_stays_out_of_every_mean(monkeypatch):
    samples = [sample(0, EMPTY), sample(1, BLOCK), sample(2, IGNORED), sample(3, EMPTY)]
    # the second has what the net does not find, the last what it finds and is not there
    predicted = [EMPTY, FOUND, BLOCK, BLOCK]
    scores = _validate(monkeypatch, samples, predicted)
    assert [image.iou for image in scores.images] == [None, pytest.approx(20 / 32), None, 0]
    assert [image.dice for image in scores.images] == [None, pytest.approx(40 / 52), None, 0]
    assert scores.mean_image_iou == pytest.approx(20 / 32 / 2)
    assert scores.rand_score == rand_score(FOUND == 1, label_objects(BLOCK == 1))
    assert scores.pixel_error == pytest.approx((12 + 32) / (3 * 48))
    worst = draw_worst_and_best(NET, samples, scores)
    assert list(worst) == ["3.png", "1.png"]


def test_where_nothing_can_be_scored_no_score_exists(monkeypatch):
    samples = [sample(0, IGNORED), sample(1, IGNORED)]
    scores = _validate(monkeypatch, samples, [BLOCK, EMPTY])
    assert scores.headline == dict.fromkeys(scores.headline)
    assert len(scores.headline) == 5
    assert (scores.pooled_iou, scores.pooled_dice) == ([None, None], [None, None])
    assert list(draw_worst_and_best(NET, samples, scores)) == ["0.png", "1.png"]


def test_a_class_that_no_held_out_image_has_is_in_no_mean(monkeypatch):
    scores = _validate(monkeypatch, [sample(0, BLOCK)], [FOUND], classes=3)
    assert scores.pooled_iou == [pytest.approx(16 / 28), pytest.approx(20 / 32), None]
    assert scores.mean_image_iou == scores.headline["pooled_iou"] == pytest.approx(20 / 32)
    assert "rand_score" not in scores.headline


def test_the_rand_score_is_of_the_objects_where_they_are_known(scores):
    of_parts = [rand_score(p == 1, label_objects(s.mask == 1))
                for p, s in zip(PREDICTED, SAMPLES, strict=True)]  # fmt: skip
    of_objects = rand_score(PREDICTED[1] == 1, HALVES)
    assert len({of_objects, of_parts[1], rand_score(PREDICTED[1] == 0, HALVES)}) == 3
    assert scores.rand_score == pytest.approx((of_parts[0] + of_objects + of_parts[2]) / 3)


def test_pictures_show_prediction_and_truth_of_their_image(scores):
    shown = draw_overlays(NET, SAMPLES, [1])
    assert list(shown) == ["1.png"]
    expected = unet_image.overlay(SAMPLES[1].image, FOUND, BLOCK)
    np.testing.assert_array_equal(shown["1.png"], expected)
    others = [(0 * FOUND, BLOCK), (FOUND, 0 * BLOCK), (BLOCK, FOUND)]
    for masks in others:
        assert (unet_image.overlay(SAMPLES[1].image, *masks) != expected).any()


def test_images_without_names_of_their_own_have_pictures_of_their_own(scores, tmp_path):
    names = ["x y.png", "x_y.png", "a.tif[1]"]
    named = [replace(s, name=n) for s, n in zip(SAMPLES, names, strict=True)]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "3_of_before.png").touch()
    write_pictures(tmp_path / "pictures", draw_overlays(NET, named, range(3)))
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["0_x_y.png", "1_x_y.png", "2_a_1_.png"]


def test_each_device_scores_a_part_and_every_image_counts_once(monkeypatch):
    """Eight devices give what one gives, and each of them computes."""
    assert len(jax.local_devices()) == 8
    samples = [make_sample(f"{i}", *synthetic.draw_cells(i), CONFIG) for i in range(11)]
    used = []

    def noted(model, image):
        used.append(model.out.kernel.get_value().devices())
        return predict(model, image)

    monkeypatch.setattr(validation, "predict", noted)
    by_all = validate(NET, samples)
    assert len(set(map(frozenset, used))) == 8
    assert len(used) == 11
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    by_one = validate(NET, samples)
    assert by_all == by_one
    assert [image.name for image in by_all.images] == [sample.name for sample in samples]
    assert np.sum(by_all.confusion) == sum(sample.mask.size for sample in samples)
