"""Which images a run trains on, and which it holds out."""

from collections.abc import Sequence

import numpy as np

from unet_spec import InputError

from ..config import DataConfig
from .pairs import Pair


def split(pairs: Sequence[Pair], data: DataConfig, *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those to train on and those to validate with.

    Raises:
        InputError: fewer than two.
    """
    training, validation = draw_split(len(pairs), holdout=data.holdout, seed=seed)
    return [pairs[i] for i in training], [pairs[i] for i in validation]


def draw_split(count: int, *, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Draw which of so many images are to train on, and which are held out.

    Either side has at least one image.

    Raises:
        InputError: fewer than two.
    """
    if count < 2:
        raise InputError(f"{count} image is too few: one to train and one to validate")
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(max(1, round(holdout * count)), count - 1)
    return sorted(map(int, order[held_out:])), sorted(map(int, order[:held_out]))
