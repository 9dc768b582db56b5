"""Which images a run trains on, and which it holds out."""

from collections.abc import Sequence

import numpy as np

from unet_spec import InputError

from .samples import Sample


def split_samples(
    samples: Sequence[Sample], *, holdout: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): a random part is held out, at least one image on either side."""
    if len(samples) < 2:
        raise InputError(f"{len(samples)} image is too few: one to train and one to validate")
    order = np.random.default_rng(seed).permutation(len(samples))
    held = min(max(1, round(holdout * len(samples))), len(samples) - 1)
    return [samples[i] for i in sorted(order[held:])], [samples[i] for i in sorted(order[:held])]
