import shutil
from dataclasses import replace

import numpy as np
import pytest

from parity_tests.tiny import FLAGS, SHOWN, TINY, begin, quiet
from unet_spec import InputError, Preprocessing, UNetConfig, layout, training_state, weight_file
from unet_spec.parameters import parameters
from unet_spec.recipe import Schedule
from unet_spec.training_state import TrainingState
from unet_spec.weight_file import WeightFile
from unet_train import loop
from unet_train.config import CELLS, MODERN
from unet_train.run import beginning
from unet_train.run import folder as run_folder
from unet_train.run.states import resume_state, start_from_weights
from unet_train.step import init_state


def test_a_run_takes_up_its_start_without_the_start(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "start")
    given = replace(FLAGS, steps=9, start=tmp_path / "start")
    settings = beginning.read_start_settings(given)
    config = beginning.apply_start(given, settings)
    begin(tmp_path / "run", config, settings)
    shutil.rmtree(tmp_path / "start")
    assert (
        beginning.apply_start(given, beginning.read_start_settings(given, run=tmp_path / "run"))
        == config
    )


def test_a_start_in_the_middle_brings_its_net_recipe_and_step(run):
    source = beginning.read_start(run[0])
    given = replace(FLAGS, steps=9, start=run[0])
    config = beginning.apply_start(given, beginning.read_start_settings(given))
    assert (config.net, config.recipe) == (TINY.net, TINY.recipe)
    assert isinstance(source, TrainingState)
    state = resume_state(source, init_state(config))
    assert int(state.step) == int(state.optimizer.step) == 6
    held = training_state.read(run[0] / "checkpoints" / "6.safetensors")
    np.testing.assert_array_equal(state.params["out.bias"], held.weights.tensors["out.bias"])
    np.testing.assert_array_equal(
        state.optimizer.slots["exp_avg"]["out.bias"], held.slots["exp_avg"]["out.bias"]
    )


def test_a_start_from_weights_begins_at_step_0(run):
    source = beginning.read_start(run[0] / "best.safetensors")
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    config = beginning.apply_start(given, beginning.read_start_settings(given))
    assert isinstance(source, WeightFile)
    state = start_from_weights(source, init_state(config))
    assert int(state.step) == 0
    tensors = weight_file.read(run[0] / "best.safetensors").tensors
    expected = layout.to_jax(config.net, tensors)
    for name, array in {**state.params, **state.stats}.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for name, array in state.ema.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("flags", "says"),
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
def test_a_start_that_a_flag_contradicts_is_refused(run, flags, says):
    config = replace(FLAGS, steps=9, start=run[0], **flags)
    with pytest.raises(InputError, match=says):
        beginning.apply_start(config, beginning.read_start_settings(config))


def test_a_start_from_weights_leaves_the_recipe_to_the_flags(run, tmp_path):
    given = replace(FLAGS, start=run[0] / "best.safetensors")
    settings = beginning.read_start_settings(given)
    begin(tmp_path / "run", beginning.apply_start(given, settings), settings)
    changed = replace(given, optimizer=MODERN.optimizer)
    again = beginning.apply_start(
        changed, beginning.read_start_settings(changed, run=tmp_path / "run")
    )
    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.002, now 0\.001"):
        run_folder.compare_with_beginning(tmp_path / "run", again, SHOWN)


def test_a_run_without_a_checkpoint_takes_another_start(run, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(run[0] / "best.safetensors", weights)
    given = replace(FLAGS, start=weights)
    settings = beginning.read_start_settings(given)
    begin(tmp_path / "run", beginning.apply_start(given, settings), settings)
    file = weight_file.read(weights)
    other = {name: np.asarray(2 * tensor) for name, tensor in file.tensors.items()}
    weights.unlink()
    weight_file.write(weights, replace(file, tensors=other))
    loop.run(given, tmp_path / "run", progress=quiet())
    loop.run(given, tmp_path / "other", progress=quiet())
    name = "weights.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_crops_fit_the_net_of_the_start_and_not_that_of_the_preset(run, tmp_path):
    unpadded = UNetConfig(widths=(4, 6), padding="valid")
    tensors = {p.name: np.zeros(p.shape, np.float32) for p in parameters(unpadded)}
    weight_file.write(tmp_path / "w.safetensors", WeightFile(unpadded, tensors))
    for crop_px, legal in ((32, True), (33, False)):
        crops = replace(CELLS.data, crop_px=crop_px)
        given = replace(CELLS, data=crops, start=tmp_path / "w.safetensors")
        if legal:
            assert (
                beginning.apply_start(given, beginning.read_start_settings(given)).net == unpadded
            )
        else:
            with pytest.raises(InputError, match="crop_px=33 is not legal for the net; use 32"):
                beginning.apply_start(given, beginning.read_start_settings(given))


def test_a_start_whose_schedule_has_ended_is_refused(tmp_path):
    rising = Schedule("one_cycle", max_lr=1e-3)
    loop.run(replace(TINY, schedule=rising), tmp_path / "run", progress=quiet())
    given = replace(FLAGS, steps=9, start=tmp_path / "run")
    with pytest.raises(InputError, match=r"total_steps=6 ends before steps=9.*use steps=6"):
        beginning.apply_start(given, beginning.read_start_settings(given))


def test_a_start_whose_plateau_waits_for_a_rising_value_is_refused(run, tmp_path):
    state = training_state.read(run[0])
    watched = {"best": 0.5, "num_bad_epochs": 0, "cooldown_counter": 0}
    values = {"lr": 1e-3, "last_epoch": 6, **watched}
    rising, falling = Schedule("plateau", mode="max"), Schedule("plateau")
    for name, schedule in {"rising": rising, "falling": falling}.items():
        recipe = replace(state.recipe, schedule=schedule)
        path = tmp_path / f"{name}.safetensors"
        training_state.write(path, replace(state, recipe=recipe, scheduler=values))
    given = replace(FLAGS, steps=9, start=tmp_path / "falling.safetensors")
    assert beginning.read_start_settings(given)["schedule"] == falling
    with pytest.raises(InputError, match="its plateau waits for a value that rises"):
        beginning.read_start_settings(replace(given, start=tmp_path / "rising.safetensors"))


def test_a_start_brings_the_tensors_that_are_not_decayed(run, tmp_path):
    state = training_state.read(run[0])
    optimizer = replace(state.recipe.optimizer, undecayed=("vectors",))
    state = replace(state, recipe=replace(state.recipe, optimizer=optimizer))
    training_state.write(tmp_path / "a.safetensors", state)
    given = replace(FLAGS, steps=9, start=tmp_path / "a.safetensors")
    loop.run(given, tmp_path / "run", progress=quiet())
    after = training_state.read(tmp_path / "run").recipe.optimizer
    assert (after.undecayed, after.weight_decay) == (("vectors",), optimizer.weight_decay)


def test_a_start_at_the_last_step_is_refused(run):
    with pytest.raises(InputError, match="it is at step 6 already"):
        beginning.read_start_settings(replace(TINY, start=run[0]))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_average_is_taken_up_or_said_to_be_left_out(run, tmp_path, ema):
    sentences: list[str] = []
    progress = quiet()
    progress.say = sentences.append
    config = replace(FLAGS, ema=ema, steps=7, start=run[0])
    loop.run(config, tmp_path / "run", progress=progress)
    left_out = [text for text in sentences if "its averaged weights are left out" in text]
    assert len(left_out) == (ema == 0)
    state = training_state.read(tmp_path / "run")
    assert bool(state.average) == (ema > 0)
