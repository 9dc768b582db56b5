"""What settles the facts that no tensor shows: what the original gave, recorded or by its code."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unet_spec import InputError, Preprocessing, UNetConfig, geometry
from unet_spec.environment import need
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors
from unet_spec.recorded import read_recorded
from unet_spec.structure import Structure, rename
from unet_spec.structure import settle as settle_fields

if TYPE_CHECKING:
    from torch import nn

    from unet_torch.hidden import Pair, Search


@dataclass(frozen=True)
class Evidence:
    """An `Evidence` is what a person gives besides a file, to say which net it holds.

    Attributes:
        config: values of axes.
        settled: the axes that were given, also with their default.
        preprocessing: how the original's training made its input of an image.
        recorded: an .npz with an input x and an output y of the original.
        reference: the original's own code, FILE.py:NAME.
        arguments: those of its constructor, as Python writes them.
        names: a TOML file of their names and ours.
    """

    config: UNetConfig = UNetConfig()
    settled: frozenset[str] = frozenset()
    preprocessing: Preprocessing = Preprocessing()
    recorded: Path | None = None
    reference: str | None = None
    arguments: str = ""
    names: Path | None = None


@dataclass(frozen=True)
class Case:
    """A `Case` is a net of which a file shows a part.

    Attributes:
        structures: what the tensors say; several where they leave open which block is which.
        tensors: under the names by which they were recognised.
        theirs: their names by those; others only where a map gave names.
        source: the file.
        module: the original's own, with these tensors in it, or None.
        say: is called with a line when something takes a while.
    """

    structures: Sequence[Structure]
    tensors: Tensors
    theirs: Mapping[str, str]
    source: Path
    evidence: Evidence
    module: "nn.Module | None"
    say: Callable[[str], None]


def collect_pairs(first: Structure, module: "nn.Module | None", evidence: Evidence) -> list["Pair"]:
    """Return what the original gave, as it was recorded and as its code gives it here."""
    if module is not None:
        assert evidence.reference is not None
        return _record(module, first.config, evidence.reference)
    if evidence.recorded is None:
        return []
    need("torch")
    from unet_torch.hidden import Pair

    x, y = read_recorded(evidence.recorded)
    _check_pair(x, y, first.config, evidence.recorded)
    return [Pair(x, y, str(evidence.recorded))]


def _check_pair(x: np.ndarray, y: np.ndarray, config: UNetConfig, path: Path) -> None:
    if x.ndim != 4 or y.ndim != 4 or x.shape[0] != y.shape[0]:
        raise InputError(
            f"{path}: x has the shape {x.shape} and y {y.shape}; both are batches, (b, c, h, w)"
        )
    if x.shape[1] != config.in_channels or y.shape[1] != config.classes:
        raise InputError(
            f"{path}: x has {x.shape[1]} channels and y {y.shape[1]}, and the net takes "
            f"{config.in_channels} and gives {config.classes}; record the net of these weights"
        )


def _record(module: "nn.Module", config: UNetConfig, place: str) -> list["Pair"]:
    """Return what the original gives in float64 for a size that all pools halve, and for one that
    they do not, if it takes that."""
    import torch

    from unet_torch import reference
    from unet_torch.hidden import Pair

    rng = np.random.default_rng(0)

    def try_size(height: int, width: int, *, in_training: bool = False) -> Pair | None:
        x = rng.standard_normal((2, config.in_channels, height, width)).astype(np.float32)
        y = reference.run(module, x, dtype=torch.float64, in_training=in_training)
        if y is None:
            return None
        return Pair(x, y, place, is_exact=True, in_training=in_training)

    for padding in ("same", "valid"):
        strict = replace(config, padding=padding, fit="error")
        height = geometry.next_legal(strict, 2 ** (config.depth + 1))
        width = geometry.next_legal(strict, height + 1)
        even = try_size(height, width)
        if even is None and geometry.is_legal(strict, 64):  # nets that take multiples of 64 alone
            height, width = 64, 128
            even = try_size(height, width)
        if even is not None:
            odd = try_size(height + 1, width + 2**config.depth - 1)
            trained = None
            if config.norm == "batch" and not reference.has_dropout(module):
                trained = try_size(height, width, in_training=True)
            return [pair for pair in (even, odd, trained) if pair is not None]
    x = torch.zeros(1, config.in_channels, 64, 64, dtype=torch.float64)
    try:
        module(x)
    except Exception as error:  # whatever a stranger's net raises
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: it does not run on {tuple(x.shape)}: {reason}") from error
    raise InputError(f"{place}: it runs on no small image; give a recorded pair: --recorded")


def settle(case: Case, pairs: Sequence["Pair"]) -> tuple["Search", list[str]]:
    """Return the one combination that gives what the original gave, and notes on what it leaves.

    Raises:
        InputError: none does.
    """
    place, given = case.evidence.reference, "fit" in case.evidence.settled
    even = [pair for pair in pairs if pair.x.shape == pairs[0].x.shape]
    if case.module is not None and len(even) == len(pairs) and not given:
        note = f"fit=error: {place} takes no size that a pool cannot halve"
        return _search(case, pairs, refuses_odd=True), [note]
    try:
        search = _search(case, pairs)
    except InputError:
        if given or len(even) == len(pairs):
            raise
        note = (
            f"fit=error: what {place} does with a size that a pool cannot halve, no option here "
            "does; such sizes are refused"
        )
        return _search(case, even, refuses_odd=True), [note]
    notes = []
    if "fit" not in search.varied and not given:
        notes.append(
            f"fit={search.best.config.fit}: a size that every pool halves says nothing of others; "
            "record an odd one to use those"
        )
    if case.module is None and len(pairs[0].x) == 1 and search.best.config.norm == "instance":
        notes.append(
            "one recorded image does not tell instance norm from a batch norm that keeps no "
            "statistics; record two to be certain"
        )
    return search, notes


def _search(case: Case, pairs: Sequence["Pair"], *, refuses_odd: bool = False) -> "Search":
    """Return the one combination that gives what the original gave.

    Args:
        refuses_odd: of a size that a pool cannot halve nothing is known, so it is refused.

    Raises:
        InputError: none does; where the original's code is known, with the layer at which it does
            something else.
    """
    from unet_torch import hidden

    structures, fixed = case.structures, frozenset[str]()
    if refuses_odd:
        structures = [settle_fields(one, fit="error") for one in structures]
        fixed = frozenset({"fit"})
    search = hidden.search(structures, case.tensors, pairs, fixed=fixed, say=case.say)
    if search.best.holds:
        return search
    reason = (
        "the original does something that this net cannot (another eps, a residual sum, another "
        "pool) or has a slope that is not tried (--config.negative-slope), these are other "
        "weights, or y was not recorded as net.eval()(x).float() of the x beside it"
    )
    if case.module is not None:
        reason = _name_difference(structures[0], case, search.varied, pairs[0]) or reason
    raise InputError(
        f"{case.source}: none of {search.count} combinations of {', '.join(search.varied)} gives "
        f"what {pairs[0].source} gives; the closest ({search.describe()}) is "
        f"{search.best.error:.1e} of its scale away, {search.best.allowed:.1e} allowed"
        f"{_list_given(case.evidence)}: {reason}"
    )


def _list_given(evidence: Evidence) -> str:
    """List the flags that were given, which may be what is wrong."""
    if not evidence.settled:
        return ""
    values = [f"{name}={getattr(evidence.config, name)}" for name in sorted(evidence.settled)]
    return f", with {', '.join(values)} as given"


def _name_difference(structure: Structure, case: Case, fields: Sequence[str], pair: "Pair") -> str:
    """Say where the original first does something else than the nearest net; empty where JAX,
    with which the layers are compared, is not installed."""
    assert case.module is not None
    if importlib.util.find_spec("jax") is None:
        return ""
    from unet_parity.oracle import random_input
    from unet_parity.own_net import choose_size, match_module
    from unet_parity.own_pair import OwnPair
    from unet_torch import hidden, reference

    names = [(case.theirs[name], ours) for name, ours in structure.names]
    layers = reference.trace_convolutions(case.module, names, pair.x)
    nearest = hidden.find_nearest_by_layers(structure, case.tensors, fields, pair.x, layers)
    origin = Origin(tuple((case.theirs[name], ours) for name, ours in nearest.names), {}, None)
    tensors = rename(nearest, case.tensors)
    try:
        own = match_module(nearest.config, case.module, tensors, origin)
        x, _, _ = random_input(nearest.config, seed=0, size=choose_size(own, None))
        difference = OwnPair(own, x).name_first_difference()
    except InputError as error:
        return str(error)
    return f"JAX's net beside the original: {difference}" if difference else ""
