"""A U-Net is recognised by order and shapes, or refused with the reason; nothing is guessed."""

from dataclasses import fields, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given as draw
from hypothesis import settings
from torch import nn

import unet_torch
from parity_tests.foreign_nets import NETS, build
from unet_parity.oracle import random_tensors
from unet_spec import InputError, UNetConfig
from unet_spec.families import OWN
from unet_spec.parameters import parameters
from unet_spec.structure import describe, recognise, rename, settle

IMPLIED = {"groups": "norm", "negative_slope": "activation"}
"""Fields that another hidden field hides with it."""


def recognised(tensors, *, given=UNetConfig(), typed=(), ties={}):
    return recognise(tensors, given=given, settled=frozenset(typed), ties=ties, source="net.pt")


def tensors_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def settle_truth(structure, truth: UNetConfig):
    """Settle what is hidden with the true values."""
    names = [*structure.hidden, *(n for n, hider in IMPLIED.items() if hider in structure.hidden)]
    return settle(structure, **{name: getattr(truth, name) for name in names})


def twin_error(structure, net: nn.Module, tensors, size) -> float:
    """Return how far the twin's output is from the net's, in float64, in units of its scale."""
    config = structure.config
    twin = unet_torch.UNet(config).double().eval()
    ours = {n: torch.from_numpy(np.array(t)) for n, t in rename(structure, tensors).items()}
    twin.load_state_dict(ours)
    x = torch.randn(
        2, config.in_channels, *size, dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    with torch.no_grad():
        expected, result = net(x), twin(x)
    if config.output != "logits":
        result = result.sigmoid() if config.output == "sigmoid" else result.softmax(dim=1)
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_a_foreign_net_is_recognised_and_its_twin_gives_the_same_output(name):
    foreign = NETS[name]
    net = foreign.make().double()
    tensors = tensors_of(net)
    structures = recognised(tensors)
    first = settle_truth(structures[0], foreign.config)
    assert first.config == foreign.config
    assert [theirs for theirs, _ in first.names] == list(tensors)
    for size in filter(None, (foreign.size, foreign.odd_size)):
        # the same operations of the same framework in the same order: 0 was measured for all
        assert twin_error(first, net, tensors, size) < 1e-14
    for other in structures[1:]:
        wrong = settle_truth(other, foreign.config)
        assert twin_error(wrong, net, tensors, foreign.size) > 1e-3
    assert len(structures) == (2 if name == "NamedByScale" else 1)


@pytest.mark.parametrize("name", NETS)
def test_every_field_is_shown_by_the_tensors_or_hidden(name):
    foreign = NETS[name]
    (structure, *_) = recognised(tensors_of(foreign.make()))
    assert structure.family is None
    for field in fields(UNetConfig):
        shown = getattr(structure.config, field.name) == getattr(foreign.config, field.name)
        hidden = {field.name, IMPLIED.get(field.name)} & {*structure.hidden}
        assert shown or hidden, field.name
    facts = {"padding", "activation", "concat", "fit", "output"}
    assert facts <= {*structure.hidden}


def test_two_levels_of_equal_channels_are_told_apart_by_the_output_alone():
    structures = recognised(tensors_of(NETS["NamedByScale"].make()))
    names = [dict(structure.names) for structure in structures]
    assert [n["decode.x1.0.weight"] for n in names] == [
        "up_2.conv.conv.0.weight", "up_1.conv.conv.0.weight"
    ]  # fmt: skip
    # the channels of the up-convolutions differ, so that they stay where they are
    assert {n["twice.x1.weight"] for n in names} == {"up_2.up.weight"}


def test_candidates_for_equal_blocks_are_few_and_all_differ():
    class Equal(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(i, 4, 3), nn.Conv2d(4, 4, 3))
                for i in (1, 4, 4, 4, 4, 8, 8, 8, 8)
            )
            self.ups = nn.ModuleList(nn.ConvTranspose2d(4, 4, 2, 2) for _ in range(4))
            self.out = nn.Conv2d(4, 2, 1)

    structures = recognised(tensors_of(build(Equal, 0)))
    assert len({s.names for s in structures}) == len(structures) == 24
    in_order = dict(structures[0].names)
    assert [in_order[f"blocks.{i}.0.weight"].partition(".")[0] for i in range(9)] == [
        "down_1", "down_2", "down_3", "down_4", "neck", "up_1", "up_2", "up_3", "up_4"
    ]  # fmt: skip


