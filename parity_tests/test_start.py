import shutil
from dataclasses import replace

import numpy as np
import pytest

from parity_tests.tiny import FLAGS, SHOWN, TINY, begin, quiet
from unet_spec import InputError, Preprocessing, UNetConfig, layout, training_state, weight_file
from unet_spec.parameters import parameters
from unet_spec.recipe import Schedule
from unet_spec.weight_file import WeightFile
from unet_train import loop, run_folder, start
from unet_train.config import CELLS, MODERN
from unet_train.step import init


def test_a_run_takes_up_its_start_without_the_start(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "start")
    given = replace(FLAGS, steps=9, start=tmp_path / "start")
    told = start.known(given)
    config = start.adopted(given, told)
    begin(tmp_path / "run", config, told)
    shutil.rmtree(tmp_path / "start")
    assert start.adopted(given, start.known(given, run=tmp_path / "run")) == config


def test_a_start_in_the_middle_brings_its_net_recipe_and_step(run):
    source = start.read(run[0])
    given = replace(FLAGS, steps=9, start=run[0])
    config = start.adopted(given, start.known(given))
    assert (config.net, config.recipe) == (TINY.net, TINY.recipe)
    state = start.state_from(config, source, init(config))
    assert int(state.step) == int(state.optimizer.step) == 6
    held = training_state.read(run[0] / "last")
    np.testing.assert_array_equal(state.params["out.bias"], held.weights.tensors["out.bias"])
    np.testing.assert_array_equal(
        state.optimizer.slots["exp_avg"]["out.bias"], held.slots["exp_avg"]["out.bias"]
    )


def test_a_start_from_weights_begins_at_step_0(run):
    source = start.read(run[0] / "best.safetensors")
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    config = start.adopted(given, start.known(given))
    state = start.state_from(config, source, init(config))
    assert int(state.step) == 0
    tensors = weight_file.read(run[0] / "best.safetensors").tensors
    expected = layout.to_jax(config.net, tensors)
    for name, array in {**state.params, **state.stats}.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for name, array in state.ema.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"net": replace(CELLS.net, widths=(5, 7))}, r"net\.widths=\(4, 6\), not \(5, 7\); leave"),
        (  # another preset's, so it was asked for
            {"optimizer": MODERN.optimizer}, r"optimizer\.lr=0\.002, not 0\.001; leave out",
        ),
        ({"preprocessing": Preprocessing(mirror=True)}, r"mirror=False, not True; leave out"),
        ({"class_names": ("a", "b")}, r"class_names=.*cell.*, not .*; leave out class_names"),
    ],
    ids=["net", "optimizer", "preprocessing", "names"],
)  # fmt: skip
def test_a_start_that_a_flag_contradicts_is_refused(run, flags, told):
    config = replace(FLAGS, steps=9, start=run[0], **flags)
    with pytest.raises(InputError, match=told):
        start.adopted(config, start.known(config))


def test_a_start_from_weights_leaves_the_recipe_to_the_flags(run, tmp_path):
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    told = start.known(given)
    begin(tmp_path / "run", start.adopted(given, told), told)
    changed = replace(given, optimizer=MODERN.optimizer)
    again = start.adopted(changed, start.known(changed, run=tmp_path / "run"))
    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.002, now 0\.001"):
        run_folder.check(tmp_path / "run", again, SHOWN)


def test_a_run_without_a_checkpoint_refuses_another_start(run, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(run[0] / "best.safetensors", weights)
    given = replace(FLAGS, start=weights)
    told = start.known(given)
    begin(tmp_path / "run", start.adopted(given, told), told)
    start.refuse_changed(weights, run=tmp_path / "run")
    file = weight_file.read(weights)
    other = {name: np.asarray(2 * tensor) for name, tensor in file.tensors.items()}
    weights.unlink()
    weight_file.write(weights, replace(file, tensors=other))
    with pytest.raises(InputError, match="not the start with which it began"):
        loop.run(given, tmp_path / "run", progress=quiet())


def test_crops_fit_the_net_of_the_start_and_not_that_of_the_preset(run, tmp_path):
    unpadded = UNetConfig(widths=(4, 6), padding="valid")
    tensors = {p.name: np.zeros(p.shape, np.float32) for p in parameters(unpadded)}
    weight_file.write(tmp_path / "w.safetensors", WeightFile(unpadded, tensors))
    for crop_px, legal in ((32, True), (33, False)):
        crops = replace(CELLS.data, crop_px=crop_px)
        given = replace(CELLS, data=crops, start=tmp_path / "w.safetensors")
        if legal:
            assert start.adopted(given, start.known(given)).net == unpadded
        else:
            with pytest.raises(InputError, match="crop_px=33 is not legal for the net; use 32"):
                start.adopted(given, start.known(given))


def test_a_start_whose_schedule_has_ended_is_refused(tmp_path):
    rising = Schedule("one_cycle", max_lr=1e-3)
    loop.run(replace(TINY, schedule=rising), tmp_path / "run", progress=quiet())
    given = replace(FLAGS, steps=9, start=tmp_path / "run")
    with pytest.raises(InputError, match=r"total_steps=6 ends before steps=9.*use steps=6"):
        start.adopted(given, start.known(given))


def test_a_start_at_the_last_step_is_refused(run):
    with pytest.raises(InputError, match="it is at step 6 already"):
        start.known(replace(TINY, start=run[0]))
