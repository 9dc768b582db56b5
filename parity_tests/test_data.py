import dataclasses

import numpy as np
import pytest
import tifffile
from PIL import Image

from train import data, synthetic
from train.config import DataConfig
from unet_spec import InputError, Preprocessing, UNetConfig, geometry

NET = UNetConfig(widths=(4, 6))


def _folders(tmp_path, *, values=(0, 255), count=3, shape=(20, 24)):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
        mask = rng.choice(np.array(values, np.uint8), shape)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path / "images", tmp_path / "masks"


def _read(images, masks, classes=2):
    net = dataclasses.replace(NET, classes=classes)
    return data.read_samples(images, masks, net=net, preprocessing=Preprocessing())


@pytest.mark.parametrize(
    ("values", "classes"), [((0, 255), 2), ((0, 1), 2), ((0, 1, 2), 3)], ids=["255", "1", "indices"]
)
def test_masks_become_class_indices(tmp_path, values, classes):
    images, masks = _folders(tmp_path, values=values)
    samples = _read(images, masks, classes=classes)
    assert len(samples) == 3
    stored = np.asarray(Image.open(tmp_path / "masks" / "0.png"))
    np.testing.assert_array_equal(samples[0].mask, np.searchsorted(values, stored))


def test_stacks_pair_page_by_page(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (4, 20, 24)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "volume.tif", stack, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "labels.tif", (stack > 99).astype(np.uint8) * 255, photometric="minisblack"
    )
    samples = _read(tmp_path / "volume.tif", tmp_path / "labels.tif")
    assert [s.name for s in samples] == [f"volume.tif[{i}]" for i in range(4)]
    for page, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.mask, stack[page] > 99)


def test_the_batch_is_a_function_of_seed_and_step():
    samples = [_synthetic(i) for i in range(5)]
    settings = DataConfig(batch=4, crop_px=32)
    first = data.batch(samples, 7, data=settings, net=NET, seed=3)
    again = data.batch(samples, 7, data=settings, net=NET, seed=3)
    other = data.batch(samples, 8, data=settings, net=NET, seed=3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_an_epoch_shows_every_image_once():
    order = [data._shuffled(i, 7, 0) for i in range(21)]
    for epoch in range(3):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert order[:7] != order[7:14]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shape", [(70, 90), (9, 50)], ids=["larger", "smaller"])
def test_input_and_truth_of_a_crop_lie_on_one_another(padding, shape):
    """The image holds its own mask's values, so the centre of the input must equal the truth."""
    net = UNetConfig(widths=(4, 6, 8), padding=padding)
    crop_px = geometry.next_legal(net, 48)
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    sample = data.Sample("a", mask, mask, mask[..., None].astype(np.float32))
    settings = DataConfig(batch=6, crop_px=crop_px)
    x, y = data.batch([sample], 0, data=settings, net=net, seed=0)
    margin = geometry.margin(net)
    inner = x[:, margin : crop_px - margin, margin : crop_px - margin, 0]
    np.testing.assert_array_equal(inner, y)


def test_split_holds_out_a_part_and_loses_nothing():
    samples = [_synthetic(i) for i in range(8)]
    training, validation = data.split(samples, holdout=0.25, seed=0)
    assert (len(training), len(validation)) == (6, 2)
    assert sorted(s.name for s in training + validation) == sorted(s.name for s in samples)


def test_synthetic_cells_are_reproducible_and_of_both_classes():
    image, mask = synthetic.cells(5)
    np.testing.assert_array_equal(image, synthetic.cells(5)[0])
    assert 0.05 < mask.mean() < 0.8
    assert image[mask == 1].mean() > image[mask == 0].mean()


def _synthetic(seed):
    image, mask = synthetic.cells(seed, height=40, width=56)
    return data.make_sample(f"{seed}", image, mask, NET, Preprocessing())


def _no_mask(images, masks):
    (masks / "1.png").unlink()


def _no_image(images, masks):
    (images / "1.png").unlink()


def _other_shape(images, masks):
    Image.fromarray(np.zeros((20, 25), np.uint8)).save(masks / "1.png")


def _other_values(images, masks):
    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(masks / "1.png")


def _smeared(images, masks):
    (masks / "1.png").unlink()
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (20, 24))
    Image.fromarray(noise).save(masks / "1.jpg")


def _coloured(images, masks):
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[..., 0] = 200
    Image.fromarray(pixels).save(masks / "1.png")


def _emptied(images, masks):
    for path in images.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "name", "rule"),
    [
        (_no_mask, "images/1.png", "no mask named 1"),
        (_no_image, "masks/1.png", "no image named 1"),
        (_other_shape, "masks/1.png", "must be the same"),
        (_other_values, "masks/1.png", "values 7"),
        (_smeared, "masks/1.jpg", "PNG or TIFF"),
        (_coloured, "masks/1.png", "colours"),
        (_emptied, "images", "holds no image"),
    ],
)
def test_a_wrong_pair_is_one_sentence_that_names_it(tmp_path, damage, name, rule):
    images, masks = _folders(tmp_path)
    damage(images, masks)
    with pytest.raises(InputError, match=rule) as refusal:
        _read(images, masks)
    assert str(tmp_path / name) in str(refusal.value)
