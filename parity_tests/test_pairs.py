"""Masks are found by the names that data sets give them, and by no guess."""

import re
import time
import unicodedata
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import unet_image
from unet_spec import InputError
from unet_train.config import DataConfig
from unet_train.input.mask_names import match_names, part_names
from unet_train.input.pairs import list_pairs

SHAPE = (5, 7)


def write(folder: Path, names, shape=SHAPE):
    """Write an image for each name; one without a suffix gets .png."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / (
            name if Path(name).suffix.lower() in unet_image.SUFFIXES else f"{name}.png"
        )
        pixels = np.zeros(shape, np.uint8)
        if path.suffix == ".tif":
            tifffile.imwrite(path, pixels, photometric="minisblack")
        else:
            Image.fromarray(pixels).save(path)
    return folder


def pair_files(tmp_path, images, masks):
    """The name of the mask of each image, and the sentence."""
    data = DataConfig(
        images=write(tmp_path / "images", images), masks=write(tmp_path / "masks", masks)
    )
    pairing = list_pairs(data)
    return {p.image.path.name: p.mask.path.name for p in pairing.pairs}, pairing.sentence


def refusal(tmp_path, images, masks):
    with pytest.raises(InputError) as error:
        pair_files(tmp_path, images, masks)
    return str(error.value).replace(f"{tmp_path}/", "")


NUMBERS = (1, 2, 10, 11)  # 1 is the beginning of 10
# names of an image and of its mask, and how the sentence says them
LAYOUTS = {
    "same name": ("s{}.png", "s{}.png", "NAME.png for NAME.png"),
    "other suffix": ("s{}.jpg", "s{}.png", "NAME.png for NAME.jpg"),
    "Carvana": ("{}.jpg", "{}_mask.png", "NAME_mask.png for NAME.jpg"),
    "ISIC": ("ISIC_{:07d}.jpg", "ISIC_{:07d}_segmentation.png",
             "NAME_segmentation.png for NAME.jpg"),
    "DRIVE": ("{}_training.tif", "{}_manual1.png", "NAME_manual1.png for NAME_training.tif"),
    "nnU-Net": ("case_{:04d}_0000.png", "case_{:04d}.png", "NAME.png for NAME_0000.png"),
    "OME": ("s{}.ome.tif", "s{}.tif", "NAME.tif for NAME.ome.tif"),
    "Cityscapes": ("bonn_{:06d}_000019_leftImg8bit.png", "bonn_{:06d}_000019_gtFine_labelIds.png",
                   "NAME_gtFine_labelIds.png for NAME_leftImg8bit.png"),
    "cell tracking": ("t{:03d}.tif", "man_seg{:03d}.tif", "man_segNAME.tif for tNAME.tif"),
    "STARE": ("im{:04d}.png", "im{:04d}.ah.png", "NAME.ah.png for NAME.png"),
    "both beginnings": ("image_{}.png", "mask_{}.png", "mask_NAME.png for image_NAME.png"),
    "a beginning and an ending": ("i{}-raw.png", "m{} seg.png", "mNAME seg.png for iNAME-raw.png"),
    "dashes and spaces": ("cell no. {}.png", "cell no. {}-labels.png",
                          "NAME-labels.png for NAME.png"),
    "two words of one letter": ("Zürich_{}.png", "Zürich_{}_Maske_ß.png",
                                "NAME_Maske_ß.png for NAME.png"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_have_the_names_of_data_sets(tmp_path, layout):
    image, mask, words = LAYOUTS[layout]
    images, masks = ([name.format(n) for n in NUMBERS] for name in (image, mask))
    pairs, sentence = pair_files(tmp_path, images, masks)
    assert pairs == dict(zip(images, masks, strict=True))
    assert sentence == f"masks: {words} (4 pairs)"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_image_has_its_mask_as_many_have(tmp_path, layout):
    image, mask = (name.format(7) for name in LAYOUTS[layout][:2])
    assert pair_files(tmp_path, [image], [mask])[0] == {image: mask}


@pytest.mark.parametrize("ending", ["", "_Mask"])
def test_the_case_of_letters_counts_only_where_it_tells_names_apart(tmp_path, ending):
    images, masks = ["Ada.PNG", "BEN.png"], [f"ada{ending}.png", f"Ben{ending.lower()}.png"]
    pairs, sentence = pair_files(tmp_path, images, masks)
    assert pairs == dict(zip(images, masks, strict=True))
    assert sentence == (
        f"masks: NAME{ending.lower()}.png for NAME.*, in letters of either case (2 pairs)"
    )


def test_names_that_differ_in_case_alone_are_other_names():
    match = match_names(["a", "A"], ["A_mask", "a_mask"])
    assert match.masks == {"a": "a_mask", "A": "A_mask"}
    assert not match.rule.folds_case
    match = match_names(["a", "A", "B"], ["a_mask", "A_mask", "b_mask"])
    assert (match.images, match.other_masks) == (["B"], ["b_mask"])


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_are_one_name(tmp_path, form, other):
    names = [f"Zürich é{n}" for n in NUMBERS]
    images = [unicodedata.normalize(form, f"{name}.png") for name in names]
    masks = [unicodedata.normalize(other, f"{name}_mask.png") for name in names]
    assert pair_files(tmp_path, images, masks)[0] == dict(zip(images, masks, strict=True))


def test_names_of_which_one_is_the_beginning_of_all_others_are_paired(tmp_path):
    images = ["cell", "cell_a", "cell_b", "cell_a_b"]
    pairs, _ = pair_files(tmp_path, images, [f"{name}_mask" for name in images])
    assert pairs == {f"{name}.png": f"{name}_mask.png" for name in images}


def test_pairs_stand_in_the_order_of_the_images(tmp_path):
    images = ["b.png", "a.tif", "a_1.png", "a10.png", "a9.png"]
    masks = [f"mask_{Path(name).stem}.png" for name in images]
    assert list(pair_files(tmp_path, images, masks)[0]) == sorted(images)


WORDS = st.text("ab1_-é", min_size=1, max_size=5)
AFFIXES = st.sampled_from(["", "_mask", "-x", "_0000", "im_", "m-", "1_"])


@given(st.sets(WORDS, min_size=1, max_size=5), AFFIXES, AFFIXES, AFFIXES, AFFIXES)
def test_no_names_are_paired_otherwise_than_by_what_they_share(cores, a, b, c, d):
    """Whatever the rule, the pairing is that of the cores, or none."""
    cores = sorted(cores)
    images = {f"{a}{core}{b}": core for core in cores}
    masks = {f"{c}{core}{d}": core for core in cores}
    match = match_names(sorted(images), sorted(masks))
    if match.is_whole and len(cores) > 1:
        assert {images[i]: masks[m] for i, m in match.masks.items()} == {x: x for x in cores}


@given(st.sets(WORDS, min_size=2, max_size=4), st.sets(WORDS, min_size=2, max_size=4))
def test_only_one_pairing_fits_any_rule(images, masks):
    """Every pairing is tried by brute force: at most one has the same affixes everywhere."""
    if len(images) != len(masks):
        return
    fitting = [
        dict(zip(sorted(images), order, strict=True))
        for order in permutations(masks)
        if share_affixes(list(zip(sorted(images), order, strict=True)))
    ]
    assert len(fitting) <= 1
    match = match_names(sorted(images), sorted(masks))
    if match.is_whole and not match.rule.folds_case:
        assert fitting == [match.masks]


def share_affixes(pairs):
    """Whether images are a + core + b and masks c + core + d, for four strings."""
    (image, mask), *_ = pairs
    return any(
        all(
            i[: len(a)] + m[len(c) : len(m) - d] + b == i
            and m[: len(c)] == c
            and m[len(m) - d :] == mask[len(mask) - d :]
            and len(m) >= len(c) + d
            for i, m in pairs
        )
        for start in range(len(image) + 1)
        for stop in range(start, len(image) + 1)
        for a, core, b in [(image[:start], image[start:stop], image[stop:])]
        for at in range(len(mask) + 1)
        if mask[at : at + len(core)] == core
        for c, d in [(mask[:at], len(mask) - at - len(core))]
    )


# names that belong to other images, or may
MISTAKES = {
    "beginning of another": (["1", "2"], ["10", "20"]),
    "number inside another": (["1", "2", "3"], ["11", "12", "13"]),
    "other numbers": ([f"frame_{n:03d}" for n in range(1, 9)],
                      [f"label_{n:03d}" for n in range(11, 19)]),
    "without zeros": (["1", "2"], ["001", "002"]),
    "another patient": ([f"patient1_slice{n}" for n in (1, 2)],
                        [f"patient2_slice{n}" for n in (1, 2)]),
    "another day": ([f"s{n}_20200101" for n in (1, 2)], [f"s{n}_20200202" for n in (1, 2)]),
    "part of a word": (["cat", "dog"], ["cats", "dogs"]),
    "one of each, nothing in common": (["1"], ["2"]),
    "one of each, an ending in common": (["a.ome"], ["b.ome"]),
    "part of a number": (["a1", "b"], ["a10", "b0"]),
    "a sign that belongs to a letter": (["\u0915", "\u0916"], ["\u0915\u093f", "\u0916\u093f"]),
    "endings of several kinds": (["a", "b"], ["a_mask", "b_seg"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_names_that_only_look_alike_are_refused(tmp_path, mistake):
    images, masks = MISTAKES[mistake]
    sentence = refusal(tmp_path, images, masks)
    assert re.match(rf"images/({'|'.join(images)})\.png: no mask named ", sentence)
    assert "every image needs one, " in sentence


@pytest.mark.parametrize(
    ("images", "masks", "sentence"),
    [
        (["a", "b", "c"], ["a", "c"],
         "images/b.png: no mask named b.* in masks; every image needs one, NAME.* for NAME.* as "
         "in 2 pairs"),
        (["a", "b", "c", "d"], ["a_mask", "c_mask"],
         "images/b.png: no mask named b_mask.* in masks (and 1 more like it); every image needs "
         "one, NAME_mask.* for NAME.* as in 2 pairs"),
        (["a_0000", "b_0000"], ["a", "b", "c"],
         "masks/c.png: no image named c_0000.* in images; every mask needs one, NAME.* for "
         "NAME_0000.* as in 2 pairs"),
        (["1", "2", "3"], ["x", "y", "z"],
         "images/1.png: no mask named 1.* in masks (and 2 more like it); every image needs one, of "
         "the same name, but for a beginning and an ending that all masks or all images share"),
    ],
    ids=["an image", "images", "a mask", "all"],
)  # fmt: skip
def test_lonely_files_are_named_with_the_rule_that_was_tried(tmp_path, images, masks, sentence):
    assert refusal(tmp_path, images, masks) == sentence


def test_several_masks_of_an_image_are_refused_and_a_pattern_says_which(tmp_path):
    images = [f"bonn_{n}_leftImg8bit" for n in NUMBERS]
    masks = [f"bonn_{n}_gtFine_{kind}" for n in NUMBERS for kind in ("color", "labelIds")]
    sentence = refusal(tmp_path, images, masks)
    assert sentence == (
        "images/bonn_10_leftImg8bit.png: its mask may be each of bonn_10_gtFine_color.png, "
        "bonn_10_gtFine_labelIds.png; say which by a pattern in place of the folder, such as "
        "'masks/*_gtFine_color.png'"
    )
    pattern = re.findall("'(.*)'", sentence)[0].replace("color", "labelIds")
    pairing = list_pairs(DataConfig(images=tmp_path / "images", masks=tmp_path / pattern))
    assert len(pairing.pairs) == 4
    assert pairing.sentence.startswith("masks: NAME_gtFine_labelIds.png for NAME_leftImg8bit.png")


def test_a_mask_of_two_channels_is_refused_and_a_pattern_says_of_which(tmp_path):
    images = [f"case_{n:04d}_{channel:04d}" for n in NUMBERS for channel in (0, 1)]
    masks = [f"case_{n:04d}" for n in NUMBERS]
    sentence = refusal(tmp_path, images, masks)
    assert "masks/case_0001.png: its image may be each of case_0001_0000.png, case_00" in sentence
    pattern = tmp_path / re.findall("'(.*)'", sentence)[0]
    pairing = list_pairs(DataConfig(images=pattern, masks=tmp_path / "masks"))
    assert pairing.sentence == "masks: NAME.png for NAME_0000.png (4 pairs)"


def test_masks_by_two_rules_are_refused(tmp_path):
    sentence = refusal(tmp_path, ["a", "b"], ["a", "b", "a_mask", "b_mask"])
    assert "images/a.png: its mask may be each of a.png, a_mask.png" in sentence


@pytest.mark.parametrize("mask", ["{}_mask", "mask_{}", "{} labels"])
def test_masks_beside_their_images_are_told_apart_by_their_affix(tmp_path, mask):
    images = [f"s{n}" for n in NUMBERS]
    masks = [mask.format(name) for name in images]
    folder = write(tmp_path / "both", [*images, *masks])
    pairing = list_pairs(DataConfig(images=folder, masks=folder))
    names = {p.image.path.stem: p.mask.path.stem for p in pairing.pairs}
    assert names == dict(zip(images, masks, strict=True))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["1_img", "1_seg", "2_img", "2_seg"], "no one ending or beginning marks masks"),
        (["1", "2", "10", "20"], "no one ending or beginning marks masks"),
        (["a", "a_x", "b", "c", "d"], "no one ending or beginning marks masks"),
        (["a", "a_mask", "a_seg"], "masks may be NAME_mask for NAME or NAME_seg for NAME"),
    ],
)
def test_images_and_masks_that_lie_together_are_refused_or_a_pattern_says_it(
    tmp_path, names, reason
):
    folder = write(tmp_path / "both", names)
    with pytest.raises(
        InputError, match=re.escape(f"both: images and masks lie together, and {reason}")
    ):
        list_pairs(DataConfig(images=folder, masks=folder))
    if "1_img" in names:
        both = [DataConfig(images=folder / "*_img.*", masks=folder / "*_seg.*"),
                DataConfig(images=folder, masks=folder / "*_seg.png"),
                DataConfig(images=folder / "*_img.png", masks=folder)]  # fmt: skip
        for data in both:
            assert list_pairs(data).sentence == "masks: NAME_seg.png for NAME_img.png (2 pairs)"
        with pytest.raises(InputError, match=r"1_seg\.png: both patterns fit it"):
            list_pairs(DataConfig(images=folder / "1*", masks=folder / "*_seg.*"))
        with pytest.raises(InputError, match=r"no image in .*both has such a name"):
            list_pairs(DataConfig(images=folder / "*_x.*", masks=folder / "*_seg.*"))


@pytest.mark.parametrize(
    ("image", "mask"),
    [("{}_img", "{}_masks"), ("x{}_seg", "x{}_raw"), ("image_{}", "label_{}"), ("i{} a", "m{} b")],
)
@pytest.mark.parametrize("cores", [(1,), (1, 2), NUMBERS])
def test_files_that_lie_together_are_parted_as_the_refusal_says(tmp_path, image, mask, cores):
    names = [kind.format(core) for kind in (image, mask) for core in cores]
    folder = write(tmp_path / "cp", names)
    with pytest.raises(InputError, match="images and masks lie together") as refusal:
        list_pairs(DataConfig(images=folder, masks=folder))
    advice = re.search("'(.*)' for one, '(.*)' for the other", str(refusal.value))
    assert advice is not None, refusal.value
    pairing = list_pairs(DataConfig(images=Path(advice[1]), masks=Path(advice[2])))
    assert len(pairing.pairs) == len(cores)
    if "seg" in image and len(cores) > 1:  # a word for masks tells them
        assert "_seg" in advice[2]


def test_no_pattern_is_advised_that_takes_other_files_too(tmp_path):
    folder = write(tmp_path / "cp", ["1", "2", "1_masks", "2_masks", "1_seg", "2_seg"])
    with pytest.raises(InputError, match="; put the images and the masks into folders of their o"):
        list_pairs(DataConfig(images=folder, masks=folder))
    with pytest.raises(InputError, match=r"1_masks\.png: its image may be ea") as refusal:
        list_pairs(DataConfig(images=folder, masks=folder / "*_masks.png"))
    assert str(refusal.value).endswith(
        "; put those that are meant into a folder of their own or say which by a pattern in place "
        f"of the folder, such as '{folder}/*_seg.png'"
    )
    data = DataConfig(images=folder / "*_seg.png", masks=folder / "*_masks.png")
    assert len(list_pairs(data).pairs) == 2


def write_cities(tmp_path):
    """Images and masks of two cities, each in folders of its own."""
    for city in ("bonn", "köln"):
        for part, kinds in (("images", ["raw"]), ("masks", ["labelIds", "color"])):
            folder = tmp_path / part / "train" / city
            folder.mkdir(parents=True)
            write(folder, [f"{city}_{n}_{kind}" for n in NUMBERS for kind in kinds])
    (tmp_path / "images" / "train" / "empty").mkdir()


@pytest.mark.parametrize("folders", ["train/*", "*/*", "**", "t*/*n"])
def test_a_pattern_may_name_folders(tmp_path, folders):
    write_cities(tmp_path)
    cities = ["bonn", "köln"]
    data = DataConfig(images=tmp_path / "images" / folders / "*.png",
                      masks=tmp_path / "masks" / folders / "*_labelIds.png")  # fmt: skip
    pairing = list_pairs(data)
    assert pairing.sentence == "masks: NAME_labelIds.png for NAME_raw.png (8 pairs)"
    assert [(pair.image.path.parent.name, pair.mask.path.parent.name) for pair in pairing.pairs] \
        == [(city, city) for city in cities for _ in NUMBERS]  # fmt: skip


def test_what_is_wrong_with_folders_of_a_pattern_is_named(tmp_path):
    write_cities(tmp_path)
    images, masks = tmp_path / "images", tmp_path / "masks" / "train" / "*" / "*_labelIds.png"
    for pattern, sentence in (
        ("train/x*/*.png", r"x\*/\*\.png: no image in .*images/train has such a name"),
        ("train/*/*.tif", r"\*/\*\.tif: no image in .*images/train has such a name"),
        ("test/*/*.png", "images/test: there is no such folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            list_pairs(DataConfig(images=images / pattern, masks=masks))
    with pytest.raises(InputError, match=r"_raw\.png: its mask may be each of ") as refusal:
        list_pairs(DataConfig(images=images / "train/*/*", masks=masks.with_name("*.png")))
    pattern = re.findall("'(.*)'", str(refusal.value))[0]
    assert len(list_pairs(DataConfig(images=images / "*/*/*", masks=Path(pattern))).pairs) == 8
    with pytest.raises(InputError, match="images: its images lie in folders inside") as refusal:
        list_pairs(DataConfig(images=images, masks=masks))
    pattern = re.findall("'(.*)'", str(refusal.value))[0]
    assert len(list_pairs(DataConfig(images=Path(pattern), masks=masks)).pairs) == 8


def test_files_of_one_name_in_two_folders_are_refused(tmp_path):
    """`data.json` knows a file by its name."""
    write_cities(tmp_path)
    write(tmp_path / "images" / "train" / "empty", ["bonn_2_raw.tif"])
    with pytest.raises(InputError, match=r"empty/bonn_2_raw.tif: .*/bonn/bonn_2_raw.png has the s"):
        list_pairs(DataConfig(images=tmp_path / "images" / "*" / "*" / "*",
                              masks=tmp_path / "masks" / "*" / "*" / "*_color.png"))  # fmt: skip


def test_a_lonely_image_among_masks_is_named(tmp_path):
    folder = write(tmp_path / "both", ["a", "b", "c", "a_mask", "b_mask"])
    with pytest.raises(InputError, match=r"c\.png: no mask named c_mask\.\* in "):
        list_pairs(DataConfig(images=folder, masks=folder))


def test_what_predict_writes_is_a_folder_of_masks(tmp_path):
    images = write(tmp_path / "images", ["a", "b_overlay", "b"])
    out = write(tmp_path / "out", [f"{name}_{kind}" for name in ("a", "b_overlay", "b")
                                   for kind in ("mask", "overlay")])  # fmt: skip
    pairing = list_pairs(DataConfig(images=images, masks=out))
    assert {p.image.path.stem: p.mask.path.stem for p in pairing.pairs} == {
        "a": "a_mask", "b": "b_mask", "b_overlay": "b_overlay_mask"
    }  # fmt: skip
    assert pairing.sentence == "masks: NAME_mask.png for NAME.png (3 pairs)"


def test_images_in_folders_of_their_own_are_refused_with_what_is_expected(tmp_path):
    stage = tmp_path / "stage1"
    for name in ("0a1b", "2c3d"):
        (stage / name).mkdir(parents=True)
        write(stage / name / "images", [name])
        write(stage / name / "masks", ["1", "2"])
    with pytest.raises(InputError, match="stage1: its images lie in folders inside it, such as "):
        list_pairs(DataConfig(images=stage, masks=stage))
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="empty: holds no image"):
        list_pairs(DataConfig(images=tmp_path / "empty", masks=stage))
    with pytest.raises(InputError, match="none: there is no such file or folder"):
        list_pairs(DataConfig(images=tmp_path / "none", masks=stage))


@pytest.mark.parametrize("names", [("a.png", "a.tif"), ("é.png", "e\u0301.png")])
def test_two_files_of_one_name_are_refused(tmp_path, names):
    assert "has the same name; rename one" in refusal(tmp_path, names, ["a"])


def test_two_files_are_paired_whatever_their_names_page_by_page(tmp_path):
    for name, pages in (("volume.tif", 4), ("labels.tif", 4), ("short.tif", 3)):
        stack = np.zeros((pages, *SHAPE), np.uint8)
        tifffile.imwrite(tmp_path / name, stack, photometric="minisblack")
    pairing = list_pairs(DataConfig(images=tmp_path / "volume.tif", masks=tmp_path / "labels.tif"))
    assert [pair.name for pair in pairing.pairs] == [f"volume.tif[{i}]" for i in range(4)]
    assert [(p.image.index, p.mask.index) for p in pairing.pairs] == [(i, i) for i in range(4)]
    assert pairing.sentence == "masks: labels.tif for volume.tif (4 pairs)"
    with pytest.raises(InputError, match=r"short.tif: 3 pages for the 4 of .*volume.tif"):
        list_pairs(DataConfig(images=tmp_path / "volume.tif", masks=tmp_path / "short.tif"))
    with pytest.raises(InputError, match="it cannot be the images and the masks"):
        list_pairs(DataConfig(images=tmp_path / "volume.tif", masks=tmp_path / "volume.tif"))


def test_another_shape_is_refused(tmp_path):
    images, masks = write(tmp_path / "images", ["a", "b"]), write(tmp_path / "masks", ["a"])
    write(masks, ["b"], shape=(5, 8))
    with pytest.raises(InputError, match=r"masks/b.png: the mask is \(5, 8\) and its image"):
        list_pairs(DataConfig(images=images, masks=masks))


def test_every_file_is_measured_once_and_several_at_the_same_time(tmp_path, monkeypatch):
    counts: Counter[Path] = Counter()
    measure = unet_image.measure_pages

    def slow(path, **bound):
        counts[path] += 1
        time.sleep(0.02)
        return measure(path, **bound)

    monkeypatch.setattr(unet_image, "measure_pages", slow)
    names = [f"{n}" for n in range(40)]
    start = time.perf_counter()
    pair_files(tmp_path, names, names)
    assert time.perf_counter() - start < 80 * 0.02
    assert set(counts.values()) == {1}
    assert len(counts) == 80


def test_folders_of_held_out_images_come_last_under_names_of_their_own(tmp_path):
    data = DataConfig(
        images=write(tmp_path / "train", ["1", "2"]),
        masks=write(tmp_path / "train_masks", ["1", "2"]),
        validation_images=write(tmp_path / "val", ["1", "3"]),
        validation_masks=write(tmp_path / "val_masks", ["1_mask", "3_mask"]),
    )
    pairing = list_pairs(data)
    assert [(pair.name, pair.held_out) for pair in pairing.pairs] == [
        ("1.png", False), ("2.png", False), ("validation/1.png", True), ("validation/3.png", True)
    ]  # fmt: skip
    assert pairing.sentence == (
        "masks: NAME.png for NAME.png (2 pairs); held out: NAME_mask.png for NAME.png (2 pairs)"
    )


def test_an_image_to_train_on_that_is_held_out_too_is_refused(tmp_path):
    images, masks = write(tmp_path / "images", ["1", "2"]), write(tmp_path / "masks", ["1", "2"])
    data = DataConfig(
        images=images, masks=masks, validation_images=images / "2*", validation_masks=masks / "2*"
    )
    with pytest.raises(InputError, match=r"images/2.png: it is among images and among validation_"):
        list_pairs(data)


def test_names_are_matched_in_seconds_where_there_are_many():
    images = [f"plate_{n // 100:04d}_{n:08d}_x{n % 7}" for n in range(20_000)]
    start = time.perf_counter()
    assert match_names(images, [f"{name}_mask" for name in images]).is_whole
    assert time.perf_counter() - start < 10
    assert len(part_names([*images, *(f"{name}_mask" for name in images)])) == 1
