"""The layers in a file of tensors, whoever named them: convolutions and norms, in file order."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from unet_spec.errors import InputError
from unet_spec.parameters import Tensors
from unet_spec.wording import list_names

MOST_LAYERS = 3000
"""A file has at most so many layers; a U-Net of five levels has about fifty."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# what splits a weight into several tensors, with torch's call that joins them
_SPLIT_WEIGHTS = {
    r"\.parametrizations\.\w+\.": 'torch.nn.utils.parametrize.remove_parametrizations(x, "weight")',
    r"\.weight_mask$": 'torch.nn.utils.prune.remove(x, "weight")',
    r"\.weight_u$": "torch.nn.utils.remove_spectral_norm(x)",
    r"\.weight_g$": "torch.nn.utils.remove_weight_norm(x)",
}
_RESNET = re.compile(r"(?:^|\.)layer\d\.\d+\.(conv|bn)\d\.")
_RESNET_PART = re.compile(r"(?:^|\.)(layer\d|conv1)\.")
_LOSS = re.compile(r"(criterion|loss)\w*\.")
_KINDS: dict[tuple[int, int], Literal["conv", "up_conv", "point"]] = {
    (3, 3): "conv",
    (2, 2): "up_conv",
    (1, 1): "point",
}


class Layer(NamedTuple):
    """A `Layer` is a convolution or a norm of a file.

    Attributes:
        place: its number in the file.
        name: that of its tensors up to the last dot.
        kind: a 3x3 convolution, a 2x2 transposed one, a 1x1 convolution, or a norm.
        in_channels: of the map that it takes.
        out_channels: of the map that it gives.
        parts: the names of its tensors behind the last dot.
    """

    place: int
    name: str
    kind: Literal["conv", "up_conv", "point", "norm"]
    in_channels: int
    out_channels: int
    parts: tuple[str, ...]

    @property
    def has_bias(self) -> bool:
        return "bias" in self.parts

    @property
    def keeps_statistics(self) -> bool:
        return "running_mean" in self.parts or "running_var" in self.parts

    def tensors(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each tensor in the file, with the part of it behind the last dot."""
        for part in self.parts:
            yield f"{self.name}.{part}" if self.name else part, part


@dataclass(frozen=True)
class FileLayers:
    """A `FileLayers` holds what a file of tensors is made of.

    Attributes:
        layers: of the net, in the order of the file.
        copies: for each layer that is another one under a second name, that other one's name.
        beside: names of tensors that are not the net's.
        prefix: what the names of all convolutions begin with, without the last dot.
    """

    layers: tuple[Layer, ...]
    copies: Mapping[str, str]
    beside: tuple[str, ...]
    prefix: str

    def of_kind(self, kind: str) -> tuple[Layer, ...]:
        """Return the layers of one kind, each once."""
        return tuple(x for x in self.layers if x.kind == kind and x.name not in self.copies)

    @property
    def originals(self) -> tuple[Layer, ...]:
        """Return all layers, each once."""
        return tuple(layer for layer in self.layers if layer.name not in self.copies)


def find_layers(tensors: Tensors, *, ties: Mapping[str, str], source: str) -> FileLayers:
    """Find the layers in the tensors of a file.

    Args:
        tensors: in the order of the file.
        ties: names of tensors that share memory with another one, with that one's name.
        source: what a refusal calls the tensors.

    Raises:
        InputError: a layer that no net of this project has.
    """
    _refuse_other_nets(tensors, source=source)
    prefix = _common_prefix(tensors)
    groups = _group(tensors)
    if len(groups) > MOST_LAYERS:
        raise InputError(
            f"{source}: {len(groups):,} layers, and at most {MOST_LAYERS:,} are searched for a "
            "U-Net; give the state_dict of one alone"
        )
    beside: list[str] = []
    layers: list[Layer] = []
    for name, parts in groups.items():
        if _lies_beside(name, parts, prefix):
            beside += _full_names(name, parts)
        else:
            layers.append(_read_layer(len(layers), name, parts, source=source))
    copies = _find_copies(layers, tensors, ties)
    return FileLayers(tuple(layers), copies, tuple(beside), prefix)


def _group(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for full, tensor in tensors.items():
        name, _, part = full.rpartition(".")
        groups.setdefault(name, {})[part] = tensor
    return groups


def _full_names(name: str, parts: Mapping[str, np.ndarray]) -> list[str]:
    return [f"{name}.{part}" if name else part for part in parts]


def _refuse_other_nets(tensors: Tensors, *, source: str) -> None:
    """Refuse what a single name or the rank of a single tensor betrays."""
    for pattern, call in _SPLIT_WEIGHTS.items():
        if split := [name for name in tensors if re.search(pattern, name)]:
            raise InputError(
                f"{source}: {list_names(split, 2)}: a weight of this net is split into several "
                f"tensors; call {call} for each such layer x and save the net again"
            )
    weights = {n: t for n, t in tensors.items() if n.rpartition(".")[2] == "weight"}
    ranks = {rank: [n for n, t in weights.items() if t.ndim == rank] for rank in (2, 3, 4, 5)}
    for rank, kind in ((3, "1-D"), (5, "3-D")):
        if ranks[rank]:
            raise InputError(
                f"{source}: {list_names(ranks[rank], 2)} {_are(ranks[rank])} {kind}; this project "
                "computes 2-D nets, images of height and width; keep this net in PyTorch"
            )
    if not ranks[4]:
        raise InputError(
            f"{source}: no convolution is among its tensors ({list_names(list(tensors), 3)}); "
            "give the state_dict of a U-Net"
        )
    resnet = [name for name in tensors if _RESNET.search(name)]
    outside = [name for name in ranks[4] if not _RESNET_PART.search(name)]
    if resnet and outside:
        raise InputError(
            f"{source}: its encoder is a ResNet ({list_names(resnet, 2)}), with residual blocks "
            "and strided convolutions, which this project does not compute; keep this net in "
            "PyTorch"
        )
    if ranks[2]:
        raise InputError(
            f"{source}: {list_names(ranks[2], 2)} {_are(ranks[2])} fully connected, so this is a "
            "classifier, or a net with one inside it, and no plain U-Net; give the state_dict of "
            "a U-Net"
        )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _common_prefix(tensors: Tensors) -> str:
    """Return what the names of all convolutions begin with: whole words between dots."""
    names = [
        full.split(".")[:-2]
        for full, tensor in tensors.items()
        if tensor.ndim > 1 and not _LOSS.match(full)
    ]
    shared = []
    for words in zip(*names, strict=False):
        if len({*words}) > 1:
            break
        shared.append(words[0])
    return ".".join(shared)


def _lies_beside(name: str, parts: Mapping[str, np.ndarray], prefix: str) -> bool:
    """Return whether a group of tensors is no layer of the net: the weights of a loss, a count."""
    if _LOSS.match(f"{name}."):
        return True
    if max(tensor.ndim for tensor in parts.values()) > 1:
        return False
    is_norm = "bias" in parts or "running_mean" in parts
    if prefix and not f"{name}.".startswith(f"{prefix}."):
        return not is_norm
    # a number that no training moves
    return not is_norm and all(t.ndim == 0 and t.dtype.kind in "iub" for t in parts.values())


def _read_layer(place: int, name: str, parts: Mapping[str, np.ndarray], *, source: str) -> Layer:
    names = _full_names(name, parts)
    weight = parts.get("weight")
    allowed = {"weight", "bias", *(_STATISTICS if weight is not None and weight.ndim == 1 else ())}
    if weight is None and "running_mean" in parts:
        raise InputError(
            f"{source}: {name} is a norm without a learned scale and shift, which this project "
            "does not have; give it a weight of ones and a bias of zeros, which changes no output, "
            "and save the net again"
        )
    if weight is None or not parts.keys() <= allowed:
        odd = [full for full, part in zip(names, parts, strict=True) if part not in allowed]
        raise InputError(
            f"{source}: {(odd or names)[0]} belongs to no convolution and no norm, so this net "
            "computes something that is not known here; keep this net in PyTorch"
        )
    if weight.ndim == 1:
        _check_norm(name, parts, weight, source=source)
        return Layer(place, name, "norm", weight.size, weight.size, tuple(parts))
    kernel = weight.shape[2:]
    if weight.ndim != 4 or kernel not in _KINDS:
        size = " x ".join(map(str, kernel))
        raise InputError(
            f"{source}: {names[0]} has a kernel of {size}; this project has 3 x 3 convolutions, "
            "2 x 2 up-convolutions and 1 x 1 convolutions; keep this net in PyTorch"
        )
    kind = _KINDS[kernel]
    out, in_ = weight.shape[:2]
    if kind == "up_conv":
        in_, out = out, in_
    if "bias" in parts and parts["bias"].shape != (out,):
        what = (
            "a 3 x 3 transposed convolution, and a map is doubled by 2 x 2 ones here"
            if kind == "conv"
            else "no up-convolution, for its bias has as many values as it takes channels"
        )
        raise InputError(f"{source}: {name} is {what}; keep this net in PyTorch")
    return Layer(place, name, kind, in_, out, tuple(parts))


def _check_norm(
    name: str, parts: Mapping[str, np.ndarray], weight: np.ndarray, *, source: str
) -> None:
    if "bias" not in parts:
        raise InputError(
            f"{source}: {name}.weight is a vector without a bias beside it: the slopes of a "
            "PReLU, which this project does not have; keep this net in PyTorch"
        )


def _find_copies(layers: list[Layer], tensors: Tensors, ties: Mapping[str, str]) -> dict[str, str]:
    """Find layers that are another layer under a second name: of the same memory or values."""
    copies: dict[str, str] = {}
    of_memory: dict[tuple, str] = {}
    of_values: dict[tuple, str] = {}
    for layer in layers:
        names = [name for name, _ in layer.tensors()]
        memory: tuple = (*layer[2:], *(_owner(name, ties) for name in names))
        # a new norm is all 1 and 0 and equals every other one, so only values that vary prove it
        values: tuple = (*layer[2:], *(_hash(tensors[name]) for name in names))
        if not any(_varies(tensors[name]) for name in names):
            values = memory
        original = of_memory.get(memory) or of_values.get(values)
        if original is None:
            of_memory[memory] = of_values[values] = layer.name
        else:
            copies[layer.name] = original
    return copies


def _varies(tensor: np.ndarray) -> bool:
    return tensor.size > 1 and bool((tensor != tensor.flat[0]).any())


def _hash(tensor: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor).data).digest()


def _owner(name: str, ties: Mapping[str, str]) -> str:
    """Return the tensor that owns the memory of a tensor."""
    while ties.get(name, name) != name:
        name = ties[name]
    return name
