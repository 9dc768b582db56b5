import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unet_spec import PAPER, SLIDES, InputError, UNetConfig
from unet_spec.config import MOST_LEVELS, UpLevel
from unet_spec.errors import FieldError, Name, Setting

GROUPS = 2


@st.composite
def configs(draw):
    """Any legal config; `groups` divides all widths, and half the sum of two of them."""
    padding = draw(st.sampled_from(["same", "valid"]))
    fits = ["error", "crop"] + ["zeros", "edge"] * (padding == "same")
    up = draw(st.sampled_from(["transposed", "bilinear", "bilinear_aligned", "nearest"]))
    channels = st.integers(1, 99).map(lambda number: 2 * GROUPS * number)
    widths = tuple(draw(st.lists(channels, min_size=2, max_size=MOST_LEVELS)))
    depth = len(widths) - 1
    return UNetConfig(
        in_channels=draw(st.integers(1, 9)),
        classes=draw(st.integers(1, 300)),
        widths=widths,
        convolutions=draw(st.integers(1, 4)),
        padding=padding,
        norm=draw(st.sampled_from(["none", "batch", "group", "instance"])),
        norm_place=draw(st.sampled_from(["before", "after"])),
        groups=GROUPS,
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "leaky_relu"])),
        negative_slope=draw(st.floats(0, 1, width=32, allow_subnormal=False)),
        up=up,
        up_convolution=up == "transposed" or draw(st.booleans()),
        up_widths=tuple(draw(st.just([]) | st.lists(channels, min_size=depth, max_size=depth))),
        up_middle=draw(st.sampled_from(["output", "half"])),
        concat=draw(st.sampled_from(["up_first", "skip_first"])),
        fit=draw(st.sampled_from(fits)),
        dropout=draw(st.floats(0, 1, exclude_max=True, width=32, allow_subnormal=False)),
        output=draw(st.sampled_from(["logits", "sigmoid", "softmax"])),
    )


def test_default_is_the_net_of_the_slides():
    assert UNetConfig() == SLIDES
    assert dataclasses.asdict(SLIDES) == {
        "in_channels": 1, "classes": 2, "widths": (64, 128, 256, 512, 1024),
        "convolutions": 2, "padding": "same", "norm": "none", "norm_place": "before", "groups": 8,
        "bias": True, "activation": "relu",
        "negative_slope": 0.01, "up": "transposed", "up_convolution": True, "up_widths": (),
        "up_middle": "output", "concat": "up_first", "fit": "error", "dropout": 0.0,
        "output": "logits",
    }  # fmt: skip


def test_paper_is_the_same_net_without_padding():
    assert dataclasses.replace(SLIDES, padding="valid") == PAPER


def test_a_net_has_at_least_2_levels_and_in_a_file_at_most_16():
    assert [UNetConfig(widths=(8,) * levels).depth for levels in (2, 16, 17)] == [1, 15, 16]
    with pytest.raises(InputError, match="widths needs at least 2 levels"):
        UNetConfig(widths=(8,))
    with pytest.raises(InputError, match="UNetConfig: widths needs at most 16 levels"):
        UNetConfig.from_json(UNetConfig(widths=(8,) * 17).to_json())


def test_channels_of_the_levels_are_the_literals():
    assert SLIDES.depth == 4
    assert SLIDES.downs == ((1, 64), (64, 128), (128, 256), (256, 512))
    assert SLIDES.ups == (
        UpLevel(1024, 512, 512, 512, 512), UpLevel(512, 256, 256, 256, 256),
        UpLevel(256, 128, 128, 128, 128), UpLevel(128, 64, 64, 64, 64),
    )  # fmt: skip
    assert SLIDES.out_channels == 64


NARROWER = UNetConfig(widths=(6, 8, 10), up="nearest", up_widths=(12, 4))


def test_channels_of_a_narrower_decoder_are_the_literals():
    """In each: from below, up-sampled, of the skip, between the convolutions, after them."""
    assert NARROWER.ups == (UpLevel(10, 8, 8, 12, 12), UpLevel(12, 6, 6, 4, 4))
    assert NARROWER.out_channels == 4
    plain = dataclasses.replace(NARROWER, up_convolution=False)
    assert plain.ups == (UpLevel(10, 10, 8, 12, 12), UpLevel(12, 12, 6, 4, 4))
    half = dataclasses.replace(plain, up_middle="half")
    assert half.ups == (UpLevel(10, 10, 8, 9, 12), UpLevel(12, 12, 6, 9, 4))


def test_a_single_channel_tells_two_classes_apart():
    assert [UNetConfig(classes=count).mask_classes for count in (1, 2, 3)] == [2, 2, 3]


@given(configs())
def test_json_round_trip_gives_an_equal_config(config):
    assert UNetConfig.from_json(config.to_json()) == config
    assert hash(UNetConfig.from_json(config.to_json())) == hash(config)


@given(configs(), configs())
def test_json_is_equal_only_for_equal_configs(one, other):
    assume(one != other)
    assert one.to_json() != other.to_json()


