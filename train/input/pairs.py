"""Images with their masks, by the names of their files; nothing is decoded."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import unet_image
from unet_image import Page
from unet_spec import InputError
from unet_spec.errors import ConfigError
from unet_spec.wording import list_names

from ..config import DataConfig
from .mask_names import Affixes, Match, Rule, halve_names, match_names, part_names

MAX_NAMES = 5  # names in a sentence
THREADS = 8  # that measure files
PREDICTED_MASK, OVERLAY = "_mask.png", "_overlay.png"  # what `unet predict` writes side by side


@dataclass(frozen=True)
class Pair:
    """A `Pair` is an image and its mask, in their files.

    Attributes:
        name: of the image's file, with the number of the page in a stack; another pair has another
            one. With `data.validation_images` those of that folder begin with `validation/`.
        core: what the names of image and mask have in common, without the suffix.
        held_out: whether the image is held out, where the folders say it; None otherwise.
    """

    name: str
    image: Page
    mask: Page
    core: str
    held_out: bool | None = None


@dataclass(frozen=True)
class Pairing:
    """A `Pairing` holds all pairs of a data set, and says by which names they belong together.

    Attributes:
        sentence: such as "masks: NAME_mask.png for NAME.png (40 pairs)".
    """

    pairs: list[Pair]
    sentence: str


@dataclass(frozen=True)
class _Files:
    """A `_Files` holds the paths of images and masks of one side of the split, in their order.

    Attributes:
        paths: (image, mask, core) of each.
        names: how masks and images are named, in words.
    """

    paths: list[tuple[Path, Path, str]]
    names: str


def list_pairs(data: DataConfig) -> Pairing:
    """List every image with its mask; those of `data.validation_images` come last.

    A mask has the name of its image, or one beginning and one ending on either side differ, which
    all names of that side share (`mask_names`). Of two stacks, masks are the same pages.

    Raises:
        InputError: an image without a mask or the reverse, names that fit in several ways, other
            shapes, a file that is no image.
    """
    if data.images is None or data.masks is None:
        raise ConfigError(data, "{images} and {masks} say what is read; give both")
    sides = {"": _match_files(data.images, data.masks)}
    if data.validation_images is not None and data.validation_masks is not None:
        sides["validation/"] = _match_files(data.validation_images, data.validation_masks)
        _refuse_same_files(data, *sides.values())
    pages = _measure_files(
        (path for files in sides.values() for one in files.paths for path in one[:2]),
        largest_gb=data.largest_gb,
    )
    pairs, sentences = [], []
    for prefix, files in sides.items():
        held_out = bool(prefix) if len(sides) > 1 else None
        here = [
            Pair(f"{prefix}{image.name}", image, mask, core, held_out)
            for image_path, mask_path, core in files.paths
            for image, mask in _pair_pages(image_path, mask_path, pages)
        ]
        pairs += here
        count = f"{len(here)} pair{'s' if len(here) > 1 else ''}"
        sentences.append(f"{'held out: ' if prefix else ''}{files.names} ({count})")
    return Pairing(pairs, f"masks: {'; '.join(sentences)}")


def _match_files(images: Path, masks: Path) -> _Files:
    """Match image files with mask files: two files, or those of two folders by their names.

    Raises:
        InputError: no such file, a file without its other half, names that fit in several ways.
    """
    if all(path.is_file() or unet_image.is_store(path) for path in (images, masks)):
        if images.samefile(masks):
            raise InputError(f"{images}: it cannot be the images and the masks; name two files")
        core = unicodedata.normalize("NFC", images.stem)
        return _Files([(images, masks, core)], f"{masks.name} for {images.name}")
    image_paths, mask_paths = _list_files(images), _list_files(masks)
    if os.path.realpath(_find_folder(images)) == os.path.realpath(_find_folder(masks)):
        image_paths, mask_paths = _tell_apart(image_paths, mask_paths, _find_folder(images))
    images_by_stem, masks_by_stem = _index_by_stem(image_paths), _index_by_stem(mask_paths)
    match = match_names(list(images_by_stem), list(masks_by_stem))
    if not match.is_whole:
        if match.rivals:
            if match.images:
                _refuse_rival_images(match, images_by_stem, masks_by_stem, _find_folder(images))
            _refuse_rival_masks(match, images_by_stem, masks_by_stem, _find_folder(masks))
        _refuse_lonely_images(match, images_by_stem, masks)
        _refuse_lonely_masks(match, masks_by_stem, images)
    paths = [
        (path, masks_by_stem[match.masks[stem]], match.cores[stem])
        for stem, path in images_by_stem.items()
    ]
    return _Files(paths, _describe_rule(match.rule, image_paths, mask_paths))


def _list_files(where: Path) -> list[Path]:
    """List the image files of a folder, or those of a pattern such as `FOLDER/*/*_mask.png`.

    The overlays that `unet predict` writes beside its masks are for people, and left out.

    Raises:
        InputError: there is none.
    """
    if "*" not in str(where) or where.exists():
        return _list_folder(where)
    fixed, folders = _find_folders(where.parent)
    paths = []
    for folder in folders:
        try:
            paths += _list_folder(folder)
        except InputError:
            if folders == [where.parent]:  # of several, some may hold no image
                raise
    paths = [path for path in paths if fnmatchcase(path.name, where.name)]
    if not paths:
        raise InputError(f"{where}: no image in {fixed} has such a name")
    return paths


def _find_folders(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the part of a pattern before its first `*`, and the folders that fit it, sorted.

    Raises:
        InputError: there is no such part.
    """
    count = next((i for i, part in enumerate(pattern.parts) if "*" in part), None)
    if count is None:
        return pattern, [pattern]
    fixed = Path(*pattern.parts[:count])
    if not fixed.is_dir():
        raise InputError(f"{fixed}: there is no such folder")
    found = fixed.glob(str(Path(*pattern.parts[count:])))
    return fixed, sorted(path for path in found if path.is_dir())


