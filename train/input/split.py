"""Which images a run trains on, and which it holds out."""

from collections.abc import Sequence

import numpy as np

from unet_spec import InputError

from .samples import Sample


def split_samples(
    samples: Sequence[Sample], *, holdout: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those to train on and those to validate with.

    A random part is held out. Either side has at least one image.

    Raises:
        InputError: fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(f"{len(samples)} image is too few: one to train and one to validate")
    order = np.random.default_rng(seed).permutation(len(samples))
    held_out = min(max(1, round(holdout * len(samples))), len(samples) - 1)
    training = [samples[i] for i in sorted(order[held_out:])]
    validation = [samples[i] for i in sorted(order[:held_out])]
    return training, validation
