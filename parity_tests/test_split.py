"""Which images are held out: drawn, of groups, by a file, by folders."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unet_spec import InputError
from unet_train.config import CELLS, DataConfig, TrainConfig, to_plain
from unet_train.input.dataset import open_dataset
from unet_train.input.pairs import list_pairs
from unet_train.input.split import SEARCH_S, draw_split, split


def write(folder: Path, *names: str, pages: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".tif"):
            stack = np.zeros((pages, 5, 7), np.uint8)
            tifffile.imwrite(folder / name, stack, photometric="minisblack")
        else:
            Image.fromarray(np.zeros((5, 7), np.uint8)).save(folder / name)
    return folder


def data_of(tmp_path: Path, *names: str, pages: int = 1, **settings) -> DataConfig:
    """A data set of images and masks of these names."""
    images = write(tmp_path / "images", *names, pages=pages)
    masks = write(tmp_path / "masks", *names, pages=pages)
    return DataConfig(images=images, masks=masks, **settings)


def names_of(data: DataConfig, seed: int = 0) -> tuple[list[str], list[str]]:
    """The names on both sides of a split."""
    training, validation = split(list_pairs(data).pairs, data=data, seed=seed)
    return [pair.name for pair in training], [pair.name for pair in validation]


def by_permutation(count: int, holdout: float, seed: int) -> list[int]:
    """The images that are held out where each is a group of its own."""
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[: min(max(1, round(holdout * count)), count - 1)])


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 99))
def test_single_images_are_drawn_by_one_permutation_of_the_seed(count, holdout, seed):
    training, validation = draw_split([f"{i}" for i in range(count)], holdout=holdout, seed=seed)
    assert validation == by_permutation(count, holdout, seed)
    assert sorted(training + validation) == list(range(count))


def test_the_split_of_recorded_runs_stays_as_it_is():
    groups = [f"{i}.png" for i in range(16)]
    assert draw_split(groups, holdout=0.25, seed=0)[1] == [2, 3, 10, 11]
    assert draw_split(groups, holdout=0.25, seed=1)[1] == [1, 7, 10, 12]


def test_folders_of_single_images_are_split_as_synthetic_ones(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    data = data_of(tmp_path, *names, holdout=0.4)
    for seed in range(4):
        assert names_of(data, seed)[1] == [names[i] for i in by_permutation(9, 0.4, seed)]


def test_synthetic_samples_are_split_by_the_same_draw():
    dataset = open_dataset(TrainConfig(data=DataConfig(synthetic=8), net=CELLS.net, seed=3))
    held_out = [f"synthetic {i}" for i in by_permutation(8, DataConfig().holdout, 3)]
    assert dataset.validation.names == held_out
    assert len(dataset.training) == 6


def test_another_seed_is_another_split():
    groups = [f"{i}" for i in range(8)]
    assert len({tuple(draw_split(groups, holdout=0.25, seed=s)[1]) for s in range(6)}) > 2


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.floats(0.05, 0.95))
def test_groups_are_never_parted_and_both_sides_have_one(sizes, holdout):
    groups = [f"{g}" for g, size in enumerate(sizes) for _ in range(size)]
    training, validation = draw_split(groups, holdout=holdout, seed=0)
    assert sorted(training + validation) == list(range(len(groups)))
    assert not {groups[i] for i in training} & {groups[i] for i in validation}
    assert training
    assert validation


def test_as_many_images_of_groups_are_held_out_as_the_part_asks_for():
    groups = [f"{i // 5}" for i in range(40)]
    for seed in range(4):
        assert len(draw_split(groups, holdout=0.25, seed=seed)[1]) == 10
    # one large group and many single ones: the large one would be far too much
    groups = ["large"] * 30 + [f"{i}" for i in range(30)]
    for seed in range(4):
        assert len(draw_split(groups, holdout=0.2, seed=seed)[1]) == 12
    # all are too large: the smallest is held out
    assert draw_split(["a"] * 5 + ["b"] * 4, holdout=0.1, seed=0)[1] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (
            ["a"],
            "1 image is too few: one to train on and one to hold out; give more, name the held-"
            "out ones by validation_images and validation_masks, or try one alone with --overfit",
        ),
        (["a", "a", "a"], "all 3 images are of one group, a; one to train on and one to hold out"),
    ],
)
def test_too_few_to_split_are_refused(groups, sentence):
    with pytest.raises(InputError, match=sentence):
        draw_split(groups, holdout=0.5, seed=0)


@pytest.mark.parametrize("groups", ["^(p[0-9]+)_", "p[0-9]+", r"^(.*)_\d+$"])
def test_images_of_one_patient_are_on_one_side(tmp_path, groups):
    names = [f"p{patient}_{i}.png" for patient in (1, 2, 11, 12) for i in range(3)]
    data = data_of(tmp_path, *names, groups=groups)
    for seed in range(3):
        training, validation = ({n.split("_")[0] for n in side} for side in names_of(data, seed))
        assert (len(training), len(validation)) == (3, 1)
        assert not training & validation


@pytest.mark.parametrize("groups", ["^p[0-9]+", "^(p)?[^x]", "z*"])
def test_a_name_without_a_group_is_refused(tmp_path, groups):
    data = data_of(tmp_path, "p1_a.png", "p1_b.png", "p2_a.png", "x.png", groups=groups)
    with pytest.raises(InputError, match=r"x\.png: groups=.* finds no group in the name"):
        names_of(data)


def test_pages_of_a_stack_are_on_one_side_where_there_are_several(tmp_path):
    data = data_of(tmp_path, "a.tif", "b.tif", "c.tif", "d.tif", pages=3)
    training, validation = names_of(data)
    assert len(validation) == 3
    assert len({name[:1] for name in validation}) == 1
    assert not {name[:1] for name in training} & {name[:1] for name in validation}


def test_pages_of_one_stack_alone_are_drawn_one_by_one(tmp_path):
    data = data_of(tmp_path, "a.tif", pages=8)
    held_out = by_permutation(8, 0.25, 5)
    assert names_of(data, 5)[1] == [f"a.tif[{i}]" for i in held_out]


IMAGES = ("a.png", "b.x.png", "c_0000.png", "Zürich 1.png", "s.tif")


def split_by(tmp_path, content, *, name="split.json", names=IMAGES, masks=None):
    """Split images by a file; returns the names on both sides."""
    file = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(text.encode())
    images = write(tmp_path / "images", *names, pages=3)
    masks = write(tmp_path / "masks", *(masks or names), pages=3)
    return names_of(DataConfig(images=images, masks=masks, split=file))


PAGES = ["s.tif[0]", "s.tif[1]", "s.tif[2]"]
WHOLE = {"training": ["a.png", "b.x.png", "s.tif"], "validation": ["c_0000.png", "Zürich 1.png"]}


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        {**WHOLE, "samples": {"a.png": "0f"}, "version": 1},
        {"train": WHOLE["training"], "val": WHOLE["validation"]},
        {"training": ["a", "b.x", *PAGES], "validation": ["c_0000", "Zu\u0308rich 1"]},
        {"training": ["a", "b.x", "s[0]", "s[1]", "s.tif[2]"],
         "validation": ["c_0000", "Zürich 1", "Zürich 1.png"]},
        "c_0000.png\nZürich 1.png\n",
        "\ufeffZürich 1\r\n\r\n  c_0000  ",
        "basic/i/c_0000.png\nC:\\i\\zu\u0308RICH 1\n",
        {"train": ["A.PNG", "./b.X", "S[0]", "x/S.tif[1]", "s.TIF[2]"],
         "val": ["C_0000", "ZÜrich 1"]},
    ],
    ids=["ours", "of a run", "nnU-Net", "stems", "pages", "text", "text of Windows", "folders",
         "either case"],
)  # fmt: skip
def test_a_file_says_which_images_are_held_out(tmp_path, content):
    name = "split.txt" if isinstance(content, str) else "split.json"
    training, validation = split_by(tmp_path, content, name=name)
    assert sorted(training) == ["a.png", "b.x.png", *PAGES]
    assert sorted(validation) == ["Zürich 1.png", "c_0000.png"]


def test_a_file_may_have_the_names_that_images_and_masks_share(tmp_path):
    images = [f"case_{n}_0000.png" for n in range(3)]
    masks = [f"case_{n}.png" for n in range(3)]
    content = {"train": ["case_0", "case_2"], "val": ["case_1"]}
    sides = split_by(tmp_path, content, names=images, masks=masks)
    assert sides == ([images[0], images[2]], [images[1]])


def test_a_name_in_another_case_that_may_be_two_images_is_none(tmp_path):
    names = ["ab.png", "AB.png", "c.png"]
    assert split_by(tmp_path, "x/AB.png", name="split.txt", names=names)[1] == ["AB.png"]
    with pytest.raises(InputError, match="no image is named aB; take"):
        split_by(tmp_path, "aB", name="split.txt", names=names)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({**WHOLE, "validation": ["x", "c_0000", "Zürich 1"]}, "no image is named x; take"),
        ({**WHOLE, "validation": ["Zürich 1", "c_0000", "s.tif[3]"]}, r"is named s.tif\[3"),
        ({**WHOLE, "validation": [*WHOLE["validation"], "s[1]"]},
         r"images on both sides: s.tif\[1\]; name each on one"),
        ({**WHOLE, "training": ["a"]},
         r"images on neither side: b.x.png, s.tif\[0\], s.tif\[1\], s.tif"),
        ({"training": [*WHOLE["training"], *WHOLE["validation"]], "validation": []},
         "leaves no image for validation"),
        ({"validation": ["a"]}, 'needs names under both keys, {"training"'),
        ([WHOLE, WHOLE], "holds a list of 2 splits; write one of them"),
        ({**WHOLE, "train": []}, "names for training twice"),
        ({**WHOLE, "training": "a"}, "under training is not a list of names"),
        ({**WHOLE, "training": [1]}, "under training is not a list of names"),
        (["a"], "needs names under both keys"),
        ("{", "not JSON"),
        ('{"training": [], "training": ["a"], "validation": []}', "'training' stands twice in it"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
        (" " * (2**26 + 1), "too long for names of images"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_the_images_is_refused(tmp_path, content, sentence):
    with pytest.raises(InputError, match=sentence) as refusal:
        split_by(tmp_path, content)
    assert str(refusal.value).startswith(f"{tmp_path / 'split.json'}: ")


def test_a_text_that_does_not_fit_the_images_is_refused(tmp_path):
    for content, sentence in (
        ("\n".join(IMAGES), "it names every image, and .* are held out; leave out those to train"),
        ("\n", "leaves no image for validation"),
        ("d.png", "no image is named d.png"),
    ):
        with pytest.raises(InputError, match=sentence):
            split_by(tmp_path, content, name="split.txt")
    data = data_of(tmp_path, "a.png", "b.x.png", split=tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"none.txt: cannot be read \(No such file or directory\)"):
        names_of(data)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes.txt: cannot be read \(it is no text\)"):
        names_of(data_of(tmp_path, "a.png", split=tmp_path / "bytes.txt"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json: it is no file; name a split file"):
        names_of(data_of(tmp_path, "a.png", split=tmp_path / "pipe.json"))


def test_an_expression_that_never_ends_is_refused_by_name(tmp_path):
    data = data_of(tmp_path, f"{'a' * 40}b.png", "c.png", groups="(a+)+$")
    began, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(InputError, match="groups takes too long on these names, got '"):
        names_of(data)
    assert time.monotonic() - began < 2 * SEARCH_S
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_folders_say_which_images_are_held_out(tmp_path):
    data = data_of(tmp_path, "1.png", "2.png", "3.png")
    own = DataConfig(
        images=data.images,
        masks=data.masks,
        validation_images=write(tmp_path / "val", "1.png"),
        validation_masks=write(tmp_path / "val_masks", "1_mask.png"),
    )
    for seed in range(3):
        assert names_of(own, seed) == (["1.png", "2.png", "3.png"], ["validation/1.png"])


def test_the_paths_of_the_split_are_json_values(tmp_path):
    data = data_of(tmp_path, "1.png", split=tmp_path / "split.json")
    plain = to_plain(CELLS.__class__(data=data, net=CELLS.net))
    assert plain["data"]["split"] == str(tmp_path / "split.json")
    assert json.loads(json.dumps(plain))["data"]["validation_images"] is None
