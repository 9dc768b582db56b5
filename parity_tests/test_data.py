import dataclasses

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import unet_image
from parity_tests.tiny import read_all
from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_train.config import DataConfig, LossConfig, TrainConfig
from unet_train.input import synthetic
from unet_train.input.crops import choose_samples, cut_batch
from unet_train.input.dataset import open_dataset
from unet_train.input.samples import make_sample

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


def _read(images, masks, *, classes=2, ignore_index=None, **settings):
    config = TrainConfig(
        net=dataclasses.replace(NET, classes=classes),
        data=DataConfig(images=images, masks=masks, **settings),
        loss=LossConfig(ignore_index=ignore_index),
        class_names=(),
    )
    return read_all(config)


@pytest.mark.parametrize(
    ("values", "classes", "stored"),
    [
        ((0, 255), 2, "0/255"),
        ((0, 1), 2, "indices"),
        ((0, 1, 2), 3, "indices"),
        ((0,), 2, "all 0"),
        ((0, 255), 1, "0/255"),
        ((0, 1), 1, "indices"),
    ],
    ids=["255", "1", "indices", "blank", "255, one channel", "1, one channel"],
)
def test_masks_become_class_indices(tmp_path, values, classes, stored):
    images, masks = _folders(tmp_path, values=values)
    samples = _read(images, masks, classes=classes)
    assert [sample.stored for sample in samples] == 3 * [stored]
    held = np.asarray(Image.open(tmp_path / "masks" / "0.png"))
    np.testing.assert_array_equal(samples[0].mask, np.searchsorted(values, held))
    assert samples[0].mask.dtype == np.uint8
    assert samples[0].objects is samples[0].weight is None


@pytest.mark.parametrize(
    ("values", "classes", "ignore_index", "expected"),
    [
        ((0, 1, 255), 2, 255, (0, 1, 255)),
        ((0, 128, 255), 2, 128, (0, 128, 1)),
        ((0, 1, 2, 7), 3, 7, (0, 1, 2, 7)),
        ((0, 255), 2, 255, (0, 255)),
    ],
    ids=["indices and 255", "0/255 and 128", "more classes", "255 is ignored, not a class"],
)
def test_pixels_that_count_nothing_keep_their_value(
    tmp_path, values, classes, ignore_index, expected
):
    images, masks = _folders(tmp_path, values=values)
    sample = _read(images, masks, classes=classes, ignore_index=ignore_index)[0]
    held = np.asarray(Image.open(masks / "0.png"))
    np.testing.assert_array_equal(sample.mask, np.array(expected)[np.searchsorted(values, held)])


PALETTE = ("000000", "#ff8000", "0080ff")


def _painted(kind, classes):
    """A mask file's pixels: these classes in the colours of PALETTE."""
    colours = np.array([(0, 0, 0), (255, 128, 0), (0, 128, 255)], np.uint8)
    if kind == "palette":
        picture = Image.fromarray(classes)
        picture.putpalette(colours.tobytes())
        return picture
    alpha = np.full((*classes.shape, 1), 90, np.uint8)
    pixels = colours[classes]
    return Image.fromarray(np.concatenate([pixels, alpha], -1) if kind == "rgba" else pixels)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
def test_colours_become_their_place_in_the_palette(tmp_path, kind):
    images, masks = _folders(tmp_path, count=1)
    classes = np.random.default_rng(1).integers(0, 3, (20, 24)).astype(np.uint8)
    _painted(kind, classes).save(masks / "0.png")
    (sample,) = _read(images, masks, classes=3, mask_values="colours", palette=PALETTE)
    np.testing.assert_array_equal(sample.mask, classes)
    assert sample.stored == "colours"


