"""The samples of a run, on both sides of its split, and which files they are."""

import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_image import TooLargeError, check_channels
from unet_spec.errors import ConfigError

from ..config import DataConfig, TrainConfig
from .identity import Identity, identify
from .masks import check_settings
from .pairs import Pair, Pairing, list_pairs
from .samples import Drawn, InFiles, Samples, make_room
from .split import draw_split, split

Identities = Mapping[str, Identity]

READERS = 8  # threads; the files may be on a server


@dataclass(frozen=True)
class Dataset:
    """A `Dataset` is what a run trains on and what it holds out; nothing is decoded yet.

    Attributes:
        identities: of the files, by the folder's role and the file's name, such as `masks/a.png`;
            of synthetic cells there are none.
        matched: by which names masks were found, in words.
    """

    training: Samples
    validation: Samples
    identities: Identities = field(default_factory=dict)
    matched: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return which images are where, and which files they are, as JSON values."""
        files = {name: dataclasses.asdict(one) for name, one in self.identities.items()}
        names = {"training": self.training.names, "validation": self.validation.names}
        return {**names, "files": files}


def open_dataset(
    config: TrainConfig, known: Identities = {}, *, needs_validation: bool = True
) -> Dataset:
    """List, measure and split the images of a config; they are decoded when they are needed.

    Args:
        known: identities that the files had in an earlier command of the run.
        needs_validation: something has to be held out; otherwise one image alone is enough.

    Raises:
        InputError: as in `list_pairs` and `split`; settings that do not fit the net.
    """
    room = make_room(config)
    if config.data.images is None:
        drawn = [Drawn(number, config) for number in range(config.data.synthetic)]
        if len(drawn) == 1 and not needs_validation:
            return Dataset(Samples(drawn, room), Samples([], room))
        names = [source.name for source in drawn]
        sides = draw_split(names, holdout=config.data.holdout, seed=config.seed)
        training, validation = (Samples([drawn[i] for i in side], room) for side in sides)
        return Dataset(training, validation)
    check_settings(config.data, config.net)
    pairing = _list_pairs(config)
    identities = _identify_files(pairing.pairs, known)
    if len(pairing.pairs) == 1 and not needs_validation:
        pairs_of_sides: tuple[list[Pair], list[Pair]] = (pairing.pairs, [])
    else:
        pairs_of_sides = split(pairing.pairs, data=config.data, seed=config.seed)
    training, validation = (
        Samples([InFiles(pair, config) for pair in side], room) for side in pairs_of_sides
    )
    return Dataset(training, validation, identities, pairing.sentence)


def _list_pairs(config: TrainConfig) -> Pairing:
    """List the pairs of a config, and refuse images that its net cannot take."""
    channels, preprocessing = config.net.in_channels, config.preprocessing
    try:
        pairing = list_pairs(config.data)
        for pair in pairing.pairs:
            check_channels(pair.image, channels=channels, preprocessing=preprocessing)
    except TooLargeError as error:
        raise ConfigError(
            DataConfig,
            f"{{refusal}}, or let it take more memory by {{largest_gb={error.needed_gb}}}",
            refusal=error,
        ) from error
    return pairing


def _identify_files(pairs: Iterable[Pair], known: Identities) -> dict[str, Identity]:
    """Return the identity of each file."""
    paths: dict[str, Path] = {}
    for pair in pairs:
        image, mask = _name_files(pair)
        paths[image], paths[mask] = pair.image.path, pair.mask.path
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(identify, paths.values(), map(known.get, paths))
        return dict(zip(paths, found, strict=True))


def _name_files(pair: Pair) -> tuple[str, str]:
    """Return the names of the files of a pair, without the folders, which may move."""
    side = pair.name.removesuffix(pair.image.name)  # `validation/` for folders of one's own
    return f"{side}images/{pair.image.path.name}", f"{side}masks/{pair.mask.path.name}"
