"""A net that is no U-Net of this project is refused with the reason that is true of it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

from parity_tests.foreign_nets import NETS, FlatStages
from unet_spec import InputError, UNetConfig
from unet_spec.structure import recognise


def tensors_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def recognise_untyped(tensors):
    return recognise(tensors, given=UNetConfig(), settled=frozenset(), ties={}, source="net.pt")


def two(in_: int, out: int, kernel: int = 3, conv=nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv(in_, out, kernel), nn.ReLU(), conv(out, out, kernel), nn.ReLU())


def plain(**changed: nn.Module) -> nn.ModuleDict:
    """Return a U-Net with widths 4, 6, 9, with layers changed or added."""
    layers = {
        "enc1": two(1, 4), "enc2": two(4, 6), "mid": two(6, 9),
        "up2": nn.ConvTranspose2d(9, 6, 2, 2), "dec2": two(12, 6),
        "up1": nn.ConvTranspose2d(6, 4, 2, 2), "dec1": two(8, 4),
        "head": nn.Conv2d(4, 3, 1),
    }  # fmt: skip
    return nn.ModuleDict({**layers, **changed})


def volume() -> nn.ModuleDict:
    return nn.ModuleDict({name: two(1, 4, conv=nn.Conv3d) for name in ("enc1", "dec1")})


def signal() -> nn.ModuleDict:
    return nn.ModuleDict({name: two(1, 4, conv=nn.Conv1d) for name in ("enc1", "dec1")})


def residual() -> nn.ModuleDict:
    shortcuts = {"enc1": (1, 4), "enc2": (4, 6), "mid": (6, 9), "dec2": (12, 6), "dec1": (8, 4)}
    return plain(**{f"{n}_skip": nn.Conv2d(i, o, 1) for n, (i, o) in shortcuts.items()})


def dense() -> nn.ModuleDict:
    def grow(in_: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Conv2d(in_ + 4 * n, 4, 3) for n in range(3))

    return nn.ModuleDict({
        "enc1": grow(3), "enc2": grow(15), "mid": grow(27), "up": nn.ConvTranspose2d(39, 8, 2, 2),
        "dec2": grow(35), "up1": nn.ConvTranspose2d(47, 8, 2, 2), "dec1": grow(23),
        "head": nn.Conv2d(35, 2, 1),
    })  # fmt: skip


def nested() -> nn.ModuleDict:
    widths = (4, 7, 10)
    layers = {f"conv{i}_0": two((3, *widths)[i], widths[i]) for i in range(3)}
    layers |= {"conv0_1": two(4 + 7, 4), "conv1_1": two(7 + 10, 7), "conv0_2": two(8 + 7, 4)}
    return nn.ModuleDict({**layers, "final": nn.Conv2d(4, 1, 1)})


def attention() -> nn.ModuleDict:
    def gate(channels: int) -> nn.ModuleDict:
        parts = {name: nn.Conv2d(channels, 2, 1) for name in ("w_g", "w_x")}
        return nn.ModuleDict({**parts, "psi": nn.Conv2d(2, 1, 1)})

    return plain(gate2=gate(6), gate1=gate(4))


def resnet_encoder() -> nn.ModuleDict:
    block = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3), "bn1": nn.BatchNorm2d(4)})
    encoder = {"conv1": nn.Conv2d(3, 4, 7), "layer1": nn.ModuleList([block]), "fc": nn.Linear(4, 9)}
    return nn.ModuleDict({"encoder": nn.ModuleDict(encoder), "dec1": two(8, 4)})


def classifier() -> nn.ModuleDict:
    return nn.ModuleDict({"features": two(3, 4), "fc": nn.Linear(4, 10)})


def resnet() -> nn.ModuleDict:
    block = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3), "bn1": nn.BatchNorm2d(4)})
    return nn.ModuleDict(
        {"conv1": nn.Conv2d(3, 4, 7), "layer1": nn.ModuleList([block]), "fc": nn.Linear(4, 10)}
    )


def shared() -> nn.ModuleDict:
    layers = plain(enc2=two(4, 4), mid=two(4, 4), up2=nn.ConvTranspose2d(4, 4, 2, 2))
    layers.update({"dec2": two(8, 4), "up1": nn.ConvTranspose2d(4, 4, 2, 2)})
    layers["mid"] = layers["enc2"]
    return layers


def normalised_ups() -> nn.ModuleDict:
    def block(in_: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_, out, 3), nn.BatchNorm2d(out), nn.Conv2d(out, out, 3),
            nn.BatchNorm2d(out),
        )  # fmt: skip

    blocks = {"enc1": (1, 4), "enc2": (4, 6), "mid": (6, 9), "dec2": (12, 6), "dec1": (8, 4)}
    return plain(**{n: block(*c) for n, c in blocks.items()}, up_norm=nn.BatchNorm2d(6))


def before_convolutions() -> nn.ModuleDict:
    def block(in_: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(in_), nn.Conv2d(in_, out, 3), nn.BatchNorm2d(out),
            nn.Conv2d(out, out, 3),
        )  # fmt: skip

    blocks = {"enc1": (1, 4), "enc2": (4, 6), "mid": (6, 9), "dec2": (12, 6), "dec1": (8, 4)}
    return plain(**{n: block(*c) for n, c in blocks.items()})


def up_sampled_by_3x3() -> nn.ModuleDict:
    layers = plain(up2=nn.Conv2d(12, 6, 3), up1=nn.Conv2d(6, 3, 3))
    blocks = {"enc1": (1, 3), "enc2": (3, 6), "mid": (6, 12), "dec2": (12, 6), "dec1": (6, 3)}
    layers.update({name: two(*channels) for name, channels in blocks.items()})
    layers["head"] = nn.Conv2d(3, 2, 1)
    return layers


NEGATIVES = {
    "auto-encoder": (
        lambda: plain(dec2=two(6, 6), dec1=two(4, 4)),
        "no skips by concatenation: dec2.0 takes 6 channels, as many as the up-sampled map alone",
    ),
    "auto-encoder of usual widths": (
        lambda: nn.ModuleDict({
            "enc1": two(3, 8), "enc2": two(8, 16), "mid": two(16, 32),
            "up2": nn.ConvTranspose2d(32, 16, 2, 2), "dec2": two(16, 16),
            "up1": nn.ConvTranspose2d(16, 8, 2, 2), "dec1": two(8, 8), "out": nn.Conv2d(8, 3, 1),
        }),
        "no skips by concatenation: dec2.0 takes 16 channels",
    ),
    "1-D": (signal, "enc1.0.weight, enc1.2.weight and 2 more are 1-D; this project computes 2-D"),
    "3-D": (volume, "enc1.0.weight, enc1.2.weight and 2 more are 3-D; this project computes 2-D"),
    "residual": (
        residual,
        "it is a residual net.*: enc1_skip, enc2_skip and 3 more are 1x1 convolutions beside",
    ),
    "dense": (dense, "it is a dense net.*: enc1.1 takes what the convolution before it"),
    "UNet++": (nested, r"it is a UNet\+\+.*: conv0_2.0 takes several maps of one level"),
    "two nets": (
        lambda: nn.ModuleDict({"student": plain(), "teacher": plain()}),
        "it holds 2 nets, student, teacher; save the state_dict of the one",
    ),
    "a net beside": (
        lambda: nn.ModuleDict({"unet": plain(), "critic": two(3, 5)}),
        "unet is a U-Net by itself, and critic is beside it",
    ),
    "5x5": (lambda: plain(enc1=two(1, 4, 5)), "enc1.0.weight has a kernel of 5 x 5"),
    "7x7 stem": (lambda: plain(stem=nn.Conv2d(1, 4, 7)), "stem.weight has a kernel of 7 x 7"),
    "shared blocks": (shared, "mid.0, mid.2 are the same layer as enc2.0, enc2.2"),
    "ResNet encoder": (resnet_encoder, "its encoder is a ResNet .encoder.layer1.0.conv1.weight"),
    "classifier": (classifier, "fc.weight is fully connected, so this is a classifier"),
    "ResNet": (resnet, "fc.weight is fully connected, so this is a classifier"),
    "attention": (attention, "gate2.psi ends an attention gate"),
    "up-convolution without bias": (
        lambda: plain(up2=nn.ConvTranspose2d(9, 6, 2, 2, bias=False)),
        "up2 has no bias, unlike the nets here; give each a bias of zeros",
    ),
    "some biases": (
        lambda: plain(mid=nn.Sequential(nn.Conv2d(6, 9, 3, bias=False), nn.Conv2d(9, 9, 3))),
        "mid.0 has no bias",
    ),
    "3x3 transposed": (
        lambda: plain(up2=nn.ConvTranspose2d(9, 6, 3, 2)),
        "up2 is a 3 x 3 transposed convolution",
    ),
    "4x4 transposed": (
        lambda: plain(up2=nn.ConvTranspose2d(9, 6, 4, 2)), "up2.weight has a kernel of 4 x 4",
    ),
    "2x2 that is no up-convolution": (
        lambda: plain(pool1=nn.Conv2d(4, 5, 2, 2)), "pool1 is no up-convolution",
    ),
    "strided convolutions": (
        lambda: plain(pool1=nn.Conv2d(4, 4, 2, 2), pool2=nn.Conv2d(6, 6, 2, 2)),
        "pool1, pool2: 2x2 convolutions beside the up-convolutions, strided ones",
    ),
    "last layer 3x3": (
        lambda: plain(head=nn.Conv2d(4, 3, 3)), "it has no 1x1 convolution, with which a net here",
    ),
    "PReLU": (
        lambda: plain(act=nn.PReLU()), "act.weight is a vector without a bias beside it",
    ),
    "norm without scale": (
        lambda: plain(norm=nn.BatchNorm2d(4, affine=False)), "norm is a norm without a learned",
    ),
    "norm of up-convolutions": (normalised_ups, "it has 11 norms for 10 3x3 convolutions"),
    "norm before the convolution": (
        before_convolutions, "enc1.1 gives 4 channels and the norm in its place, enc1.0, takes 1",
    ),
    "3x3 after interpolation": (
        up_sampled_by_3x3, "12 3x3 convolutions are two for each level and one more for each of 2",
    ),
    "levels of unequal length": (
        lambda: plain(mid=nn.Sequential(nn.Conv2d(6, 9, 3))),
        "2 up-convolutions and 9 3x3 convolutions, which do not divide evenly into 5 levels",
    ),
    "up-convolution of other widths": (
        lambda: plain(up2=nn.ConvTranspose2d(9, 5, 2, 2), dec2=two(11, 6)),
        "up2 gives 5 channels, and the skip that they are concatenated with has another number",
    ),
    "deep supervision": (
        lambda: plain(side=nn.Conv2d(6, 3, 1)), "it has 2 1x1 convolutions .head, side.",
    ),
    "no convolutions": (
        lambda: nn.ModuleDict({"norm": nn.BatchNorm2d(4)}), "no convolution is among its tensors",
    ),
    "encoder alone": (
        lambda: nn.ModuleDict({"a": two(1, 4), "b": two(4, 6), "c": nn.Conv2d(6, 2, 1)}),
        "no 3x3 convolution of it takes the channels of two maps together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEGATIVES)
def test_another_net_is_refused_with_its_reason(name):
    make, reason = NEGATIVES[name]
    tensors = tensors_of(make())
    with pytest.raises(InputError, match=f"^net\\.pt: .*(?:{reason})") as refusal:
        recognise_untyped(tensors)
    # the reason, and behind a semicolon what to do
    assert str(refusal.value).count("; ") >= 1


def test_the_net_that_the_others_are_made_from_is_recognised():
    tensors = tensors_of(plain())
    assert recognise_untyped(tensors)[0].config.widths == (4, 6, 9)


# what splits a weight, and the call that the refusal names, as it stands there
SPLIT = {
    "weight norm": (
        lambda x: utils.weight_norm(x), "torch.nn.utils.remove_weight_norm(x)",
    ),
    "weight norm, new": (
        parametrizations.weight_norm,
        'torch.nn.utils.parametrize.remove_parametrizations(x, "weight")',
    ),
    "spectral norm": (
        lambda x: utils.spectral_norm(x), "torch.nn.utils.remove_spectral_norm(x)",
    ),
    "pruning": (
        lambda x: prune.l1_unstructured(x, "weight", 0.5),
        'torch.nn.utils.prune.remove(x, "weight")',
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", SPLIT)
def test_weights_in_several_tensors_are_refused_until_they_are_joined(name):
    split, call = SPLIT[name]
    net = FlatStages().eval()
    image = torch.ones(1, 1, 8, 8)
    split(net.enc1[0])
    with pytest.raises(InputError, match="a weight of this net is split") as refusal:
        recognise_untyped(tensors_of(net))
    assert call in str(refusal.value)
    with torch.no_grad():
        expected = net(image)
        eval(call, {"torch": torch, "x": net.enc1[0]})
        torch.testing.assert_close(net(image), expected)
    assert recognise_untyped(tensors_of(net))


@pytest.mark.parametrize(
    "make", [NEGATIVES[n][0] for n in ("up-convolution without bias", "some biases")]
)
def test_a_bias_of_zeros_makes_such_a_net_one_of_this_project(make):
    net = make()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    assert recognise_untyped(tensors_of(net))


def test_weights_that_are_integers_are_refused():
    tensors = tensors_of(NETS["FlatStages"].make())
    tensors["enc1.0.weight"] = np.ones((6, 1, 3, 3), np.int8)
    with pytest.raises(InputError, match=r"no floats: down_1\.conv\.conv\.0\.weight"):
        recognise_untyped(tensors)
