"""Why the layers of a file are no U-Net that this project has."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from unet_spec.assignment import Rules, assign
from unet_spec.layers_of_file import FileLayers, Layer
from unet_spec.wording import list_names

_KEEP = "keep this net in PyTorch"


def explain(layers: FileLayers) -> str:
    """Explain in one sentence why no assignment of layers is a U-Net, and what to do."""
    for reason in (
        _two_nets, _shared_blocks, _attention, _residual, _no_skips, _depthwise, _dense, _nested,
        _other_last_layer, _other_up_sampling, _unequal_levels, _no_decoder,
    ):  # fmt: skip
        if text := reason(layers):
            return text
    return (
        f"{_count(layers)} are not those of a U-Net whose levels all have as many 3x3 "
        "convolutions, each decoder level taking the channels of its skip and of the up-sampled "
        f"map; {_KEEP}"
    )


def _count(layers: FileLayers) -> str:
    kinds = {"conv": "3x3", "up_conv": "2x2", "point": "1x1"}
    counts = [f"{len(layers.of_kind(k))} {size}" for k, size in kinds.items() if layers.of_kind(k)]
    return f"its {', '.join(counts)} convolutions"


def _two_nets(layers: FileLayers) -> str | None:
    """Two groups of names, of which one is a U-Net by itself and the other one is no part."""
    words = layers.prefix.count(".") + 1 if layers.prefix else 0
    groups: dict[str, list[Layer]] = {}
    for layer in layers.layers:
        groups.setdefault(".".join(layer.name.split(".")[: words + 1]), []).append(layer)
    if len(groups) < 2:
        return None
    whole = [
        name
        for name, group in groups.items()
        if assign(replace(layers, layers=tuple(group), copies={}))
    ]
    if len(whole) > 1:
        return (
            f"it holds {len(whole)} nets, {list_names(whole, 3)}; save the state_dict of the one "
            "to be converted"
        )
    if whole:
        others = [name for name in groups if name != whole[0]]
        return (
            f"{whole[0]} is a U-Net by itself, and {list_names(others, 3)} is beside it; if that "
            f"is no part of what the net computes, save the state_dict of {whole[0]} alone"
        )
    return None


def _shared_blocks(layers: FileLayers) -> str | None:
    """Layers that are a U-Net only if those under two names are two layers."""
    copies = list(layers.copies)
    if copies and assign(replace(layers, copies={})):
        return (
            f"{list_names(copies, 2)} {'is' if len(copies) == 1 else 'are'} the same layer as "
            f"{list_names([layers.copies[c] for c in copies], 2)}, so that it is used in two "
            f"places, which training here would not keep; {_KEEP}"
        )
    return None


def _attention(layers: FileLayers) -> str | None:
    """A gate ends in a 1x1 convolution to one channel, after two others to as many as it takes."""
    points = layers.of_kind("point")
    gates = [
        psi
        for psi in points
        if psi.out_channels == 1
        and sum(x.out_channels == psi.in_channels for x in points if x is not psi) >= 2
    ]
    if len(gates) and len(points) >= 3 * len(gates):
        return f"{gates[0].name} ends an attention gate, which this project does not have; {_KEEP}"
    return None


def _residual(layers: FileLayers) -> str | None:
    """A 1x1 convolution takes and gives what the 3x3 convolutions of a block take and give."""
    points = layers.of_kind("point")
    convolutions = layers.of_kind("conv")
    ends = Counter(
        (a.in_channels, b.out_channels)
        for number in range(1, 4)
        for a, b in zip(convolutions, convolutions[number:], strict=False)
    )
    shortcuts = [p for p in points if ends[p.in_channels, p.out_channels]]
    ups = len(layers.of_kind("up_conv"))
    if len(shortcuts) > 1 and (ups or len(points) > 2) and not _is_up_chain(layers):
        return (
            f"it is a residual net, which this project does not have: "
            f"{list_names([p.name for p in shortcuts], 2)} are 1x1 convolutions beside blocks of "
            f"3x3 ones; {_KEEP}"
        )
    return None


def _is_up_chain(layers: FileLayers) -> bool:
    """Return whether 1x1 convolutions double the maps: then each stands behind another level."""
    return bool(assign(layers, Rules(skips=False))) or bool(assign(layers, Rules(equal=False)))


def _no_skips(layers: FileLayers) -> str | None:
    if found := assign(layers, Rules(skips=False)):
        first = found[0].rises[0].convolutions[0]
        return (
            f"it has no skips by concatenation: {first.name} takes {first.in_channels} channels, "
            "as many as the up-sampled map alone, so this is an auto-encoder, or a net that adds "
            f"its skips; {_KEEP}"
        )
    if found := assign(layers, Rules(equal=False)):
        up = next(
            up
            for up, skip in zip(found[0].ups, found[0].downs[-2::-1], strict=True)
            if up.out_channels != skip.out_channels
        )
        return (
            f"{up.name} gives {up.out_channels} channels, and the skip that they are concatenated "
            f"with has another number; here both have as many; {_KEEP}"
        )
    return None


def _depthwise(layers: FileLayers) -> str | None:
    single = [x.name for x in layers.of_kind("conv") if x.in_channels == 1 < x.out_channels]
    if len(single) > 2:
        return (
            f"{list_names(single, 2)} each take one channel: depthwise convolutions, which this "
            f"project does not have; {_KEEP}"
        )
    return None


def _dense(layers: FileLayers) -> str | None:
    """Each convolution takes what the one before it took and gave."""
    grown = [
        b.name
        for a, b in pairwise(layers.of_kind("conv"))
        if b.in_channels == a.in_channels + a.out_channels
    ]
    if len(grown) > 1:
        return (
            f"it is a dense net, which this project does not have: {grown[0]} takes what the "
            f"convolution before it took and gave together; {_KEEP}, or, if it is a U-Net whose "
            "layers are defined in another order than they run, give its code with --reference"
        )
    return None


def _nested(layers: FileLayers) -> str | None:
    """In a UNet++ a convolution takes several maps of its level and one from below."""
    convolutions = layers.of_kind("conv")
    widths = {layer.out_channels for layer in convolutions}
    nested = [
        layer.name
        for layer in convolutions
        for number in (2, 3, 4)
        if layer.in_channels - number * layer.out_channels in widths - {layer.out_channels}
    ]
    triangles = {d * (d + 1) // 2 for d in range(3, 8)}
    if nested and len(convolutions) % 2 == 0 and len(convolutions) // 2 in triangles:
        return (
            f"it is a UNet++, which this project does not have: {nested[0]} takes several maps of "
            f"one level; {_KEEP}"
        )
    return None


def _other_last_layer(layers: FileLayers) -> str | None:
    if layers.of_kind("point"):
        return None
    last = layers.of_kind("conv")[-1:] or layers.of_kind("up_conv")[-1:]
    return (
        f"it has no 1x1 convolution, with which a net here ends; its last one is "
        f"{last[0].name}; {_KEEP}"
    )


def _other_up_sampling(layers: FileLayers) -> str | None:
    """Each interpolation is followed by one 3x3 convolution, or strides stand for pools."""
    total = len(layers.of_kind("conv"))
    if not layers.of_kind("up_conv") and len(layers.of_kind("point")) == 1:
        depths = [d for d in range(1, 9) if total == 2 * (2 * d + 1) + d]
        if depths and any(x.in_channels == 2 * x.out_channels for x in layers.of_kind("conv")):
            return (
                f"its {total} 3x3 convolutions are two for each level and one more for each of "
                f"{depths[0]} up-samplings or pools, where this project has a 1x1 convolution or "
                f"none; {_KEEP}"
            )
    strided = [x.name for x in layers.of_kind("up_conv") if x.in_channels == x.out_channels]
    others = tuple(layer for layer in layers.layers if layer.name not in strided)
    if strided and assign(replace(layers, layers=others)):
        return (
            f"{list_names(strided, 2)}: 2x2 convolutions beside the up-convolutions, strided ones "
            f"in place of the pools, which this project does not have; {_KEEP}"
        )
    return None


def _unequal_levels(layers: FileLayers) -> str | None:
    total, ups = len(layers.of_kind("conv")), len(layers.of_kind("up_conv"))
    points = len(layers.of_kind("point"))
    if ups and points > 1:
        names = [layer.name for layer in layers.of_kind("point")]
        return (
            f"it has {points} 1x1 convolutions ({list_names(names, 3)}), and a net with "
            f"up-convolutions has one here, the last layer; {_KEEP}"
        )
    if ups and total % (2 * ups + 1):
        return (
            f"it has {ups} up-convolutions and {total} 3x3 convolutions, which do not divide "
            f"evenly into {2 * ups + 1} levels; here each level has as many; {_KEEP}"
        )
    return None


def _no_decoder(layers: FileLayers) -> str | None:
    convolutions = layers.of_kind("conv")
    outs = {layer.out_channels for layer in convolutions}
    takes_two = any(x.in_channels > max(outs) for x in convolutions)
    if not layers.of_kind("up_conv") and not takes_two and len(layers.of_kind("point")) == 1:
        return (
            f"no 3x3 convolution of it takes the channels of two maps together: a net without a "
            f"decoder or without skips; {_KEEP}"
        )
    return None
