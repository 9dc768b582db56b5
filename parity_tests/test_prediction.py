import importlib
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unet_jax
import unet_torch
from unet_image import Page, check_channels
from unet_jax.predict import compile_ahead
from unet_parity.oracle import random_tensors
from unet_spec import PAPER, InputError, Preprocessing, UNetConfig, geometry, prediction
from unet_spec.outputs import apply_output, compute_probabilities
from unet_spec.prediction import border
from unet_spec.preprocessing import Statistics, apply, measure, measure_deviation, prepare
from unet_spec.weight_file import WeightFile

GRAY = UNetConfig(in_channels=1, classes=4, widths=(6, 8, 10))
COLOUR = replace(GRAY, in_channels=3)


def twins(config, **kwargs):
    weights = WeightFile(config, random_tensors(config, seed=1), **kwargs)
    return unet_torch.weights.from_weights(weights), unet_jax.weights.from_weights(weights)


def picture(shape, kind, seed=0):
    rng = np.random.default_rng(seed)
    if np.issubdtype(kind, np.floating):
        return rng.normal(size=shape).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


KINDS = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32, "float64": np.float64}
CHANNELS = {"gray": (), "one_channel": (1,), "rgb": (3,)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_masks_of_both_frameworks_are_equal_at_odd_sizes(padding, channels, kind):
    image = picture((13, 23, *CHANNELS[channels]), KINDS[kind])
    reference, port = twins(replace(COLOUR, padding=padding))
    ours, theirs = unet_torch.predict(reference, image), unet_jax.predict(port, image)
    assert ours.shape == theirs.shape == (13, 23)
    assert ours.dtype == theirs.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > 1, "one class everywhere proves nothing"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2)], ids=["pixel", "row", "column"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_tiny_images_are_predicted(padding, size):
    reference, port = twins(replace(GRAY, padding=padding))
    image = picture(size, np.float32)
    ours, theirs = unet_torch.predict(reference, image), unet_jax.predict(port, image)
    assert ours.shape == size
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_mask_at_a_legal_size_equals_the_plain_net(norm):
    reference, port = twins(
        replace(COLOUR, norm=norm), preprocessing=Preprocessing(normalize="none")
    )
    image = picture((12, 20, 3), np.float32)
    with torch.no_grad():
        logits = reference(torch.tensor(image.transpose(2, 0, 1)[None]))[0].numpy()
    np.testing.assert_array_equal(unet_torch.predict(reference, image), logits.argmax(0))
    np.testing.assert_array_equal(unet_jax.predict(port, image), logits.argmax(0))
    plain = np.asarray(port(jnp.asarray(image[None])))[0].argmax(-1)
    np.testing.assert_array_equal(plain, logits.argmax(0))


@pytest.mark.parametrize("fit", ["zeros", "edge"])
def test_mask_of_a_net_that_fits_odd_sizes_equals_the_plain_net(fit):
    reference, port = twins(replace(GRAY, fit=fit), preprocessing=Preprocessing("none"))
    image = picture((13, 23), np.float32)
    with torch.no_grad():
        logits = reference(torch.tensor(image[None, None]))[0].numpy()
    np.testing.assert_array_equal(unet_torch.predict(reference, image), logits.argmax(0))
    np.testing.assert_array_equal(unet_jax.predict(port, image), logits.argmax(0))


def test_unpadded_mask_lies_where_the_output_of_the_unpadded_net_lies():
    """Away from the border a prediction is the net's own output on the image, moved by its
    margin: a margin of 20 is a multiple of 4, so that both see the pools in phase."""
    config = replace(GRAY, padding="valid")
    assert geometry.margin(config) == 20
    reference, port = twins(config, preprocessing=Preprocessing("none"))
    image = picture((60, 64), np.float32)
    with torch.no_grad():
        inner = reference(torch.tensor(image[None, None]))[0].numpy().argmax(0)
    assert inner.shape == (20, 24)
    np.testing.assert_array_equal(unet_torch.predict(reference, image)[20:40, 20:44], inner)
    np.testing.assert_array_equal(unet_jax.predict(port, image)[20:40, 20:44], inner)


@pytest.mark.parametrize(
    ("padding", "size", "rows", "columns"),
    [("same", (13, 23), (0, 3), (0, 1)), ("valid", (57, 63), (20, 23), (20, 21))],
    ids=["same", "valid"],
)
def test_mask_of_an_illegal_size_is_that_of_the_mirrored_image(padding, size, rows, columns):
    reference, port = twins(replace(GRAY, padding=padding), preprocessing=Preprocessing("none"))
    image = picture(size, np.float32)
    mirrored = np.pad(image, (rows, columns), mode="symmetric")
    with torch.no_grad():
        logits = reference(torch.tensor(mirrored[None, None]))[0].numpy()
    expected = logits.argmax(0)[: size[0], : size[1]]
    np.testing.assert_array_equal(unet_torch.predict(reference, image), expected)
    np.testing.assert_array_equal(unet_jax.predict(port, image), expected)


@pytest.mark.parametrize(
    "axes",
    [
        {"padding": "same"},
        {"padding": "same", "norm": "batch", "up": "nearest", "fit": "zeros"},
        {"padding": "same", "up": "bilinear", "fit": "edge"},
        {"padding": "same", "fit": "crop"},
        {"padding": "valid"},
        {"padding": "valid", "up": "bilinear", "fit": "crop"},
        {"padding": "valid", "convolutions": 1},
        {"padding": "same", "up": "nearest", "up_convolution": False, "up_widths": (4, 6)},
        {"padding": "same", "classes": 1},
    ],
    ids=lambda axes: "-".join(map(str, axes.values())),
)
@pytest.mark.parametrize("size", [(131, 97), (90, 150)], ids=["high", "wide"])
def test_a_mask_put_together_of_tiles_equals_the_whole_one(monkeypatch, axes, size):
    reference, port = twins(replace(GRAY, **axes), preprocessing=Preprocessing("none"))
    image = picture(size, np.float32)
    whole = unet_torch.predict(reference, image)
    monkeypatch.setattr(prediction, "TILE_PX", 80)
    shapes = set()
    run = prediction.predict

    def watched(forward, image, **kwargs):
        def noted(x):
            shapes.add(x.shape)
            return forward(x)

        return run(noted, image, **kwargs)

    monkeypatch.setattr(prediction, "predict", watched)
    np.testing.assert_array_equal(unet_torch.predict(reference, image), whole)
    np.testing.assert_array_equal(unet_jax.predict(port, image), whole)
    assert len(shapes) == 1, "one compilation"
    assert all(max(shape) <= 80 for shape in shapes)


@pytest.mark.parametrize(
    "axes", [{"norm": "group", "groups": 2}, {"norm": "instance"}, {"up": "bilinear_aligned"}]
)
def test_a_net_that_sees_the_whole_image_is_given_it(monkeypatch, axes):
    monkeypatch.setattr(prediction, "TILE_PX", 80)
    assert prediction.cut_tiles(replace(GRAY, **axes), 132) == [(slice(0, 132),) * 3]


def test_tiles_that_the_net_sees_beyond_are_refused(monkeypatch):
    monkeypatch.setattr(prediction, "TILE_PX", 40)
    with pytest.raises(InputError, match="parts of at most 40 pixels"):
        prediction.cut_tiles(GRAY, 132)


def windowed(config, size_px):
    return twins(config, preprocessing=Preprocessing("none", window_px=size_px))


@pytest.mark.parametrize(
    "axes", [{}, {"norm": "group", "groups": 2}, {"fit": "edge"}], ids=["plain", "group", "edge"]
)
@pytest.mark.parametrize("size", [(16, 16), (11, 16), (29, 43), (48, 33)])
def test_windows_overlap_by_half_and_weigh_their_middle_most(axes, size):
    """Every window by itself, its logits times sin^2 of the place in it, along both axes."""
    config = replace(GRAY, **axes)
    reference, port = windowed(config, 16)
    image = picture(size, np.float32)
    rows, columns = (max(16, -(-n // 4) * 4) for n in size)
    padded = np.pad(image, ((0, rows - size[0]), (0, columns - size[1])), mode="symmetric")
    sums = np.zeros((4, rows, columns))
    for top in {*range(0, rows - 16, 8), rows - 16}:
        for left in {*range(0, columns - 16, 8), columns - 16}:
            window = torch.tensor(padded[None, None, top : top + 16, left : left + 16])
            with torch.no_grad():
                logits = reference.eval()(window)[0].double().numpy()
            for row in range(16):
                for column in range(16):
                    high, wide = (np.sin(np.pi * (n + 1) / 17) ** 2 for n in (row, column))
                    sums[:, top + row, left + column] += high * wide * logits[:, row, column]
    expected = sums.argmax(0)[: size[0], : size[1]]
    np.testing.assert_array_equal(unet_torch.predict(reference, image), expected)
    np.testing.assert_array_equal(unet_jax.predict(port, image), expected)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("size", [(40, 40), (61, 90)])
def test_windows_of_an_unpadded_net_tell_what_the_whole_image_tells(size):
    """Where nothing is added at borders, what windows say twice is the same: an output of 16 is
    moved by 8, a multiple of 4, so that all see the pools in phase."""
    config = replace(GRAY, padding="valid")
    assert geometry.output_size(config, 56) == 16
    image = picture(size, np.float32)
    reference, port = twins(config, preprocessing=Preprocessing("none"))
    whole = unet_torch.predict(reference, image)
    reference, port = windowed(config, 56)
    np.testing.assert_array_equal(unet_torch.predict(reference, image), whole)
    np.testing.assert_array_equal(unet_jax.predict(port, image), whole)


def test_a_net_with_group_norm_answers_by_its_windows_alone():
    config = replace(GRAY, norm="group", groups=2)
    calm = picture((40, 24), np.float32)
    wild = np.where(np.arange(40)[:, None] < 20, calm, 20 * calm).astype(np.float32)

    def first_rows(reference):
        return [unet_torch.predict(reference, image)[:8] for image in (calm, wild)]

    ours, theirs = first_rows(twins(config, preprocessing=Preprocessing("none"))[0])
    assert (ours != theirs).any()
    np.testing.assert_array_equal(*first_rows(windowed(config, 16)[0]))


@pytest.mark.parametrize("axes", [{}, {"padding": "valid"}, {"fit": "crop"}], ids=str)
@pytest.mark.parametrize("window_px", [None, 56], ids=["whole", "windows"])
def test_the_mask_of_a_mirrored_image_is_the_mirrored_mask(axes, window_px):
    """Of sizes to which nothing is added on one side only, in evenly spread windows."""
    plain = Preprocessing("none", window_px=window_px)
    for mirror in (False, True):
        weighed = replace(plain, mirror=mirror)
        reference, port = twins(replace(GRAY, **axes), preprocessing=weighed)
        image = picture((72, 84), np.float32)
        masks = [
            predict(model, np.ascontiguousarray(turned))
            for turned in (image, image[::-1], image[:, ::-1])
            for model, predict in ((reference, unet_torch.predict), (port, unet_jax.predict))
        ]
        for mask, port_mask in zip(masks[::2], masks[1::2], strict=True):
            np.testing.assert_array_equal(mask, port_mask)
        same = [(masks[2][::-1] == masks[0]).all(), (masks[4][:, ::-1] == masks[0]).all()]
        assert same == [mirror, mirror]


@pytest.mark.parametrize("fit", ["error", "edge"])
def test_windows_that_the_net_does_not_take_are_refused(fit):
    reference, _ = windowed(replace(GRAY, fit=fit), 18)
    with pytest.raises(InputError, match=r"window_px=18 .* use 16 or 20"):
        unet_torch.predict(reference, picture((40, 40), np.float32))


@given(
    st.sampled_from([("same", "error"), ("same", "edge"), ("same", "crop"), ("valid", "error"),
                     ("valid", "crop")]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 300),
)  # fmt: skip
def test_border_makes_a_legal_size_whose_output_covers_the_image(axes, depth, convolutions, size):
    config = UNetConfig(
        widths=(1,) * (depth + 1), convolutions=convolutions, padding=axes[0], fit=axes[1]
    )
    before, after = border(config, size)
    assert before == geometry.margin(config)
    padded = before + size + after
    assert geometry.output_size(config, padded) >= size
    smaller = range(before + size, padded)
    assert not any(
        geometry.is_legal(config, s) and geometry.output_size(config, s) >= size for s in smaller
    )


def test_border_of_the_paper_is_its_overlap_tile():
    assert border(PAPER, 388) == (92, 92)


def test_predicting_leaves_the_reference_in_its_mode():
    reference, _ = twins(replace(GRAY, norm="batch", dropout=0.5))
    for training in (True, False):
        reference.train(training)
        before = {name: t.clone() for name, t in reference.state_dict().items()}
        image = picture((12, 20), np.float32)
        one, again = (unet_torch.predict(reference, image) for _ in range(2))
        np.testing.assert_array_equal(one, again)
        assert reference.training is training
        for name, tensor in reference.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def of_two_channels(weights):
    """The net with the logits (0, z) in place of a single channel z."""
    tensors = dict(weights.tensors)
    for name in ("out.weight", "out.bias"):
        tensors[name] = np.concatenate([np.zeros_like(tensors[name]), tensors[name]])
    return replace(weights, config=replace(weights.config, classes=2), tensors=tensors)


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing("none"), Preprocessing("none", window_px=16, mirror=True)],
    ids=["whole", "windows and mirror images"],
)
@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_a_single_channel_is_class_1_where_two_channels_say_so(output, preprocessing):
    config = replace(GRAY, classes=1, output=output)
    single = WeightFile(config, random_tensors(config, seed=1), preprocessing=preprocessing)
    image = picture((29, 43), np.float32)
    for framework in (unet_torch, unet_jax):
        ours, theirs = (
            framework.predict(framework.weights.from_weights(weights), image)
            for weights in (single, of_two_channels(single))
        )
        assert ours.dtype == np.uint8
        assert 0.1 < ours.mean() < 0.9, "one class everywhere proves nothing"
        np.testing.assert_array_equal(ours, theirs)


def test_a_single_channel_is_class_1_above_a_probability_of_one_half():
    logits = np.array([-1e-6, 0, 1e-6, 5])
    probabilities = apply_output(UNetConfig(classes=1, output="sigmoid"), logits, axis=0)
    chosen = prediction.choose_class(logits[:, None], axis=1)
    np.testing.assert_array_equal(chosen, probabilities > 0.5)
    np.testing.assert_array_equal(chosen, [0, 0, 1, 1])


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_no_output_function_changes_a_mask(output):
    image = picture((13, 23), np.float32)
    pairs = zip(twins(GRAY), twins(replace(GRAY, output=output)), strict=True)
    for (plain, named), framework in zip(pairs, (unet_torch, unet_jax), strict=True):
        masks = [framework.predict(model, image) for model in (plain, named)]
        np.testing.assert_array_equal(*masks)


# probabilities and thresholds

BOTH = (unet_torch, unet_jax)
# measured were at most 6.2e-7 between float32 and float64, and 1.3e-6 between two float32
PROBABILITY_BOUND = 2e-6


def exact_probabilities(config, weights, image, preprocessing):
    """Return (h, w, classes) in float64, of windows and mirror images one by one."""
    net = unet_torch.weights.from_weights(weights).double().eval()
    window_px, step = preprocessing.window_px, 8
    height, width = image.shape
    sums, total = np.zeros((config.classes, height, width)), np.zeros((height, width))
    turns = [(1, 1), (1, -1), (-1, 1), (-1, -1)] if preprocessing.mirror else [(1, 1)]
    tops = range(0, height - (window_px or height) + 1, step)
    lefts = range(0, width - (window_px or width) + 1, step)
    for top in tops:
        for left in lefts:
            place = np.s_[top : top + (window_px or height), left : left + (window_px or width)]
            hann = np.ones(image[place].shape)
            if window_px is not None:
                one = np.sin(np.pi * np.arange(1, window_px + 1) / (window_px + 1)) ** 2
                hann = one[:, None] * one
            for down, right in turns:
                part = np.ascontiguousarray(image[place][::down, ::right], np.float64)
                with torch.no_grad():
                    logits = net(torch.from_numpy(part)[None, None])[0].numpy()
                sums[(slice(None), *place)] += hann * logits[:, ::down, ::right] / len(turns)
            total[place] += hann
    logits = sums / total
    if config.output == "sigmoid" or config.classes == 1:
        return np.moveaxis(1 / (1 + np.exp(-logits)), 0, -1)
    powers = np.exp(logits)
    return np.moveaxis(powers / powers.sum(0), 0, -1)


@pytest.mark.parametrize(
    "axes",
    [{}, {"output": "sigmoid"}, {"classes": 1, "output": "softmax"}],
    ids=["softmax", "sigmoid", "a single channel"],
)
@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing("none"), Preprocessing("none", window_px=16, mirror=True)],
    ids=["whole", "windows and mirror images"],
)
def test_probabilities_of_both_frameworks_are_those_of_the_averaged_logits(preprocessing, axes):
    config = replace(GRAY, **axes)
    weights = WeightFile(config, random_tensors(config, seed=1), preprocessing=preprocessing)
    image = picture((24, 32), np.float32)
    truth = exact_probabilities(config, weights, image, preprocessing)
    assert truth.std() > 0.1, "one probability everywhere proves nothing"
    for framework in BOTH:
        model = framework.weights.from_weights(weights)
        ours = framework.predict_probabilities(model, image)
        assert (ours.dtype, ours.shape) == (np.float32, (24, 32, config.classes))
        assert ours.flags.c_contiguous
        np.testing.assert_allclose(ours, truth, rtol=0, atol=PROBABILITY_BOUND)
        mask = framework.predict(model, image)
        if config.classes == 1:
            np.testing.assert_array_equal(mask, ours[..., 0] > 0.5)
        else:
            np.testing.assert_array_equal(mask, ours.argmax(-1))


