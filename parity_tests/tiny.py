"""A run of seconds, and what its tests need."""

from dataclasses import replace

from rich.console import Console

from unet_spec import UNetConfig
from unet_spec.recipe import Schedule
from unet_train.config import CELLS, AugmentConfig, DataConfig, LossConfig, MeshConfig, TrainConfig
from unet_train.input.dataset import open_dataset
from unet_train.input.masks import check_settings
from unet_train.input.pairs import list_pairs
from unet_train.input.samples import InFiles
from unet_train.report.progress import Progress
from unet_train.run import beginning
from unet_train.run import folder as run_folder

TINY = TrainConfig(
    net=UNetConfig(widths=(4, 6), norm="batch", dropout=0.2),
    data=DataConfig(batch=2, crop_px=32, synthetic=4),
    augment=AugmentConfig(rotation_deg=10, elastic_px=2, noise=0.1),
    loss=LossConfig(dice=0.5),
    mesh=MeshConfig(data=1),
    schedule=Schedule("cosine"),
    steps=6,
    validate_every=3,
    checkpoint_every=2,
    ema=0.9,
)


# what `unet train cells` gives with the data of TINY
FLAGS = replace(CELLS, data=TINY.data, mesh=TINY.mesh, ema=TINY.ema)


SHOWN = open_dataset(TINY)


def read_all(config):
    """The samples of all images of a config, in the order of the folder."""
    check_settings(config.data, config.net)
    return [InFiles(pair, config).load() for pair in list_pairs(config.data).pairs]


def quiet():
    return Progress(Console(quiet=True))


def begin(out, config, settings=(), dataset=SHOWN):
    """A run of the samples of TINY that was killed before its first checkpoint."""
    out.mkdir(exist_ok=True)
    started = beginning.describe_start(settings, None)
    run_folder.write_beginning(out, config, dataset=dataset, started=started)