def _list_folder(folder: Path) -> list[Path]:
    """List the image files of a folder but for overlays.

    Raises:
        InputError: there is none.
    """
    try:
        paths = unet_image.list_images(folder)
    except InputError:
        _refuse_folders_of_images(folder)
        raise
    names = {path.name for path in paths}
    return [path for path in paths if not _is_overlay(path, names)]


def _is_overlay(path: Path, names: set[str]) -> bool:
    """Return whether a file is an overlay of `unet predict`, whose mask lies beside it."""
    return path.name.endswith(OVERLAY) and path.name.removesuffix(OVERLAY) + PREDICTED_MASK in names


def _refuse_folders_of_images(folder: Path) -> None:
    """Refuse a folder whose images all lie in folders inside it.

    Raises:
        InputError: it names one of the images.
    """
    if not folder.is_dir():
        return
    for path in folder.rglob("*"):
        if path.suffix.lower() in unet_image.SUFFIXES and path.is_file():
            inside = path.relative_to(folder).parent.parts
            pattern = folder.joinpath(*"*" * len(inside), f"*{path.suffix}")
            raise InputError(
                f"{folder}: its images lie in folders inside it, such as {path}; if their names "
                f"differ, name them by a pattern, such as '{pattern}', or put all images into one "
                "folder, and one mask for each of them into another"
            ) from None


def _find_folder(where: Path) -> Path:
    """Return the folder of the files that a path or pattern names."""
    return where if where.is_dir() else where.parent


