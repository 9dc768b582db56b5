"""Which U-Net the tensors of a file are, whoever named them, and what they cannot say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from unet_spec import refusals
from unet_spec.assignment import Assignment, Level, assign, is_chain
from unet_spec.config import UNetConfig
from unet_spec.errors import ConfigError, InputError
from unet_spec.families import FAMILIES, OWN, Family, Names, possible_names
from unet_spec.layers_of_file import FileLayers, Layer, find_layers
from unet_spec.parameters import Tensors, check_tensors, is_count, parameters
from unet_spec.wording import list_names

INTERPOLATIONS = ("bilinear", "bilinear_aligned", "nearest")
"""The values of `up` that look the same in a file."""
WITHOUT_STATISTICS = ("instance", "group")
"""The values of `norm` that look the same in a file."""
_POSSIBLE: Mapping[str, tuple[str, ...]] = {"norm": WITHOUT_STATISTICS, "up": INTERPOLATIONS}


@dataclass(frozen=True)
class NetLayers:
    """A `NetLayers` holds the layers of a file where they stand in the net.

    Attributes:
        file: all layers, in the order of the file.
        assignment: where the convolutions stand.
        norms: the norm of each 3x3 convolution, by its name; empty without norms.
        place: where the norms stand, if a family's names say it.
    """

    file: FileLayers
    assignment: Assignment
    norms: Mapping[str, Layer]
    place: Literal["before", "after"] | None = None


@dataclass(frozen=True)
class Structure:
    """A `Structure` says which U-Net the tensors of a file are.

    Attributes:
        config: what the tensors show. A hidden field has the value that was given, or else a
            value that fits the tensors.
        names: (their name, our name) of each tensor of the net, in the order of their file; of
            a layer under two names both, with one name of ours.
        hidden: fields of the config that nothing has settled. `norm` hides `groups` too, and
            `activation` hides `negative_slope`.
        unshown: fields of the config that neither a tensor nor a flag shows, those that the family
            has settled included.
        family: the repository whose names these are, or None.
        conventions: the fields that the family has settled.
        beside: their names of tensors that are not the net's.
        missing: our names of tensors that their file lacks: counts of batches, which older
            versions of torch did not keep.
        shapes: the shape of each of their tensors.
        layers: what all this was read from.
    """

    config: UNetConfig
    names: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    unshown: tuple[str, ...]
    family: Family | None
    conventions: tuple[str, ...]
    beside: tuple[str, ...]
    missing: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    layers: NetLayers


class Row(NamedTuple):
    """A `Row` shows one layer: their name, ours, and the shape of its weight."""

    theirs: str
    ours: str
    shape: tuple[int, ...]


def recognise(
    tensors: Tensors,
    *,
    given: UNetConfig,
    settled: frozenset[str],
    ties: Mapping[str, str],
    source: str,
    is_mapped: bool = False,
) -> tuple[Structure, ...]:
    """Recognise the U-Net that tensors are of.

    A norm without tensors (`nn.InstanceNorm2d` by default), a residual sum without a convolution
    and another kind of pool leave no trace: only a recorded output tells them.

    Args:
        tensors: in the order of the file, under their own names.
        given: the values of fields that the tensors do not show.
        settled: names of the fields of `given` that somebody typed.
        ties: names of tensors that share memory with another one, with that one's name.
        source: what a refusal calls the tensors, usually the file's path.
        is_mapped: the names are those that a person gave, so they tell where each layer stands, and
            no repository's conventions.

    Returns:
        The structure that keeps to the order of the file; others behind it where blocks have
        equal channels, so that shapes leave open which is which.

    Raises:
        InputError: they are of no U-Net that this project has, or `given` says otherwise.
    """
    file = find_layers(tensors, ties=ties, source=source)
    family, net = _match_family(file)
    if net is not None:
        nets = [net]
    else:
        nets = [NetLayers(file, found, {}) for found in assign(file)]
        if not nets:
            raise InputError(f"{source}: {refusals.explain(file)}")
        norms = _pair_norms(file, source=source)
        nets = [replace(net, norms=norms) for net in nets]
    if is_mapped:
        family = None
    _check_biases(nets[0], source=source)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    structures = []
    for net in nets:
        shown = _read_shapes(net, source=source)
        _refuse_contradiction(shown, given, settled, source=source)
        values, hidden, conventions = _settle(net, shown, family, given, settled)
        config = replace(given, **shown, **values)
        structure = Structure(
            config, (), hidden, tuple(_list_unshown(net, shown, given, settled)), family,
            conventions, file.beside, (), shapes, net,
        )  # fmt: skip
        structures.append(settle(structure))
        check_tensors(config, rename(structures[-1], tensors), source=source)
    return tuple(structures)


def settle(structure: Structure, **values: Any) -> Structure:
    """Return a structure in which fields of the config have these values and are not hidden.

    Our names of norms depend on `norm_place`.

    Raises:
        InputError: values that the config does not allow.
    """
    config = replace(structure.config, **values)
    names = tuple(_name_tensors(structure.layers, config))
    lacking = {p.name for p in parameters(config)} - {ours for _, ours in names}
    return replace(
        structure,
        config=config,
        names=names,
        hidden=tuple(name for name in structure.hidden if name not in values),
        missing=tuple(p.name for p in parameters(config)
                      if p.name in lacking and p.kind == "count"),
    )  # fmt: skip


def rename(structure: Structure, tensors: Tensors) -> dict[str, np.ndarray]:
    """Return the tensors of a net under our names, in our order.

    The counts of batches are integers, and 0 where the file lacks them.
    """
    theirs = {ours: name for name, ours in reversed(structure.names)}
    renamed = {}
    for parameter in parameters(structure.config):
        if parameter.name in structure.missing:
            renamed[parameter.name] = np.zeros((), np.int64)
        elif parameter.kind == "count":
            count = tensors[theirs[parameter.name]]
            # what is no count stays as it is, and is refused where the weights are checked
            renamed[parameter.name] = count.astype(np.int64) if is_count(count) else count
        elif parameter.name in theirs:  # what else is missing is said where they are checked
            renamed[parameter.name] = tensors[theirs[parameter.name]]
    return renamed


def describe(structure: Structure) -> list[Row]:
    """Describe which layer of theirs is which of ours, one row for each layer."""
    return [
        Row(theirs.removesuffix(".weight"), ours.removesuffix(".weight"), structure.shapes[theirs])
        for theirs, ours in structure.names
        if ours.endswith(".weight")
    ]


def _match_family(file: FileLayers) -> tuple[Family | None, NetLayers | None]:
    """Return the family all of whose names a file has, and where its layers stand."""
    words = file.prefix.split(".") if file.prefix else []
    for count in range(len(words) + 1):
        start = "".join(f"{word}." for word in words[:count])
        named = {layer.name.removeprefix(start): layer for layer in file.originals}
        if len(named) == len(file.originals):
            for family, names in _list_possible_names(named):
                net = _place_by_names(file, names, named)
                if net is not None:
                    return family, net
    return None, None


def _list_possible_names(named: Mapping[str, Layer]) -> Iterator[tuple[Family, Names]]:
    """Yield the families all of whose names are these names."""
    convolutions = sum(layer.kind == "conv" for layer in named.values())
    for depth in range(1, convolutions // 2 + 1):
        count, rest = divmod(convolutions, 2 * depth + 1)
        for family in FAMILIES if rest == 0 else ():
            for names in possible_names(family, depth=depth, convolutions=count):
                if names.all() == named.keys():
                    yield family, names


def _place_by_names(file: FileLayers, names: Names, named: Mapping[str, Layer]) -> NetLayers | None:
    """Return where layers stand by their names, or None where their channels do not meet."""
    pairs = [pair for level in names.levels for pair in level]
    norms = {named[conv].name: named[norm] for conv, norm in pairs if norm}
    kinds = {named[conv].kind for conv, _ in pairs} | {norm.kind for norm in norms.values()}
    if not kinds <= {"conv", "norm"} or named[names.out].kind != "point":
        return None
    levels = tuple(
        Level(place, tuple(named[conv] for conv, _ in level))
        for place, level in enumerate(names.levels)
    )
    ups = tuple(named[name] for name in names.ups if name)
    depth = len(names.ups)
    assignment = Assignment(levels[: depth + 1], levels[depth + 1 :], ups, named[names.out])
    if not is_chain(assignment):
        return None
    return NetLayers(file, assignment, norms, names.place)


def _pair_norms(file: FileLayers, *, source: str) -> dict[str, Layer]:
    """Return the norm of each 3x3 convolution: they follow one another in the same order."""
    convolutions, norms = file.of_kind("conv"), file.of_kind("norm")
    if not norms:
        return {}
    if len(norms) != len(convolutions):
        raise InputError(
            f"{source}: it has {len(norms)} norms for {len(convolutions)} 3x3 convolutions; here "
            "each of them is followed by a norm, or none is, and nothing else is; keep this net "
            "in PyTorch"
        )
    for convolution, norm in zip(convolutions, norms, strict=True):
        if convolution.out_channels != norm.out_channels:
            raise InputError(
                f"{source}: {convolution.name} gives {convolution.out_channels} channels and the "
                f"norm in its place, {norm.name}, takes {norm.out_channels}; here a norm follows "
                "the convolution whose output it normalises; keep this net in PyTorch"
            )
    return {a.name: b for a, b in zip(convolutions, norms, strict=True)}


def _check_biases(net: NetLayers, *, source: str) -> None:
    """Refuse biases other than those of the nets here, and say how to add one that is 0."""
    convolutions = net.file.of_kind("conv")
    needed = [*net.assignment.ups, net.assignment.out]
    if any(layer.has_bias for layer in convolutions):
        needed += convolutions
    lacking = [layer.name for layer in needed if not layer.has_bias]
    if lacking:
        raise InputError(
            f"{source}: {list_names(lacking, 2)} {'has' if len(lacking) == 1 else 'have'} no "
            "bias, unlike the nets here; give each a bias of zeros, which changes no output, and "
            "save the net again"
        )


def _read_shapes(net: NetLayers, *, source: str) -> dict[str, Any]:
    """Return the fields of the config that the shapes of the tensors show."""
    downs, rises, ups, out = (
        net.assignment.downs, net.assignment.rises, net.assignment.ups, net.assignment.out,
    )  # fmt: skip
    widths = tuple(level.out_channels for level in downs)
    up_widths = tuple(level.out_channels for level in rises)
    shown: dict[str, Any] = {
        "in_channels": downs[0].in_channels,
        "classes": out.out_channels,
        "widths": widths,
        "convolutions": len(downs[0].convolutions),
        "bias": downs[0].convolutions[0].has_bias,
        "up_convolution": bool(ups),
        "up_widths": () if up_widths == widths[-2::-1] else up_widths,
        "up_middle": _read_middle(rises, source=source),
    }
    if not net.norms:
        shown["norm"] = "none"
    elif any(norm.keeps_statistics for norm in net.norms.values()):
        shown["norm"] = "batch"
    if ups and ups[0].kind == "up_conv":
        shown["up"] = "transposed"
    if net.norms and net.place is not None:
        shown["norm_place"] = net.place
    return shown


def _read_middle(rises: tuple[Level, ...], *, source: str) -> str:
    """Return which number of channels lies between the convolutions of the expanding path."""
    if all(level.middle_channels <= {level.out_channels} for level in rises):
        return "output"
    if all(level.middle_channels <= {level.in_channels / 2} for level in rises):
        return "half"
    names = [level.convolutions[0].name for level in rises]
    middles = [str(level.convolutions[0].out_channels) for level in rises]
    raise InputError(
        f"{source}: the first convolutions of its decoder ({list_names(names, 2)}) give "
        f"{', '.join(middles)} channels, neither what their level gives nor half of what they "
        "take; keep this net in PyTorch"
    )


def _refuse_contradiction(
    shown: Mapping[str, Any], given: UNetConfig, settled: frozenset[str], *, source: str
) -> None:
    """Refuse a flag that says otherwise than the tensors."""
    if "norm" not in shown and "norm" in settled and given.norm not in WITHOUT_STATISTICS:
        raise norm_error(given, source=source)
    if "up" not in shown and "up" in settled and given.up not in INTERPOLATIONS:
        raise interpolation_error(given, source=source)
    for name in shown.keys() & settled:
        if getattr(given, name) != shown[name]:
            raise ConfigError(
                given,
                f"{{source}}: its tensors have {name}={{shape}}, not {{{name}=}}; leave that out",
                source=source,
                shape=shown[name],
            )


def norm_error(given: UNetConfig, *, source: str) -> ConfigError:
    """Word that group norm and instance norm look the same."""
    return ConfigError(
        given,
        "{source}: its norm keeps no statistics, so it is group or instance norm, which look "
        "the same; say which: {norm=group} (with {groups}) or {norm=instance}",
        source=source,
    )


def interpolation_error(given: UNetConfig, *, source: str) -> ConfigError:
    """Word that no tensor shows how a map is interpolated."""
    return ConfigError(
        given,
        "{source}: its up-sampling has no 2x2 kernels, so it interpolates, and how leaves no "
        "trace; say it: {up=bilinear}, {up=bilinear_aligned} or {up=nearest}",
        source=source,
    )


def _settle(
    net: NetLayers,
    shown: Mapping[str, Any],
    family: Family | None,
    given: UNetConfig,
    settled: frozenset[str],
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Settle the fields that no shape shows, as far as a flag or a family does.

    Returns:
        The value of each; the names of those that are still hidden; of those that the family's
        conventions have settled.
    """
    values: dict[str, Any] = {}
    hidden, conventions = [], []
    for name in _list_hidden(net, shown):
        value = getattr(given, name)
        possible = _POSSIBLE.get(name, (value,))
        if name in settled:
            hidden += _list_details(name, value, settled)
        elif family is not None and name in family.conventions:
            value = family.conventions[name]
            conventions.append(name)
        elif family is not OWN or value not in possible:
            hidden.append(name)
            value = value if value in possible else possible[0]
        values[name] = value
    return values, tuple(hidden), tuple(conventions)


