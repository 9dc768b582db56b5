"""Parity as one line in people's own tests."""

import os
import re
from pathlib import Path
from typing import Any

from torch import nn

from unet_parity.pair.page import write_page
from unet_parity.pair.report import PairReport
from unet_parity.pair.verify import verify_pair
from unet_parity.pytest_pages import FOLDER

__all__ = ["assert_equivalent"]


def assert_equivalent(reference: nn.Module, port: Any = None, **options: Any) -> PairReport:
    """Return the report on a torch module and its port to JAX, which must compute the same.

    Under `pytest --parity-pages FOLDER` the page of each report is written into that folder, with
    the name of the test.

    Args:
        options: of `unet_parity.verify_pair`; `inputs` has to be given.

    Raises:
        AssertionError: they do not; its text is the report.
        InputError: as of `verify_pair`.
    """
    report = verify_pair(reference, port, **options)
    folder, text = os.environ.get(FOLDER), str(report)
    if folder:
        test = os.environ.get("PYTEST_CURRENT_TEST", "pair").partition(" ")[0]
        page = Path(folder) / f"{re.sub(r'[^A-Za-z0-9]+', '_', test).strip('_')}.html"
        write_page(page, report)
        text = f"{text}\nthe page: {page}"
    if report.verdict == "different":
        raise AssertionError(text)
    return report