@draw(st.data())
@settings(max_examples=30)
def test_the_order_of_definition_does_not_matter(data):
    name = data.draw(st.sampled_from(["FlatStages", "PlainInterpolation", "NarrowDecoder"]))
    tensors = tensors_of(NETS[name].make())
    blocks: dict[str, dict] = {}
    for full, tensor in tensors.items():
        blocks.setdefault(full.partition(".")[0], {})[full] = tensor
    order = data.draw(st.permutations(sorted(blocks)))
    shuffled = {full: tensor for block in order for full, tensor in blocks[block].items()}
    expected = dict(recognised(tensors)[0].names)
    structures = recognised(shuffled)
    assert any(dict(s.names) == expected for s in structures)
    # NarrowDecoder has no two blocks of equal channels either
    assert len(structures) == 1


def test_first_convolutions_may_all_be_defined_before_the_second_ones():
    tensors = tensors_of(NETS["ConvsThenNorms"].make())
    turns = [*range(0, 10, 2), *range(1, 10, 2)]
    parts = [f"{kind}.{i}." for kind in ("convs", "norms") for i in turns] + ["lifts", "last"]
    shuffled = {n: t for part in parts for n, t in tensors.items() if n.startswith(part)}
    assert shuffled.keys() == tensors.keys()
    (structure,) = recognised(shuffled)
    assert dict(structure.names) == dict(recognised(tensors)[0].names)


def test_a_norm_under_two_names_is_one_norm():
    tensors = tensors_of(NETS["TiedNorms"].make())
    (structure,) = recognised(tensors)
    names = dict(structure.names)
    assert names["a.bn_a.weight"] == names["a.run.1.weight"] == "down_1.conv.conv.1.weight"
    # new norms are all 1 and 0: only what shares memory with what tells them apart
    fresh = {n: np.ones_like(t) if t.ndim == 1 else t for n, t in tensors.items()}
    ties = {
        n: n.replace(".run.1.", ".bn_a.").replace(".run.4.", ".bn_b.")
        for n in tensors if ".run.1." in n or ".run.4." in n
    }  # fmt: skip
    assert recognised(fresh, ties=ties)[0].names == structure.names
    with pytest.raises(InputError, match="it has 20 norms for 10 3x3 convolutions"):
        recognised(fresh)


@pytest.mark.parametrize(
    "prefixes", [("module.",), ("model.", "_orig_mod."), ("_orig_mod.", "module.", "net.", "x.")]
)
def test_prefixes_and_what_lies_beside_the_net_change_nothing(prefixes):
    prefix = "".join(prefixes)
    tensors = tensors_of(NETS["NumberedConvs"].make())
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    beside = {
        "criterion.weight": np.ones(4, np.float32),
        "n_averaged": np.array(7),
        "pixel_mean": np.ones(3, np.float32),
    }
    (structure,) = recognised({**beside, **wrapped})
    assert structure.names == tuple(
        (prefix + theirs, ours) for theirs, ours in recognised(tensors)[0].names
    )
    assert structure.beside == tuple(beside)


def test_without_a_prefix_only_what_is_no_layer_lies_beside_the_net():
    tensors = tensors_of(NETS["FlatStages"].make())
    beside = {"criterion.weight": np.ones(4, np.float32), "epoch": np.array(7)}
    assert recognised({**tensors, **beside})[0].beside == ("criterion.weight", "epoch")
    with pytest.raises(InputError, match=r"net\.pt: mean belongs to no convolution and no norm"):
        recognised({"mean": np.ones((1, 1, 1, 1), np.float32), **tensors})