def _list_unshown(
    net: NetLayers, shown: Mapping[str, Any], given: UNetConfig, settled: frozenset[str]
) -> Iterator[str]:
    """Yield the fields that neither a tensor nor a flag shows."""
    for name in _list_hidden(net, shown):
        if name in settled:
            yield from _list_details(name, getattr(given, name), settled)
        else:
            yield name


def _list_hidden(net: NetLayers, shown: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields that leave no trace in the tensors of a net."""
    yield "padding"
    if net.norms:
        yield from (name for name in ("norm", "norm_place") if name not in shown)
    yield "activation"
    if "up" not in shown:
        yield "up"
    yield from ("concat", "fit", "output")


def _list_details(name: str, value: Any, settled: frozenset[str]) -> list[str]:
    """List the field that a typed value needs beside it and that nobody typed."""
    details = {("norm", "group"): "groups", ("activation", "leaky_relu"): "negative_slope"}
    detail = details.get((name, value))
    return [detail] if detail is not None and detail not in settled else []


def _name_tensors(net: NetLayers, config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yield (their name, our name) of each tensor of a net, in the order of their file."""
    ours = {}
    step = 3 if net.norms else 2
    norm_at = 1 if config.norm_place == "before" else 2
    levels = {f"down_{n}.conv": level for n, level in enumerate(net.assignment.downs, 1)}
    levels["neck"] = levels.pop(f"down_{len(net.assignment.downs)}.conv")
    levels |= {f"up_{n}.conv": level for n, level in enumerate(net.assignment.rises, 1)}
    for name, level in levels.items():
        for number, convolution in enumerate(level.convolutions):
            ours[convolution.name] = f"{name}.conv.{number * step}"
            if net.norms:
                norm = net.norms[convolution.name]
                ours[norm.name] = f"{name}.conv.{number * step + norm_at}"
    for number, up in enumerate(net.assignment.ups, 1):
        ours[up.name] = f"up_{number}.up" if up.kind == "up_conv" else f"up_{number}.up.1"
    ours[net.assignment.out.name] = "out"
    for layer in net.file.layers:
        original = net.file.copies.get(layer.name, layer.name)
        for theirs, part in layer.tensors():
            yield theirs, f"{ours[original]}.{part}"