def test_gray_masks_have_colours_as_well(tmp_path):
    images, masks = _folders(tmp_path, values=(0, 255))
    palette = ("FFFFFF", "000000")
    held = np.asarray(Image.open(masks / "0.png"))
    for classes in (1, 2):
        samples = _read(images, masks, classes=classes, mask_values="colours", palette=palette)
        np.testing.assert_array_equal(samples[0].mask, held == 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_instances_become_one_class_and_keep_their_numbers(tmp_path, dtype):
    images, _ = _folders(tmp_path, count=1)
    (tmp_path / "numbers").mkdir()
    top = 255 if dtype is np.uint8 else 40_000
    numbers = np.random.default_rng(0).choice([0, 1, 17, top], (20, 24)).astype(dtype)
    tifffile.imwrite(tmp_path / "numbers" / "0.tif", numbers, photometric="minisblack")
    for classes in (1, 2):
        (sample,) = _read(images, tmp_path / "numbers", classes=classes, mask_values="instances")
        np.testing.assert_array_equal(sample.mask, (numbers > 0).astype(np.uint8))
        np.testing.assert_array_equal(sample.objects, numbers.astype(np.int32))
    assert sample.objects.dtype == np.int32


@pytest.mark.parametrize("colour", [0, 255], ids=["black", "white"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_may_be_kept_in_the_alpha_channel(tmp_path, mode, colour):
    """A drawing program paints it on an empty layer; the colours then hold one value."""
    images, masks = _folders(tmp_path, count=2)
    held = np.asarray(Image.open(masks / "0.png"))
    layer = Image.new(mode[:-1], held.shape[::-1], colour if mode == "LA" else 3 * (colour,))
    layer.putalpha(Image.fromarray(held))
    layer.save(masks / "0.png")
    opaque = Image.open(masks / "1.png").convert(mode)
    opaque.save(masks / "1.png")
    samples = _read(images, masks)
    np.testing.assert_array_equal(samples[0].mask, held == 255)
    assert [sample.stored for sample in samples] == ["classes in alpha", "0/255"]


def test_images_whose_channels_do_not_fit_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    images, masks = _folders(tmp_path)
    stack = np.zeros((2, 20, 24), np.uint8)
    tifffile.imwrite(images / "1.tif", stack, metadata={"axes": "CYX"}, photometric="minisblack")
    (images / "1.png").unlink()
    monkeypatch.setattr(unet_image, "read_page", lambda *_, **__: 1 / 0)
    config = TrainConfig(net=NET, data=DataConfig(images=images, masks=masks))
    with pytest.raises(InputError, match=r"1\.tif: the image has 2 channels and the net takes 1"):
        open_dataset(config)
    chosen = dataclasses.replace(config, preprocessing=Preprocessing(channels=(1,)))
    with pytest.raises(InputError, match=r"0\.png: the image has 1 channel, and channel 1 is"):
        open_dataset(chosen)


def test_a_store_is_one_file_of_many_pages(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (5, 20, 24)).astype(np.uint8)
    for name, array in (("images", pages), ("masks", (pages > 99).astype(np.uint8))):
        zarr.create_array(tmp_path / f"{name}.zarr", data=array)
    samples = _read(tmp_path / "images.zarr", tmp_path / "masks.zarr")
    assert [sample.name for sample in samples] == [f"images.zarr[{i}]" for i in range(5)]
    for page, sample in zip(pages, samples, strict=True):
        np.testing.assert_array_equal(sample.image, page)
        np.testing.assert_array_equal(sample.mask, page > 99)
    dataset = open_dataset(
        TrainConfig(
            net=NET,
            data=DataConfig(images=tmp_path / "images.zarr", masks=tmp_path / "masks.zarr"),
        )
    )
    assert (len(dataset.training), len(dataset.validation)) == (4, 1)
    assert sorted(dataset.identities) == ["images/images.zarr", "masks/masks.zarr"]


def test_the_batch_is_a_function_of_seed_and_step():
    samples = [_synthetic(i) for i in range(5)]
    first, again, other_step, other_seed = (
        cut_batch(samples, step, data=FOUR, net=NET, seed=seed)
        for step, seed in ((7, 3), (7, 3), (8, 3), (7, 4))
    )
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.truth, again.truth)
    assert first.weight is None
    assert not np.array_equal(first.x, other_step.x)
    assert not np.array_equal(first.x, other_seed.x)


def test_steps_cut_the_same_image_elsewhere():
    crops = [cut_batch([_synthetic(0)], i, data=FOUR, net=NET, seed=3).x for i in range(2)]
    assert len(np.unique(np.concatenate(crops), axis=0)) == 8


def test_rows_of_a_batch_equal_those_of_the_whole():
    samples = [_weighted(_synthetic(i)) for i in range(5)]
    for step in range(4):
        whole = cut_batch(samples, step, data=FOUR, net=NET, seed=3)
        parts = [
            cut_batch(samples, step, data=FOUR, net=NET, seed=3, rows=rows)
            for rows in (slice(0, 1), slice(1, 4))
        ]
        for all_at_once, one, three in zip(whole, *parts, strict=True):
            assert (len(one), len(three)) == (1, 3)
            np.testing.assert_array_equal(all_at_once, np.concatenate([one, three]))


def test_an_epoch_shows_every_image_once():
    settings = dataclasses.replace(FOUR, batch=3)
    shown = [n for step in range(7) for n in choose_samples(7, step, data=settings, seed=0)]
    epochs = [shown[7 * i : 7 * i + 7] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_larger_than_the_data_shows_every_image_equally_often():
    shown = choose_samples(2, 0, data=dataclasses.replace(FOUR, batch=10), seed=0)
    assert [shown.count(number) for number in range(2)] == [5, 5]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shape", [(70, 90), (9, 50)], ids=["larger", "smaller"])
def test_input_truth_and_weight_of_a_crop_lie_on_one_another(padding, shape):
    """The image holds its own mask's values, and the weight does."""
    net = UNetConfig(widths=(4, 6, 8), padding=padding)
    crop_px = geometry.next_legal(net, 48)
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    sample = _unscaled(mask, mask, weight=mask.astype(np.float32))
    settings = DataConfig(batch=6, crop_px=crop_px)
    made = cut_batch([sample], 0, data=settings, net=net, seed=0)
    assert made.x.shape == (6, crop_px, crop_px, 1)
    assert (made.x.dtype, made.truth.dtype, made.weight.dtype) == (
        np.float32, np.uint8, np.float32
    )  # fmt: skip
    np.testing.assert_array_equal(made.x[..., 0], made.truth)
    np.testing.assert_array_equal(made.truth, made.weight)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_crop_is_a_window_of_the_mirrored_image_whose_output_lies_inside(padding):
    """Every pixel has another value, so what a crop holds says where it was cut."""
    net = UNetConfig(widths=(4, 6, 8), padding=padding)
    crop_px = geometry.next_legal(net, 48)
    height, width = crop_px + 5, crop_px + 9
    margin = geometry.margin(net)
    image = np.arange(height * width, dtype=np.float32).reshape(height, width)
    sample = _unscaled(image, np.zeros((height, width), np.uint8))
    mirrored = np.pad(image, margin, mode="symmetric")
    settings = DataConfig(batch=400, crop_px=crop_px)
    made = cut_batch([sample], 0, data=settings, net=net, seed=0)
    starts = set()
    for crop in made.x[..., 0]:
        row, column = divmod(int(crop[margin, margin]), width)
        starts.add((row, column))
        window = mirrored[row : row + crop_px, column : column + crop_px]
        np.testing.assert_array_equal(crop, window)
    rows, columns = (sorted({start[axis] for start in starts}) for axis in (0, 1))
    # the last output of the image is reached, and none beyond it
    assert rows == list(range(height - crop_px + 2 * margin + 1))
    assert columns == list(range(width - crop_px + 2 * margin + 1))


def _dotted(*values):
    """A sample of 200 x 300 whose mask has a pixel of each of these classes, far from another."""
    mask = np.zeros((200, 300), np.uint8)
    for place, value in enumerate(values):
        mask[10 + 60 * place, 290 - 90 * place] = value
    return _unscaled(mask, mask)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("share", [0.0, 0.33, 1.0])
def test_a_share_of_the_crops_has_foreground_where_the_net_answers(padding, share):
    """One pixel of 60,000: by itself a crop hardly ever has it."""
    net = UNetConfig(widths=(4, 6, 8), padding=padding, classes=4)
    settings = DataConfig(batch=600, crop_px=geometry.next_legal(net, 48), foreground=share)
    truth = cut_batch([_dotted(1, 0, 3)], 0, data=settings, net=net, seed=0).truth
    margin = geometry.margin(net)
    inner = truth[:, margin:-margin, margin:-margin] if margin else truth
    by_chance = np.prod([inner.shape[1] / 200, inner.shape[2] / 300])
    with_any = (inner > 0).any((1, 2)).mean()
    assert share - 0.05 < with_any < share + 2 * by_chance + 0.05
    if share == 1:
        assert with_any == 1
        thirds = [(inner == number).any((1, 2)).mean() for number in (1, 3)]
        assert thirds == pytest.approx([0.5, 0.5], abs=0.06)


def test_pixels_that_count_nothing_and_images_without_foreground_draw_no_crop():
    settings = DataConfig(batch=200, crop_px=32, foreground=1.0)
    net = dataclasses.replace(NET, classes=2)
    plain = dataclasses.replace(settings, foreground=0.0)
    for values in ((), (255, 7)):
        crops, others = (
            cut_batch([_dotted(*values)], 0, data=data, net=net, seed=0).truth
            for data in (settings, plain)
        )
        np.testing.assert_array_equal(crops, others)


def test_synthetic_cells_are_reproducible_and_of_both_classes():
    image, mask = synthetic.draw_cells(5)
    np.testing.assert_array_equal(image, synthetic.draw_cells(5)[0])
    assert 0.05 < mask.mean() < 0.8
    assert image[mask == 1].mean() > image[mask == 0].mean()


FOUR = DataConfig(batch=4, crop_px=32)


def _synthetic(seed):
    image, mask = synthetic.draw_cells(seed, height=40, width=56)
    return make_sample(f"{seed}", image, mask, TrainConfig(net=NET))


def _unscaled(image, mask, **fields):
    """A sample whose input is the image."""
    plain = TrainConfig(net=NET, preprocessing=Preprocessing("none"))
    return dataclasses.replace(make_sample("a", image, mask, plain), **fields)


def _weighted(sample):
    return dataclasses.replace(sample, weight=sample.x[..., 0] ** 2)


def _other_values(images, masks):
    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(masks / "1.png")


def _smeared(images, masks):
    (masks / "1.png").unlink()
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (20, 24))
    Image.fromarray(noise).save(masks / "1.jpg")


def _blended(images, masks):
    Image.fromarray(np.arange(480, dtype=np.uint8).reshape(20, 24)).save(masks / "1.png")


def _void(images, masks):
    Image.fromarray(np.tile(np.array([0, 1, 255], np.uint8), (20, 8))).save(masks / "1.png")


def _coloured(images, masks):
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[:3, :4] = (200, 16, 0)
    Image.fromarray(pixels).save(masks / "1.png")


def _deep(images, masks):
    Image.fromarray(np.full((20, 24), 700, np.uint16)).save(masks / "1.png")


def _negative(images, masks):
    (masks / "1.png").unlink()
    tifffile.imwrite(masks / "1.tif", np.full((20, 24), -1, np.int16), photometric="minisblack")


def _fractions(images, masks):
    (masks / "1.png").unlink()
    values = np.full((20, 24), 0.5, np.float32)
    tifffile.imwrite(masks / "1.tif", values, photometric="minisblack")


def _missing_values(images, masks):
    (masks / "1.png").unlink()
    values = np.full((20, 24), np.nan, np.float32)
    tifffile.imwrite(masks / "1.tif", values, photometric="minisblack")


def _as_it_was(images, masks):
    pass


def _words(value):
    """The id of a parameter: the damage, and what masks hold where it is not classes."""
    if callable(value):
        return value.__name__.strip("_").replace("_", " ")
    return value.get("mask_values", "classes") if isinstance(value, dict) else ""


COLOURS = {"mask_values": "colours", "palette": ("000000", "FFFFFF")}
INSTANCES = {"mask_values": "instances"}


@pytest.mark.parametrize(
    ("damage", "settings", "name", "rule"),
    [
        (_other_values, {}, "masks/1.png", "values 7"),
        (_as_it_was, {"classes": 3}, "masks/0.png", "values 0, 255 do not fit 3 classes"),
        (_fractions, {}, "masks/1.tif", "values 0.5 "),
        (_missing_values, {}, "masks/1.tif", "values nan "),
        (_void, {}, "masks/1.png", "loss.ignore_index=255"),
        (_smeared, {}, "masks/1.jpg", "; JPEG smears masks: make it again as PNG or TIFF"),
        (_blended, {}, "masks/1.png", "; numbers of objects need data.mask_values=instances"),
        (_coloured, {}, "masks/1.png", "mask_values=colours and palette"),
        (_coloured, COLOURS, "masks/1.png", "12 pixels have .*, 12 of them C81000; add it"),
        (_smeared, COLOURS, "masks/1.jpg", "JPEG smears masks"),
        (_deep, COLOURS, "masks/1.png", "8 bits a channel, these are uint16"),
        (_smeared, INSTANCES, "masks/1.jpg", "JPEG smears masks"),
        (_negative, INSTANCES, "masks/1.tif", "are whole, from 0 to 2147483647"),
        (_fractions, INSTANCES, "masks/1.tif", "are whole, from 0 to 2147483647"),
        (_missing_values, INSTANCES, "masks/1.tif", "are whole, from 0 to 2147483647"),
    ],
    ids=_words,
)
def test_a_wrong_pair_is_one_sentence_that_names_it(tmp_path, damage, settings, name, rule):
    images, masks = _folders(tmp_path)
    damage(images, masks)
    with pytest.raises(InputError, match=rule) as refusal:
        _read(images, masks, **settings)
    assert str(tmp_path / name) in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "classes", "way"),
    [
        ((0, 254), 2, "all but 0 is class 1, .*: data.mask_values=instances$"),
        ((0, 128), 2, "all but 0 is class 1, .*: data.mask_values=instances$"),
        ((0, 2), 2, "all but 0 is class 1, .*: data.mask_values=instances$"),
        ((77,), 2, "all but 0 is class 1, .*: data.mask_values=instances$"),
        ((1, 2), 2, "begin at 1, store them from 0, or use net.classes=3 with as many"),
        ((1, 2, 3), 3, "begin at 1, store them from 0, or use net.classes=4 with"),
        ((0, 1, 2), 2, "more classes: net.classes=3 .*; numbers of objects need data.mask_values"),
        ((0, 1, 4), 3, "more classes: net.classes=5 with as many class_names$"),
        ((0, 128, 255), 2, "; store each class as its number; numbers of objects need"),
        ((0, 128, 255), 3, "; store each class as its number$"),
        ((0.0, np.inf), 2, "; store each class as a whole number$"),
        ((0.0, 0.5), 2, "; store each class as a whole number$"),
        ((-1, 0), 2, "; store them so, and pixels that count nothing as 255 with loss.ig"),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_values_that_do_not_fit_come_with_a_way_out(tmp_path, values, classes, way):
    images, masks = _folders(tmp_path, count=1)
    (masks / "0.png").unlink()
    kind = np.float32 if isinstance(values[0], float) else np.int16
    pixels = np.resize(np.array(values, kind), (20, 24))
    tifffile.imwrite(masks / "0.tif", pixels, photometric="minisblack")
    with pytest.raises(InputError, match=way):
        _read(images, masks, classes=classes)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"mask_values": "instances", "classes": 3}, "makes 2 classes, and net.classes=3"),
        ({"mask_values": "colours"}, "palette needs 2 different colours"),
        ({"mask_values": "colours", "palette": ("000000", "000000")}, "2 different colours"),
        ({"mask_values": "colours", "palette": ("000000", "white")}, "RRGGBB"),
        ({"classes": 257}, "classes is at most 256"),
    ],
    ids=["instances", "no palette", "twice", "no colour", "classes"],
)
def test_settings_that_do_not_fit_are_refused_before_a_file_is_read(tmp_path, settings, rule):
    with pytest.raises(InputError, match=rule):
        _read(tmp_path / "none", tmp_path / "none", **settings)
