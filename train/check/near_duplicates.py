"""Near-duplicates: images that look like one to train on, in any of eight orientations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BLOCKS = 16  # along each side of what images are compared by
# over 85 images of nuclei and 96 of synthetic cells, unrelated pairs reach 0.57; copies that are
# brighter, noisier, half as large or smeared as JPEG keep 0.957 or more
MIN_CORRELATION = 0.9
# onto polynomials of degree 4: P @ image @ P is the lamp's part of an image of BLOCKS x BLOCKS
_DEGREE_4 = np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, BLOCKS), 4))[0]
_LAMP = _DEGREE_4 @ _DEGREE_4.T


@dataclass(frozen=True)
class NearDuplicate:
    """A `NearDuplicate` is an image that looks like one to train on.

    Attributes:
        like: name of the image to train on, which may be turned or mirrored.
        correlation: of the two fingerprints, above `MIN_CORRELATION` and at most 1.
        held_out: whether the image is held out; otherwise it is to train on as well.
    """

    name: str
    like: str
    correlation: float
    held_out: bool


def find_near_duplicates(
    names: Sequence[str], fingerprints: np.ndarray, *, training: int
) -> list[NearDuplicate]:
    """Find images that look like an earlier one to train on, in any of eight orientations.

    Each is paired with the image that it looks like most; the most alike pair comes first.

    Args:
        fingerprints: (images, BLOCKS, BLOCKS), of `compute_fingerprint`.
        training: number of images to train on, which come first.
    """
    count = len(names)
    orientations = []
    for side in (fingerprints, fingerprints[..., ::-1]):
        for turns in range(4):
            turned = np.rot90(side, turns, axes=(1, 2))
            orientations.append(turned.reshape(count, -1))
    best, like = np.full(count, MIN_CORRELATION), np.zeros(count, int)
    for start in range(0, training, 256):  # in parts: all pairs at once may not fit
        rows = orientations[0][start : min(start + 256, training)]
        correlations = np.max([rows @ other.T for other in orientations], axis=0)
        # an image is compared with those before it, so of a pair only the later one is listed
        earlier = np.triu(correlations, k=start + 1)
        better = earlier.max(axis=0) > best
        best[better] = earlier.max(axis=0)[better]
        like[better] = start + earlier.argmax(axis=0)[better]
    pairs = []
    for i in np.flatnonzero(best > MIN_CORRELATION).tolist():
        held_out = i >= training
        pairs.append(NearDuplicate(names[i], names[int(like[i])], float(best[i]), held_out))
    return sorted(pairs, key=lambda pair: -pair.correlation)


def compute_fingerprint(x: np.ndarray) -> np.ndarray:
    """Return the means of an image over blocks, (BLOCKS, BLOCKS), of length 1 as a vector.

    A polynomial of degree 4 along each axis is subtracted: without that the lamp, brighter in the
    middle, made unrelated images with few cells alike (up to 0.998).
    """
    rows, columns = (np.linspace(0, size, BLOCKS + 1).astype(int) for size in x.shape[:2])
    blocks = [x[start : max(start + 1, end)] for start, end in pairwise(rows)]
    # block by block, because the mean over channels takes 8 bytes a pixel
    means = np.stack([block.mean(axis=-1, dtype=np.float64).mean(axis=0) for block in blocks])
    means = np.add.reduceat(means, columns[:-1], axis=1) / np.maximum(1, np.diff(columns))
    rest = means - _LAMP @ means @ _LAMP
    # what is left of an image without structure is rounding
    length = np.linalg.norm(rest)
    if length <= 1e-6 * np.abs(means).max():
        return np.zeros_like(rest, np.float32)
    return (rest / length).astype(np.float32)