def test_counts_of_batches_may_be_missing_or_of_another_type():
    tensors = tensors_of(NETS["NumberedConvs"].make())
    whole = rename(recognised(tensors)[0], tensors)
    old = {n: t for n, t in tensors.items() if not n.endswith("tracked")}
    (structure,) = recognised(old)
    assert len(structure.missing) == 10
    floats = {n: t.astype(np.float32) if n.endswith("tracked") else t for n, t in tensors.items()}
    for renamed in (rename(structure, old), rename(recognised(floats)[0], floats)):
        assert list(renamed) == [p.name for p in parameters(structure.config)]
        for name, tensor in whole.items():
            assert renamed[name].dtype == tensor.dtype
            assert np.array_equal(renamed[name], tensor)


def test_description_has_a_row_for_each_layer():
    (structure,) = recognised(tensors_of(NETS["FlatStages"].make()))
    rows = describe(structure)
    assert rows[0] == ("enc1.0", "down_1.conv.conv.0", (6, 1, 3, 3))
    assert rows[-1] == ("head", "out", (1, 6, 1, 1))
    assert len(rows) == 13


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("FlatStages", {"widths": (6, 10)}, r"have widths=\(6, 10, 14\), not widths=\(6, 10\)"),
        ("FlatStages", {"norm": "batch"}, "have norm=none, not norm=batch"),
        ("FlatStages", {"up": "nearest"}, "have up=transposed, not up=nearest"),
        ("NumberedConvs", {"norm": "none"}, "have norm=batch, not norm=none"),
        ("StageLists", {"norm": "batch"}, "its norm keeps no statistics, so it is group or"),
        ("StageLists", {"norm": "group", "groups": 3}, "needs multiples of groups=3"),
        ("TiedNorms", {"up": "transposed"}, "its up-sampling has no 2x2 kernels"),
        ("NarrowDecoder", {"up_middle": "output"}, "have up_middle=half, not up_middle=output"),
    ],
)
def test_a_flag_that_says_otherwise_than_the_tensors_is_refused(name, given, sentence):
    with pytest.raises(InputError, match=sentence):
        recognised(tensors_of(NETS[name].make()), given=replace(UNetConfig(), **given), typed=given)


def test_a_typed_value_settles_its_field_even_where_it_is_the_default():
    tensors = tensors_of(NETS["StageLists"].make())
    (structure,) = recognised(tensors, typed=["padding", "fit"])
    assert not {"padding", "fit"} & {*structure.hidden}
    given = UNetConfig(norm="group", groups=2, activation="leaky_relu")
    (structure,) = recognised(tensors, given=given, typed=["norm", "activation"])
    assert {"groups", "negative_slope"} <= {*structure.hidden}
    typed = ["norm", "groups", "activation", "negative_slope"]
    (structure,) = recognised(tensors, given=given, typed=typed)
    assert structure.hidden == ("padding", "norm_place", "concat", "fit", "output")


# families, under names that were written down from their code and not from the tables


def pairs(level: str, numbers: tuple[str, ...] = ("0", "1", "3", "4")) -> list[str]:
    return [level + number for number in numbers]


def milesial(inner: str, first: str, down: str, *, bilinear: bool) -> list[str]:
    names = pairs(f"inc.{first}{inner}")
    for level in range(1, 5):
        names += pairs(f"down{level}.{down}{inner}")
    for level in range(1, 5):
        names += [] if bilinear else [f"up{level}.up"]
        names += pairs(f"up{level}.conv.{inner}")
    return [*names, "outc.conv"]


