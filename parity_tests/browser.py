"""What a real browser makes of a page: its width, its pictures, its errors."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]
needs_browser = pytest.mark.skipif(not BROWSERS, reason="needs Chromium")

# the frame's page reports to the page around it, whose title is then printed
REPORT = """<script>addEventListener("load", () => {
  const pictures = [...document.images];
  const ticks = [...document.querySelectorAll(".track span, .area span")]
    .map(label => ({label, box: label.getBoundingClientRect()})).filter(({box}) => box.width);
  // what can cut a label off: the window, its table cell, and whatever hides or scrolls
  const isCut = ({label, box}) => {
    let [left, right] = [0, innerWidth];
    for (let around = label.parentElement; around; around = around.parentElement)
      if (around.matches("td, th") || getComputedStyle(around).overflowX != "visible") {
        const frame = around.getBoundingClientRect();
        [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
      }
    return box.left < left || box.right > right;
  };
  const meet = ({box: a}, {box: b}) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  parent.document.title = JSON.stringify({
    width: document.documentElement.scrollWidth,
    pictures: pictures.length,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth).length,
    text: document.body.innerText,
    labels: ticks.length,
    clipped: ticks.filter(isCut).map(({label}) => label.innerText),
    overlapping: ticks.flatMap((one, n) => ticks.slice(n + 1).filter(other => meet(one, other))
      .map(other => [one.label.innerText, other.label.innerText])),
  });
})</script>"""


@dataclass(frozen=True)
class Rendered:
    """A page as a browser shows it.

    Attributes:
        width: pixels that the page needs; more than the window is a sideways scroll.
        pictures: how many it has, and `broken` how many of them did not load.
        text: what a person can read on it.
        labels: how many labels its axes show, `clipped` those that stick out of the window or of
            what they stand in, and `overlapping` pairs that lie on one another.
        console: lines that the browser wrote on its console.
    """

    width: int
    pictures: int
    broken: int
    text: str
    labels: int
    clipped: list[str]
    overlapping: list[list[str]]
    console: list[str]


def render(page: str, folder: Path, *, width_px: int = 400) -> Rendered:
    """Open a page in a frame of this width; `folder` takes the browser's files."""
    frame = (
        f'<iframe width={width_px} height=900 frameborder=0 srcdoc="{html.escape(page + REPORT)}">'
    )
    (folder / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}</iframe>")
    done = subprocess.run(
        [BROWSERS[0], "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000",
         "--window-size=1600,1000", "--dump-dom", f"--user-data-dir={folder / 'profile'}",
         f"file://{folder / 'frame.html'}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Rendered(**json.loads(html.unescape(title[1])), console=console)
