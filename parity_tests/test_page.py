"""The page of a run says what the report holds, and nothing else."""

import dataclasses
import html.parser
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.browser import needs_browser, render
from unet_page import plot
from unet_train.check.diagnosis import Finding
from unet_train.config import CELLS, NUCLEI, to_plain
from unet_train.report import page
from unet_train.report.page import Report
from unet_train.report.validation import ImageScore, Scores

IMAGES = (
    ImageScore("alpha.png", 31, 47, 0.613, 0.707),
    ImageScore("beta.png", 37, 53, 0.409, 0.523),
    ImageScore("gamma.png", 41, 59, 0.811, 0.857),
)
SCORES = Scores(
    mean_image_iou=0.611,
    pooled_iou=[0.937, 0.643],
    pooled_dice=[0.967, 0.783],
    pixel_error=0.057,
    rand_score=0.727,
    confusion=[[3900.0, 100.0], [137.0, 863.0]],
    images=list(IMAGES),
)
FINDINGS = (
    Finding("warning", "beta.png is held out and seen in training"),
    Finding("note", "gamma.png is in colour"),
)
ENVIRONMENT = {"jax": "0.10.2", "cpu_model": "a processor"}


def _lines(steps=(1, 200, 400, 600), scores=(0.531, 0.673, 0.611)):
    rows = [
        {
            "step": step, "kind": "train", "loss": 0.7 / (1 + i), "iou": 0.2 + 0.1 * i,
            "lr": 1e-3 / (1 + i), "grad_norm": 1.0, "peak_memory_bytes": 1.37e9 + i,
        }
        | ({"images_per_s": 17.3, "waiting_share": 0.029} if i else {})
        for i, step in enumerate(steps)
    ]  # fmt: skip
    held_out = [
        {"step": step, "kind": "validation", "mean_image_iou": score}
        for step, score in zip(steps[1:], scores, strict=False)
    ]
    return [*rows, *held_out]


def _report(**changes):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 31, 47, 3)).astype(np.uint8)
    usual = {
        "config": to_plain(dataclasses.replace(NUCLEI, steps=600)),
        "environment": ENVIRONMENT,
        "metrics": _lines(),
        "scores": SCORES,
        "pictures": dict(zip((image.name for image in IMAGES), pixels, strict=True)),
        "class_names": ("background", "cell"),
        "findings": FINDINGS,
    }
    return Report(**usual | changes)


def _one_image(**changes):
    image = dataclasses.replace(IMAGES[0], **changes)
    return _report(
        scores=dataclasses.replace(SCORES, images=[image], mean_image_iou=image.iou),
        pictures={image.name: np.zeros((31, 47, 3), np.uint8)},
    )


class Seen(html.parser.HTMLParser):
    """What stands in a page: its texts and titles, with the classes above them, and its tags."""

    ALONE = frozenset({"meta", "img", "path", "polyline"})

    def __init__(self, text):
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[Any, str]] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "title" in found:
            self.texts.append(("title", found["title"]))
        if tag not in self.ALONE:
            self.open.append((tag, found.get("class", "")))

    def handle_endtag(self, tag):
        if tag not in self.ALONE:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        within = {word for tag, classes in self.open for word in (tag, *classes.split())}
        if data.strip() and "style" not in within:
            self.texts.append((within, " ".join(data.split())))

    @property
    def text(self):
        return " ".join(text for _, text in self.texts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Mean IoU 0.611 over 3 held-out images after 600 steps; best 0.673 at step 400."),
        (
            {"metrics": _lines(scores=(0.5, 0.6, 0.611))},
            "Mean IoU 0.611 over 3 held-out images after 600 steps.",
        ),
        (
            {"metrics": _lines(steps=(1, 200, 400))},
            "Mean IoU 0.611 over 3 held-out images after 400 of 600 steps.",
        ),
        ({"metrics": []}, "Mean IoU 0.611 over 3 held-out images after 0 of 600 steps."),
    ],
    ids=["best before the end", "best at the end", "stopped", "nothing recorded"],
)
def test_the_result_is_one_sentence(changes, expected):
    report = _report(**changes)
    assert page.summarize(report) == expected
    assert expected in Seen(page.render_page(report)).text


def test_what_cannot_be_scored_is_not_a_number_on_the_page():
    images = [dataclasses.replace(IMAGES[0], iou=None, dice=None), *IMAGES[1:]]
    scores = dataclasses.replace(
        SCORES, images=images, pooled_iou=[0.937, None], pooled_dice=[0.967, None]
    )
    found = Seen(page.render_page(_report(scores=scores)))
    # table and picture of an image, a class, and what it means
    assert found.text.count("n/a") == 7
    shown = [a["alt"] for tag, a in found.tags if tag == "img"]
    assert shown == [f"{n}.png with outlines" for n in ("beta", "gamma", "alpha")]