def mateuszbuda() -> list[str]:
    numbers = ("conv1", "norm1", "conv2", "norm2")
    names = []
    for level in (1, 2, 3, 4):
        names += pairs(f"encoder{level}.enc{level}", numbers)
    names += pairs("bottleneck.bottleneck", numbers)
    for level in (4, 3, 2, 1):
        names += [f"upconv{level}", *pairs(f"decoder{level}.dec{level}", numbers)]
    return [*names, "conv"]


def jvanvugt(up: str, numbers: tuple[str, ...]) -> list[str]:
    names = []
    for level in (0, 1, 2):
        names += pairs(f"down_path.{level}.block.", numbers)
    for level in (0, 1):
        names += [f"up_path.{level}.{up}", *pairs(f"up_path.{level}.conv_block.block.", numbers)]
    return [*names, "last"]


def aladdinpersson() -> list[str]:
    names = [*pairs("downs.0.conv."), *pairs("downs.1.conv."), *pairs("bottleneck.conv.")]
    names += ["ups.0", *pairs("ups.1.conv."), "ups.2", *pairs("ups.3.conv.")]
    return [*names, "final_conv"]


def monai() -> list[str]:
    numbers = ("conv_0.conv", "conv_0.adn.N", "conv_1.conv", "conv_1.adn.N")
    names = pairs("conv_0.", numbers)
    for level in (1, 2, 3, 4):
        names += pairs(f"down_{level}.convs.", numbers)
    for level in (4, 3, 2, 1):
        names += [f"upcat_{level}.upsample.deconv", *pairs(f"upcat_{level}.convs.", numbers)]
    return [*names, "final_conv"]


FOUR = UNetConfig(widths=(4, 6, 8, 10, 12), norm="batch", concat="skip_first", fit="zeros")
NARROW = replace(
    FOUR, widths=(4, 8, 16, 32, 32), up="bilinear_aligned", up_convolution=False,
    up_widths=(16, 8, 4, 4),
)  # fmt: skip
THREE = UNetConfig(widths=(4, 6, 9))

FAMILY_NETS = {
    "milesial/Pytorch-UNet": (
        milesial("double_conv.", "", "maxpool_conv.1.", bilinear=False), FOUR, (),
    ),
    "milesial/Pytorch-UNet, bilinear": (
        milesial("double_conv.", "", "maxpool_conv.1.", bilinear=True),
        replace(NARROW, up_middle="half"), (),
    ),
    "milesial/Pytorch-UNet before 2019": (
        milesial("conv.", "conv.", "mpconv.1.", bilinear=False), FOUR, ("fit", "output"),
    ),
    "milesial/Pytorch-UNet before 2019, bilinear": (
        milesial("conv.", "conv.", "mpconv.1.", bilinear=True), NARROW, ("fit", "output"),
    ),
    "mateuszbuda/brain-segmentation-pytorch": (
        mateuszbuda(),
        replace(FOUR, bias=False, concat="up_first", fit="error", output="sigmoid"), (),
    ),
    "jvanvugt/pytorch-unet": (
        jvanvugt("up", ("0", "2")), replace(THREE, fit="crop"), ("padding",),
    ),
    "jvanvugt/pytorch-unet, bilinear": (
        jvanvugt("up.1", ("0", "2", "3", "5")),
        replace(THREE, norm="batch", norm_place="after", up="bilinear", fit="crop"), ("padding",),
    ),
    "aladdinpersson/Machine-Learning-Collection": (
        aladdinpersson(), replace(THREE, norm="batch", bias=False, concat="skip_first"), (),
    ),
    "MONAI BasicUNet": (
        monai(),
        replace(FOUR, norm="instance", activation="leaky_relu", negative_slope=0.1, fit="edge"),
        ("norm", "activation"),
    ),
}  # fmt: skip


