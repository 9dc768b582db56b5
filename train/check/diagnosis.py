"""What is in the data of a run, and what seems wrong with it, by the facts of its images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from unet_spec import UNetConfig
from unet_spec.wording import list_names

from ..config import DataConfig
from .image_facts import SPECK_PX, Facts, Values
from .near_duplicates import NearDuplicate, find_near_duplicates

MAX_NAMES = 5  # names in a sentence
SATURATED = 0.05  # part of an image; a few highlights do no harm
RARE = 0.01  # part of the pixels

Level = Literal["note", "warning"]


@dataclass(frozen=True)
class Finding:
    """A `Finding` is one sentence about the data, a warning where a run is likely to go wrong."""

    level: Level
    text: str


@dataclass(frozen=True)
class Size:
    """A `Size` counts the images of one height and width, in pixels."""

    height: int
    width: int
    images: int


@dataclass(frozen=True)
class Share:
    """A `Share` is the part that one class has of the data.

    Attributes:
        pixels: part of the training pixels that count.
        training, validation: numbers of images that have the class.
    """

    name: str
    pixels: float
    training: int
    validation: int


@dataclass(frozen=True)
class Diagnosis:
    """A `Diagnosis` holds what the data are; its lists of strings name images.

    Attributes:
        training, validation: numbers of images.
        examined: number of them that all below is about.
        examined_training: number of these to train on.
        steps_per_epoch: steps until every training image was shown once.
        memory_bytes: size of all samples, decoded.
        sizes: the smallest first.
        kinds: channels that are taken, and their type, with the number of images.
        stored: what masks hold, with the images.
        as_read: values of these channels.
        as_input: values that the net sees.
        saturated_pixels: part of the pixels at the top of 8, 10, 12, 14 or 16 bits.
        saturated: images that have more than `SATURATED` of them.
        ignored_pixels: part of the training pixels that count nothing.
        in_colour: images that lose their colours, because the net takes one channel.
        blank: images of one value.
        specks: images of which most objects are smaller than `SPECK_PX`.
        without_foreground: images of class 0 alone.
        turned: images turned by the orientation that they name, and their masks were not.
        smaller_than_crop: images that are mirrored to fill a crop.
        alike: each image with the one that it looks like most, the most alike first.
    """

    training: int
    validation: int
    examined: int
    examined_training: int
    steps_per_epoch: float
    memory_bytes: int
    sizes: list[Size]
    kinds: dict[str, int]
    stored: dict[str, list[str]]
    as_read: Values
    as_input: Values
    saturated_pixels: float
    saturated: list[str]
    classes: list[Share]
    ignored_pixels: float
    in_colour: list[str]
    blank: list[str]
    specks: list[str]
    without_foreground: list[str]
    smaller_than_crop: list[str]
    turned: list[str]
    alike: list[NearDuplicate]
    findings: list[Finding] = field(default_factory=list)


def diagnose(
    training: Sequence[Facts],
    validation: Sequence[Facts],
    *,
    net: UNetConfig,
    data: DataConfig,
    ignore_index: int | None = None,
    class_names: Sequence[str] = (),
    totals: tuple[int, int] | None = None,
) -> Diagnosis:
    """Return the diagnosis of images by their facts.

    Args:
        totals: numbers of images to train on and to validate with, where these are a part of them.
    """
    facts = [*training, *validation]
    pixels = [one.shape[0] * one.shape[1] for one in facts]
    # (images, 256) numbers of pixels, by image and by value of the mask
    counts = np.stack([one.counts for one in facts])
    ignored = np.zeros_like(counts)
    if ignore_index is not None:
        ignored[:, ignore_index] = counts[:, ignore_index]
    counts = counts - ignored
    kinds = Counter(one.kind for one in facts)
    in_training, held_out = totals or (len(training), len(validation))
    decoded = sum(one.bytes for one in facts)
    diagnosis = Diagnosis(
        training=in_training,
        validation=held_out,
        examined=len(facts),
        examined_training=len(training),
        steps_per_epoch=in_training / data.batch,
        memory_bytes=decoded * (in_training + held_out) // len(facts),
        sizes=_count_sizes(facts),
        kinds=dict(kinds.most_common()),
        stored=_group_by_stored(facts),
        as_read=_sum_up([one.as_read for one in facts]),
        as_input=_sum_up([one.as_input for one in facts]),
        saturated_pixels=float(np.average([one.saturated for one in facts], weights=pixels)),
        saturated=_names_where(facts, [one.saturated > SATURATED for one in facts]),
        classes=_measure_shares(counts[:, : net.mask_classes], len(training), class_names),
        ignored_pixels=float(ignored[: len(training)].sum() / max(1, sum(pixels[: len(training)]))),
        in_colour=_names_where(facts, [net.in_channels == 1 and one.has_colour for one in facts]),
        blank=_names_where(facts, [one.as_read.low == one.as_read.high for one in facts]),
        specks=_names_where(facts, [one.has_specks for one in facts]),
        without_foreground=_names_where(facts, (counts[:, 1:] == 0).all(axis=1)),
        smaller_than_crop=_names_where(facts, [min(one.shape) < data.crop_px for one in facts]),
        turned=_names_where(facts, [one.is_turned for one in facts]),
        alike=find_near_duplicates(
            [one.name for one in facts],
            np.stack([one.fingerprint for one in facts]),
            training=len(training),
        ),
    )
    findings = [
        *_find_bad_images(diagnosis, data),
        *_find_bad_values(diagnosis),
        *_find_bad_classes(diagnosis, ignore_index),
    ]
    warnings = [finding for finding in findings if finding.level == "warning"]
    notes = [finding for finding in findings if finding.level == "note"]
    return replace(diagnosis, findings=[*warnings, *notes])


def _find_bad_images(d: Diagnosis, data: DataConfig) -> Iterator[Finding]:
    """Yield what is wrong with single images."""
    held_out = [_describe_pair(pair) for pair in d.alike if pair.held_out]
    twice = [_describe_pair(pair) for pair in d.alike if not pair.held_out]
    # level, names of the images, what they are, what to do
    rows: list[tuple[Level, list[str], str, str]] = [
        ("warning", d.blank, "of one value alone", "nothing can be learnt from it; take it out"),
        (
            "warning",
            d.specks,
            f"most of whose objects have less than {SPECK_PX} pixels",
            "a mask that was blended in resizing or as JPEG has to be made again",
        ),
        ("warning", held_out, "held out and seen in training", "that flatters scores; take it out"),
        ("note", twice, "to train on more than once", "it counts so often, unless it is taken out"),
        ("note", d.in_colour, "in colour", "the net sees luma; --net.in-channels 3 sees colours"),
        (
            "warning",
            d.turned,
            "turned by the orientation that they name in EXIF or a tag, and their masks name none",
            "look at augmented.png of the run: where masks were painted on the stored pixels, take "
            "that tag out of the images",
        ),
        (
            "note",
            d.saturated,
            f"with more than {100 * SATURATED:.0f} % saturated pixels",
            "if it is the cells, expose shorter",
        ),
        (
            "note",
            d.smaller_than_crop,
            f"smaller than --data.crop-px {data.crop_px}",
            "mirror images fill the crop; a smaller one needs none",
        ),
        ("note", d.without_foreground, "of class 0 alone", "look whether the mask is whole"),
    ]
    for level, names, what, remedy in rows:
        if names:
            images = f"{len(names)} image{'s' if len(names) > 1 else ''}"
            yield Finding(level, f"{images} {what}: {list_names(names, MAX_NAMES)}; {remedy}")


def _describe_pair(pair: NearDuplicate) -> str:
    """Return in words which image looks like which, with their correlation."""
    return f"{pair.name} is like {pair.like} ({pair.correlation:.3f})"


def _find_bad_values(d: Diagnosis) -> Iterator[Finding]:
    """Yield what is wrong with the images as a whole."""
    largest = max(abs(d.as_input.low), abs(d.as_input.high))
    if len(d.blank) < d.examined and not 0.1 <= largest <= 100:
        yield Finding(
            "warning",
            f"the net's input reaches {largest:.3g}, and nets learn from values of about 1; use "
            "--preprocessing.normalize image, or mend hot pixels",
        )
    if len(d.kinds) > 1:
        kinds = list_names([f"{count} with {kind}" for kind, count in d.kinds.items()], MAX_NAMES)
        yield Finding("note", f"images of several kinds: {kinds}; look whether all belong")
    # a mask of 0 alone may be of any kind
    groups = [
        f"{len(names)} with {kind}: {list_names(names, MAX_NAMES)}"
        for kind, names in d.stored.items()
        if kind != "all 0"
    ]
    if len(groups) > 1:
        things = "; ".join(groups)
        yield Finding("warning", f"masks that hold different things ({things}); store all alike")


def _find_bad_classes(d: Diagnosis, ignore_index: int | None) -> Iterator[Finding]:
    """Yield what is wrong with single classes."""
    for number, share in enumerate(d.classes):
        if number == ignore_index:
            continue
        name = f"class {number}" if share.name == f"{number}" else f"class {number} ({share.name})"
        if not share.training:
            ignored = f", and --loss.ignore-index {ignore_index}" if d.ignored_pixels else ""
            yield Finding(
                "warning",
                f"{name} is in no image to train on and cannot be learnt; look at the masks' "
                f"values, --data.mask-values{ignored}",
            )
        elif d.validation and not share.validation:
            yield Finding(
                "warning",
                f"{name} is in no held-out image, so its score tells nothing; use a larger "
                "--data.holdout, or another --seed",
            )
        if 0 < share.pixels < RARE:
            yield Finding(
                "note",
                f"{name} has {100 * share.pixels:.2g} % of the pixels; --loss.dice or "
                "--loss.class-weights make it count more",
            )


def _names_where(facts: Sequence[Facts], flags: ArrayLike) -> list[str]:
    """Return the names of the images whose flag is true."""
    return [one.name for one, flag in zip(facts, np.asarray(flags), strict=True) if flag]


def _group_by_stored(facts: Sequence[Facts]) -> dict[str, list[str]]:
    """Return what masks hold, in the order of the alphabet, with the names of the images."""
    groups: dict[str, list[str]] = {kind: [] for kind in sorted({one.stored for one in facts})}
    for one in facts:
        groups[one.stored].append(one.name)
    return groups


def _count_sizes(facts: Sequence[Facts]) -> list[Size]:
    """Count the images of each size, the smallest area first."""
    counts = Counter(one.shape for one in facts)
    shapes = sorted(counts, key=lambda shape: shape[0] * shape[1])
    return [Size(height, width, counts[height, width]) for height, width in shapes]


def _sum_up(images: Sequence[Values]) -> Values:
    """Return the values of all images together."""
    counts = [one.count for one in images]
    means = np.array([one.mean for one in images])
    within = np.array([one.deviation for one in images]) ** 2
    mean = np.average(means, weights=counts)
    # the variance of all: the mean within the images and that between their means
    return Values(
        low=min(one.low for one in images),
        high=max(one.high for one in images),
        mean=float(mean),
        deviation=float(np.sqrt(np.average(within + (means - mean) ** 2, weights=counts))),
        count=sum(counts),
    )


def _measure_shares(counts: np.ndarray, training: int, names: Sequence[str]) -> list[Share]:
    """Return the share of each class.

    Args:
        counts: (images, classes) numbers of pixels, the images to train on first.
        training: number of images to train on.
        names: of the classes, in their order; a class without one is named by its number.
    """
    parts = counts[:training].sum(axis=0) / max(1, counts[:training].sum())
    in_training = (counts[:training] > 0).sum(axis=0)
    in_validation = (counts[training:] > 0).sum(axis=0)
    shares = []
    for i, part in enumerate(parts):
        name = names[i] if i < len(names) else f"{i}"
        shares.append(Share(name, float(part), int(in_training[i]), int(in_validation[i])))
    return shares