def _tell_apart(
    images: list[Path], masks: list[Path], folder: Path
) -> tuple[list[Path], list[Path]]:
    """Tell the images in a folder from the masks in it.

    A pattern for either says it. Otherwise masks have the name of their image with one affix.

    Raises:
        InputError: names do not tell them apart.
    """
    if set(images) > set(masks):
        return [path for path in images if path not in set(masks)], masks
    if set(masks) > set(images):
        return images, [path for path in masks if path not in set(images)]
    if set(images) != set(masks):
        if both := [path for path in images if path in set(masks)]:
            raise InputError(f"{both[0]}: both patterns fit it; give patterns that part the files")
        return images, masks
    stems = _index_by_stem(images)
    affixes = part_names(list(stems))
    if len(affixes) != 1:
        several = " or ".join(f"{one.wrap('NAME')} for NAME" for one in affixes[:MAX_NAMES])
        reason = f"masks may be {several}" if affixes else "no one ending or beginning marks masks"
        halves = halve_names(list(stems))
        remedy = "put the images and the masks into folders of their own"
        if len(images) == 2:
            remedy = f"name the two files: '{images[0]}' for one, '{images[1]}' for the other"
        elif halves:
            image, mask = (_make_pattern(folder, affix, images) for affix in halves)
            remedy = f"say which are which by patterns: '{image}' for one, '{mask}' for the other"
        raise InputError(f"{folder}: images and masks lie together, and {reason}; {remedy}")
    is_mask = {stem: affixes[0].strip(stem) in stems for stem in stems}
    return (
        [path for stem, path in stems.items() if not is_mask[stem]],
        [path for stem, path in stems.items() if is_mask[stem]],
    )


def _index_by_stem(paths: list[Path]) -> dict[str, Path]:
    """Return paths by their names without suffix, in the Unicode form NFC.

    Raises:
        InputError: two paths of the same stem.
    """
    by_stem: dict[str, Path] = {}
    for path in paths:
        stem = unicodedata.normalize("NFC", path.stem)
        if stem in by_stem:
            raise InputError(f"{path}: {by_stem[stem]} has the same name; rename one")
        by_stem[stem] = path
    return by_stem


def _refuse_rival_images(
    match: Match, images: dict[str, Path], masks: dict[str, Path], folder: Path
) -> None:
    """Refuse a mask with several images by several rules, each of which leaves out other images.

    Raises:
        InputError: it names the mask and these images.
    """
    mask = next(iter(match.masks.values()))
    rivals = {
        images[name]: one.rule.image
        for one in [match, *match.rivals]
        for name, its_mask in one.masks.items()
        if its_mask == mask
    }
    raise InputError(f"{masks[mask]}: its image {_describe_rivals(rivals, folder)}")


def _refuse_rival_masks(
    match: Match, images: dict[str, Path], masks: dict[str, Path], folder: Path
) -> None:
    """Refuse an image with several masks by several rules, each of which leaves out other masks.

    Raises:
        InputError: it names the image and these masks.
    """
    image = next(iter(match.masks))
    rivals = {masks[one.masks[image]]: one.rule.mask for one in [match, *match.rivals]}
    raise InputError(f"{images[image]}: its mask {_describe_rivals(rivals, folder)}")


def _describe_rivals(rivals: dict[Path, Affixes], folder: Path) -> str:
    """Return in words which files are meant perhaps, and by which pattern one of them is."""
    names = [path.name for path in rivals]
    patterns = [_make_pattern(folder, affixes, [path]) for path, affixes in rivals.items()]
    fits = [sum(fnmatchcase(name, pattern.name) for name in names) == 1 for pattern in patterns]
    remedy = " or ".join(
        ["put those that are meant into a folder of their own"] * (not all(fits))
        + [
            f"say which by a pattern in place of the folder, such as '{pattern}'"
            for pattern, fit in zip(patterns, fits, strict=True)
            if fit
        ][:1]
    )
    return f"may be each of {list_names(names, MAX_NAMES)}; {remedy}"


def _make_pattern(folder: Path, affixes: Affixes, paths: Sequence[Path]) -> Path:
    """Return the pattern of files with these affixes."""
    suffixes = {path.suffix for path in paths}
    return folder / f"{affixes.wrap('*')}{suffixes.pop() if len(suffixes) == 1 else '.*'}"