def under_names(config: UNetConfig, layers: list[str], prefix: str = "") -> dict[str, np.ndarray]:
    """Return random tensors of a net, whose layers have these names, in the order of the net."""
    ours = random_tensors(config, seed=3)
    layers_of_ours = list(dict.fromkeys(name.rpartition(".")[0] for name in ours))
    theirs = dict(zip(layers_of_ours, layers, strict=True))
    return {
        f"{prefix}{theirs[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t
        for n, t in ours.items()
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.model."], ids=str)
@pytest.mark.parametrize("name", FAMILY_NETS)
def test_a_family_settles_what_its_code_fixes(name, prefix):
    layers, config, hidden = FAMILY_NETS[name]
    tensors = under_names(config, layers, prefix)
    (structure,) = recognised(tensors)
    assert structure.family is not None
    assert structure.family.name == name.partition(",")[0]
    assert structure.hidden == hidden
    assert {n for n in structure.conventions if n in structure.family.conventions} == {
        *structure.conventions
    }
    settled = settle_truth(structure, config)
    assert settled.config == config
    renamed = rename(settled, tensors)
    for ours, tensor in random_tensors(config, seed=3).items():
        assert np.array_equal(renamed[ours], tensor), ours


@pytest.mark.parametrize("name", FAMILY_NETS)
def test_a_fork_that_names_one_layer_otherwise_is_not_the_family(name):
    layers, config, _ = FAMILY_NETS[name]
    for at in (0, len(layers) // 2, -1):
        renamed = list(layers)
        renamed[at] = "fork." + renamed[at]
        (structure, *_) = recognised(under_names(config, renamed))
        assert structure.family is None
        assert {"padding", "concat", "fit", "output"} <= {*structure.hidden}


def test_a_fork_that_numbers_its_levels_otherwise_is_not_the_family():
    layers = ["inc.conv.conv.0", "inc.conv.conv.1", "inc.conv.conv.3", "inc.conv.conv.4"]
    layers += [f"down1.mpconv.1.conv.{n}" for n in (0, 1, 3, 4)]
    layers += ["up8.up", *(f"up8.conv.conv.{n}" for n in (0, 1, 3, 4)), "outc.conv"]
    (structure,) = recognised(under_names(replace(FOUR, widths=(4, 8)), layers))
    assert structure.family is None
    # nor is one of another depth, whose author has changed the code
    layers = [name.replace("up8", "up1") for name in layers]
    (structure,) = recognised(under_names(replace(FOUR, widths=(4, 8)), layers))
    assert structure.family is None


def test_a_typed_value_wins_over_the_convention_of_a_family():
    layers, config, _ = FAMILY_NETS["milesial/Pytorch-UNet"]
    tensors = under_names(config, layers)
    given = UNetConfig(concat="up_first", output="sigmoid")
    (structure,) = recognised(tensors, given=given, typed=["concat", "output"])
    assert (structure.config.concat, structure.config.output) == ("up_first", "sigmoid")
    assert not {"concat", "output"} & {*structure.conventions}
    (structure,) = recognised(tensors, given=given)
    assert (structure.config.concat, structure.config.output) == ("skip_first", "logits")


def test_this_project_takes_what_is_hidden_from_the_flags_and_their_defaults():
    config = UNetConfig(
        widths=(4, 6), norm="group", groups=2, norm_place="after", up="nearest", padding="valid"
    )
    tensors = random_tensors(config, seed=0)
    (structure,) = recognised(tensors)
    assert structure.family is OWN
    assert structure.hidden == ("norm", "up")
    assert structure.config.norm_place == "after"
    (structure,) = recognised(tensors, given=config)
    assert (structure.config, structure.hidden) == (config, ())
    assert all(theirs == ours for theirs, ours in structure.names)


def test_the_names_of_a_family_do_not_make_an_auto_encoder_a_u_net():
    layers, config, _ = FAMILY_NETS["jvanvugt/pytorch-unet"]
    tensors = under_names(config, layers)
    for level, channels in enumerate((6, 4)):
        name = f"up_path.{level}.conv_block.block.0.weight"
        tensors[name] = tensors[name][:, :channels]
    with pytest.raises(InputError, match=r"no skips by concatenation: up_path\.0\.conv_block"):
        recognised(tensors)
