"""Other people's U-Nets: which net a file holds, by its tensors and by what the original gave."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_convert import names_map
from unet_convert.evidence import Evidence, collect_pairs, settle
from unet_spec import InputError, UNetConfig, dialects, structure
from unet_spec.environment import need
from unet_spec.errors import ConfigError
from unet_spec.families import OWN
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, parameters
from unet_spec.structure import Structure, describe, interpolation_error, norm_error, rename
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names

if TYPE_CHECKING:
    from unet_torch.checkpoint import Checkpoint
    from unet_torch.hidden import Search

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
                "not in the tensors, taken from the flags and their defaults: "
                f"{dialects.describe_assumptions(config)}; that is not proven: --recorded or "
                "--reference prove it"
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
        order = reference.sort_by_calls(module, prefix, [n for n in tensors if n in own])
        inside = {name: tensors[name] for name in order}
    else:
        inside = dict(tensors)
    structures = _read_structures(inside, ties, source, evidence)
    pairs = collect_pairs(structures[0], module, evidence)
    first, search = structures[0], None
    notes: list[str] = []
    if pairs:
        search, notes = settle(structures, tensors, pairs, evidence, source, say, module)
        ours = dict(search.best.names)
        in_file = tuple((theirs, ours[theirs]) for theirs in tensors if theirs in ours)
        first = replace(first, config=search.best.config, names=in_file)
    else:
        _refuse_hidden(structures, source, evidence)
    config, names = first.config, first.names
    by_ours = rename(first, tensors)
    order = [ours for theirs, ours in names]
    if module is not None and prefix is not None:
        from unet_torch import reference

        if reference.has_dropout(module) and config.dropout == 0:
            notes.append(
                "the original drops values in training, which no output in inference shows; here "
                "dropout=0.0, and --config.dropout drops values on the last level and the neck"
            )
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
    renamed = names_map.read(evidence.names, tensors)
    structures = structure.recognise(
        {ours: tensors[theirs] for theirs, ours in renamed.items()},
        given=evidence.config, settled=evidence.settled, ties={}, source=str(evidence.names),
        is_mapped=True,
    )  # fmt: skip
    names = tuple(renamed.items())
    shapes = {theirs: tensors[theirs].shape for theirs in renamed}
    return (replace(structures[0], names=names, shapes=shapes),)


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