@pytest.mark.parametrize("axes", [{}, {"padding": "valid"}, {"fit": "crop"}], ids=str)
@pytest.mark.parametrize("tile_px", [2048, 80], ids=["whole", "tiles"])
def test_probabilities_have_the_size_of_an_image_of_any_size(monkeypatch, axes, tile_px):
    """In tiles and strips they are those of the whole image, but for rounding."""
    reference, port = twins(replace(GRAY, **axes), preprocessing=Preprocessing("none"))
    image = picture((131, 97), np.float32)
    whole = unet_torch.predict_probabilities(reference, image)
    monkeypatch.setattr(prediction, "TILE_PX", tile_px)
    monkeypatch.setattr(prediction, "STRIP_ROWS", 7)
    for model, framework in zip((reference, port), BOTH, strict=True):
        ours = framework.predict_probabilities(model, image)
        assert ours.shape == (131, 97, 4)
        np.testing.assert_allclose(ours, whole, rtol=0, atol=PROBABILITY_BOUND)
        np.testing.assert_array_equal(framework.predict(model, image), ours.argmax(-1))


@pytest.mark.parametrize("classes", [2, 3, 30])
def test_probabilities_of_softmax_add_up_to_1_as_near_as_float32_can(classes):
    """Each is rounded once, by at most 2^-24 of itself, and so is their sum."""
    logits = 8 * np.random.default_rng(0).standard_normal((50, 70, classes)).astype(np.float32)
    ours = compute_probabilities(UNetConfig(classes=classes), logits, axis=-1)
    assert np.abs(ours.sum(-1, dtype=np.float64) - 1).max() <= 2.0**-24 + 1e-15


