"""Other people's U-Nets: which net a file holds, by its tensors and by what the original gave."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_convert import names_map
from unet_convert.evidence import Case, Evidence, collect_pairs, settle
from unet_spec import InputError, UNetConfig
from unet_spec import structure as structure_of
from unet_spec.config import check_bounds
from unet_spec.environment import need
from unet_spec.errors import ConfigError
from unet_spec.families import OWN
from unet_spec.narrowing import refuse_not_finite
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, parameters
from unet_spec.structure import (
    INTERPOLATIONS,
    WITHOUT_STATISTICS,
    Structure,
    describe,
    interpolation_error,
    norm_error,
    rename,
)
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names

if TYPE_CHECKING:
    from torch import nn

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
        family, search = self.structure.family, self.search
        if search is not None:
            lines.append(
                f"{search.describe()}: the only one of {search.count} combinations that gives "
                f"{self.sources}: {search.best.error:.1e} of its scale away, "
                f"{search.best.allowed:.1e} allowed, the next one {search.next_error:.1e}"
            )
            if search.left_open:
                assert family is not None
                lines[-1] += (
                    f"; but {', '.join(search.left_open)}, which it does not tell, is the "
                    f"convention of {family.name}"
                )
        else:
            how = "not in the tensors, taken from the flags and their defaults"
            if family is not None and family is not OWN:
                doubt = f" ({family.doubt})" if family.doubt else ""
                how = f"by the names, this is {family.name}{doubt}, and so by its convention"
            lines.append(
                f"{how}: {_describe_assumptions(config)}; that is not proven: --recorded or "
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
    original = None
    inside = dict(tensors)
    if evidence.reference is not None:
        need("torch")
        from unet_torch import reference

        original = reference.build_original(
            evidence.reference, evidence.arguments, tensors, source=str(source)
        )
        inside = {name: tensors[name] for name in original.names}
    module = None if original is None else original.module
    ties = {} if checkpoint is None else checkpoint.ties
    case = _read_case(inside, ties, source, evidence, module, say)
    structure, search = case.structures[0], None
    _refuse_not_finite(case)
    notes: list[str] = []
    pairs = collect_pairs(structure, module, evidence)
    if pairs:
        search, notes = settle(case, pairs)
        structure = search.best.structure
    else:
        _refuse_hidden(case.structures, source, evidence)
    config, weights = structure.config, rename(structure, case.tensors)
    structure = _name_as_in_file(structure, case.theirs, list(tensors))
    ours = dict(structure.names)
    order = list(ours) if original is None else original.parameters
    trained = {p.name for p in parameters(config) if p.trained}
    origin, beside, left_out = _describe_origin(structure.names, checkpoint)
    if checkpoint is None:  # no form of a file is kept, in which they could go back
        left_out = [name for name in tensors if name not in ours]
    return Recognition(
        WeightFile(
            config, weights, evidence.preprocessing, origin=None if is_plain(origin) else origin
        ),
        structure,
        search,
        " and ".join(dict.fromkeys(pair.source for pair in pairs)),
        tuple(dict.fromkeys(ours[name] for name in order if ours[name] in trained)),
        (
            *notes,
            *_note_what_training_needs(config, evidence, has_dropout=bool(
                original is not None and original.has_dropout)),
            *_note_what_stays(beside, left_out, checkpoint),
        ),
    )  # fmt: skip


def _refuse_not_finite(case: Case) -> None:
    """Refuse a net with NaN or infinite values, under their names.

    Raises:
        InputError: it has some.
    """
    of_net = [name for name, _ in case.structures[0].names]
    try:
        refuse_not_finite({case.theirs[name]: case.tensors[name] for name in of_net})
    except InputError as error:
        raise InputError(f"{case.source}: {error}") from error


def _read_case(
    tensors: Tensors,
    ties: Mapping[str, str],
    source: Path,
    evidence: Evidence,
    module: "nn.Module | None" = None,
    say: Callable[[str], None] = lambda text: None,
) -> Case:
    """Return what the tensors say, under their own names or under those of a map."""
    if evidence.names is None:
        theirs = {name: name for name in tensors}
    else:
        mapped = names_map.read(evidence.names, tensors)
        theirs = {ours: name for name, ours in mapped.items()}
        tensors, ties = {ours: tensors[name] for name, ours in mapped.items()}, {}
    structures = structure_of.recognise(
        tensors, given=evidence.config, settled=evidence.settled, ties=ties,
        source=str(evidence.names or source), is_mapped=evidence.names is not None,
    )  # fmt: skip
    try:
        check_bounds(structures[0].config)
    except ConfigError as error:  # typed by nobody
        raise InputError(f"{source}: {error}") from error
    if evidence.names is not None:  # whoever wrote the map has said which block is which
        structures = structures[:1]
    return Case(structures, tensors, theirs, source, evidence, module, say)


def _name_as_in_file(
    structure: Structure, theirs: Mapping[str, str], order: Sequence[str]
) -> Structure:
    """Return a structure with the names of the file, in its order.

    Args:
        theirs: their names by those under which the tensors were recognised.
        order: of the names in the file.
    """
    ours = {theirs[name]: our_name for name, our_name in structure.names}
    return replace(
        structure,
        names=tuple((name, ours[name]) for name in order if name in ours),
        shapes={theirs[name]: shape for name, shape in structure.shapes.items()},
    )


def _note_what_training_needs(
    config: UNetConfig, evidence: Evidence, *, has_dropout: bool
) -> list[str]:
    """Say what of the original's training no tensor and no output shows."""
    notes = [
        f"images will be prepared with normalize={evidence.preprocessing.normalize}; no file of "
        "PyTorch says how the original's were: --preprocessing.normalize image, range or none"
    ]
    if has_dropout and config.dropout == 0:
        notes.append(
            "the original drops values in training, which no output in inference shows; here "
            "dropout=0.0, and --config.dropout drops values on the last level and the neck"
        )
    return notes