def _refuse_lonely_images(match: Match, images: dict[str, Path], masks: Path) -> None:
    """Refuse images that have no mask.

    Raises:
        InputError: it names the first, says how many more there are and which rule was tried.
    """
    if match.images:
        first = match.images[0]
        core = match.rule.image.strip(first)
        name = first if core is None else match.rule.mask.wrap(core)
        raise InputError(
            f"{images[first]}: no mask named {name}.* in {masks}{_count_more(match.images)}; every "
            f"image needs one, {_describe_try(match)}"
        )


def _refuse_lonely_masks(match: Match, masks: dict[str, Path], images: Path) -> None:
    """Refuse masks that have no image.

    Raises:
        InputError: it names the first, says how many more there are and which rule was tried.
    """
    if match.other_masks:
        first = match.other_masks[0]
        core = match.rule.mask.strip(first)
        name = first if core is None else match.rule.image.wrap(core)
        raise InputError(
            f"{masks[first]}: no image named {name}.* in {images}{_count_more(match.other_masks)}; "
            f"every mask needs one, {_describe_try(match)}"
        )


def _count_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def _describe_try(match: Match) -> str:
    """Return in words by which rule files have their other half, or may have it."""
    if not match.masks:
        return (
            "of the same name, but for a beginning and an ending that all masks or all images share"
        )
    image, mask = match.rule.image.wrap("NAME"), match.rule.mask.wrap("NAME")
    count = f"{len(match.masks)} pair{'s' if len(match.masks) > 1 else ''}"
    return f"{mask}.* for {image}.* as in {count}"


def _describe_rule(rule: Rule, images: Sequence[Path], masks: Sequence[Path]) -> str:
    """Return how the files of masks and of images are named, in words."""
    mask, image = _describe_side(rule.mask, masks), _describe_side(rule.image, images)
    return f"{mask} for {image}{', in letters of either case' if rule.folds_case else ''}"


def _describe_side(affixes: Affixes, paths: Sequence[Path]) -> str:
    """Return how the files of one side are named, such as NAME_mask.png."""
    suffixes = {path.suffix for path in paths}
    return affixes.wrap("NAME") + (suffixes.pop() if len(suffixes) == 1 else ".*")


def _refuse_same_files(data: DataConfig, training: _Files, validation: _Files) -> None:
    """Refuse images that are to train on and held out.

    Raises:
        ConfigError: it names the first.
    """
    ours = {os.path.realpath(image) for image, _, _ in training.paths}
    both = [image for image, _, _ in validation.paths if os.path.realpath(image) in ours]
    if both:
        raise ConfigError(
            data,
            "{path}: it is among {images} and among {validation_images}; take it out of one",
            path=both[0],
        )


def _measure_files(paths: Iterable[Path], *, largest_gb: float) -> dict[Path, list[Page]]:
    """Measure each file once, several at the same time.

    Raises:
        InputError: the first file, in their order, that is no image.
    """
    files = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        measure = partial(unet_image.measure_pages, largest_gb=largest_gb)
        return dict(zip(files, pool.map(measure, files), strict=True))


def _pair_pages(
    image_path: Path, mask_path: Path, pages: dict[Path, list[Page]]
) -> list[tuple[Page, Page]]:
    """Return each page of an image file with that of its mask file.

    Raises:
        InputError: another number of pages, or another shape.
    """
    images, masks = pages[image_path], pages[mask_path]
    if len(images) != len(masks):
        raise InputError(
            f"{mask_path}: {len(masks)} pages for the {len(images)} of {image_path}; "
            "a stack needs one mask for each image"
        )
    for image, mask in zip(images, masks, strict=True):
        if mask.shape[:2] != image.shape[:2]:
            turned = ", after it was turned by the orientation that it names in EXIF or a tag"
            raise InputError(
                f"{mask.place}: the mask is {mask.shape[:2]} and its image {image_path} is "
                f"{image.shape[:2]} (height, width){turned if image.is_turned else ''}; "
                "they must be the same"
            )
    return list(zip(images, masks, strict=True))