@pytest.mark.parametrize("scale", [1e-9, 1, 30, 1e4])
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_the_class_in_a_mask_has_the_largest_probability_also_where_float32_ends(output, scale):
    logits = scale * np.random.default_rng(0).standard_normal((50, 70, 4)).astype(np.float32)
    config = UNetConfig(classes=4, output=output)
    ours = compute_probabilities(config, logits, axis=-1)
    chosen = prediction.choose_class(logits, axis=-1)[..., None]
    np.testing.assert_array_equal(np.take_along_axis(ours, chosen, -1)[..., 0], ours.max(-1))


@pytest.mark.parametrize(
    "axes",
    [{"classes": 2}, {"classes": 2, "output": "sigmoid"}, {"classes": 1},
     {"classes": 1, "output": "sigmoid"}],
    ids=str,
)  # fmt: skip
def test_a_threshold_gives_class_1_where_its_probability_is_at_least_that(axes):
    pair = twins(replace(GRAY, **axes))
    image = picture((29, 43), np.float32)
    for model, framework in zip(pair, BOTH, strict=True):
        of_class_1 = framework.predict_probabilities(model, image)[..., -1]
        reached = float(np.sort(of_class_1.ravel())[400])  # the probability of a pixel itself
        for threshold in (0.1, reached, 0.5, 0.9):
            mask = framework.predict(model, image, threshold=threshold)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, of_class_1 >= np.float32(threshold))
        assert (framework.predict(model, image, threshold=reached) == 0).sum() == 400


