"""A map of names, for nets whose layers cannot be told apart."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from parity_tests.foreign_nets import NETS
from unet_convert import conversion, names_map
from unet_convert.evidence import Evidence
from unet_spec import InputError

NET = NETS["NamedByScale"]  # two of its blocks have equal shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A net, a pair, and the map that recognition by the pair found."""
    folder = tmp_path_factory.mktemp("map")
    module = NET.make()
    torch.save(module.state_dict(), folder / "theirs.pth")
    x = torch.randn(1, NET.config.in_channels, *(NET.odd_size or NET.size))
    np.savez(folder / "pair.npz", x=x.numpy(), y=module(x).detach().numpy())
    evidence = Evidence(recorded=folder / "pair.npz")
    result = conversion.convert(folder / "theirs.pth", folder / "found", evidence=evidence)
    assert result.weights.origin is not None
    lines = {t.rpartition(".")[0]: o.rpartition(".")[0] for t, o in result.weights.origin.names}
    return folder, lines


def write(path, lines):
    path.write_text("".join(f'"{theirs}" = "{ours}"\n' for theirs, ours in lines.items()))
    return path


def test_a_map_names_every_layer(folder, tmp_path):
    place, lines = folder
    evidence = Evidence(recorded=place / "pair.npz", names=write(tmp_path / "map.toml", lines))
    result = conversion.convert(place / "theirs.pth", tmp_path / "a", evidence=evidence)
    assert result.weights.config == NET.config
    assert (tmp_path / "a").read_bytes() == (place / "found").read_bytes()
    assert any("the only one of" in sentence for sentence in result.sentences())


def test_a_map_settles_no_hidden_fact(folder, tmp_path):
    place, lines = folder
    evidence = Evidence(names=write(tmp_path / "map.toml", lines))
    with pytest.raises(InputError, match=r"do not say which half of a conc"):
        conversion.convert(place / "theirs.pth", tmp_path / "a", evidence=evidence)


def test_two_layers_exchanged_in_a_map_are_seen_by_the_pair(folder, tmp_path):
    place, lines = folder
    exchange = {
        "down_2.conv.conv.3": "down_2.conv.conv.6",
        "down_2.conv.conv.6": "down_2.conv.conv.3",
    }
    wrong = {theirs: exchange.get(ours, ours) for theirs, ours in lines.items()}
    assert wrong != lines
    evidence = Evidence(recorded=place / "pair.npz", names=write(tmp_path / "map.toml", wrong))
    with pytest.raises(InputError, match=r"none of .* combinations"):
        conversion.convert(place / "theirs.pth", tmp_path / "a", evidence=evidence)


def change(lines, ours, new):
    return {theirs: new if our == ours else our for theirs, our in lines.items()}


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda m: change(m, "up_2.up", "up_2.upp"),
            r"up_2\.upp\.weight is no name of a layer here",
        ),
        (lambda m: change(m, "up_2.up", "up_1.up"), r"two lines give up_1\.up\.weight"),
        (lambda m: {t: o for t, o in m.items() if o != "up_2.up"}, r"no line gives up_2\.up"),
        (lambda m: {t: o for t, o in m.items() if o != "out"}, "no line gives out"),
        (lambda m: {**m, "nothing": "out"}, "no tensor is named nothing or begins so"),
    ],
    ids=["a typo", "twice", "a layer missing", "no last layer", "not in the file"],
)
def test_a_map_with_a_mistake_is_refused_with_it(folder, tmp_path, edit, sentence):
    place, lines = folder
    path = write(tmp_path / "map.toml", edit(lines))
    evidence = Evidence(config=replace(NET.config), recorded=place / "pair.npz", names=path)
    with pytest.raises(InputError, match=sentence):
        conversion.convert(place / "theirs.pth", tmp_path / "a", evidence=evidence)
    assert not (tmp_path / "a").exists()


def test_a_map_that_is_no_toml_is_refused(folder, tmp_path):
    (tmp_path / "map.toml").write_text("a: b")
    with pytest.raises(InputError, match=r"map\.toml: not a map of names"):
        conversion.convert(
            folder[0] / "theirs.pth", tmp_path / "a", evidence=Evidence(names=tmp_path / "map.toml")
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=" + "[" * 3000, "nested too deeply"),
        ("a" + ".a" * 10**5 + "=1", "a line of more than 4,000 characters"),
        ("a" + ".a" * 1500 + "=1", "nested too deeply"),
        ("a=" + "9" * 3900 + "\nb=" + "9" * 3900 + "\n", "no tensor is named a or begins so"),
        ("a='b'\n" * 200_000, "a map of names has at most 1,048,576 bytes"),
        ("w='down_1000000000.conv.conv.0'", "level 1000000000 is named"),
    ],
)
def test_a_map_that_nobody_writes_is_refused_at_once(tmp_path, text, words):
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        names_map.read(path, {"w.weight": np.ones(2)})
    assert words in str(error.value)


def test_a_pipe_of_names_is_refused(tmp_path):
    os.mkfifo(tmp_path / "map.toml")
    with pytest.raises(InputError, match="a pipe or a device"):
        names_map.read(tmp_path / "map.toml", {})