def test_a_page_says_that_there_was_nothing_to_score():
    images = [dataclasses.replace(image, iou=None, dice=None) for image in IMAGES]
    nothing: list[float | None] = [None, None]
    matrix = [[0.0, 0.0], [0.0, 0.0]]
    scores = Scores(None, nothing, nothing, None, None, matrix, images)
    lines = [{**line, "mean_image_iou": None} for line in _lines()]
    report = _report(scores=scores, metrics=lines)
    text = Seen(page.render_page(report)).text
    assert page.summarize(report) in text
    assert page.summarize(report).startswith("Nothing to score in 3 held-out images after 600")
    assert "U-Net training: IoU n/a" in text
    assert "Without a score" in text


def test_one_image_is_one_image():
    assert page.summarize(_one_image()).startswith("Mean IoU 0.613 over 1 held-out image after")


def _expected_numbers(report):
    """Every number that may stand outside of ticks, config, environment and file names, made
    anew from the report."""
    rows = report.metrics
    training = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "validation"]
    scores = report.scores
    threes = [
        *scores.headline.values(), *scores.pooled_iou, *scores.pooled_dice,
        *(v for image in scores.images for v in (image.iou, image.dice)),
        *(row["mean_image_iou"] for row in held_out),
    ]  # fmt: skip
    whole = [
        len(scores.images), max(row["step"] for row in rows), *(row["step"] for row in held_out),
        *(v for image in scores.images for v in (image.height, image.width)),
        *(v for row in scores.confusion for v in (*row, sum(row))),
        sum(finding.level == "warning" for finding in report.findings),
    ]  # fmt: skip
    parts = [100 * v / sum(row) for row in scores.confusion for v in row]
    return {
        *(f"{v:.3f}" for v in threes), *(f"{v:,.0f}" for v in whole),
        *(f"{v:.2f}" for v in parts), f"{training[-1]['loss']:.3g}", f"{training[-1]['lr']:.3g}",
        "17.3", "2.9", "1.37",
    }  # fmt: skip


def test_every_number_shown_is_in_the_report():
    report = _report()
    elsewhere = {"tick", "settings", "code", "findings", "words"}
    found = set()
    for within, text in Seen(page.render_page(report, command="unet train nuclei")).texts:
        if within == "title" or not within & elsewhere:
            found |= set(re.findall(r"\d[\d.,]*\d|\d", text.replace(ENVIRONMENT["jax"], "")))
    assert found == _expected_numbers(report)


def test_every_score_is_explained_in_the_words_of_the_glossary():
    report = _report()
    text = Seen(page.render_page(report)).text
    glossary = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text()
    for word, meaning in page.WORDS.items():
        assert f"{word}: {meaning}" in text
        assert f"- **{word}**: {meaning}\n" in glossary
    explained = {word.lower() for word in page.WORDS}
    names = [page.NAMES[name] for name in report.scores.headline]
    assert {part.lower() for name in names for part in name.split(", ")} <= explained
    three = dataclasses.replace(
        SCORES, confusion=np.eye(3).tolist(), rand_score=None,
        pooled_iou=[1.0, 1.0, 1.0], pooled_dice=[1.0, 1.0, 1.0],
    )  # fmt: skip
    assert "Rand score" not in Seen(page.render_page(_report(scores=three, class_names=()))).text


def test_what_was_found_measured_and_asked_is_told():
    text = Seen(page.render_page(_report(), command="unet train nuclei --out 'a b'")).text
    told = ["1 warning about the data", "unet train nuclei --out 'a b'", "a processor"]
    for expected in (*told, *(finding.text for finding in FINDINGS)):
        assert expected in text


def test_the_worst_images_come_first():
    shown = [a["alt"] for tag, a in Seen(page.render_page(_report())).tags if tag == "img"]
    assert shown == [f"{n}.png with outlines" for n in ("beta", "alpha", "gamma")]


def test_the_page_stands_alone():
    text = page.render_page(_report())
    found = Seen(text)
    assert not re.search(r"(src|href|srcset|data)=[\"'](?!data:image/png;base64,|#)", text)
    assert not re.search(r"url\(|@import|https?:", text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=y>&amp;"


def test_names_cannot_become_markup():
    report = dataclasses.replace(
        _one_image(name=HOSTILE),
        class_names=(HOSTILE, "cell"),
        findings=[Finding("warning", HOSTILE)],
        environment={HOSTILE: HOSTILE},
        config={**to_plain(NUCLEI), "start": HOSTILE},
    )
    found = Seen(page.render_page(report, command=HOSTILE))
    plain = Seen(page.render_page(_one_image()))
    count = [sum(tag == "img" for tag, _ in one.tags) for one in (found, plain)]
    assert count == [1, 1]
    assert "script" not in {tag for tag, _ in found.tags}
    assert not any("onerror" in attributes for _, attributes in found.tags)
    # picture, dot, table, class twice, finding, environment twice, setting, command
    assert found.text.count(HOSTILE) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": _lines(steps=(1,))},
        {"metrics": _lines(steps=(1, 600), scores=(0.611,))},
        {"metrics": [row | {"loss": 0.5, "iou": 0.0, "lr": 1e-3} for row in _lines()]},
        {"metrics": [row | {"loss": 0.0, "lr": 0.0, "iou": 1.0} for row in _lines()]},
        {"metrics": [row | {"loss": None} for row in _lines()]},
        {"metrics": []},
        {"class_names": ()},
        {"pictures": {}},
        {"findings": []},
        {"environment": {}},
        {"config": to_plain(CELLS)},
        {"scores": dataclasses.replace(SCORES, rand_score=None)},
        {"scores": dataclasses.replace(SCORES, confusion=[[5.0, 1.0], [0.0, 0.0]])},
    ],
    ids=[
        "one step", "one validation", "constant", "zero", "loss not finite", "nothing recorded",
        "classes without names", "no pictures", "no findings", "no environment", "another preset",
        "no Rand score", "class without pixels",
    ],
)  # fmt: skip
def test_a_run_of_any_kind_has_a_page(changes):
    text = page.render_page(_report(**changes))
    Seen(text)
    places = re.findall(r"(?:left|bottom):([^%;]*)%", text)
    drawn = re.findall(r'points="([^"]*)"', text)
    numbers = [*places, *(v for line in drawn for point in line.split() for v in point.split(","))]
    assert all(-0.01 <= float(number) <= 100.01 for number in numbers)


