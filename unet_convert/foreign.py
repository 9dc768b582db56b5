"""Other people's U-Nets: which net a file holds, by its tensors and by what the original gave."""

import importlib.util
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_spec import InputError, Preprocessing, UNetConfig, dialects, geometry, structure
from unet_spec.environment import need
from unet_spec.errors import ConfigError
from unet_spec.families import OWN
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, parameters
from unet_spec.recorded import read_recorded
from unet_spec.structure import Structure, describe, interpolation_error, norm_error, rename
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names

if TYPE_CHECKING:
    from torch import nn

    from unet_torch.checkpoint import Checkpoint
    from unet_torch.hidden import Candidate, Pair, Search

_LAYER = r"(down_\d+\.conv|up_\d+\.conv|neck)\.conv\.\d+|up_\d+\.up(\.1)?|out"
MEANT = {
    "concat": "which half of a concatenation comes first",
    "padding": "how convolutions pad",
    "activation": "the activation and its slope",
    "output": "whether the net ends in a sigmoid or softmax",
    "norm_place": "whether norms stand before or after the activation",
    "norm": "group or instance norm, and how many groups",
    "groups": "how many groups",
    "negative_slope": "the slope below zero",
    "up": "the kind of interpolation",
}
"""The facts that no tensor shows, and what they are. `fit` is missing: it only matters for sizes
that the net refuses without it."""


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
class Recognition:
    """A `Recognition` says which net a foreign file holds, and how that is known.

    Attributes:
        weights: the net, with its origin.
        structure: what the tensors say.
        search: the combination of hidden facts that gives what the original gave; None where
            nothing recorded was there.
        sources: what the search compared with, in words.
        parameters: our names in the order in which the original's optimizer numbers them.
        notes: what else a person should know, in sentences.
    """

    weights: WeightFile
    structure: Structure
    search: "Search | None"
    sources: str
    parameters: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """What was recognised, for people."""
        config = self.weights.config
        lines = [describe_net(config), *list_modules(self.structure)]
        if self.search is not None:
            best, count = self.search.best, self.search.count
            lines.append(
                f"{self.search.describe()}: the only one of {count} combinations that gives "
                f"{self.sources}: {best.error:.1e} of its scale away, {best.allowed:.1e} allowed, "
                f"the next one {self.search.next_error:.1e}"
            )
        elif self.structure.family not in (None, OWN):
            family = self.structure.family
            assert family is not None
            doubt = f" ({family.doubt})" if family.doubt else ""
            lines.append(
                f"by the names, this is {family.name}{doubt}, and so by its convention: "
                f"{dialects.describe_assumptions(config)}; that is not proven: --recorded or "
                "--reference prove it"
            )
        else:
            lines.append(
                f"not in the tensors, taken from the flags: {dialects.describe_assumptions(config)}"
                "; that is not proven: --recorded or --reference prove it"
            )
        return [*lines, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values."""
        family, search = self.structure.family, self.search
        return {
            "names": dict(self.structure.names),
            "family": None if family is None else family.name,
            "notes": list(self.notes),
            "search": None if search is None else {
                "combinations": search.count,
                "fields": list(search.varied),
                "error": search.best.error,
                "allowed": search.best.allowed,
                "own_error": search.best.own_error,
                "next_error": search.next_error if math.isfinite(search.next_error) else None,
            },
        }  # fmt: skip


def recognise(
    tensors: Tensors,
    *,
    source: Path,
    evidence: Evidence,
    checkpoint: "Checkpoint | None" = None,
    say: Callable[[str], None] = lambda text: None,
) -> Recognition:
    """Return the net that tensors of any names belong to.

    Args:
        tensors: in the order of the file, with their prefixes.
        checkpoint: the file around them, if it is PyTorch's.
        say: is called with a line when something takes a while.

    Raises:
        InputError: no U-Net of `UNetConfig`, with the reason; hidden facts that nothing settles;
            or a recorded output that no combination of them gives.
    """
    module = prefix = None
    ties = {} if checkpoint is None else checkpoint.ties
    if evidence.reference is not None:
        need("torch")
        from unet_torch import reference

        made = reference.build(evidence.reference, evidence.arguments)
        prefix, module = reference.load(made, tensors, place=evidence.reference, source=str(source))
        own = {prefix + name for name in module.state_dict()}
        inside = {name: tensor for name, tensor in tensors.items() if name in own}
    else:
        inside = dict(tensors)
    structures = _read_structures(inside, ties, source, evidence)
    pairs = _collect_pairs(structures[0], module, evidence)
    first, search = structures[0], None
    notes: list[str] = []
    if pairs:
        search, notes = _settle(structures, tensors, pairs, evidence, source, say, module)
        first = replace(first, config=search.best.config, names=search.best.names)
    else:
        _refuse_hidden(structures, source, evidence)
    config, names = first.config, first.names
    by_ours = rename(first, tensors)
    order = [ours for theirs, ours in names]
    if module is not None and prefix is not None:
        from unet_torch import reference

        by_name = dict(names)
        order = [by_name[name] for name in reference.list_parameters(module, prefix)]
    notes.append(
        f"images will be prepared with normalize={evidence.preprocessing.normalize}; no file of "
        "PyTorch says how the original's were: --preprocessing.normalize image, range or none"
    )
    trained = {p.name for p in parameters(config) if p.trained}
    origin, left_out = _describe_origin(names, checkpoint)
    if beside := [name for name in tensors if name not in dict(names)]:
        notes.append(f"beside the net, kept for the way back: {list_names(beside, 4)}")
    if checkpoint is not None and checkpoint.elsewhere:
        notes.append(f"left out, tensors of another net: {', '.join(checkpoint.elsewhere)}")
    if left_out:
        notes.append(f"left out, no plain values: {list_names(left_out, 4)}")
    return Recognition(
        WeightFile(
            config, by_ours, evidence.preprocessing, origin=None if is_plain(origin) else origin
        ),
        first,
        search,
        " and ".join(dict.fromkeys(pair.source for pair in pairs)),
        tuple(dict.fromkeys(name for name in order if name in trained)),
        tuple(notes),
    )


def describe_net(config: UNetConfig, hidden: Sequence[str] = ()) -> str:
    """Say in one line which U-Net this is.

    Args:
        hidden: fields that are not known yet.
    """
    norm = "no norm" if config.norm == "none" else f"{config.norm} norm"
    up = "transposed convolutions" if config.up == "transposed" else f"{config.up} interpolation"
    if "norm" in hidden:
        norm = "group or instance norm"
    if "up" in hidden:
        up = "interpolation"
    return (
        f"a U-Net of widths {' '.join(map(str, config.widths))}, {config.in_channels} channels in, "
        f"{config.classes} out, {config.convolutions} convolutions per level, {norm}, {up}"
    )


def list_modules(structure: Structure) -> list[str]:
    """Return a table of the original's layers: their name, our name, shape of the weight."""
    rows = [(row.theirs, row.ours, "x".join(map(str, row.shape))) for row in describe(structure)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {a:{widths[0]}}  {b:{widths[1]}}  {shape}" for a, b, shape in rows]


def explain(
    tensors: Tensors, *, source: Path, evidence: Evidence, ties: Mapping[str, str] = {}
) -> list[str]:
    """Say what the tensors of a foreign file are, and what they do not say.

    Raises:
        InputError: no U-Net of `UNetConfig`, with the reason.
    """
    structures = _read_structures(tensors, ties, source, evidence)
    first = structures[0]
    lines = [f"{source}: {describe_net(first.config, first.hidden)}", *list_modules(first)]
    if first.family is not None:
        lines.append(f"by the names, this is {first.family.name}")
    if len(structures) > 1:
        lines.append("its tensors do not say which of some equal blocks stands where")
    if missing := [MEANT[name] for name in MEANT if name in first.hidden]:
        lines.append(f"its tensors do not say {', '.join(missing)}")
    return lines


def is_plain(origin: Origin | None) -> bool:
    """Say whether a file held the slides' names and nothing else, so that nothing is to go back."""
    if origin is None:
        return True
    own = all(theirs == ours for theirs, ours in origin.names)
    return own and not origin.dtypes and origin.content is None


def _read_structures(
    tensors: Tensors, ties: Mapping[str, str], source: Path, evidence: Evidence
) -> tuple[Structure, ...]:
    """Return what the tensors say, under their own names or under those of a map."""
    if evidence.names is None:
        return structure.recognise(
            tensors, given=evidence.config, settled=evidence.settled, ties=ties, source=str(source)
        )
    renamed = read_names(evidence.names, tensors)
    _check_names(renamed, evidence.names)
    structures = structure.recognise(
        {ours: tensors[theirs] for theirs, ours in renamed.items()},
        given=evidence.config, settled=evidence.settled, ties={}, source=str(evidence.names),
        is_mapped=True,
    )  # fmt: skip
    names = tuple(renamed.items())
    shapes = {theirs: tensors[theirs].shape for theirs in renamed}
    return (replace(structures[0], names=names, shapes=shapes),)


def read_names(path: Path, tensors: Tensors) -> dict[str, str]:
    """Return (their name -> our name) for the tensors that a TOML file maps.

    An entry is a tensor's name, or that of a module for all tensors in it.

    Raises:
        InputError: not TOML, or a name that the file of weights does not have.
    """
    try:
        entries = _flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f'{path}: not a map of names ({error}); write lines such as "their.name" = "out"'
        ) from error
    names: dict[str, str] = {}
    for theirs, ours in entries.items():
        inside = [n for n in tensors if n == theirs or n.startswith(f"{theirs}.")]
        if not inside:
            raise InputError(
                f"{path}: no tensor is named {theirs} or begins so; the file has "
                f"{list_names(list(tensors), 3)}"
            )
        names |= {name: ours + name.removeprefix(theirs) for name in inside}
    return {name: names[name] for name in tensors if name in names}


def _check_names(names: Mapping[str, str], path: Path) -> None:
    """Refuse a map whose right side does not name a whole net.

    Raises:
        InputError: a name that no net here has, one that stands twice, or a layer without a line.
    """
    modules: dict[str, str] = {}
    for theirs, ours in names.items():
        module = ours.rpartition(".")[0]
        if not re.fullmatch(_LAYER, module):
            raise InputError(
                f"{path}: {ours} is no name of a layer here; they are down_1.conv.conv.0, "
                "neck.conv.0, up_1.up, up_1.conv.conv.0, out, with other numbers"
            )
        other = modules.setdefault(ours, theirs)
        if other != theirs:
            raise InputError(f"{path}: two lines give {ours}, {other} and {theirs}; take one away")
    layers = {ours.rpartition(".")[0].split(".conv.")[0] for ours in names.values()}
    levels = {name.partition(".")[0] for name in layers}
    depth = max((int(n.partition("_")[2]) for n in levels if "_" in n), default=0)
    needed = [f"{side}_{n}" for side in ("down", "up") for n in range(1, depth + 1)]
    missing = [name for name in (*needed, "neck", "out") if name not in levels]
    ups = [f"up_{n}.up" for n in range(1, depth + 1)]
    has_ups = [any(layer.startswith(up) for layer in layers) for up in ups]
    if any(has_ups):
        missing += [up for up, there in zip(ups, has_ups, strict=True) if not there]
    if missing:
        raise InputError(
            f"{path}: no line gives {list_names(missing, 3)}; add one for each layer of the net"
        )


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a table with dotted names; TOML reads a.b = "c" as a table in a table."""
    entries: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            entries |= _flatten(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = str(value)
    return entries


def _collect_pairs(
    first: Structure, module: "nn.Module | None", evidence: Evidence
) -> list["Pair"]:
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


def _settle(
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
            "another pool), these are other weights, or y was not recorded as "
            "net.eval()(x).float() of the x beside it"
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


def _refuse_hidden(structures: Sequence[Structure], source: Path, evidence: Evidence) -> None:
    """Refuse a net of which something is not known."""
    first = structures[0]
    how = (
        "; --reference net.py:UNet settles it with the original's code, --recorded pair.npz with "
        "one small image that went through it: numpy.savez('pair.npz', x=x.numpy(), "
        "y=net.eval()(x).detach().numpy())"
    )
    if len(structures) > 1:
        raise InputError(
            f"{source}: blocks of equal shapes, and nothing says which stands where{how}"
        )
    if first.family is OWN:  # only these two are not those of the flags, or the default
        if "norm" in first.hidden:
            raise norm_error(evidence.config, source=str(source))
        if "up" in first.hidden:
            raise interpolation_error(evidence.config, source=str(source))
    open_fields = [name for name in MEANT if name in first.hidden]
    if open_fields:
        meaning = ", ".join(MEANT[name] for name in open_fields)
        beside = {"norm": "groups", "activation": "negative_slope"}
        flags = ", ".join(
            f"{{{name}}}" + (f" (with {{{beside[name]}}})" if name in beside else "")
            for name in open_fields
        )
        raise ConfigError(
            UNetConfig,
            f"{{source}}: {{net}}, but its tensors do not say {meaning}{{how}}; or give each by "
            f"its flag: {flags}",
            source=source,
            net=describe_net(first.config, first.hidden),
            how=how,
        )


def _describe_origin(
    names: Sequence[tuple[str, str]], checkpoint: "Checkpoint | None"
) -> tuple[Origin, list[str]]:
    """Return how the file held the net, and the places of what cannot go back."""
    if checkpoint is None:
        return Origin(tuple(names), {}, None), []
    from unet_torch import template

    theirs = {name for name, _ in names}
    usual = {name: "int64" if ours.endswith("tracked") else "float32" for name, ours in names}
    dtypes = {n: checkpoint.dtypes[n] for n in theirs if checkpoint.dtypes[n] != usual[n]}
    if checkpoint.content.keys() == theirs:  # a plain state_dict
        return Origin(tuple(names), dict(sorted(dtypes.items())), None), []
    content, left_out = template.describe(checkpoint, of_net=theirs)
    return Origin(tuple(names), dict(sorted(dtypes.items())), content), left_out