def test_a_threshold_of_one_half_is_the_choice_of_a_net_of_two_classes():
    """Unless both are equally probable, and no pixel here is so."""
    image = picture((29, 43), np.float32)
    for classes in (1, 2):
        for model, framework in zip(twins(replace(GRAY, classes=classes)), BOTH, strict=True):
            mask = framework.predict(model, image, threshold=0.5)
            np.testing.assert_array_equal(mask, framework.predict(model, image))
            assert 0.1 < mask.mean() < 0.9


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    for model, framework in zip(twins(replace(GRAY, classes=2)), BOTH, strict=True):
        with pytest.raises(InputError, match="is a probability between 0 and 1, got"):
            framework.predict(model, picture((12, 20), np.uint8), threshold=threshold)


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_a_threshold_for_more_than_two_classes_is_refused(output):
    for model, framework in zip(twins(replace(GRAY, output=output)), BOTH, strict=True):
        with pytest.raises(InputError, match="divides two classes, and the net has 4; leave it"):
            framework.predict(model, picture((12, 20), np.uint8), threshold=0.3)


def refusal_of(check, *arguments, **named):
    """Return the sentence with which a function refuses its arguments, or None."""
    try:
        check(*arguments, **named)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,), (5,)], ids=str)
@pytest.mark.parametrize("in_channels", [1, 2, 3])
def test_an_image_is_refused_by_its_shape_where_its_pixels_would_be(channels, in_channels):
    page = Page(Path("a.png"), 0, 1, (13, 23, *channels), np.dtype(np.uint8))
    by_shape = refusal_of(check_channels, page, channels=in_channels, preprocessing=NONE)
    by_pixels = refusal_of(
        prepare, np.zeros((1, 1, *channels)), channels=in_channels, preprocessing=NONE
    )
    assert by_shape == (by_pixels and f"a.png: {by_pixels}")


