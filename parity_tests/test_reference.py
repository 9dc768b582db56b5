"""A person's own torch module is built from their file, loaded strictly, and run."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from unet_spec import InputError, UNetConfig
from unet_torch import reference

PARTS = """
from torch import nn

class Part(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x):
        return self.conv(x)
"""
NET = """
from {dots}parts import Part, nn

class Net(nn.Module):
    def __init__(self, inputs, outputs, scale=1.0):
        super().__init__()
        self.part, self.scale = Part(inputs, outputs), scale

    def forward(self, x):
        return self.scale * self.part(x)
"""


@pytest.fixture(params=["neighbour", "package", "package without __init__"])
def place(request, tmp_path):
    folder = tmp_path / "project" / "nets"
    folder.mkdir(parents=True)
    (folder / "parts.py").write_text(PARTS)
    dots = "" if request.param == "neighbour" else "."
    (folder / "net.py").write_text(NET.format(dots=dots))
    if request.param == "package":
        (folder / "__init__.py").touch()
    return folder / "net.py"


def test_a_file_is_built_with_its_neighbours_and_leaves_nothing_behind(place):
    path, modules = list(sys.path), set(sys.modules)
    files = sorted(place.parent.iterdir())
    net = reference.build(f"{place}:Net", "3, outputs=2, scale=0.5")
    assert net(torch.zeros(1, 3, 8, 9)).shape == (1, 2, 6, 7)
    assert (sys.path, set(sys.modules), sorted(place.parent.iterdir())) == (path, modules, files)


@pytest.mark.parametrize("text", ["def net(): return Conv2d(1, 2, 3)", "net = Conv2d(1, 2, 3)"])
def test_weights_that_a_file_draws_are_the_same_each_time(tmp_path, text):
    (tmp_path / "net.py").write_text(f"from torch.nn import Conv2d\n{text}")
    first = reference.build(f"{tmp_path}/net.py:net").state_dict()
    torch.rand(1)
    before = torch.get_rng_state()
    again = reference.build(f"{tmp_path}/net.py:net").state_dict()
    assert torch.equal(first["weight"], again["weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_files_of_one_name_are_told_apart(tmp_path):
    for width in (2, 3):
        (tmp_path / str(width)).mkdir()
        text = f"from torch import nn\nnet = nn.Conv2d(1, {width}, 3)"
        (tmp_path / str(width) / "net.py").write_text(text)
    nets = [reference.build(f"{tmp_path / str(width)}/net.py:net") for width in (2, 3)]
    assert [len(net.state_dict()["weight"]) for net in nets] == [2, 3]


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("", "", "defines no net"),
        ("from torch.nn import Conv2d, Sequential", "", "defines no net; its modules: Conv2d"),
        ("net = 3", "", "a int, not a torch.nn.Module"),
        ("import nothing_of_this_name", "", "nothing_of_this_name"),
        ("net = (", "", "SyntaxError"),
        ("raise SystemExit(3)", "", "SystemExit: 3"),
        ("def net(): return 3", "", "it gives a int, not a torch.nn.Module"),
        ("def net(a, b=2): 1", "", r"missing a required argument: 'a': it is net\(a, b=2\)"),
        ("def net(a, b=2): 1", "1, c=3", "unexpected keyword argument 'c'"),
        ("def net(a): 1", "a b", "write them as in a call"),
        ("def net(a): 1", "open('x')", "with plain values"),
        ("def net(a): 1", "**{}", "write them as in a call"),
    ],
)
def test_a_reference_that_is_none_is_refused(tmp_path, text, arguments, sentence):
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        reference.build(f"{path}:net", arguments)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nowhere.py:net", r"there is no file nowhere\.py; name it: --reference net\.py:UNet"),
        ("net.py", r"name a file and what it defines: --reference net\.py:UNet"),
        ("", r"name a file and what it defines: --reference net\.py:UNet"),
    ],
)
def test_a_reference_without_a_file_is_refused(place, sentence):
    with pytest.raises(InputError, match=sentence):
        reference.build(place)


def net_with_norm():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def arrays(module, prefix=""):
    return {prefix + name: tensor.numpy() for name, tensor in module.state_dict().items()}


def test_tensors_are_loaded_strictly_behind_any_prefix():
    torch.manual_seed(0)
    original = net_with_norm()
    held = {"criterion.weight": np.ones(3, np.float32), **arrays(original, "_orig_mod.module.")}
    prefix, loaded = reference.load(net_with_norm(), held, place="net.py:net", source="x.pt")
    assert prefix == "_orig_mod.module."
    assert not loaded.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda held: held.pop("0.bias"), "missing: 0.bias"),
        (lambda held: held.update(extra=np.ones(2)), "unexpected: extra"),
        (lambda held: held.update({"0.bias": np.ones(3)}), r"mis-shaped: 0.bias \(3,\) instead of"),
    ],
    ids=["missing", "unexpected", "misshaped"],
)
def test_other_tensors_are_refused(change, sentence):
    held = arrays(net_with_norm())
    change(held)
    with pytest.raises(InputError, match=sentence):
        reference.load(net_with_norm(), held, place="net.py:net", source="x.pt")


LAYERS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(5, 3, 1)
        self.first = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.1))

    def forward(self, x):
        return self.second(self.first(x))
"""


