"""Which mask belongs to which image, by their names alone: pure strings, without a suffix.

A name is made of words, of numbers, and of what stands between them. All images share a beginning
and an ending, all masks share a beginning and an ending, and what remains of the names, their
core, is the same on both sides. Each of the four may be empty.

Only one pairing can be right by such a rule. For sort both sides by length, then by the alphabet:
a beginning and an ending that all names share do not change that order, so the first image belongs
to the first mask, the second to the second, and so on. So no rule that pairs all names is a guess.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import NamedTuple

MAX_WORDS = 6  # of a beginning and an ending together
MAX_FAMILY = 8  # files that may belong to one core, such as the channels of one image
MAX_RULES = 24  # candidates that are tried, the most frequent first
MASK_WORDS = re.compile("mask|label|seg|truth|gt|manual|annot", re.IGNORECASE)
MAX_IMAGES = 2000  # from which candidates are drawn


class Affixes(NamedTuple):
    """An `Affixes` is the beginning and the ending that all names of one side share."""

    beginning: str = ""
    ending: str = ""

    def wrap(self, core: str) -> str:
        """Return the name that has this core."""
        return f"{self.beginning}{core}{self.ending}"

    def strip(self, name: str) -> str | None:
        """Return the core of a name; None where it has other affixes.

        A cut inside a word or a number is none: 10 is no ending of 110.
        """
        start, stop = len(self.beginning), len(name) - len(self.ending)
        if start >= stop or self.wrap(name[start:stop]) != name:
            return None
        return name[start:stop] if _may_cut(name, start) and _may_cut(name, stop) else None


@dataclass(frozen=True)
class Rule:
    """A `Rule` says how images and masks are named, up to the case of letters where it folds it."""

    image: Affixes = Affixes()
    mask: Affixes = Affixes()
    folds_case: bool = False

    def find_cores(self, names: Collection[str], affixes: Affixes) -> dict[str, str]:
        """Return the names that have these affixes, by their cores."""
        cores = {}
        for name in names:
            core = affixes.strip(_fold(name) if self.folds_case else name)
            if core is not None:
                cores[core] = name
        return cores


@dataclass(frozen=True)
class Match:
    """A `Match` says which mask each image has by one rule.

    Attributes:
        rule: the one that was tried.
        masks: the mask of each image that has one, by the image's name.
        cores: the core of each of these images, by its name.
        images, other_masks: names that have no other half.
        rivals: where not all names have one, the other rules that fit one side as a whole, and
            fit it otherwise.
    """

    rule: Rule
    masks: dict[str, str]
    cores: dict[str, str]
    images: list[str]
    other_masks: list[str]
    rivals: list["Match"] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Return whether every image and every mask has its other half."""
        return not self.images and not self.other_masks

    @property
    def is_whole_on_one_side(self) -> bool:
        """Return whether every image has a mask, or every mask has an image."""
        return bool(self.masks) and not (self.images and self.other_masks)


def match_names(images: Sequence[str], masks: Sequence[str]) -> Match:
    """Match names of images with names of masks, by the same name or by the affixes of a side.

    The case of letters counts first; only where no rule fits so, it does not.

    Args:
        images, masks: names without their suffix, each once, in one Unicode form.

    Returns:
        the match of the rule that fits all names, or else of the one that fits the most.
    """
    tries = [_apply(Rule(), images, masks)]
    for folds_case in (False, True):
        if tries[0].is_whole:
            return tries[0]
        for rule in _suggest_rules(images, masks, folds_case=folds_case):
            match = _apply(rule, images, masks)
            if match.is_whole:
                return match
            tries.append(match)
    best = max(tries, key=lambda match: len(match.masks))  # the first of several
    rivals: list[Match] = []
    for match in tries:
        known = (best, *rivals)
        if match.is_whole_on_one_side and all(match.masks != one.masks for one in known):
            rivals.append(match)
    rivals = rivals if best.is_whole_on_one_side else []
    return Match(best.rule, best.masks, best.cores, best.images, best.other_masks, rivals)


def part_names(names: Sequence[str]) -> list[Affixes]:
    """Find what tells the masks in a folder from its images: an affix that only the masks have.

    A mask's name is that of its image with the affix.

    Returns:
        the affix that most masks have; several where as many have another; none where hardly any
        name is that of another one with an affix.
    """
    votes: Counter[Affixes] = Counter()
    known = set(names)
    for name in names:
        for start, stop in _cut(name):
            if name[start:stop] in known and stop - start < len(name):
                votes[Affixes(name[:start], name[stop:])] += 1
    most = max(votes.values(), default=0)
    if 4 * most < len(names):
        return []
    return [affixes for affixes, count in votes.items() if count == most]


