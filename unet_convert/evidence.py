"""What settles the facts that no tensor shows: what the original gave, recorded or by its code."""

import importlib.util
from collections.abc import Callable, Sequence
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

if TYPE_CHECKING:
    from torch import nn

    from unet_torch.hidden import Candidate, Pair, Search


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
        if even is not None:
            odd = try_size(height + 1, width + 2**config.depth - 1)
            trained = None
            if config.norm == "batch" and not reference.has_dropout(module):
                trained = try_size(height, width, in_training=True)
            return [pair for pair in (even, odd, trained) if pair is not None]
    x = torch.zeros(1, config.in_channels, 64, 64)
    try:
        module(x)
    except Exception as error:  # whatever a stranger's net raises
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: it does not run on {tuple(x.shape)}: {reason}") from error
    raise InputError(f"{place}: it runs on no small image; give a recorded pair: --recorded")


def settle(
    structures: Sequence[Structure],
    tensors: Tensors,
    pairs: Sequence["Pair"],
    evidence: Evidence,
    source: Path,
    say: Callable[[str], None],
    module: "nn.Module | None",
) -> tuple["Search", list[str]]:
    """Return the one combination that gives what the original gave, and notes on `fit`.

    Raises:
        InputError: none does.
    """
    place, given = evidence.reference, "fit" in evidence.settled
    even = [pair for pair in pairs if pair.x.shape == pairs[0].x.shape]
    if module is not None and len(even) == len(pairs) and not given:
        note = f"fit=error: {place} takes no size that a pool cannot halve"
        return _search(structures, tensors, pairs, evidence, source, say, module, True), [note]
    try:
        search = _search(structures, tensors, pairs, evidence, source, say, module, False)
    except InputError:
        if given or len(even) == len(pairs):
            raise
        note = (
            f"fit=error: what {place} does with a size that a pool cannot halve, no option here "
            "does; such sizes are refused"
        )
        return _search(structures, tensors, even, evidence, source, say, module, True), [note]
    if module is None and len(pairs[0].x) == 1 and search.best.config.norm == "instance":
        note = (
            "one recorded image does not tell instance norm from a batch norm that keeps no "
            "statistics; record two to be certain"
        )
        return search, [note]
    if "fit" in search.varied or given:
        return search, []
    note = (
        f"fit={search.best.config.fit}: a size that every pool halves says nothing of others; "
        "record an odd one to use those"
    )
    return search, [note]


def _search(
    structures: Sequence[Structure],
    tensors: Tensors,
    pairs: Sequence["Pair"],
    evidence: Evidence,
    source: Path,
    say: Callable[[str], None],
    module: "nn.Module | None",
    refuses_odd: bool,
) -> "Search":
    """Return the one combination that gives what the original gave.

    Raises:
        InputError: none does; where the original's code is known, with the layer at which it does
            something else.
    """
    from unet_torch import hidden

    nets, settled = [], evidence.settled
    if refuses_odd:
        settled |= {"fit"}
        structures = [replace(one, config=replace(one.config, fit="error")) for one in structures]
    for one in structures:
        nets.append(hidden.Candidate(one.config, one.names, rename(one, tensors)))
    convention = None if structures[0].family is None else nets[0].config
    search = hidden.search(nets, pairs, settled=settled, convention=convention, say=say)
    if search.best.holds:
        return search
    reason = "" if module is None else _name_difference(nets[0], search.varied, module, pairs[0])
    raise InputError(
        f"{source}: none of {search.count} combinations of {', '.join(search.varied)} gives what "
        f"{pairs[0].source} gives; the closest ({search.describe()}) is {search.best.error:.1e} of "
        f"its scale away, {search.best.allowed:.1e} allowed{_list_given(evidence)}: "
        + (
            reason
            or "the original does something that this net cannot (another eps, a residual sum, "
            "another pool) or has a slope that is not tried (--config.negative-slope), these are "
            "other weights, or y was not recorded as net.eval()(x).float() of the x beside it"
        )
    )


def _list_given(evidence: Evidence) -> str:
    """List the flags that were given, which may be what is wrong."""
    if not evidence.settled:
        return ""
    values = [f"{name}={getattr(evidence.config, name)}" for name in sorted(evidence.settled)]
    return f", with {', '.join(values)} as given"


def _name_difference(
    net: "Candidate", fields: Sequence[str], module: "nn.Module", pair: "Pair"
) -> str:
    """Say where the original first does something else than the closest net; empty where JAX,
    with which the layers are compared, is not installed, or they cannot be compared."""
    if importlib.util.find_spec("jax") is None:
        return ""
    from unet_parity.own_comparison import name_first_difference
    from unet_torch import hidden, reference

    layers = reference.trace_convolutions(module, net.names, pair.x)
    best = hidden.find_nearest_by_layers(net, fields, pair.x, layers)
    try:
        return name_first_difference(
            best.config, module, best.tensors, Origin(best.names, {}, None)
        )
    except InputError as error:
        return str(error)
