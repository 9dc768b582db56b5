"""Synthetic cells, made on the fly: something to train on where nothing is at hand."""

import numpy as np

SHAPE = (160, 192)  # height and width of the images of a run


def draw_cells(
    seed: int, *, height: int = SHAPE[0], width: int = SHAPE[1]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of bright blobs on an uneven, noisy background, and its mask.

    Returns:
        The image, (h, w) uint8, and the mask, (h, w) uint8: 0 background, 1 cell.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    slope = rng.uniform(-0.1, 0.1, 2)
    image = 0.25 + slope[0] * rows / height + slope[1] * columns / width
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(8, 20)):
        inside, edge = _draw_blob(rng, rows, columns)
        brightness = rng.uniform(0.15, 0.5)
        image = np.where(inside, np.maximum(image, 0.25 + brightness * edge), image)
        mask[inside] = 1
    # debris: as bright as cells, but too small to be one
    for _ in range(rng.integers(4, 10)):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        distance = np.hypot(rows - row, columns - column)
        image = image + rng.uniform(0.1, 0.4) * np.exp(-((distance / rng.uniform(1, 2)) ** 2))
    image = image + rng.normal(0, 0.05, image.shape)
    return np.round(255 * image.clip(0, 1)).astype(np.uint8), mask


def _draw_blob(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw where a wobbly ellipse is, and its brightness, which falls towards the rim."""
    row, column = rng.uniform(0, rows.shape[0]), rng.uniform(0, rows.shape[1])
    radius, stretch = rng.uniform(7, 15), rng.uniform(0.7, 1.4)
    dy, dx = (rows - row) * stretch, (columns - column) / stretch
    angle = np.arctan2(dy, dx)
    wobble = 1 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6.3))
    distance = np.hypot(dy, dx) / (radius * wobble)
    return distance < 1, 1 - 0.5 * distance.clip(0, 1) ** 2
