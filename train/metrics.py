"""Everything that is counted comes from one confusion matrix."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def confusion(predicted: ArrayLike, truth: ArrayLike, *, classes: int) -> Array:
    """(classes, classes) numbers of pixels: rows are the truth, columns the prediction."""
    truth_hot = jnp.asarray(truth).reshape(-1, 1) == jnp.arange(classes)
    predicted_hot = jnp.asarray(predicted).reshape(-1, 1) == jnp.arange(classes)
    return truth_hot.astype(jnp.float32).T @ predicted_hot.astype(jnp.float32)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; 1 for a class that is neither there nor found."""
    both = np.diag(matrix).astype(np.float64)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def foreground_iou(matrix: np.ndarray) -> float:
    """Mean IoU of the classes other than 0, the background."""
    return float(iou(np.asarray(matrix))[1:].mean())