def test_a_size_that_cannot_be_cut_is_refused_by_the_shape(monkeypatch):
    monkeypatch.setattr(prediction, "TILE_PX", 40)
    prediction.check_size(40, 31, config=GRAY, preprocessing=NONE)
    prediction.check_size(132, 40, config=GRAY, preprocessing=replace(NONE, window_px=16))
    with pytest.raises(InputError, match="parts of at most 40 pixels"):
        prediction.check_size(132, 40, config=GRAY, preprocessing=NONE)
    with pytest.raises(InputError, match="window_px=18"):
        prediction.check_size(13, 4, config=GRAY, preprocessing=replace(NONE, window_px=18))


def test_more_than_256_classes_are_uint16():
    reference, port = twins(replace(GRAY, classes=300))
    image = picture((12, 20), np.float32)
    ours, theirs = unet_torch.predict(reference, image), unet_jax.predict(port, image)
    assert ours.dtype == theirs.dtype == np.uint16
    np.testing.assert_array_equal(ours, theirs)
    assert ours.max() > 255


def test_damaged_weights_are_reported_not_masked():
    reference, port = twins(GRAY)
    with torch.no_grad():
        reference.out.bias[1] = torch.nan
    port.out.bias[...] = port.out.bias[...].at[1].set(np.nan)
    image = picture((12, 20), np.float32)
    with pytest.raises(InputError, match="its weights are damaged"):
        unet_torch.predict(reference, image)
    with pytest.raises(InputError, match="its weights are damaged"):
        unet_jax.predict(port, image)


