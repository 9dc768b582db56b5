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
  parent.document.title = JSON.stringify({
    width: document.documentElement.scrollWidth,
    pictures: pictures.length,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth).length,
    text: document.body.innerText,
    clipped: [...document.querySelectorAll(".track span, .area span")].filter(tick => {
      const box = tick.getBoundingClientRect();
      return box.width && (box.left < 0 || box.right > innerWidth);
    }).map(tick => tick.innerText),
  });
})</script>"""


@dataclass(frozen=True)
class Rendered:
    """A page as a browser shows it.

    Attributes:
        width: pixels that the page needs; more than the window is a sideways scroll.
        pictures: how many it has, and `broken` how many of them did not load.
        text: what a person can read on it.
        clipped: labels of axes that stick out of the window.
        console: lines that the browser wrote on its console.
    """

    width: int
    pictures: int
    broken: int
    text: str
    clipped: list[str]
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
