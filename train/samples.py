"""The samples of a run: those of its folders, or synthetic cells."""

from dataclasses import replace

from . import data, synthetic
from .config import TrainConfig
from .data import Sample
from .weight_map import border_weights, objects_of


def load(config: TrainConfig) -> list[Sample]:
    """Every sample, with the map of border weights where the loss asks for it."""
    return [_weighted(config, sample) for sample in _read(config)]


def _read(config: TrainConfig) -> list[Sample]:
    if config.data.images is not None:
        return data.read_samples(
            config.data,
            net=config.net,
            preprocessing=config.preprocessing,
            ignore_index=config.loss.ignore_index,
        )
    pairs = [synthetic.cells(config.seed * 100_000 + i) for i in range(config.data.synthetic)]
    return [
        data.make_sample(f"synthetic {i}", image, mask, config.net, config.preprocessing)
        for i, (image, mask) in enumerate(pairs)
    ]


def _weighted(config: TrainConfig, sample: Sample) -> Sample:
    if not config.loss.border_w0:
        return sample
    objects = sample.objects
    if objects is None:
        objects = objects_of(sample.mask, ignore_index=config.loss.ignore_index)
    weight = border_weights(objects, w0=config.loss.border_w0, sigma_px=config.loss.border_sigma_px)
    return replace(sample, weight=weight)
