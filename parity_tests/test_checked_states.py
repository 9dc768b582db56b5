"""States of torch's optimizers and schedulers that a file damages are refused by name."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from unet_convert import conversion
from unet_spec import InputError, Preprocessing, UNetConfig, prediction
from unet_spec.parameters import is_count
from unet_torch import checkpoint, container
from unet_torch.model import UNet

NAN, INF = float("nan"), float("inf")


def make(schedule: str = "plateau", *, norm: Literal["none", "batch"] = "none"):
    net = UNet(UNetConfig(widths=(2, 3), classes=2, in_channels=1, norm=norm))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    makers: dict[str, Any] = {
        "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    }
    scheduler = makers[schedule](optimizer)
    net(torch.randn(1, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    scheduler.step(*([1.0] if schedule == "plateau" else []))
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def convert(content, folder: Path):
    path = folder / "x.pt"
    torch.save(content, path)
    return conversion.convert(path, folder / "x.safetensors")


def refused(content, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        convert(content, folder)
    assert not (folder / "x.safetensors").exists()
    sentence = str(error.value)
    assert sentence.startswith(f"{folder / 'x.pt'}: ")
    return sentence


@pytest.mark.parametrize("value", [INF, NAN, -1.0, 1.5, torch.ones(2), 2**70, "1", None, [1], True])
def test_a_step_that_is_no_number_of_steps_is_refused(value, tmp_path):
    content = make()
    content["optimizer"]["state"][3]["step"] = value
    assert "state.3.step" in refused(content, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", NAN), ("lr", [0.1]), ("weight_decay", INF), ("weight_decay", True), ("eps", "x"),
        ("betas", (0.9,)), ("betas", (0.9, NAN)), ("betas", 0.9), ("amsgrad", torch.ones(2)),
        ("fused", torch.tensor(1j)), ("more", {}), ("more", NAN), ("params", [0, 0]),
        ("params", [-1]), ("params", "x"),
    ],
)  # fmt: skip
def test_a_setting_of_another_kind_is_refused(name, value, tmp_path):
    content = make()
    content["optimizer"]["param_groups"][0][name] = value
    sentence = refused(content, tmp_path)
    assert ("a parameter twice" in sentence) if value == [0, 0] else (name in sentence)


@pytest.mark.parametrize(
    ("schedule", "name", "value"),
    [
        ("plateau", "best", NAN), ("plateau", "best", [1.0]), ("plateau", "last_epoch", INF),
        ("plateau", "num_bad_epochs", 0.5), ("plateau", "cooldown_counter", -1),
        ("plateau", "min_lrs", []), ("plateau", "min_lrs", ["x"]), ("plateau", "factor", True),
        ("one_cycle", "_schedule_phases", [{}]), ("one_cycle", "total_steps", 2**70),
        ("one_cycle", "_schedule_phases", [{"end_step": NAN}, {"end_step": 3}]),
    ],
)  # fmt: skip
def test_a_scheduler_with_another_kind_of_value_is_refused(schedule, name, value, tmp_path):
    content = make(schedule)
    content["scheduler"][name] = value
    assert name in refused(content, tmp_path)


def test_numbers_that_torch_keeps_as_tensors_are_taken(tmp_path):
    content = make()
    content["scheduler"]["best"] = torch.tensor(0.25)
    content["optimizer"]["param_groups"][0]["lr"] = torch.tensor([0.5])
    state = convert(content, tmp_path).content
    assert (state.step, state.scheduler["best"], state.scheduler["lr"]) == (1, 0.25, 0.5)


def test_a_mean_of_squares_below_zero_is_refused_by_its_name(tmp_path):
    content = make()
    content["optimizer"]["state"][0]["exp_avg_sq"].flatten()[0] = -1.0
    assert "exp_avg_sq of down_1.conv.conv.0.weight is below 0" in refused(content, tmp_path)


@pytest.mark.parametrize("name", ["running_var", "running_mean"])
def test_a_batch_norm_without_a_statistic_is_refused_by_name(name, tmp_path):
    state = make(norm="batch")["model"]
    del state[f"down_1.conv.conv.1.{name}"]
    assert f"missing: down_1.conv.conv.1.{name}" in refused(state, tmp_path)


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # of torch, about making one
def test_types_that_are_not_read_are_refused_by_name(tmp_path):
    state = make()["model"]
    state["out.bias"] = state["out.bias"].to(torch.complex32)
    assert "out.bias is of type torch.complex32" in refused(state, tmp_path)
    with pytest.raises(InputError, match="complex32"):
        checkpoint.to_numpy(state["out.bias"])


def test_a_value_that_a_weight_file_cannot_hold_is_refused_by_its_source(tmp_path):
    state = make()["model"]
    state["out.bias"] = state["out.bias"].double()
    state["out.bias"][0] = 1e300
    assert "out.bias does not fit float32" in refused(state, tmp_path)


def test_tensors_beside_the_net_are_named(tmp_path):
    content = {"model": make()["model"], "other": {"deep": [torch.ones(2), torch.ones(3)]}}
    sentences = convert(content, tmp_path).sentences()
    assert "beside the net, kept for the way back: other.deep.0, other.deep.1" in sentences


def test_very_many_values_beside_the_net_are_left_out_by_name(tmp_path):
    ladder: Any = [torch.ones(1)]
    for _ in range(17):
        ladder = [ladder, ladder]
    content = {"model": make()["model"], "few": [1, 2], "many": ladder}
    assert "left out, no plain values: many" in convert(content, tmp_path).sentences()
    assert (tmp_path / "x.safetensors").stat().st_size < 2**16


def test_a_count_of_any_float_is_told_without_a_warning():
    assert is_count(np.float16(3))
    assert not is_count(np.float16(3.5))
    assert not is_count(np.float64(2.0**63))


def test_an_old_file_that_does_not_say_its_byte_order_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(make()["model"], path, _use_new_zipfile_serialization=False)
    container.check(path)
    path.write_bytes(path.read_bytes().replace(b"little_endian", b"little_endiam"))
    with pytest.raises(InputError, match="little-endian"):
        checkpoint.read(path)


def test_an_error_of_reading_has_the_name_of_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=r"x\.safetensors"):
        conversion.read(path)


def test_a_content_is_not_changed_by_its_check():
    from unet_torch.checked_states import check_optimizer

    optimizer = make()["optimizer"]
    before = copy.deepcopy(optimizer["param_groups"])
    check_optimizer(optimizer)
    assert optimizer["param_groups"] == before


def test_a_window_far_larger_than_its_image_is_refused_before_the_pixels_are_read():
    config = UNetConfig(widths=(1, 1), classes=2, in_channels=1)
    window = Preprocessing(window_px=32768)
    with pytest.raises(InputError, match="window_px of 32768 is more than twice"):
        prediction.check_size(64, 64, config=config, preprocessing=window)
    prediction.check_size(64, 64, config=config, preprocessing=Preprocessing(window_px=2048))