def halve_names(names: Sequence[str]) -> tuple[Affixes, Affixes] | None:
    """Find two affixes that halve the names in a folder: each core has one name with either.

    Returns:
        the two that are shortest together, the one with a word for masks second; None if there are
        none.
    """
    cores: defaultdict[Affixes, set[str]] = defaultdict(set)
    for name in names:
        for start, stop in _cut(name):
            cores[Affixes(name[:start], name[stop:])].add(name[start:stop])
    halves = [affixes for affixes, members in cores.items() if 2 * len(members) == len(names)]
    couples = [
        (one, two)
        for one, two in combinations(halves, 2)
        if cores[one] == cores[two] and not _differ_in_numbers(one, two)
    ]
    if not couples:
        return None
    one, two = min(couples, key=lambda couple: sum(len(affixes.wrap("")) for affixes in couple))
    is_mask = MASK_WORDS.search(one.wrap(" ")) and not MASK_WORDS.search(two.wrap(" "))
    return (two, one) if is_mask else (one, two)


def _apply(rule: Rule, images: Sequence[str], masks: Sequence[str]) -> Match:
    """Return the match of one rule."""
    by_core = rule.find_cores(images, rule.image)
    masks_by_core = rule.find_cores(masks, rule.mask)
    both = [core for core in by_core if core in masks_by_core]
    pairs = {by_core[core]: masks_by_core[core] for core in both}
    taken = set(pairs.values())
    return Match(
        rule,
        pairs,
        {by_core[core]: core for core in both},
        [name for name in images if name not in pairs],
        [name for name in masks if name not in taken],
    )


def _suggest_rules(
    images: Sequence[str], masks: Sequence[str], *, folds_case: bool
) -> Iterator[Rule]:
    """Yield rules that fit single names, those that fit the most names first.

    Of two that fit as many, the one comes first that cuts off less.
    """
    if folds_case:
        images, masks = [_fold(name) for name in images], [_fold(name) for name in masks]
    owners: defaultdict[str, list[Affixes]] = defaultdict(list)
    for name in images[:MAX_IMAGES]:
        for start, stop in _cut(name):
            owners[name[start:stop]].append(Affixes(name[:start], name[stop:]))
    votes: Counter[tuple[Affixes, Affixes]] = Counter()
    cores: dict[tuple[Affixes, Affixes], str] = {}  # one of those that a rule leaves
    for name in masks:
        for start, stop in _cut(name):
            core = name[start:stop]
            family = owners.get(core, ())
            if len(family) <= MAX_FAMILY:
                for other in family:
                    rule = other, Affixes(name[:start], name[stop:])
                    votes[rule] += 1
                    cores[rule] = core
    is_alone = len(images) == 1 or len(masks) == 1
    rules = [
        (image, mask)
        for image, mask in votes
        if not _differ_in_numbers(image, mask)
        if not is_alone or _is_plain(image, mask, cores[image, mask])
    ]
    rules.sort(key=lambda pair: (-votes[pair], sum(len(one.wrap("")) for one in pair)))
    for image, mask in rules[:MAX_RULES]:
        yield Rule(image, mask, folds_case)


def _differ_in_numbers(image: Affixes, mask: Affixes) -> bool:
    """Return whether what is cut off may be a number of the image, and another one of the mask.

    patient1_NAME and patient2_NAME are not an image and its mask.
    """
    sides = ((image.beginning, mask.beginning), (image.ending, mask.ending))
    return any(one != two and _has_digit(one) and _has_digit(two) for one, two in sides)


def _is_plain(image: Affixes, mask: Affixes, core: str) -> bool:
    """Return whether a rule may be drawn from one image or mask alone.

    Any word that the two have in common would fit both. So they have to begin with the same words,
    or one has to be the other with an affix, or what they have in common has to hold a number.
    """
    has_same_beginning = image.beginning == mask.beginning == ""
    return has_same_beginning or Affixes() in (image, mask) or _has_digit(core)


def _cut(name: str) -> Iterator[tuple[int, int]]:
    """Yield where each core that a name may have starts and stops: the whole name first."""
    yield 0, len(name)
    words = _find_words(name)
    for cut in range(min(MAX_WORDS, len(words) - 1) + 1):
        for first in range(cut + 1):
            start, stop = words[first][0], words[len(words) - 1 - (cut - first)][1]
            if stop - start < len(name):
                yield start, stop


def _find_words(name: str) -> list[tuple[int, int]]:
    """Return where each word and each number of a name starts and stops."""
    if name.isascii():  # the same, and faster
        return [match.span() for match in re.finditer("[0-9]+|[A-Za-z]+", name)]
    words, start = [], 0
    for kind, characters in groupby(name, key=_kind):
        stop = start + len(list(characters))
        if kind != "between":
            words.append((start, stop))
        start = stop
    return words


def _kind(character: str) -> str:
    """Return whether a character belongs to a word, to a number, or stands between them."""
    if character.isdigit():
        return "number"
    is_letter = character.isalpha() or unicodedata.category(character).startswith("M")
    return "word" if is_letter else "between"


def _may_cut(name: str, position: int) -> bool:
    """Return whether a name may be cut there: not inside a word or a number."""
    if position in (0, len(name)):
        return True
    before, after = _kind(name[position - 1]), _kind(name[position])
    return before != after or before == "between"


def _has_digit(text: str) -> bool:
    return re.search(r"\d", text) is not None


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