def _note_what_stays(
    beside: Sequence[str], left_out: Sequence[str], checkpoint: "Checkpoint | None"
) -> list[str]:
    """Say what else the file holds, and whether it goes back."""
    notes = []
    elsewhere = () if checkpoint is None else checkpoint.elsewhere
    of_others = tuple(f"{place}." for place in elsewhere)
    beside = [place for place in beside if not place.startswith(of_others)]
    left_out = [place for place in left_out if not place.startswith(of_others)]
    if beside:
        notes.append(f"beside the net, kept for the way back: {list_names(beside, 4)}")
    if elsewhere:
        notes.append(f"left out, tensors of another net: {list_names(elsewhere, 4)}")
    if left_out:
        what = "not of the net" if checkpoint is None else "no plain values"
        notes.append(f"left out, {what}: {list_names(left_out, 4)}")
    return notes


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
    case = _read_case(tensors, ties, source, evidence)
    structures = case.structures
    first = _name_as_in_file(structures[0], case.theirs, list(tensors))
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
) -> tuple[Origin, list[str], list[str]]:
    """Return how the file held the net, the places of other tensors that go back, and those of
    what cannot."""
    if checkpoint is None:
        return Origin(tuple(names), {}, None), [], []
    from unet_torch import template

    theirs = {name for name, _ in names}
    usual = {name: "int64" if ours.endswith("tracked") else "float32" for name, ours in names}
    dtypes = {n: checkpoint.dtypes[n] for n in theirs if checkpoint.dtypes[n] != usual[n]}
    if checkpoint.content.keys() == theirs:  # a plain state_dict
        return Origin(tuple(names), dict(sorted(dtypes.items())), None), [], []
    content, beside, left_out = template.describe(checkpoint, of_net=theirs)
    return Origin(tuple(names), dict(sorted(dtypes.items())), content), beside, left_out


def _describe_assumptions(config: UNetConfig) -> str:
    """Describe the axes that no tensor shows, so that a person can check them."""
    hidden = ["padding", "activation", "concat", "fit", "dropout", "output"]
    if config.activation == "leaky_relu":
        hidden.append("negative_slope")
    if config.norm != "none":
        hidden.append("norm_place")
    if config.norm in WITHOUT_STATISTICS:
        hidden.append("norm")
    if config.norm == "group":
        hidden.append("groups")
    if config.up in INTERPOLATIONS:
        hidden.append("up")
    return ", ".join(f"{name}={getattr(config, name)}" for name in hidden)
