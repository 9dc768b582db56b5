"""Which images a run trains on, and which it holds out."""

import re
import signal
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unet_spec import InputError
from unet_spec.errors import ConfigError, FieldError
from unet_spec.plain_json import read_json
from unet_spec.wording import list_names

from ..config import DataConfig
from .pairs import Pair

MAX_NAMES = 5  # names in a sentence
SEARCH_S = 3.0  # for the groups of all names
MOST_BYTES = 1 << 26  # of a split file: names of a million images
SIDES = ("training", "validation")
OTHER_NAMES = {"train": "training", "val": "validation"}  # of the sides, in nnU-Net's files

Indices = list[int]


def split(pairs: Sequence[Pair], *, data: DataConfig, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those to train on and those to validate with, each in its order.

    The folders say it, or the file `data.split`; otherwise it is drawn, with all pages of a file on
    one side where there are several files, and all images of a group.

    Raises:
        InputError: a file that does not fit the images, a name without a group, or nothing on one
            side.
    """
    held_out = [pair.held_out for pair in pairs]
    if data.split is not None:
        held_out = read_split(data.split, pairs)
    if any(flag is None for flag in held_out):
        sides = draw_split(list_groups(pairs, data), holdout=data.holdout, seed=seed)
        training, validation = ([pairs[i] for i in side] for side in sides)
        return training, validation
    training = [pair for pair, flag in zip(pairs, held_out, strict=True) if not flag]
    validation = [pair for pair, flag in zip(pairs, held_out, strict=True) if flag]
    return training, validation


def draw_split(groups: Sequence[str], *, holdout: float, seed: int) -> tuple[Indices, Indices]:
    """Draw which images are held out: about a part of them, and never a part of a group.

    Groups come in a random order. One is held out where that brings the number of held-out images
    closer to the part. Either side gets at least one group.

    Args:
        groups: the group of each image; images of other groups may be parted.
        holdout: the part.

    Returns:
        indices to train on and to validate with, ascending.

    Raises:
        InputError: fewer than two groups.
    """
    names = list(dict.fromkeys(groups))
    count = len(groups)
    if count < 2:
        raise ConfigError(
            DataConfig,
            "{count} image is too few: one to train on and one to hold out; give more, name the "
            "held-out ones by {validation_images} and {validation_masks}, or try one alone with "
            "--overfit",
            count=count,
        )
    if len(names) < 2:
        raise InputError(
            f"all {count} images are of one group, {names[0]}; one to train on and one to hold out "
            "are needed"
        )
    sizes = dict.fromkeys(names, 0)
    for name in groups:
        sizes[name] += 1
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    wanted = min(max(1, round(holdout * count)), count - 1)
    held_out: set[str] = set()
    images = 0
    for name in order:
        is_closer = abs(images + sizes[name] - wanted) < abs(images - wanted)
        if is_closer and len(held_out) < len(names) - 1:
            held_out.add(name)
            images += sizes[name]
    if not held_out:  # every group alone is far too large
        held_out.add(min(order, key=sizes.__getitem__))
    training = [i for i, name in enumerate(groups) if name not in held_out]
    validation = [i for i, name in enumerate(groups) if name in held_out]
    return training, validation


def list_groups(pairs: Sequence[Pair], data: DataConfig) -> list[str]:
    """Return the group of each pair.

    It is what `data.groups` matches in the name of the file without its suffix: the first group of
    the expression, or all of the match where it has none. Without an expression it is the file, and
    the page where there is one file alone.

    Raises:
        InputError: names that do not match, or only with nothing.
    """
    if data.groups is None:
        files = {pair.image.path for pair in pairs}
        return [str(pair.image.path) if len(files) > 1 else pair.name for pair in pairs]
    expression = re.compile(data.groups)
    groups: list[str] = []
    others: list[str] = []
    with _refuse_endless_search(data):
        matches = [expression.search(_stem(pair.image.path)) for pair in pairs]
    for pair, match in zip(pairs, matches, strict=True):
        group = match and match[min(1, expression.groups)]
        if group:
            groups.append(group)
        else:
            others.append(pair.image.path.name)
    if others:
        names = list_names(list(dict.fromkeys(others)), MAX_NAMES)
        raise ConfigError(
            data,
            "{names}: {groups=} finds no group in the name; change the expression so that it fits "
            "every image",
            names=names,
        )
    return groups


@contextmanager
def _refuse_endless_search(data: DataConfig) -> Iterator[None]:
    """Refuse an expression that tries more ways than can be tried, such as '(a+)+$'.

    A signal ends the search, which only the main thread can have.

    Raises:
        FieldError: it was not done with all names after `SEARCH_S`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise FieldError(
            data, "groups", "takes too long on these names", remedy="write it without nested + or *"
        )

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SEARCH_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_split(path: Path, pairs: Sequence[Pair]) -> list[bool | None]:
    """Read from a file which pairs are held out, in their order.

    A `.json` file has the names of images under `training` and `validation`, or under `train` and
    `val`; what else it holds counts nothing. Any other file is a text with the name of a held-out
    image in each line. A name may be without its suffix, or without what only the images' names
    have; that of a stack stands for all its pages. Where no image has such a name, folders before
    it and the case of its letters count nothing.

    Raises:
        InputError: it cannot be read, or names that are no image's, or on both sides; images that
            it does not name; no image on one side.
    """
    sides = _read_names(path)
    index = _index_names(pairs)
    folded = _fold_case(index)
    indices_by_name = {
        name: _find_pairs(name, index, folded) for names in sides.values() for name in names
    }
    unknown = [name for name, indices in indices_by_name.items() if not indices]
    if unknown:
        raise InputError(
            f"{path}: no image is named {list_names(unknown, MAX_NAMES)}; take the names from the "
            "folder of images"
        )
    chosen = {
        side: {i for name in names for i in indices_by_name[name]} for side, names in sides.items()
    }
    every = set(range(len(pairs)))
    if "training" not in chosen:
        chosen["training"] = every - chosen["validation"]
    for problem, indices in (
        ("images on both sides", chosen["training"] & chosen["validation"]),
        ("images on neither side", every - chosen["training"] - chosen["validation"]),
    ):
        if indices:
            names = list_names([pairs[i].name for i in sorted(indices)], MAX_NAMES)
            raise InputError(f"{path}: {problem}: {names}; name each on one side")
    if path.suffix.lower() != ".json" and not chosen["training"]:
        raise InputError(
            f"{path}: it names every image, and the images in a text are held out; leave out those "
            "to train on"
        )
    for side in SIDES:
        if not chosen[side]:
            raise InputError(
                f"{path}: it leaves no image for {side}; both sides need one, and a text names "
                "those that are held out"
            )
    return [i in chosen["validation"] for i in range(len(pairs))]


def _read_names(path: Path) -> dict[str, list[str]]:
    """Return the names in a split file by their side; a text has those of `validation` alone.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: it is no file; name a split file")
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: it is too long for names of images; name a split file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"{path}: cannot be read ({reason}); name a split file") from error
    if path.suffix.lower() != ".json":
        return {"validation": [line.strip() for line in text.splitlines() if line.strip()]}
    try:
        content = read_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); mend the file") from error
    return _read_sides(path, content)


def _read_sides(path: Path, content: Any) -> dict[str, list[str]]:
    """Return the names of both sides from what a JSON file holds.

    Raises:
        InputError: it holds something else, or a side twice.
    """
    if isinstance(content, list) and content and isinstance(content[0], dict):
        raise InputError(
            f"{path}: it holds a list of {len(content)} splits; write one of them into a file of "
            "its own"
        )
    sides: dict[str, list[str]] = {}
    for key, names in content.items() if isinstance(content, dict) else ():
        side = OTHER_NAMES.get(key, key)
        if side not in SIDES:
            continue
        if side in sides:
            raise InputError(f"{path}: it has names for {side} twice; leave one of them out")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: what stands under {key} is not a list of names; mend it")
        sides[side] = names
    if len(sides) < len(SIDES):
        raise InputError(
            f'{path}: it needs names under both keys, {{"training": [...], "validation": [...]}}'
        )
    return sides


def _index_names(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """Return the indices of the pairs that a name in a split file may mean, by that name.

    A whole name counts before one without its suffix, and that before what the mask has too.
    """
    index: dict[str, list[int]] = {}
    for list_aliases in (_list_names, _list_stems, _list_cores):
        level: dict[str, list[int]] = {}
        for i, pair in enumerate(pairs):
            for name in dict.fromkeys(map(_normal, list_aliases(pair))):
                level.setdefault(name, []).append(i)
        index = {**level, **index}
    return index


def _fold_case(index: Mapping[str, Indices]) -> dict[str, Indices]:
    """Return an index without the case of letters; names that then mean several pairs have none."""
    folded: dict[str, Indices] = {}
    for name, indices in index.items():
        if folded.setdefault(name.casefold(), indices) != indices:
            folded[name.casefold()] = []
    return folded


def _find_pairs(name: str, index: Mapping[str, Indices], folded: Mapping[str, Indices]) -> Indices:
    """Return the indices of the pairs that a name in a split file means, or none.

    The name as it stands counts first, then without the folders before it, then in letters of
    either case.
    """
    whole, last = _normal(name), _normal(re.split(r"[/\\]", name)[-1])
    return index.get(whole) or index.get(last) or folded.get(last.casefold(), [])


def _list_names(pair: Pair) -> tuple[str, ...]:
    return pair.name, pair.image.name, pair.image.path.name


def _list_stems(pair: Pair) -> tuple[str, ...]:
    page = pair.image.name.removeprefix(pair.image.path.name)  # such as [3]
    return pair.image.path.stem, f"{pair.image.path.stem}{page}"


def _list_cores(pair: Pair) -> tuple[str, ...]:
    return (pair.core,)


def _stem(path: Path) -> str:
    return _normal(path.stem)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