def test_a_wrong_image_is_refused_by_both():
    reference, port = twins(COLOUR)
    words = "the image has 5 channels and the net takes 3"
    with pytest.raises(InputError, match=words):
        unet_torch.predict(reference, np.zeros((12, 20, 5)))
    with pytest.raises(InputError, match=words):
        unet_jax.predict(port, np.zeros((12, 20, 5)))


# preprocessing

NONE, RANGE, IMAGE = (Preprocessing(n) for n in ("none", "range", "image"))


@pytest.mark.parametrize(
    ("kind", "largest"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 32767)],
    ids=["uint8", "uint16", "int16"],
)  # fmt: skip
def test_range_divides_integers_by_the_largest_of_their_type(kind, largest):
    image = np.array([[0, 51, largest]], kind)
    expected = np.array([[0, 51 / largest, 1]], np.float32)[..., None]
    np.testing.assert_array_equal(prepare(image, channels=1, preprocessing=RANGE), expected)


@pytest.mark.parametrize("preprocessing", [RANGE, NONE], ids=["range", "none"])
def test_float_images_stay_as_they_are(preprocessing):
    image = picture((5, 7, 3), np.float32)
    x = prepare(image, channels=3, preprocessing=preprocessing)
    np.testing.assert_array_equal(x, image, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_image_has_mean_0_and_standard_deviation_1(kind):
    x = prepare(picture((33, 47, 3), KINDS[kind]), channels=3, preprocessing=IMAGE)
    assert x.dtype == np.float32
    # 3.7e-8 and 4.2e-8 at most were measured over these images
    assert abs(x.mean(dtype=np.float64)) < 2e-7
    assert abs(x.std(dtype=np.float64) - 1) < 2e-7


@pytest.mark.parametrize("order", ["C", "F", "channels chosen"])
@pytest.mark.parametrize("shape", [(3, 5, 1), (251, 263, 1), (403, 517, 3)])
def test_the_standard_deviation_in_little_memory_is_that_of_numpy_to_the_last_bit(shape, order):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = rng.normal(seed * 1000, 10.0**seed, shape).astype(np.float32)
        if order == "F":
            values = np.asfortranarray(values)
        elif order != "C":
            values = values[..., list(range(shape[2]))[::-1]]
        assert measure_deviation(values) == values.std(dtype=np.float64)


def test_preparing_an_image_takes_no_more_memory_than_its_input():
    image = np.random.default_rng(0).integers(0, 255, (2000, 1000, 1), np.uint8)
    tracemalloc.start()
    x = prepare(image, channels=1, preprocessing=Preprocessing())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.nbytes <= peak < 1.2 * x.nbytes


def test_image_of_one_value_becomes_0():
    x = prepare(np.full((5, 7), 200, np.uint8), channels=1, preprocessing=IMAGE)
    np.testing.assert_array_equal(x, np.zeros((5, 7, 1), np.float32), strict=True)


def test_the_square_root_keeps_the_sign_and_comes_after_the_range_before_the_mean():
    values = np.array([[-9, 0], [4, 16]], np.float32)
    root = np.array([[-3, 0], [2, 4]], np.float32)
    found = prepare(values, channels=1, preprocessing=replace(NONE, sqrt=True))
    np.testing.assert_array_equal(found[..., 0], root)
    found = prepare(values, channels=1, preprocessing=replace(IMAGE, sqrt=True))
    np.testing.assert_allclose(found[..., 0], (root - root.mean()) / root.std(), rtol=1e-6)
    bright = np.array([[0, 51], [204, 255]], np.uint8)
    found = prepare(bright, channels=1, preprocessing=replace(RANGE, sqrt=True))
    np.testing.assert_allclose(found[..., 0] ** 2, bright / 255, rtol=1e-6)


def test_colour_becomes_luma_and_gray_is_repeated():
    red_green_blue = np.eye(3, dtype=np.float32)[None]
    luma = prepare(red_green_blue, channels=1, preprocessing=NONE)
    np.testing.assert_array_equal(luma[0, :, 0], np.array([0.299, 0.587, 0.114], np.float32))
    # one rounding for each product and sum, in this order, on every processor
    image = np.random.default_rng(0).random((40, 50, 3), np.float32)
    red, green, blue = np.moveaxis(image, -1, 0) * luma[0, :, 0, None, None]
    found = prepare(image, channels=1, preprocessing=NONE)
    np.testing.assert_array_equal(found[..., 0], (red + green) + blue)
    gray = picture((5, 7), np.float32)
    np.testing.assert_array_equal(
        prepare(gray, channels=3, preprocessing=NONE), np.stack([gray] * 3, -1)
    )


@pytest.mark.parametrize(("count", "channels"), [(2, 1), (4, 1), (2, 3), (4, 3), (1, 2), (3, 4)])
def test_channels_that_do_not_fit_are_refused_and_none_is_dropped(count, channels):
    words = (
        rf"has {count} channels? and the net takes {channels}; choose .*--preprocessing.channels"
    )
    with pytest.raises(InputError, match=words):
        prepare(picture((5, 7, count), np.uint8), channels=channels, preprocessing=IMAGE)


@pytest.mark.parametrize("chosen", [(1,), (0, 3, 2), (3, 1), (0, 1, 2, 3), (2, 2, 2)])
@pytest.mark.parametrize("normalize", ["image", "range", "none"])
def test_chosen_channels_are_an_image_of_these_channels(chosen, normalize):
    image, plain = picture((5, 7, 4), np.uint8), Preprocessing(normalize, sqrt=True)
    of_part = prepare(image[..., list(chosen)], channels=len(chosen), preprocessing=plain)
    chosen_first = replace(plain, channels=chosen)
    x = prepare(image, channels=len(chosen), preprocessing=chosen_first)
    np.testing.assert_array_equal(x, of_part, strict=True)
    if len(chosen) in (1, 3):  # gray and RGB are still turned into one another
        other = 4 - len(chosen)
        np.testing.assert_array_equal(
            prepare(image, channels=other, preprocessing=chosen_first),
            prepare(image[..., list(chosen)], channels=other, preprocessing=plain),
        )


def test_prediction_takes_the_channels_that_the_weight_file_names():
    image = picture((13, 23, 4), np.uint8)
    chosen = Preprocessing(channels=(2, 0, 3))
    of_net, of_channels = (twins(COLOUR, preprocessing=p) for p in (chosen, Preprocessing()))
    masks = [unet_torch.predict(of_net[0], image), unet_jax.predict(of_net[1], image)]
    same = image[..., [2, 0, 3]]
    np.testing.assert_array_equal(masks[0], unet_torch.predict(of_channels[0], same))
    np.testing.assert_array_equal(masks[1], unet_jax.predict(of_channels[1], same))
    assert (masks[0] != unet_torch.predict(of_channels[0], image[..., [0, 2, 3]])).any()


def test_channels_that_an_image_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"3 channels, and channel 3 .* numbered from 0 to 2"):
        prepare(
            picture((5, 7, 3), np.uint8), channels=1, preprocessing=Preprocessing(channels=(3,))
        )
    with pytest.raises(InputError, match=r"1 channel, and channel 1 .* numbered from 0 to 0"):
        prepare(picture((5, 7), np.uint8), channels=1, preprocessing=Preprocessing(channels=(1,)))
    with pytest.raises(InputError, match="4 channels, 2 of them are taken, and the net takes 1"):
        prepare(
            picture((5, 7, 4), np.uint8), channels=1, preprocessing=Preprocessing(channels=(0, 2))
        )
    with pytest.raises(InputError, match=r"channels are numbered from 0 to 65535, got \(-1,\)"):
        Preprocessing(channels=(-1,))
    with pytest.raises(InputError, match="channels holds ints"):
        Preprocessing(channels=(True,))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_net_of_other_channels_takes_exactly_those(channels):
    image = picture((5, 7, channels), np.float32)
    x = prepare(image, channels=channels, preprocessing=NONE)
    np.testing.assert_array_equal(x, image)
    with pytest.raises(InputError, match=f"has 3 channels and the net takes {channels}"):
        prepare(image[..., [0, 0, 1]], channels=channels, preprocessing=NONE)


