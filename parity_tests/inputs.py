"""Inputs, cotangents and dropout masks of a given size, in torch's layout."""

import numpy as np

from unet_parity.twins import Masks
from unet_spec import UNetConfig, geometry


def random_input(
    config: UNetConfig, height: int, width: int, *, batch: int = 2
) -> tuple[np.ndarray, np.ndarray, Masks]:
    rng = np.random.default_rng(0)
    rows, columns = geometry.levels(config, height), geometry.levels(config, width)
    x = rng.standard_normal((batch, config.in_channels, height, width))
    cotangent = rng.standard_normal((batch, config.classes, rows.output, columns.output))
    sites = (
        (config.widths[-2], rows.skips[-1], columns.skips[-1]),
        (config.widths[-1], rows.neck, columns.neck),
    )
    return x, cotangent, [rng.random((batch, *site)) >= config.dropout for site in sites]
