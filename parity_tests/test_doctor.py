import dataclasses
import io
import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from parity_tests.containers import exif
from parity_tests.tiny import read_all
from unet_spec import InputError, Preprocessing, UNetConfig
from unet_train.check import data_doctor, image_facts
from unet_train.check import diagnosis as diagnosis_of_data
from unet_train.config import DataConfig, LossConfig, TrainConfig
from unet_train.input import synthetic
from unet_train.input.dataset import open_dataset

NET = UNetConfig(widths=(4, 6))
HELD_OUT = 2  # of the eight images


def _folders(tmp_path, *, count=8, shape=(64, 80)):
    """Cells as 0.png, 1.png, ...; the last two will be held out."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(count):
        image, mask = synthetic.draw_cells(i, height=shape[0], width=shape[1])
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(255 * mask).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def _examined(folder, *, net=NET, normalize="image", ignore_index=None, names=()):
    settings = DataConfig(images=folder / "images", masks=folder / "masks", crop_px=32, batch=4)
    samples = read_all(
        TrainConfig(
            net=net, data=settings, preprocessing=Preprocessing(normalize),
            loss=LossConfig(ignore_index=ignore_index), class_names=(),
        )
    )  # fmt: skip
    return data_doctor.examine(
        samples[:-HELD_OUT], samples[-HELD_OUT:], net=net, data=settings,
        ignore_index=ignore_index, class_names=names,
    )  # fmt: skip


def _image(folder, name):
    return np.asarray(Image.open(folder / "images" / name))


def _save_image(folder, name, pixels):
    Image.fromarray(pixels).save(folder / "images" / name)


def _save_mask(folder, name, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / "masks" / name)


def _mask(folder, name):
    return np.asarray(Image.open(folder / "masks" / name)) // 255


def test_clean_images_have_no_findings(tmp_path):
    assert _examined(_folders(tmp_path)).findings == []


def test_a_clean_stack_has_no_findings(tmp_path):
    pairs = [synthetic.draw_cells(i, height=64, width=80) for i in range(8)]
    for name, part, factor in (("images", 0, 257), ("masks", 1, 255)):
        pages = np.stack([pair[part].astype(np.uint16) * factor for pair in pairs])
        tifffile.imwrite(tmp_path / name, pages, photometric="minisblack")
        (tmp_path / name).rename(tmp_path / f"{name}.tif")
    settings = DataConfig(images=tmp_path / "images.tif", masks=tmp_path / "masks.tif", crop_px=32)
    samples = read_all(TrainConfig(net=NET, data=settings))
    found = data_doctor.examine(samples[:6], samples[6:], net=NET, data=settings)
    assert (found.findings, found.kinds) == ([], {"1 channel of uint16": 8})


def test_objects_that_are_mostly_specks_are_told(tmp_path):
    """A mask of 200 and 90 that went through JPEG holds dozens of numbers, most of few pixels."""
    mask = np.zeros((48, 48), np.uint8)
    mask[4:20, 5:22], mask[24:44, 20:40] = 200, 90
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "JPEG", quality=60)
    for name, pixels in (("whole", mask), ("smeared", np.asarray(Image.open(stream)))):
        for part in ("images", "masks"):
            (tmp_path / name / part).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(pixels).save(tmp_path / name / part / f"{i}.png")
        settings = DataConfig(
            tmp_path / name / "images", tmp_path / name / "masks", "instances", crop_px=32
        )
        samples = read_all(TrainConfig(net=NET, data=settings))
        found = data_doctor.examine(samples[:1], samples[1:], net=NET, data=settings)
        assert found.specks == ([] if name == "whole" else ["0.png", "1.png"])
        assert any("less than 9 pixels" in f.text for f in found.findings) == (name == "smeared")


@pytest.mark.parametrize("classes", [2, 1], ids=["two channels", "one channel"])
def test_what_is_told_equals_what_numpy_counts(tmp_path, classes):
    folder = _folders(tmp_path)
    _save_image(folder, "3.png", np.pad(_image(folder, "3.png"), ((0, 0), (0, 9)), "reflect"))
    _save_mask(folder, "3.png", np.pad(255 * _mask(folder, "3.png"), ((0, 0), (0, 9)), "reflect"))
    found = _examined(
        folder, net=dataclasses.replace(NET, classes=classes), names=("background", "cell")
    )
    images = [_image(folder, f"{i}.png") for i in range(8)]
    masks = [_mask(folder, f"{i}.png") for i in range(8)]
    every = np.concatenate([image.ravel() for image in images])
    assert (found.training, found.validation, found.steps_per_epoch) == (6, 2, 1.5)
    assert found.sizes == [diagnosis_of_data.Size(64, 80, 7), diagnosis_of_data.Size(64, 89, 1)]
    assert found.kinds == {"1 channel of uint8": 8}
    assert found.stored == {"0/255": [f"{i}.png" for i in range(8)]}
    assert found.memory_bytes == every.size * (1 + 1)
    assert (found.as_read.low, found.as_read.high) == (every.min(), every.max())
    np.testing.assert_allclose(found.as_read.mean, every.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.as_read.deviation, every.std(), rtol=1e-12)
    np.testing.assert_allclose(found.as_input.deviation, 1, rtol=1e-6)
    cells = np.concatenate([mask.ravel() for mask in masks[:6]]).mean()
    assert [(s.name, s.training, s.validation) for s in found.classes] == [
        ("background", 6, 2),
        ("cell", 6, 2),
    ]
    np.testing.assert_allclose([s.pixels for s in found.classes], [1 - cells, cells], rtol=1e-12)


@pytest.mark.parametrize("turns_mask", [False, True])
def test_images_that_were_turned_beside_masks_that_were_not_are_named(tmp_path, turns_mask):
    folder = _folders(tmp_path)
    exif = Image.Exif()
    exif[274] = 3  # upside down: the sizes agree
    for part in ("images", "masks") if turns_mask else ("images",):
        path = folder / part / "2.png"
        Image.open(path).save(path, exif=exif)
    found = _examined(folder)
    assert found.turned == ([] if turns_mask else ["2.png"])
    texts = [finding.text for finding in found.findings if finding.level == "warning"]
    assert [text.startswith("1 image turned by the orientation") for text in texts] == (
        [] if turns_mask else [True]
    )


def test_of_many_images_a_stated_part_is_examined(tmp_path, monkeypatch):
    """Each is decoded once, as many as the bound allows, on both sides of the split."""
    folder = _folders(tmp_path, count=12)
    settings = DataConfig(
        images=folder / "images", masks=folder / "masks", crop_px=32, holdout=0.5, cache_gb=0
    )
    config = TrainConfig(net=NET, data=settings)
    each = open_dataset(config).training[0].bytes
    for bound, count in ((12 * each, 12), (6 * each, 6), (1, 2)):
        monkeypatch.setattr(data_doctor, "EXAMINED_BYTES", bound)
        dataset, stream = open_dataset(config), io.StringIO()
        found = data_doctor.report_data(
            dataset, config=config, console=Console(file=stream, width=100)
        )
        assert found.examined == dataset.training.decoded + dataset.validation.decoded == count
        assert (found.training, found.validation) == (6, 6)
        assert found.memory_bytes == 12 * each
        said = f"{count} of them, drawn at random: all below is about these"
        assert (said in stream.getvalue()) == (count < 12)


def test_alpha_is_no_value_of_an_image(tmp_path):
    folder = _folders(tmp_path)
    plain = _examined(folder)
    for i in range(8):
        gray = _image(folder, f"{i}.png")
        _save_image(folder, f"{i}.png", np.stack([gray, gray, gray, np.full_like(gray, 255)], -1))
    found = _examined(folder)
    assert found.findings == []
    assert found.kinds == {"3 channels of uint8": 8}
    np.testing.assert_allclose(found.as_read.mean, plain.as_read.mean, rtol=1e-12)
    assert found.saturated_pixels == plain.saturated_pixels


def test_images_of_float16_are_examined_without_a_warning(tmp_path):
    folder = _folders(tmp_path)
    for i in range(8):  # float16 ends at 65,504, and the largest value of 16 bits is 65,535
        half = _image(folder, f"{i}.png").astype(np.float16) / 255
        (folder / "images" / f"{i}.png").unlink()
        np.save(folder / "images" / f"{i}.npy", half)
    assert _examined(folder).saturated_pixels == 0


def test_a_turned_image_with_an_unturned_mask_is_refused_with_the_cause(tmp_path):
    folder = _folders(tmp_path)
    Image.fromarray(_image(folder, "3.png")).save(folder / "images" / "3.png", exif=exif(6))
    turned = r"\(64, 80\).*\(80, 64\).*, after it was turned by the orientation that it names"
    with pytest.raises(InputError, match=turned):
        _examined(folder)


def test_pixels_that_count_nothing_are_of_no_class(tmp_path):
    folder = _folders(tmp_path)
    for i in range(8):
        mask = _mask(folder, f"{i}.png")
        mask[:16] = 255
        _save_mask(folder, f"{i}.png", mask)
    found = _examined(folder, ignore_index=255)
    assert found.findings == []
    assert found.ignored_pixels == 0.25
    cells = np.stack([_counted(folder, i) for i in range(6)])
    np.testing.assert_allclose(found.classes[1].pixels, cells.mean(), rtol=1e-12)


def _counted(folder, i):
    return np.asarray(Image.open(folder / "masks" / f"{i}.png"))[16:]


def test_a_diagnosis_is_json(tmp_path):
    found = _examined(_folders(tmp_path))
    plain = dataclasses.asdict(found)
    assert json.loads(json.dumps(plain)) == plain


def _blank(folder):
    _save_image(folder, "3.png", np.full((64, 80), 7, np.uint8))


def _coloured(folder):
    gray = _image(folder, "3.png")
    _save_image(folder, "3.png", np.stack([gray, gray // 2, 255 - gray], -1))


def _deeper(folder):
    _save_image(folder, "3.png", _image(folder, "3.png").astype(np.uint16) * 16)


def _exposed(folder):
    brighter = 3 * _image(folder, "3.png").astype(int)
    _save_image(folder, "3.png", brighter.clip(0, 255).astype(np.uint8))


def _exposed_12_bits(folder):
    brighter = 48 * _image(folder, "3.png").astype(int)
    _save_image(folder, "3.png", brighter.clip(0, 4095).astype(np.uint16))


def _small(folder):
    _save_image(folder, "3.png", _image(folder, "3.png")[:30])
    _save_mask(folder, "3.png", 255 * _mask(folder, "3.png")[:30])


def _no_cells(folder):
    _save_mask(folder, "3.png", 0 * _mask(folder, "3.png"))


def _other_storage(folder):
    _save_mask(folder, "3.png", _mask(folder, "3.png"))


def _held_out_twice(folder):
    _save_image(folder, "7.png", _image(folder, "3.png"))


def _trained_twice(folder):
    _save_image(folder, "4.png", _image(folder, "3.png"))


def _indices(folder):
    for i in range(8):
        _save_mask(folder, f"{i}.png", _mask(folder, f"{i}.png"))


def _third_class(pixels, images):
    def damage(folder):
        _indices(folder)
        for i in images:
            mask = np.asarray(Image.open(folder / "masks" / f"{i}.png")).copy()
            mask[:1, :pixels] = 2
            _save_mask(folder, f"{i}.png", mask)

    return damage


def _nothing(folder):
    pass


THREE = {"net": dataclasses.replace(NET, classes=3)}


@pytest.mark.parametrize(
    ("damage", "settings", "level", "text"),
    [
        (_blank, {}, "warning", "1 image of one value alone: 3.png; nothing"),
        (_held_out_twice, {}, "warning", r"seen in training: 7.png is like 3.png \(1.000\)"),
        (_trained_twice, {}, "note", r"1 image to train on more .*: 4.png is like 3.png \(1.000\)"),
        (_coloured, {}, "note", "1 image in colour: 3.png; .* --net.in-channels 3 sees"),
        (_deeper, {}, "note", "7 with 1 channel of uint8, 1 with 1 channel of uint16"),
        (_exposed, {}, "note", "1 image with more than 5 % saturated pixels: 3.png"),
        (_exposed_12_bits, {}, "note", "1 image with more than 5 % saturated pixels: 3.png"),
        (_small, {}, "note", "1 image smaller than --data.crop-px 32: 3.png"),
        (_no_cells, {}, "note", "1 image of class 0 alone: 3.png"),
        (_nothing, {"ignore_index": 255}, "note", "8 images of class 0 alone"),
        (_other_storage, {}, "warning", "7 with 0/255: .*; 1 with indices: 3.png"),
        (_nothing, {"ignore_index": 255}, "warning", "class 1 .*--loss.ignore-index 255"),
        (_nothing, {"normalize": "none"}, "warning", "reaches 25.*--preprocessing.normalize image"),
        (_indices, THREE, "warning", "class 2 is in no image to train on"),
        (_third_class(60, [6]), THREE, "warning", "class 2 is in no image to train on"),
        (_third_class(60, range(6)), THREE, "warning", "class 2 is in no held-out image"),
        (_third_class(5, range(8)), THREE, "note", r"class 2 has 0\.\d+ % of the pixels"),
    ],
    ids=[
        "blank", "held out twice", "trained twice", "colour", "kinds", "saturated",
        "saturated at 12 bits", "small", "no foreground", "all ignored", "storage",
        "ignored class", "scale", "class nowhere", "class held out alone",
        "class trained alone", "rare class",
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_and_named(tmp_path, damage, settings, level, text):
    folder = _folders(tmp_path)
    damage(folder)
    findings = _examined(folder, **settings).findings
    assert [f.level for f in findings if re.search(text, f.text)] == [level], findings
    assert findings[0].level == max(f.level for f in findings)  # warnings come first


def test_images_of_one_value_alone_are_not_called_badly_scaled(tmp_path):
    folder = _folders(tmp_path)
    for i in range(8):
        _save_image(folder, f"{i}.png", np.full((64, 80), 7 + i, np.uint8))
    found = _examined(folder)
    texts = [finding.text for finding in found.findings]
    assert [text for text in texts if "of one value alone" in text]
    assert not [text for text in texts if "the net's input" in text]
    zero = image_facts.Values(-0.0, -0.0, -0.0, 0.0)
    shown = _shown(dataclasses.replace(found, as_input=zero))
    assert "0 to 0, mean 0, standard deviation 0" in shown
    assert "-0" not in shown


def test_the_table_says_of_which_images_its_pixels_are(tmp_path):
    shown = " ".join(_shown(_examined(_folders(tmp_path))).split())
    assert "class pixels to train on images to train on images held out" in shown


def test_a_net_that_takes_colours_loses_none(tmp_path):
    folder = _folders(tmp_path)
    _coloured(folder)
    assert _examined(folder, net=dataclasses.replace(NET, in_channels=3)).in_colour == []


def test_a_mask_of_zeros_is_stored_as_any_other(tmp_path):
    folder = _folders(tmp_path)
    _no_cells(folder)
    assert [f.level for f in _examined(folder).findings] == ["note"]


def test_a_class_that_is_ignored_is_not_missed(tmp_path):
    folder = _folders(tmp_path)
    _third_class(60, range(8))(folder)
    assert _examined(folder, ignore_index=2, **THREE).findings == []


def test_five_names_stand_for_more(tmp_path):
    folder = _folders(tmp_path)
    for i in range(7):
        _save_mask(folder, f"{i}.png", 0 * _mask(folder, f"{i}.png"))
    texts = [finding.text for finding in _examined(folder).findings]
    assert any("7 images of class 0 alone: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more" in t
               for t in texts)  # fmt: skip


def _shown(diagnosis, **settings):
    stream = io.StringIO()
    data_doctor.print_diagnosis(diagnosis, Console(file=stream, width=80, **settings))
    return stream.getvalue()


def test_what_is_shown_fits_and_holds_every_finding(tmp_path):
    folder = _folders(tmp_path)
    _blank(folder)
    _no_cells(folder)
    found = _examined(folder, names=("background", "[red]cell"))
    told = _shown(found)
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    for finding in found.findings:
        assert finding.text in words
    assert "6 to train on, 2 held out" in words
    assert "[red]cell" in words


def test_what_is_shown_of_clean_images_ends_with_the_classes(tmp_path):
    assert _shown(_examined(_folders(tmp_path))).splitlines()[-1].split()[0] == "1"


def test_specks_are_where_the_median_object_is_small():
    for sizes, expected in (([8, 9], True), ([8, 10], False), ([9], False), ([8, 8, 99], True),
                            ([1, 17, 99], False), ([1, 40], False)):  # fmt: skip
        objects = np.repeat(np.arange(len(sizes)) * 1000 + 7, sizes).astype(np.int32)
        assert (np.median(sizes) < image_facts.SPECK_PX) == expected
        mask = np.append(objects, 0)[None]
        assert image_facts.is_mostly_specks(mask) == expected, sizes
    assert not image_facts.is_mostly_specks(np.zeros((3, 3), np.int32))
