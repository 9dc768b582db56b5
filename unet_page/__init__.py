"""Every HTML page of the project is made here: one file that needs nothing beside it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["picture_url", "render"]


def render(template: Path, **values: Any) -> str:
    """Return the page that a template makes of these values.

    Args:
        template: a Jinja file that extends `base.html`, which lies in this folder and holds the
            looks that all pages share.
        values: what the template names; each has to be given, and text is escaped.

    Raises:
        jinja2.UndefinedError: the template names a value that was not given.
    """
    import jinja2  # slow to import, and a page is the last thing that a command writes

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def picture_url(pixels: np.ndarray, *, largest_px: int | None = None) -> str:
    """Return a picture as a data URL, which a page holds in place of a file's name.

    Args:
        pixels: bytes, (h, w) gray or (h, w, 3) in colours.
        largest_px: shrink the picture until neither side is longer.
    """
    from PIL import Image  # pages without a picture need none

    picture, content = Image.fromarray(pixels), io.BytesIO()
    if largest_px is not None:
        picture.thumbnail((largest_px, largest_px))
    picture.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
