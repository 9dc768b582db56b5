"""Scores against counting by hand: pixel by pixel, and pair by pair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from unet_train.metrics import (
    as_result,
    confusion,
    dice,
    foreground_dice,
    foreground_iou,
    format_score,
    iou,
    label_segments,
    mean_score,
    pixel_error,
    rand_score,
)

ROUNDING = 1e-14
shapes = st.tuples(st.integers(1, 9), st.integers(1, 8))
foregrounds = arrays(np.bool_, shapes, fill=st.nothing())  # or most values are the same


def test_scores_of_a_confusion_equal_counting_of_pixels():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (5, 7)), rng.integers(0, 3, (5, 7))
    matrix = np.asarray(confusion(predicted, truth, classes=3))
    scores = []
    for k in range(3):
        found, true = set(np.flatnonzero(predicted == k)), set(np.flatnonzero(truth == k))
        scores.append(2 * len(found & true) / (len(found) + len(true)))
    np.testing.assert_allclose(dice(matrix), scores, rtol=ROUNDING)
    assert pixel_error(matrix) == pytest.approx((predicted != truth).mean(), rel=ROUNDING)


def test_more_pixels_than_float32_can_count_are_counted():
    side = 4097  # an odd number of pixels, and more than 2**24
    matrix = confusion(np.zeros((side, side), int), np.zeros((side, side), int), classes=2)
    assert matrix.tolist() == [[side**2, 0], [0, 0]]


def test_dice_is_a_function_of_iou():
    matrix = np.random.default_rng(0).integers(0, 99, (4, 4))
    np.testing.assert_allclose(dice(matrix), 2 * iou(matrix) / (1 + iou(matrix)), rtol=ROUNDING)


def test_scores_of_known_matrices():
    matrix = np.array([[6, 2], [1, 3]])
    np.testing.assert_allclose(dice(matrix), [12 / 15, 6 / 9], rtol=ROUNDING)
    assert pixel_error(matrix) == pytest.approx(3 / 12, rel=ROUNDING)


def _score_by_counting(predicted, truth, *, classes, ignore_index):
    """Every score of a prediction from lists of pixels; NaN where there is nothing to divide by.

    Returns (IoU by class, Dice by class, mean IoU and mean Dice of classes 1 and up, pixel error).
    """
    pixels = [
        (p, t) for p, t in zip(predicted.ravel(), truth.ravel(), strict=True)
        if t != ignore_index and t < classes
    ]  # fmt: skip

    def part(counted, of):
        return len(counted) / len(of) if of else math.nan

    def mean(values):
        there = [value for value in values if not math.isnan(value)]
        return sum(there) / len(there) if there else math.nan

    ious, dices = [], []
    for k in range(classes):
        both = [pair for pair in pixels if pair == (k, k)]
        ious.append(part(both, [pair for pair in pixels if k in pair]))
        dices.append(part(2 * both, [side for pair in pixels for side in pair if side == k]))
    wrong = [pair for pair in pixels if pair[0] != pair[1]]
    return ious, dices, mean(ious[1:]), mean(dices[1:]), part(wrong, pixels)


@settings(max_examples=200)
@given(st.data(), st.sampled_from([None, 0, 1, 2, 255]))
def test_scores_equal_counting_and_a_score_over_nothing_does_not_exist(data, ignore_index):
    # few pixels of few classes, so that classes are missing and images empty
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    values = st.sampled_from(data.draw(st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1)))
    truth = data.draw(arrays(np.uint8, shape, elements=values))
    predicted = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 2)))
    matrix = np.asarray(confusion(predicted, truth, classes=3, ignore_index=ignore_index))
    ious, dices, mean_iou, mean_dice, error = _score_by_counting(
        predicted, truth, classes=3, ignore_index=ignore_index
    )
    np.testing.assert_allclose(iou(matrix), ious, rtol=ROUNDING)
    np.testing.assert_allclose(dice(matrix), dices, rtol=ROUNDING)
    found = foreground_iou(matrix), foreground_dice(matrix), pixel_error(matrix)
    # means, and 1 - right / all against wrong / all: a few roundings of numbers up to 1
    np.testing.assert_allclose(found, (mean_iou, mean_dice, error), rtol=ROUNDING, atol=ROUNDING)


@given(st.lists(st.floats(0, 1) | st.just(math.nan)))
def test_a_mean_leaves_out_what_does_not_exist(scores):
    there = [score for score in scores if not math.isnan(score)]
    expected = sum(there) / len(there) if there else math.nan
    assert mean_score(scores) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_a_score_that_does_not_exist_is_written_as_such():
    assert (as_result(0.5), as_result(math.nan)) == (0.5, None)
    assert [format_score(score) for score in (0.8426, 0.0, None)] == ["0.843", "0.000", "n/a"]


def test_absent_classes_do_not_count():
    matrix = np.diag([90, 0, 0, 0])
    matrix[2] = matrix[:, 2] = [0, 0, 3, 0]
    matrix[0, 2] = 3
    assert foreground_iou(matrix) == pytest.approx(0.5)
    assert foreground_dice(matrix) == pytest.approx(2 / 3)


@pytest.mark.parametrize("ignored", [0, 1, 2, 255])
def test_ignored_pixels_do_not_count(ignored):
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (6, 7)), rng.choice([0, 1, 2, 255], (6, 7))
    found = confusion(predicted, truth, classes=3, ignore_index=ignored)
    counted = (truth != ignored) & (truth < 3)
    expected = np.zeros((3, 3))
    np.add.at(expected, (truth[counted], predicted[counted]), 1)
    np.testing.assert_array_equal(found, expected)


def _rand_score(segments, truth):
    """Over ordered pairs of true foreground pixels, each with itself as well."""
    places = [tuple(p) for p in np.argwhere(truth > 0)]
    in_truth = in_prediction = in_both = 0
    for a in places:
        for b in places:
            objects = truth[a] == truth[b]
            parts = a == b or (segments[a] == segments[b] != 0)
            in_truth += objects
            in_prediction += parts
            in_both += objects and parts
    return 2 * in_both / (in_truth + in_prediction) if places else math.nan


@settings(max_examples=80)
@given(st.data())
def test_rand_score_equals_counting_of_pairs(data):
    predicted = data.draw(foregrounds)
    truth = data.draw(arrays(np.int32, predicted.shape, elements=st.sampled_from([0, 1, 2, 3_000])))
    literal = _rand_score(label_segments(predicted), truth)
    assert rand_score(predicted, truth) == pytest.approx(literal, rel=ROUNDING, nan_ok=True)


SQUARES = np.zeros((9, 14), np.int32)
SQUARES[1:8, 1:6], SQUARES[1:8, 8:13] = 1, 2  # of 35 pixels each


def _bridge():
    mask = SQUARES > 0
    mask[4, 6:8] = True
    return mask


def _cut():
    mask = SQUARES > 0
    mask[4] = False
    return mask


@pytest.mark.parametrize(
    ("predicted", "score"),
    [
        (SQUARES > 0, 1.0),
        (ndimage.binary_erosion(SQUARES > 0), 1.0),  # thinning makes up for wide borders
        (_bridge(), 2 * 35**2 / (0.5 * 2 * 35**2 + 0.5 * 70**2)),
        # halves of 15 pixels, and the 5 of the border between them, each by itself
        (_cut(), 2 * (2 * 15**2 + 5) / (0.5 * 2 * 35**2 + 0.5 * 2 * (2 * 15**2 + 5))),
        (np.zeros_like(SQUARES, bool), 70 / (0.5 * 2 * 35**2 + 0.5 * 70)),
        (np.ones_like(SQUARES, bool), 2 * 35**2 / (0.5 * 2 * 35**2 + 0.5 * 70**2)),
    ],
    ids=["perfect", "eroded", "merged", "split", "nothing", "everything"],
)
def test_rand_score_of_known_maps(predicted, score):
    assert rand_score(predicted, SQUARES) == pytest.approx(score, rel=ROUNDING)


def test_an_image_without_objects_has_no_rand_score():
    assert math.isnan(rand_score(SQUARES > 0, np.zeros_like(SQUARES)))


def test_rand_score_does_not_see_the_background_of_the_truth():
    inside = ndimage.binary_dilation(SQUARES == 1)
    predicted = SQUARES > 0
    speck = predicted.copy()
    speck[0, 13] = True
    truth = np.where(inside, SQUARES, 0)
    assert rand_score(predicted, truth) == rand_score(speck, truth) == 1.0


@settings(max_examples=80)
@given(foregrounds)
def test_segments_grow_by_nearness_until_a_border_is_left(foreground):
    segments, parts = label_segments(foreground), ndimage.label(foreground)[0]
    np.testing.assert_array_equal(segments[foreground], parts[foreground])
    places = np.argwhere(foreground)
    for at in np.argwhere(segments > 0):
        near = ((places - at) ** 2).sum(1)
        nearest = {parts[tuple(p)] for p in places[near == near.min()]}
        assert segments[tuple(at)] in nearest, at
    for first, second in ((segments[1:], segments[:-1]), (segments[:, 1:], segments[:, :-1])):
        assert ((first == second) | (first == 0) | (second == 0)).all()


@pytest.mark.parametrize("gap_px", [1, 2, 3, 4, 9])
def test_a_border_of_any_width_is_thinned_to_one_pixel(gap_px):
    foreground = np.ones((4, 6 + gap_px), bool)
    foreground[:, 3 : 3 + gap_px] = False
    for turned in (foreground, foreground.T):
        assert (label_segments(turned) == 0).sum() == 4
