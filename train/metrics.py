"""Everything that counts pixels comes from one confusion matrix; the Rand score counts pairs.

A score over nothing does not exist. It is NaN here, None in results and null in JSON; it stays out
of every mean, and it is neither good nor bad.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def confusion(
    predicted: ArrayLike, truth: ArrayLike, *, classes: int, ignore_index: int | None = None
) -> Array:
    """Return (classes, classes) numbers of pixels: rows are the truth, columns the prediction.

    Pixels whose truth is `ignore_index`, or no class, do not count.
    """
    counted = jnp.arange(classes) if ignore_index is None else _without_class(ignore_index, classes)
    truth_hot = (jnp.asarray(truth)[..., None] == counted).astype(jnp.float32)
    predicted_hot = (jnp.asarray(predicted)[..., None] == jnp.arange(classes)).astype(jnp.float32)
    # not flattened first: a mask whose rows are spread over devices would be put together; and
    # float32 counts the pixels of a row, but not those of 5000 x 5000
    rows = jnp.einsum("...wi,...wj->...ij", truth_hot, predicted_hot)
    return rows.astype(jnp.int32).sum(tuple(range(rows.ndim - 2)), dtype=jnp.int32)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class.

    It is NaN for a class that is neither there nor found.
    """
    both = np.diag(matrix).astype(np.float64)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def foreground_iou(matrix: np.ndarray) -> float:
    """Return the mean IoU of the classes that are there or found, without 0, the background.

    It is NaN if there is no such class.
    """
    return mean_score(iou(np.asarray(matrix))[1:])


def dice(matrix: np.ndarray) -> np.ndarray:
    """Return the Dice score (F1) of each class; NaN for one that is neither there nor found."""
    both = np.diag(matrix).astype(np.float64)
    total = matrix.sum(0, dtype=np.float64) + matrix.sum(1, dtype=np.float64)
    return np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan)


def foreground_dice(matrix: np.ndarray) -> float:
    """Return the mean Dice score of the classes that are there or found, without 0.

    It is NaN if there is no such class.
    """
    return mean_score(dice(np.asarray(matrix))[1:])


def pixel_error(matrix: np.ndarray) -> float:
    """Return the part of the pixels whose class is wrong; NaN where there are no pixels."""
    total = matrix.sum(dtype=np.float64)
    return float(1 - np.diag(matrix).sum(dtype=np.float64) / total) if total else math.nan


def rand_score(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the foreground-restricted Rand score after border thinning (EM challenge, 2012).

    With p_ij the part of the true foreground in object i of the truth and in segment j of the
    prediction, V = sum p_ij^2 / (0.5 sum_i (sum_j p_ij)^2 + 0.5 sum_j (sum_i p_ij)^2): of the
    pairs of pixels that truth or prediction puts together, the part that both do. 1 is perfect. It
    is NaN where the truth has no object. A pixel of a border that is left after thinning is a
    segment of its own. Arganda-Carreras et al., Crowdsourcing the creation of image segmentation
    algorithms for connectomics, Frontiers in Neuroanatomy 9:142, 2015.

    Args:
        predicted: (h, w) bool, the foreground.
        truth: (h, w) numbers of objects, 0 the background.
    """
    inside = truth > 0
    if not inside.any():
        return math.nan
    objects, segments = truth[inside].astype(np.int64), label_segments(predicted)[inside]
    on_border = segments == 0  # after thinning: each of these pixels is a segment of its own
    segments[on_border] = segments.max() + 1 + np.arange(on_border.sum())
    # one number for each pair of an object and a segment
    both = objects * (segments.max() + 1) + segments
    return _count_pairs(both) / (0.5 * _count_pairs(objects) + 0.5 * _count_pairs(segments))


def mean_score(scores: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the scores that exist, which are not NaN; NaN if none does."""
    values = np.asarray(scores, np.float64)
    exists = ~np.isnan(values)
    return float(values[exists].mean()) if exists.any() else math.nan


def as_result(score: float) -> float | None:
    """Return a score as results hold it: None in place of NaN, which JSON does not have."""
    return None if math.isnan(score) else float(score)


def format_score(score: float | None) -> str:
    """Return the score of a result with three digits, or n/a if it does not exist."""
    return "n/a" if score is None else f"{score:.3f}"


def label_segments(foreground: np.ndarray) -> np.ndarray:
    """Number the parts of a foreground (h, w), grown until one pixel of border lies between.

    Parts hang together by the edges of pixels. Background joins the nearest part, so that the
    width of borders does not matter; what is left, 0, is one pixel wide. The challenge's script
    floods instead (watershed), which differs where a pixel is about as near to two parts.
    """
    from scipy import ndimage  # not before the first validation: it is slow to import

    parts, count = ndimage.label(foreground)
    if count == 0:
        return parts.astype(np.int64)
    # the row and the column of the pixel of a part that is nearest to each pixel
    nearest = ndimage.distance_transform_edt(
        parts == 0, return_distances=False, return_indices=True
    )
    grown = parts[tuple(nearest)].astype(np.int64)
    return np.where((parts == 0) & _borders(grown, parts), 0, grown)


def _without_class(ignored: int, classes: int) -> Array:
    """Return the classes in their order, with a value that no mask holds for the ignored one."""
    every = jnp.arange(classes)
    return jnp.where(every == ignored, -1, every)


def _borders(grown: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mark of two unlike neighbours the upper or left one, or the other if that is foreground."""
    border = np.zeros(grown.shape, bool)
    for axis in (0, 1):
        first, last = (np.swapaxes(a, 0, axis) for a in (grown[...], parts[...]))
        differs = first[:-1] != first[1:]
        sides = np.swapaxes(border, 0, axis)
        sides[:-1] |= differs
        sides[1:] |= differs & (last[:-1] > 0)
    return border


def _count_pairs(numbers: np.ndarray) -> float:
    """Count the ordered pairs of places that hold the same number, each with itself as well."""
    return float((np.unique(numbers, return_counts=True)[1].astype(np.float64) ** 2).sum())
