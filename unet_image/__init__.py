"""Image files: listed, measured and read into arrays, and pictures of what a net saw in them."""

from unet_image.files import SUFFIXES, is_store, list_images
from unet_image.limits import TooLargeError
from unet_image.pages import Page, check_channels, measure_pages, read_page, read_pages, takes_alpha
from unet_image.pictures import (
    PALETTE,
    PREDICTED,
    TRUE,
    make_visible,
    outline,
    overlay,
    write_mask,
    write_picture,
)

__all__ = [
    "PALETTE",
    "PREDICTED",
    "SUFFIXES",
    "TRUE",
    "Page",
    "TooLargeError",
    "check_channels",
    "is_store",
    "list_images",
    "make_visible",
    "measure_pages",
    "outline",
    "overlay",
    "read_page",
    "read_pages",
    "takes_alpha",
    "write_mask",
    "write_picture",
]
