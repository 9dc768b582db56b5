"""The option `--parity-pages` of pytest, for tests with `unet_parity.testing`.

It loads with every run of pytest, so it imports no framework.
"""

import os
from typing import Any

FOLDER = "UNET_PARITY_PAGES"
"""The environment variable with the folder of the pages, which workers inherit."""


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    parser.addoption(
        "--parity-pages",
        metavar="FOLDER",
        help="write a page for each report of unet_parity.testing.assert_equivalent",
    )


def pytest_configure(config: Any) -> None:
    """Hand the folder on to the tests."""
    folder = config.getoption("--parity-pages", default=None)
    if folder is not None:
        os.environ[FOLDER] = os.path.abspath(folder)