def test_list_of_widths_becomes_a_tuple():
    assert UNetConfig(widths=[6, 8]) == UNetConfig(widths=(6, 8))  # type: ignore[arg-type]
    narrow = UNetConfig(widths=(6, 8), up_widths=[4])  # type: ignore[arg-type]
    assert narrow == UNetConfig(widths=(6, 8), up_widths=(4,))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no_channels": ({"in_channels": 0}, "in_channels needs at least 1, got 0"),
    "no_classes": ({"classes": -1}, "classes needs at least 1, got -1"),
    "no_groups": ({"groups": 0}, "groups needs at least 1, got 0"),
    "one_level": ({"widths": (64,)}, "widths needs at least 2 levels, got (64,)"),
    "empty_level": (
        {"widths": (6, 0)}, "widths needs at least 1 for each, got (6, 0)",
    ),
    "fractional_width": ({"widths": (6, 8.0)}, "widths holds ints, got (6, 8.0)"),
    "boolean_count": ({"classes": True}, "classes is of type int, got True"),
    "text_for_a_number": ({"dropout": "0.3"}, "dropout is of type float, got '0.3'"),
    "number_for_a_boolean": ({"bias": 1}, "bias is of type bool, got 1"),
    "unknown_padding": ({"padding": "full"}, "padding is one of same, valid, got 'full'"),
    "unknown_norm": (
        {"norm": "layer"}, "norm is one of none, batch, group, instance, got 'layer'",
    ),
    "unknown_place": (
        {"norm_place": "between"}, "norm_place is one of before, after, got 'between'",
    ),
    "unknown_activation": (
        {"activation": "gelu"}, "activation is one of relu, leaky_relu, got 'gelu'",
    ),
    "unknown_up": (
        {"up": "cubic"},
        "up is one of transposed, bilinear, bilinear_aligned, nearest, got 'cubic'",
    ),
    "unknown_concat": (
        {"concat": "add"}, "concat is one of up_first, skip_first, got 'add'",
    ),
    "unknown_fit": ({"fit": "pad"}, "fit is one of error, zeros, edge, crop, got 'pad'"),
    "undivided_groups": (
        {"norm": "group", "groups": 4, "widths": (8, 6)},
        "widths needs multiples of groups=4 with norm=group, got (8, 6)",
    ),
    "no_convolutions": ({"convolutions": 0}, "convolutions needs at least 1, got 0"),
    "up_widths_of_another_number": (
        {"widths": (6, 8, 10), "up_widths": (8,)},
        "up_widths needs one channel count for each pool of widths=(6, 8, 10), got (8,)",
    ),
    "empty_up_level": (
        {"widths": (6, 8), "up_widths": (0,)}, "up_widths needs at least 1 for each, got (0,)",
    ),
    "convolution_without_one": (
        {"up_convolution": False},
        "up_convolution=False needs an interpolation, and up=transposed is a convolution itself",
    ),
    "odd_halves": (
        {"widths": (7, 8), "up": "nearest", "up_convolution": False, "up_middle": "half"},
        "an odd number of them has no half",
    ),
    "unknown_middle": (
        {"up_middle": "third"}, "up_middle is one of output, half, got 'third'",
    ),
    "unknown_output": (
        {"output": "tanh"}, "output is one of logits, sigmoid, softmax, got 'tanh'",
    ),
    "undivided_groups_of_the_expanding_path": (
        {"norm": "group", "groups": 4, "widths": (8, 12), "up_widths": (6,)},
        "norm=group needs multiples of groups=4, and a convolution of the expanding path gives 6 "
        "channels; change groups, up_widths or up_middle",
    ),
    "undivided_groups_of_the_middle": (
        {"norm": "group", "groups": 4, "widths": (8, 12), "up": "nearest", "up_convolution": False,
         "up_middle": "half"},
        "gives 10 channels; change groups, up_widths or up_middle",
    ),
    "padded_valid": (
        {"padding": "valid", "fit": "zeros"}, "fit=zeros needs padding=same",
    ),
    "edged_valid": ({"padding": "valid", "fit": "edge"}, "fit=edge needs padding=same"),
    "certain_dropout": ({"dropout": 1.0}, "dropout is a rate in [0, 1), got 1.0"),
    "negative_dropout": ({"dropout": -0.1}, "dropout is a rate in [0, 1), got -0.1"),
    "undefined_dropout": ({"dropout": float("nan")}, "dropout is a rate in [0, 1), got nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_field_rule_and_value(case):
    fields, words = REFUSED[case]
    with pytest.raises(InputError) as refusal:
        UNetConfig(**fields)
    assert words in str(refusal.value)


def test_an_error_of_a_field_is_a_value_and_pickles_as_its_sentence():
    with pytest.raises(FieldError) as refusal:
        UNetConfig(norm="group", groups=4, widths=(8, 6))
    error = refusal.value
    assert (error.field, error.value, error.remedy) == ("widths", (8, 6), "change either")
    assert error.rule == "needs multiples of {groups=} with {norm=group}"
    assert Setting(Name(UNetConfig, "groups"), 4) in error.parts
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (InputError, str(error))


def test_what_only_matters_with_a_norm_is_free_without_it():
    assert UNetConfig(widths=(6, 7), groups=8).groups == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"attention": true, "blocks": 3}', "unknown field attention, blocks"),
        ("[1, 2]", "a JSON object is needed, got list"),
        ("{", "not JSON"),
        ('{"norm": ["batch"]}', "norm is one of"),
        ('{"widths": [64]}', "widths needs at least 2 levels"),
    ],
    ids=["unknown_field", "list", "not_json", "list_for_a_word", "illegal_value"],
)
def test_wrong_json_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        UNetConfig.from_json(text)


def test_missing_fields_of_older_files_take_their_defaults():
    fields = json.loads(PAPER.to_json())
    del fields["dropout"]
    assert UNetConfig.from_json(json.dumps(fields)) == PAPER


def test_config_is_frozen_and_can_be_a_key():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SLIDES.classes = 3  # type: ignore[misc]
    assert {SLIDES: 1, UNetConfig(): 2} == {SLIDES: 2}


@pytest.mark.parametrize("text", ['{"widths": 5}', '{"widths": "ab"}', '{"widths": [4, 6.5]}'])
def test_widths_that_are_no_channel_counts_are_refused(text):
    with pytest.raises(InputError, match="widths"):
        UNetConfig.from_json(text)