def test_the_tensors_of_an_original_stand_as_it_calls_them_and_its_parameters_as_it_counts_them(
    tmp_path,
):
    (tmp_path / "net.py").write_text(LAYERS)
    place = f"{tmp_path / 'net.py'}:Net"
    held = {**arrays(reference.build(place), "module."), "criterion.weight": np.ones(3)}
    original = reference.build_original(place, "", held, source="x.pt")
    assert original.names[0] == "module.first.0.weight"
    assert original.names[-1] == "module.second.bias"
    assert set(original.names) == set(held) - {"criterion.weight"}
    assert original.parameters[:3] == (
        "module.second.weight", "module.second.bias", "module.first.0.weight",
    )  # fmt: skip
    assert original.has_dropout


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, RuntimeError])
def test_whatever_a_strangers_net_raises_is_no_traceback(error):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            raise error("no")

    assert reference.run(Broken(), np.zeros((1, 1, 8, 8)), dtype=torch.float32) is None
    assert reference.sort_by_calls(Broken(), "", ["conv.weight"]) == ["conv.weight"]


def test_a_part_of_the_net_is_refused():
    whole = nn.ModuleDict({"body": net_with_norm(), "head": nn.Conv2d(2, 3, 1)})
    with pytest.raises(InputError, match=r"only a part of its net, without head\.weight"):
        reference.load(net_with_norm(), arrays(whole), place="net.py:net", source="x.pt")


def test_a_file_of_an_old_torch_has_no_counts_of_batches():
    held = arrays(net_with_norm())
    del held["1.num_batches_tracked"]
    _, loaded = reference.load(net_with_norm(), held, place="net.py:net", source="x.pt")
    assert loaded.state_dict()["1.num_batches_tracked"] == 0


def test_a_module_of_other_names_is_refused_where_the_slides_names_are_needed():
    with pytest.raises(InputError, match=r"net\.py:net: the tensors do not fit the net"):
        reference.check_names(net_with_norm(), UNetConfig(widths=(4, 6)), place="net.py:net")


class Outputs(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(1, 2, 3), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: [y], lambda y: {"out": y}], ids=["tensor", "list", "dict"]
)
def test_one_output_is_taken_out_of_what_holds_it(wrap):
    y = reference.run(Outputs(wrap), np.zeros((1, 1, 4, 5), np.float32), dtype=torch.float64)
    assert y is not None
    assert y.shape == (1, 2, 2, 3)
    assert y.dtype == np.float64


def test_several_outputs_are_refused_and_a_size_that_does_not_fit_is_none():
    with pytest.raises(InputError, match="gives a tuple, and a U-Net here gives one tensor"):
        reference.run(
            Outputs(lambda y: (y, y)), np.zeros((1, 1, 4, 5), np.float32), dtype=torch.float32
        )
    too_small = np.zeros((1, 1, 2, 2), np.float32)
    assert reference.run(Outputs(lambda y: y), too_small, dtype=torch.float32) is None
