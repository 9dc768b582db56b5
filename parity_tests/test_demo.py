"""The demo, on a smaller net: its page in a browser, and the pages that it leads to."""

import re
from dataclasses import replace

import pytest

from parity_tests.browser import needs_browser, render
from unet_demo import run
from unet_spec import UNetConfig
from unet_train.config import CELLS

SMALL = replace(
    CELLS,
    net=UNetConfig(widths=(4, 6)),
    data=replace(CELLS.data, synthetic=4, batch=2, crop_px=64),
    steps=4,
    validate_every=2,
    checkpoint_every=4,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, summary) of a whole demo."""
    out = tmp_path_factory.mktemp("demo") / "demo_run"
    return out, run.run(out, config=SMALL, command="unet demo")


def test_the_demo_ends_with_a_verdict_and_every_page_that_it_links_to(demo):
    out, summary = demo
    assert summary["verdict"] == "equivalent"
    index = (out / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert links == ["parity.html", "run/report.html"]
    for link in links:
        assert (out / link).is_file(), link
    assert f"{summary['pixels_differing']} of {summary['pixels']:,}" in index


@needs_browser
@pytest.mark.parametrize("width_px", [400, 1280])
@pytest.mark.parametrize("name", ["index.html", "parity.html", "run/report.html"])
def test_every_page_of_the_demo_is_whole_in_a_browser(demo, tmp_path, name, width_px):
    seen = render((demo[0] / name).read_text(), tmp_path, width_px=width_px)
    assert seen.width == width_px
    assert seen.pictures > 0
    assert seen.broken == 0
    assert seen.console == []
    assert ("IoU" if name.startswith("run") else "equivalent") in seen.text


@needs_browser
def test_a_broken_picture_an_error_and_a_wide_page_are_noticed(tmp_path):
    page = (
        '<!doctype html><body><div style="width:500px">wide</div>'
        '<img src="data:image/png;base64,AAAA"><script>throw Error("planted")</script>'
    )
    seen = render(page, tmp_path)
    assert (seen.width > 400, seen.pictures, seen.broken) == (True, 1, 1)
    assert any("planted" in line for line in seen.console)


def test_the_report_of_the_run_shows_every_curve_that_its_metrics_hold(demo):
    page = (demo[0] / "run" / "report.html").read_text()
    for title in ("Loss, logarithmic", "Mean IoU", "Learning rate", "Images per second"):
        assert f"<strong>{title}</strong>" in page, title
