"""What a foreign file held beside its net comes back with it: wrapper, prefixes, types, ties."""

from collections import OrderedDict
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.foreign_nets import NETS
from unet_convert import conversion
from unet_convert.evidence import Evidence
from unet_spec import InputError, weight_file

NET = NETS["NumberedConvs"]
KNOWN = Evidence(config=NET.config, settled=frozenset(asdict(NET.config)))


def plain():
    return NET.make().state_dict()


def averaged():
    average = torch.optim.swa_utils.AveragedModel(NET.make())
    average.update_parameters(NET.make())
    return average.state_dict()


def of_lightning():
    module = NET.make()
    optimizer = torch.optim.Adam(module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    return {
        "epoch": 3, "global_step": 1, "pytorch-lightning_version": "2.4.0",
        "state_dict": {**{f"model.{n}": t for n, t in plain().items()},
                       "criterion.weight": torch.tensor([1.0, 5.0])},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()],
        "hyper_parameters": {"lr": 1e-3, "widths": (5, 8, 12), "best": float("inf")},
    }  # fmt: skip


def with_old_counts():
    return {n: t.float() if n.endswith("tracked") else t for n, t in plain().items()}


FORMS: dict[str, Any] = {
    "a state_dict": plain,
    "DataParallel over compile": lambda: {f"_orig_mod.module.{n}": t for n, t in plain().items()},
    "AveragedModel": averaged,
    "Lightning": of_lightning,
    "half precision": lambda: {"net": {n: t.bfloat16() if t.is_floating_point() else t
                                       for n, t in plain().items()}},
    "counts as floats": with_old_counts,
    "no counts": lambda: {n: t for n, t in plain().items() if not n.endswith("tracked")},
    "values between the tensors": lambda: {**plain(), "mask_values": [0, 255]},
    "a wrapper": lambda: {"model": "unet", "model_state_dict": plain(), "iou": np.float64(0.5),
                          "classes": ("a", "b"), "none": None, "names": {0: "a", 1: "b"}},
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Whether two contents of files are equal, with types, orders and bits."""
    if isinstance(one, torch.Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return equal and torch.equal(one, other)
    if isinstance(one, dict):
        kinds = {OrderedDict, dict}
        return {type(one), type(other)} <= kinds and list(one) == list(other) and all(
            same(one[key], other[key]) for key in one
        )  # fmt: skip
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("suffix", ["pth", "ckpt", "sav", "pkl", "bin"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_comes_back_as_it_was(form, suffix, tmp_path):
    content = FORMS[form]()
    source, target = tmp_path / f"theirs.{suffix}", tmp_path / "back.pt"
    torch.save(content, source, _use_new_zipfile_serialization=suffix != "sav")
    conversion.convert(source, tmp_path / "ours", evidence=KNOWN)
    conversion.convert(tmp_path / "ours", target)
    assert same(content, torch.load(target, weights_only=True))
    ours = weight_file.read(tmp_path / "ours")
    assert {t.dtype.type for t in ours.tensors.values()} == {np.float32, np.int64}


def test_another_value_in_the_net_comes_back_under_its_own_name(tmp_path):
    """Planted: what comes back is what was trained, not a copy of the file that came."""
    torch.save({f"module.{n}": t for n, t in plain().items()}, tmp_path / "theirs.pth")
    conversion.convert(tmp_path / "theirs.pth", tmp_path / "a", evidence=KNOWN)
    weights = weight_file.read(tmp_path / "a")
    tensors = {n: t + (n == "out.bias") for n, t in weights.tensors.items()}
    moved = type(weights)(weights.config, tensors, origin=weights.origin)
    weight_file.write(tmp_path / "b", moved)
    conversion.convert(tmp_path / "b", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    different = [n for n, t in plain().items() if not torch.equal(back[f"module.{n}"], t)]
    ours = dict(weights.origin.names) if weights.origin else {}
    assert [ours[f"module.{n}"] for n in different] == ["out.bias"]


def test_tensors_of_several_nets_are_refused_and_an_average_is_named(tmp_path):
    torch.save({"generator": plain(), "critic": plain()}, tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"several nets \(generator, critic\)"):
        conversion.convert(tmp_path / "two.pth", tmp_path / "a", evidence=KNOWN)
    torch.save({"model": plain(), "ema": averaged()}, tmp_path / "ema.pth")
    result = conversion.convert(tmp_path / "ema.pth", tmp_path / "a", evidence=KNOWN)
    assert "left out, tensors of another net: ema" in result.sentences()


def test_what_is_no_plain_value_is_said_to_be_left_out(tmp_path):
    torch.save({"model": plain(), "history": torch.zeros(5000), "n": 1}, tmp_path / "theirs.pth")
    result = conversion.convert(tmp_path / "theirs.pth", tmp_path / "a", evidence=KNOWN)
    assert "left out, no plain values: history" in result.sentences()
    conversion.convert(tmp_path / "a", tmp_path / "back.pt")
    assert list(torch.load(tmp_path / "back.pt", weights_only=True)) == ["model", "n"]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda p: p.write_text("<!DOCTYPE html><html>"), "an HTML page, not weights"),
        (lambda p: p.write_text("404: Not Found\n"), "a text, not weights"),
        (lambda p: torch.save(nn.Conv2d(1, 2, 3), p), "more than tensors"),
        (lambda p: torch.save({"epoch": 3}, p), "no state_dict in it"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut"), "not a whole PyTorch file"),
        (lambda p: torch.jit.save(torch.jit.trace(nn.Conv2d(1, 2, 3), torch.ones(1, 1, 4, 4)), p),
         "a TorchScript program"),
    ],
    ids=["page", "text", "module", "no net", "cut", "program"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(write, sentence, tmp_path):
    write(tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=sentence):
        conversion.convert(tmp_path / "theirs.pth", tmp_path / "a", evidence=KNOWN)
    assert not (tmp_path / "a").exists()


def test_no_pickle_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"model": plain(), "x": Harmful()}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="unpickling runs code"):
        conversion.convert(tmp_path / "theirs.pth", tmp_path / "a", evidence=KNOWN)
    assert not (tmp_path / "ran").exists()