def test_masks_of_bools_are_images_too():
    x = prepare(np.eye(4, 6, dtype=bool), channels=1, preprocessing=RANGE)
    np.testing.assert_array_equal(x[..., 0], np.eye(4, 6, dtype=np.float32), strict=True)


@pytest.mark.parametrize("shape", [(5,), (1, 5, 7, 3), (0, 7), (5, 0, 3)])
def test_what_is_not_an_image_is_refused_with_its_shape(shape):
    with pytest.raises(InputError) as refusal:
        prepare(np.zeros(shape), channels=3, preprocessing=NONE)
    assert "an image is (h, w) or (h, w, c)" in str(refusal.value)


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, 1e300, 2e38], ids=["nan", "infinite", "beyond float32", "beyond half"]
)
def test_image_with_undefined_values_is_refused(value):
    image = np.ones((5, 7))
    image[2, 3] = value
    with pytest.raises(InputError, match="the image holds NaN or infinite values"):
        prepare(image, channels=1, preprocessing=NONE)


def test_image_of_complex_values_is_refused():
    with pytest.raises(InputError, match="integers, bools or floats, not complex64"):
        prepare(np.ones((5, 7), np.complex64), channels=1, preprocessing=NONE)


def test_image_of_the_smallest_differences_stays_finite():
    image = np.zeros((5, 7), np.float32)
    image[2, 3] = np.float32(1e-45)  # its deviation is 0 in float32
    assert np.isfinite(prepare(image, channels=1, preprocessing=IMAGE)).all()