def test_classes_without_names_are_numbers():
    found = Seen(page.render_page(_report(class_names=()))).texts
    heads = [
        text for within, text in found if isinstance(within, set) and {"th", "tbody"} <= within
    ]
    assert heads == ["0", "1"]


@pytest.mark.parametrize("preset", ["nuclei", "cells"])
def test_what_differs_from_the_nearest_preset_is_marked(preset):
    config = {"nuclei": NUCLEI, "cells": CELLS}[preset]
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, batch=6), seed=7)
    report = _report(config=to_plain(changed))
    found = Seen(page.render_page(report)).texts
    marked = [text for within, text in found if isinstance(within, set) and "other" in within]
    assert marked == ["seed", "7", "batch", "6"]
    assert f"from the preset {preset}." in " ".join(text for _, text in found)


def test_large_pictures_are_shown_smaller_in_their_shape():
    report = _one_image()
    (name,) = report.pictures
    large = dataclasses.replace(report, pictures={name: np.zeros((1000, 2000, 3), np.uint8)})
    assert len(page.render_page(large)) < len(page.render_page(report)) + 10_000


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (plot.linear_axis(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (plot.linear_axis(0.43, 0.81), [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (plot.linear_axis(0, 0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (plot.linear_axis(0, 2e-3), [0, 0.0005, 0.001, 0.0015, 0.002]),
        (plot.linear_axis(-3, -3), [-3, -2, -1, 0]),
        (plot.log_axis(0.09, 0.7), [0.05, 0.1, 0.2, 0.5, 1]),
        (plot.log_axis(0.5, 0.5), [0.2, 0.5, 1]),
        (plot.log_axis(1e-5, 1), [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
        (plot.log_axis(1e-9, 1), [1e-9, 1e-7, 1e-5, 1e-3, 0.1]),
        (plot.count_axis(600), [0, 200, 400, 600]),
        (plot.count_axis(1), [0, 1]),
        (plot.count_axis(0), [0, 1]),
        (plot.count_axis(1234), [0, 200, 400, 600, 800, 1000, 1200]),
    ],
    ids=lambda value: "" if isinstance(value, list) else f"{value.low:g} to {value.high:g}",
)
def test_ticks_are_round(axis, ticks):
    np.testing.assert_allclose(axis.ticks, ticks, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make", [plot.linear_axis, plot.log_axis])
def test_an_axis_holds_its_values_and_few_ticks(make):
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(np.exp(rng.uniform(-20, 20, 2)))
        axis = make(low, high)
        assert axis.low <= low * (1 + 1e-9)
        assert axis.high >= high * (1 - 1e-9)
        assert 2 <= len(axis.ticks) <= 10
        assert len(set(axis.labels)) == len(axis.ticks)


def test_places_on_an_axis_equal_their_share_of_it():
    assert plot.linear_axis(0, 4).at(1) == 25
    assert math.isclose(plot.log_axis(0.01, 100).at(1), 50)


def test_thinned_and_smoothed_lines_keep_the_mean():
    values = np.random.default_rng(0).normal(size=2_000)
    points = list(enumerate(values.tolist()))
    thin = plot.thin_points(points)
    assert len(thin) == plot.POINTS
    np.testing.assert_allclose(np.mean(thin, axis=0), np.mean(points, axis=0), atol=1e-12)
    smooth = plot.smooth_points(points)
    reach = len(points) // 20
    np.testing.assert_allclose(
        smooth[1000], (1000, values[1000 - reach : 1001 + reach].mean()), atol=1e-12
    )
    assert plot.smooth_points(points[:5]) == points[:5] == plot.thin_points(points[:5])


@needs_browser
def test_nothing_sticks_out_of_a_narrow_window(tmp_path):
    report = dataclasses.replace(_one_image(name=60 * "long"), environment={"cpu": 200 * "x"})
    assert render(page.render_page(report, command=300 * "y"), tmp_path, width_px=400).width == 400