SIDES = st.integers(1, 9)
ARRAYS = st.builds(
    lambda kind, height, width, channels, seed: picture((height, width, *channels), kind, seed),
    st.sampled_from([np.uint8, np.uint16, np.int16, np.int64, np.float16, np.float32, np.float64]),
    SIDES, SIDES, st.sampled_from([(), (1,), (3,)]), st.integers(0, 1000),
)  # fmt: skip
PREPROCESSINGS = st.builds(
    Preprocessing, st.sampled_from(["image", "range", "none"]), st.booleans()
)


@given(ARRAYS, PREPROCESSINGS, st.sampled_from([1, 3]), st.data())
def test_part_with_the_statistics_of_the_whole_is_the_part_of_the_whole(
    image, preprocessing, channels, data
):
    settings = {"channels": channels, "preprocessing": preprocessing}
    whole, statistics = prepare(image, **settings), measure(image, **settings)
    np.testing.assert_array_equal(apply(image, statistics, **settings), whole, strict=True)
    height, width = image.shape[:2]
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    part = slice(top, data.draw(st.integers(top + 1, height))), slice(left, None)
    prepared = apply(image[part], statistics, **settings)
    np.testing.assert_array_equal(prepared.view(np.uint32), whole[part].view(np.uint32))


def test_statistics_change_nothing_where_the_whole_image_does_not_count():
    image = picture((5, 7), np.uint8)
    for preprocessing in (NONE, RANGE):
        assert measure(image, channels=1, preprocessing=preprocessing) == Statistics(0, 1)
    measured = measure(image, channels=1, preprocessing=IMAGE)
    np.testing.assert_allclose((measured.mean, measured.deviation), (image.mean(), image.std()))


def test_the_image_is_not_written_to():
    image = picture((5, 7, 3), np.float32)
    before = image.copy()
    for preprocessing in (NONE, RANGE, IMAGE):
        prepare(image, channels=3, preprocessing=preprocessing)
        prepare(image, channels=1, preprocessing=preprocessing)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        ({}, {}),
        ({"in_channels": 3, "padding": "valid"}, {"mirror": True}),
        ({"norm": "group", "groups": 2}, {"window_px": 16, "mirror": True}),
        ({"fit": "zeros"}, {"mirror": True}),
        ({"fit": "crop"}, {}),
    ],
    ids=["same", "valid", "windows", "mirrored", "fit"],
)
@pytest.mark.parametrize("size", [(13, 23), (131, 97)], ids=["small", "tiles"])
def test_shape_of_the_input_is_the_one_that_the_net_gets(monkeypatch, axes, settings, size):
    monkeypatch.setattr(prediction, "TILE_PX", 80)
    config, preprocessing = replace(GRAY, **axes), Preprocessing("none", **settings)
    shapes = set()

    def forward(x):
        shapes.add(x.shape)
        sides = (geometry.output_size(config, side) for side in x.shape[1:3])
        return np.zeros((len(x), *sides, config.classes), np.float32)

    image = picture((*size, config.in_channels), np.float32)
    prediction.predict(forward, image, config=config, preprocessing=preprocessing)
    shape = prediction.input_shape(*size, config=config, preprocessing=preprocessing)
    assert shapes == {shape}


def test_what_is_compiled_ahead_is_compiled_once_and_predicts_the_same(monkeypatch):
    module = importlib.import_module("unet_jax.predict")  # `unet_jax.predict` is the function
    plain = module.functional

    def slow(*arguments, **settings):  # so that the threads are sure to ask at the same time
        time.sleep(0.2)
        return plain(*arguments, **settings)

    monkeypatch.setattr(module, "functional", slow)
    module._make_function.cache_clear()
    _, port = twins(replace(GRAY, classes=5), preprocessing=Preprocessing("none"))
    images = [picture(size, np.float32) for size in ((13, 23), (14, 21), (40, 9))]
    settings = {"config": port.config, "preprocessing": port.preprocessing}
    shapes = [prediction.input_shape(*image.shape, **settings) for image in images]
    assert len(set(shapes)) == 2
    compilations = []

    def count(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(count)
    with compile_ahead(port, shapes):
        ahead = [unet_jax.predict(port, image) for image in images]
    assert len(compilations) == 2
    for image, mask in zip(images, ahead, strict=True):
        np.testing.assert_array_equal(unet_jax.predict(port, image), mask)
    assert len(compilations) == 2
