"""Recordings of training runs: a right replay stays with the run, and a wrong one is told with the
step at which it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from parity_tests import shown
from parity_tests.recorded_runs import NETS, RECIPES, PairRuns, UNetRuns, record_three
from parity_tests.shown import run_unet
from parity_tests.test_isolation import BLOCKER
from unet_parity import RunRecorder, compare_runs
from unet_parity.runs import page
from unet_parity.runs.distances import FACTOR, NEAR_TIE, ULPS, measure
from unet_parity.runs.explanation import explain_step
from unet_parity.runs.recording import Recording, read_recording
from unet_spec import InputError
from unet_spec.recipe import Optimizer, Recipe, Schedule

STEPS = 12
FALL = Schedule("step", step_size=7, gamma=0.9)
"""The rate of the eighth step is the first lower one."""
SGD = Recipe(Optimizer("sgd", lr=0.05, momentum=0.9, weight_decay=1e-2), FALL)
ADAM = Recipe(Optimizer("adamw", lr=3e-3, weight_decay=0.05), FALL)
EARLY = replace(FALL, step_size=6)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """Trainings of a net with batch norm, and by recipe the recordings of a right replay."""
    runs = UNetRuns(NETS["batch norm"], steps=STEPS)
    recordings = {}
    for name, recipe in {"sgd": SGD, "adamw": ADAM}.items():
        recordings[name] = record_three(runs, tmp_path_factory.mktemp(name), recipe)
    return SimpleNamespace(runs=runs, **recordings)


def compare(unet, name, replay):
    first, again, _ = getattr(unet, name)
    return compare_runs(first, again, replay)


# ---- right and wrong replays


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_right_replay_stays_with_the_run(unet, name):
    report = compare_runs(*getattr(unet, name))
    assert (report.verdict, report.first_step) == ("equivalent", None)
    assert all(0 < kind.share.max() < 0.5 for kind in report.distances)
    assert report.reasons[0].startswith(f"in none of {STEPS} steps is the replay further")


@pytest.mark.parametrize("name", ["transformer", "mixer"])
def test_a_right_replay_of_another_net_stays_with_the_run(name, tmp_path):
    runs = PairRuns(name, steps=6)
    first, again, replay = record_three(runs, tmp_path, RECIPES["adam"])
    report = compare_runs(first, again, replay)
    assert report.verdict == "equivalent"
    assert [*report.pairs] == [*read_recording(first).names]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_schedule_that_is_one_step_early_is_told_at_its_step(unet, name, tmp_path):
    recipe = replace({"sgd": SGD, "adamw": ADAM}[name], schedule=EARLY)
    report = compare(unet, name, unet.runs.record_jax(tmp_path / "early.jsonl", recipe))
    assert (report.verdict, report.first_step) == ("different", 7)
    assert report.reasons[0] == (
        "step 7 is the first beyond: the loss and the gradients agree, and every update is 0.9 "
        "times as large; it looks like the learning rate or its schedule"
    )
    assert re.match(r"furthest is the update of \S+: [\d.e-]+ in the replay", report.reasons[1])


def scale(factor, *, names=None):
    def change(step, loss, gradients):
        if step < 5:
            return loss, gradients
        return loss, {n: factor * g if names is None or n in names else g
                      for n, g in gradients.items()}  # fmt: skip

    return change


BUGS = {
    "twice the gradient": (
        scale(2), 5, "the loss agrees, and every gradient is 2 times as large; it looks",
    ),
    "a gradient that is wrong in one tensor": (
        scale(1.5, names=["neck.conv.0.weight"]), 5, "the loss agrees, and the gradients differ",
    ),
    "a frozen tensor": (
        scale(0, names=["neck.conv.0.weight"]), 5,
        "the loss agrees, and the gradient of neck.conv.0.weight is 0; it looks frozen",
    ),
    "another loss": (
        lambda step, loss, g: (loss * (1 + 1e-4 * (step >= 3)), g), 3, "the loss differs before",
    ),
    "a loss that is no number": (
        lambda step, loss, g: (loss * (np.nan if step >= 3 else 1), g), 3, "the loss differs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_told_at_its_step_with_a_guess(unet, bug, tmp_path):
    change, step, guess = BUGS[bug]
    report = compare(unet, "sgd", unet.runs.record_jax(tmp_path / "bug.jsonl", SGD, change))
    assert report.first_step == step, report
    assert guess in report.reasons[0]
    assert not any("float64" in reason for reason in report.reasons)
    if bug == "a gradient that is wrong in one tensor":
        assert report.departure.what == "the gradient of neck.conv.0.weight"
    if bug == "a loss that is no number":
        assert "furthest is the loss: nan in the replay" in report.reasons[1]


def test_a_gradient_that_is_a_little_wrong_is_a_note_in_float32_and_told_in_float64(unet, tmp_path):
    change = scale(1.001, names=["neck.conv.0.weight"])
    report = compare(unet, "sgd", unet.runs.record_jax(tmp_path / "bug.jsonl", SGD, change))
    assert report.verdict == "equivalent"
    (note,) = [reason for reason in report.reasons if "recordings in float64 tell which" in reason]
    assert note.startswith("in step 5 the gradient of neck.conv.0.weight is ")
    assert not any("float64" in reason for reason in compare_runs(*unet.sgd).reasons)
    runs = UNetRuns(NETS["batch norm"], steps=6, dtype="float64")
    first, again, replay = record_three(runs, tmp_path, SGD)
    right = compare_runs(first, again, replay)
    assert right.verdict == "equivalent"
    assert right.distances[1].replay.max() < 1e-11
    tiny = scale(1 + 1e-9, names=["neck.conv.0.weight"])
    report = compare_runs(first, again, runs.record_jax(tmp_path / "tiny.jsonl", SGD, tiny))
    assert report.first_step == 5
    assert report.departure is not None
    assert report.departure.what == "the gradient of neck.conv.0.weight"


def test_an_update_in_another_direction_is_told_by_the_next_loss(unet, tmp_path):
    plain = Recipe(Optimizer("sgd", lr=0.05))
    first, again, _ = record_three(unet.runs, tmp_path, plain)
    replay = unet.runs.record_jax(tmp_path / "turned.jsonl", plain, scale(-1))
    report = compare_runs(first, again, replay)
    assert report.first_step == 6
    assert "or the update before went in another direction" in report.reasons[0]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sgd", replace(SGD.optimizer, weight_decay=0.0)),
        ("sgd", replace(SGD.optimizer, nesterov=True)),
        ("adamw", replace(ADAM.optimizer, weight_decay=0.0)),
        ("adamw", replace(ADAM.optimizer, undecayed=("vectors",))),
    ],
    ids=["no decay", "nesterov", "no decay of adamw", "vectors not decayed"],
)
def test_another_setting_of_the_optimizer_is_told_at_the_first_step(
    unet, name, optimizer, tmp_path
):
    recipe = Recipe(optimizer, FALL)
    report = compare(unet, name, unet.runs.record_jax(tmp_path / "other.jsonl", recipe))
    assert report.first_step == 1
    assert report.departure.what.startswith("the update of ")
    if not optimizer.nesterov:
        assert "no common factor; it looks like weight decay, momentum" in report.reasons[0]


def test_a_betas_of_adam_is_told_at_the_second_step(unet, tmp_path):
    """In the first step Adam's update does not depend on its betas."""
    recipe = replace(ADAM, optimizer=replace(ADAM.optimizer, betas=(0.9, 0.99)))
    report = compare(unet, "adamw", unet.runs.record_jax(tmp_path / "other.jsonl", recipe))
    assert report.first_step == 2
    assert "momentum, betas or eps" in report.reasons[0]


def test_other_initial_weights_are_told_before_any_step(unet, tmp_path):
    tensors = dict(unet.runs.tensors)
    tensors["out.bias"] = tensors["out.bias"] * np.float32(1.001)
    other = UNetRuns(NETS["batch norm"], steps=2)
    other.tensors = tensors
    report = compare(unet, "sgd", other.record_jax(tmp_path / "other.jsonl", SGD))
    assert (report.verdict, report.first_step) == ("different", 0)
    assert report.reasons[0] == "they do not start from the same weights"
    assert report.reasons[1].startswith("the initial norm of out.bias is ")


def test_a_loss_that_is_lost_in_all_three_runs_is_a_note(unet, tmp_path):
    edited = []
    for path in unet.sgd:
        lines = path.read_text().splitlines()
        for number in range(10, len(lines)):
            content = json.loads(lines[number])
            content["loss"] = "nan"
            lines[number] = json.dumps(content)
        edited.append(tmp_path / path.name)
        edited[-1].write_text("\n".join(lines) + "\n")
    report = compare_runs(*edited)
    assert report.verdict == "equivalent"
    assert sum("is nan in step 10" in reason for reason in report.reasons) == 3
    assert compare_runs(edited[0], edited[1], unet.sgd[2]).first_step == 10


# ---- what is allowed


UNIT = 2.0**-23


def recording(gradient, *, update=None, weights=1.0, loss=None, precision=UNIT):
    """Make a recording of one tensor from its norms at each step."""
    steps = len(gradient)
    norms = {
        "gradient": np.array(gradient, float)[:, None],
        "update": np.array(gradient if update is None else update, float)[:, None],
        "weights": np.full((steps, 1), weights),
    }
    return Recording(
        path=Path("run.jsonl"), framework="numpy", versions={}, names=("net.weight",),
        sizes=np.array([4]), precision=precision, initial=np.array([1.0]), norms=norms, hashes=(),
        is_cut=False, losses=np.ones(steps) if loss is None else np.array(loss, float),
    )  # fmt: skip


def distances_of(first, again, replay=None):
    replay = first if replay is None else replay
    return {d.kind: d for d in measure(first, again, replay, steps=first.steps)[0]}


def test_what_the_run_again_shows_counts_up_to_twice_the_step():
    first, again = recording(np.ones(9)), recording([1, 1, 1, 1, 1, 1, 1, 1 + 1e-3, 1])
    floor = FACTOR * ULPS * UNIT
    assert floor < 2e-5
    gradient = distances_of(first, again)["gradient"]
    np.testing.assert_allclose(gradient.measured[:, 0], [floor] * 2 + [FACTOR * 1e-3] * 7)


def test_near_ties_are_allowed_for_in_float32_alone():
    first, jump = np.ones(4), np.array([1, 1, 1 + 0.9 * NEAR_TIE, 1])
    far = np.array([1, 1, 1 + 1.1 * NEAR_TIE, 1])
    for precision, shares in ((UNIT, (0.9, 1.1)), (2.0**-52, (1e10, 1e10))):
        for values, share in zip((jump, far), shares, strict=True):
            runs = (recording(norms, precision=precision) for norms in (first, first, values))
            found = distances_of(*runs)["gradient"].share.max()
            assert found >= share if share > 2 else found == pytest.approx(share, rel=1e-6)


def test_a_loss_may_change_by_what_near_ties_before_it_may_have_moved():
    """The second gradient is off by 0.05, and so each update from then on by 10 times its part."""
    runs = [recording(norms, update=np.full(4, 0.5)) for norms in
            (np.ones(4), np.ones(4), [1, 1.05, 1, 1])]  # fmt: skip
    loss = distances_of(*runs)["loss"]
    floor, off = FACTOR * ULPS * UNIT, FACTOR * 0.05 * 0.5
    np.testing.assert_allclose(loss.allowed[:, 0], [floor, floor, off, 2 * off], rtol=1e-4)


def test_a_gradient_that_is_small_by_chance_is_related_to_those_before_it():
    norms = np.array([1, 1, 1e-3, 1])
    again, replay = norms + 1e-6, norms + np.array([0, 0, 5e-6, 0])
    gradient = distances_of(*map(recording, (norms, again, replay)))["gradient"]
    np.testing.assert_allclose(gradient.replay[2], 5e-6, rtol=1e-6)
    assert (gradient.replay < gradient.measured).all()


def test_an_update_may_differ_by_the_rounding_of_its_weights_and_of_its_gradient():
    small = recording(np.ones(3), update=np.full(3, 1e-4), weights=10.0)
    update = distances_of(small, small)["update"]
    np.testing.assert_allclose(update.allowed, UNIT * 10 / 1e-4)
    first, again = recording(np.ones(3)), recording(np.full(3, 1 + 1e-3), update=np.ones(3))
    np.testing.assert_allclose(distances_of(first, again)["update"].allowed, FACTOR * 1e-3)
    jump = recording([1, 1 + 2e-3, 1], update=np.ones(3))
    allowed = distances_of(first, recording(np.ones(3)), jump)["update"].allowed[:, 0]
    np.testing.assert_allclose(allowed[1:], FACTOR * 2e-3)
    assert allowed[0] < 1e-4
    noise = recording(np.full(3, 1.2), update=np.ones(3))
    assert np.isinf(distances_of(first, noise)["update"].allowed).all()


def test_what_is_not_finite_in_one_run_alone_is_infinitely_far():
    first = recording(np.ones(3), loss=[1, np.nan, np.nan])
    again, replay = recording(np.ones(3), loss=[1, np.nan, 1]), recording(np.ones(3))
    (loss, _, _), _ = measure(first, again, replay, steps=3)
    assert loss.again[:, 0].tolist() == [0, 0, np.inf]
    assert loss.replay[:, 0].tolist() == [0, np.inf, np.inf]


# ---- recordings


def test_a_recording_has_the_norms_that_the_arrays_have(tmp_path):
    net = torch.nn.Linear(3, 2)
    before = {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}
    recorder = RunRecorder(tmp_path / "run.jsonl", net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = net(torch.ones(1, 3)).square().sum()
    loss.backward()
    optimizer.step()
    recorder.record(loss, net.named_parameters())
    run = read_recording(tmp_path / "run.jsonl")
    assert (run.framework, run.names, run.steps) == ("torch", ("weight", "bias"), 1)
    assert run.losses[0] == loss.item()
    for place, (name, parameter) in enumerate(net.named_parameters()):
        assert parameter.grad is not None
        after = parameter.detach().numpy().astype(np.float64)
        gradient = parameter.grad.numpy().astype(np.float64)
        assert run.sizes[place] == after.size
        assert run.initial[place] == np.linalg.norm(before[name])
        assert run.norms["gradient"][0, place] == np.linalg.norm(gradient)
        assert run.norms["update"][0, place] == np.linalg.norm(after - before[name])
        assert run.norms["weights"][0, place] == np.linalg.norm(after)
    assert run.hashes[0] != run.hashes[1]


def test_trees_states_and_narrow_types_are_read(tmp_path):
    tree = {"a": [jnp.ones((2, 3), jnp.bfloat16), None], "b": {"c": jnp.zeros(4)}}
    recorder = RunRecorder(tmp_path / "tree.jsonl", tree)
    recorder.record(jnp.float32(0.5), tree, tree)
    run = read_recording(tmp_path / "tree.jsonl")
    assert (run.framework, run.names) == ("jax", ("a.0", "b.c"))
    assert run.initial.tolist() == [np.sqrt(6), 0]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    RunRecorder(tmp_path / "state.jsonl", state).record(0.5, state, state)
    state_run = read_recording(tmp_path / "state.jsonl")
    assert ({*state_run.names}, state_run.framework) == ({"bias", "kernel"}, "jax")
    narrow = {"w": torch.ones(6, dtype=torch.bfloat16)}
    RunRecorder(tmp_path / "narrow.jsonl", narrow).record(torch.ones(()), narrow, {"w": None})
    narrow_run = read_recording(tmp_path / "narrow.jsonl")
    assert narrow_run.initial.tolist() == [np.sqrt(6)]
    assert narrow_run.norms["gradient"].tolist() == [[0]]


def test_weights_that_are_moved_in_place_are_compared_with_those_of_before(tmp_path):
    weights = {"w": np.ones(4, np.float32)}
    recorder = RunRecorder(tmp_path / "run.jsonl", weights)
    weights["w"] += 1
    recorder.record(1.0, weights, weights)
    assert read_recording(tmp_path / "run.jsonl").norms["update"].tolist() == [[2.0]]


WEIGHTS = {"w": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "there are no parameters"),
        ({"w": np.ones(3, int)}, "w is of type int64, and trained parameters are arrays of floats"),
        ({"w": "ones"}, "w is of type str"),
        (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), r"nnx\.state\(model, nnx\.Param\) in JAX"),
        ([("w", np.ones(3)), ("w", np.ones(2))], "two parameters have the name w"),
        ({"w\n": np.ones(3)}, "no name that can be shown"),
    ],
)
def test_what_is_no_parameter_is_refused(parameters, message, tmp_path):
    with pytest.raises(InputError, match=message):
        RunRecorder(tmp_path / "run.jsonl", parameters)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, WEIGHTS), "no parameter has a gradient; call record before zero_grad"),
        ((1.0, {"v": np.ones(3)}, WEIGHTS), "the parameters of a step and the initial parameters"),
        ((1.0, WEIGHTS, {"v": np.ones(3)}), "the gradients of a step and the initial parameters"),
        ((np.ones(2), WEIGHTS, WEIGHTS), "the loss of a step is one number"),
        ((torch.ones(2), WEIGHTS, WEIGHTS), "the loss of a step is one number"),
        ((1.0, {"w": np.ones(4)}, WEIGHTS), r"w had the shape \(3,\) and has \(4,\) now"),
    ],
)
def test_a_step_of_another_run_is_refused(arguments, message, tmp_path):
    recorder = RunRecorder(tmp_path / "run.jsonl", WEIGHTS)
    with pytest.raises(InputError, match=message):
        recorder.record(*arguments)
    assert recorder.step == 0
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1


def test_a_file_that_exists_is_never_replaced(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("somebody's work")
    with pytest.raises(InputError, match="the file exists, and a recording replaces none"):
        RunRecorder(path, WEIGHTS)
    assert path.read_text() == "somebody's work"
    with pytest.raises(InputError, match="does not exist; make it first"):
        RunRecorder(tmp_path / "nowhere" / "run.jsonl", WEIGHTS)


RECORDING = """
import sys
import numpy as np
from unet_parity import RunRecorder
weights = {"w": np.ones(3, np.float32)}
recorder = RunRecorder(sys.argv[1], weights)
while True:
    recorder.record(0.5, weights, weights)
    print(recorder.step, flush=True)
"""


def test_a_killed_process_keeps_every_line_that_it_recorded(tmp_path):
    path = tmp_path / "run.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", RECORDING, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        steps = 0
        while steps < 5:
            steps = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    run = read_recording(path)
    assert run.steps >= steps
    assert run.losses.tolist() == [0.5] * run.steps


def test_a_line_that_was_cut_is_left_out_and_told(unet, tmp_path):
    first, again, replay = unet.sgd
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(replay.read_bytes()[:-20])
    report = compare_runs(first, again, cut)
    assert report.verdict == "equivalent"
    assert any(
        "the last line of " in r and r.endswith("is cut, and left out") for r in report.reasons
    )
    assert any(f"has {STEPS} steps, of which {STEPS - 1} are compared" in r for r in report.reasons)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"step": 3', '"step": 4', "line 4: it is of step 4"),
        ('"loss": ', '"loss": [', "line 2: "),
        ('"update": ', '"update": true, "x": ', "line 2: True is no number"),
        ('"gradient": ', '"gradients": ', "line 2 lacks 'gradient'"),
        ('"unet-run-1"', '"unet-run-2"', "line 1: its format is not unet-run-1"),
        ('"loss": ', '"loss": "', "line 2: "),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(unet, old, new, message, tmp_path):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(unet.sgd[2].read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(message)):
        compare_runs(unet.sgd[0], unet.sgd[1], damaged)


def test_a_recording_without_a_step_is_refused(unet, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text(unet.sgd[2].read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="it holds no whole step"):
        compare_runs(unet.sgd[0], unet.sgd[1], empty)


# ---- the run again


def test_a_run_again_that_is_the_same_in_every_bit_is_refused(unet):
    first, _, replay = unet.sgd
    with pytest.raises(InputError, match="in every bit of 12 steps, so its sums were in the same"):
        compare_runs(first, first, replay)


def test_a_replay_in_the_place_of_the_run_again_is_refused(unet):
    first, again, replay = unet.sgd
    with pytest.raises(InputError, match=r"a run in jax and .* one in torch; give the first run"):
        compare_runs(first, replay, again)


def test_a_small_common_ratio_is_said_with_its_digits(unet, tmp_path):
    recipe = replace(SGD, optimizer=replace(SGD.optimizer, lr=SGD.optimizer.lr * (1 + 4e-4)))
    report = compare(unet, "sgd", unet.runs.record_jax(tmp_path / "near.jsonl", recipe))
    assert report.first_step == 1
    assert re.search(
        r"agree, and every update is 1 \+ 4\.0e-04 times as large; it looks like the learning rate "
        "or its schedule, or a constant of the optimizer that was rounded to float32",
        report.reasons[0],
    )


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory):
    """Training in float64 by a schedule, and the recordings of it and of the run again in torch."""
    folder = tmp_path_factory.mktemp("float64")
    recipe = Recipe(
        Optimizer("sgd", lr=0.05, momentum=0.9), Schedule("step", step_size=4, gamma=0.7)
    )
    runs = UNetRuns(NETS["group norm"], steps=12, dtype="float64")
    first, again, _ = record_three(runs, folder, recipe)
    return runs, first, again


OPTAX = optax.exponential_decay(0.05, 4, 0.7, staircase=True)


def test_a_schedule_that_optax_computes_in_float32_is_a_note(in_float64, tmp_path):
    runs, first, again = in_float64
    right = runs.record_jax(tmp_path / "right.jsonl", optax.sgd(OPTAX, momentum=0.9))
    report = compare_runs(first, again, right)
    assert report.verdict == "equivalent"
    (note,) = [reason for reason in report.reasons if "computed in float32" in reason]
    assert re.match(
        r"from step 1 on all updates have a factor in common that is up to [\d.]+e-08 from 1", note
    )
    assert report.distances[1].replay.max() > 1e-12
    assert not any("kink of a ReLU" in reason for reason in report.reasons)


def test_a_small_update_inherits_what_a_rounded_constant_has_moved():
    """Adam's update passes zero now and then, and its difference does not."""
    unit = np.finfo(np.float64).eps
    size = np.array([1, 1, 1, 1e-4, 1])
    moved = size * (1 + 1e-7)
    moved[3] += 1e-7
    first, again = (recording(np.ones(5), update=u, precision=unit) for u in (size, size + unit))
    replay = recording(np.ones(5), update=moved, precision=unit)
    distances = distances_of(first, again, replay)
    assert (distances["update"].share <= 1).all()
    wrong = size * (1 + 1e-7)
    wrong[3] += 1e-4
    distances = distances_of(first, again, recording(np.ones(5), update=wrong, precision=unit))
    assert (distances["update"].share[3] > 1).all()


def test_gradients_are_no_cause_where_they_are_much_nearer_than_the_updates():
    first = recording(np.ones(3), update=np.ones(3))
    for apart, said in ((1e-2, True), (1e-4, False)):
        replay = recording([1, 1 + apart, 1], update=[1, 1.5, 1])
        distances = tuple(distances_of(first, recording(np.ones(3)), replay).values())
        text = explain_step(first, replay, distances, 1)
        assert "every update is 1.5 times as large" in text
        assert text.endswith("or like what the gradients differ by") == said


@pytest.mark.parametrize(
    ("factor", "step", "what"),
    [(1 + 1e-6, 1, "update"), (1 + 1e-5, 5, "gradient")],
    ids=["a rate that is another", "a gradient from step 5 on"],
)
def test_a_bug_that_is_larger_than_such_a_constant_is_told(
    in_float64, factor, step, what, tmp_path
):
    runs, first, again = in_float64

    def schedule(count):
        return OPTAX(count) * (factor if what == "update" else 1.0)

    change = scale(factor, names=["neck.conv.0.weight"]) if what == "gradient" else None
    wrong = runs.record_jax(tmp_path / "wrong.jsonl", optax.sgd(schedule, momentum=0.9), change)
    report = compare_runs(first, again, wrong)
    assert report.departure is not None
    assert (report.first_step, report.departure.what.split()[1]) == (step, what)


def test_gradients_that_are_a_little_apart_are_not_said_to_agree():
    first = recording(np.ones(3), update=np.ones(3))
    replay = recording([1, 1.01, 1], update=[1, 1.5, 1])
    distances = tuple(distances_of(first, recording(np.ones(3)), replay).values())
    assert explain_step(first, replay, distances, 1) == (
        "the loss agrees, the gradients are up to 1.0e-02 apart, and every update is 1.5 times as "
        "large; it looks like the learning rate or its schedule, or like what the gradients differ "
        "by"
    )
    alike = recording(np.ones(3), update=[1, 1.5, 1])
    distances = tuple(distances_of(first, recording(np.ones(3)), alike).values())
    assert explain_step(first, alike, distances, 1).startswith("the loss and the gradients agree")


def test_a_run_again_on_other_batches_or_weights_is_refused(unet, tmp_path):
    first, _, replay = unet.sgd
    other = UNetRuns(NETS["batch norm"], seed=1, steps=2)
    path = other.record_torch(tmp_path / "weights.jsonl", SGD)
    with pytest.raises(InputError, match="start the first run again from the same weights"):
        compare_runs(first, path, replay)
    other.tensors = unet.runs.tensors
    path = other.record_torch(tmp_path / "batches.jsonl", SGD)
    with pytest.raises(InputError, match=r"the first loss is .* give both the same batches"):
        compare_runs(first, path, replay)
    plain = UNetRuns(NETS["plain"], steps=1).record_torch(tmp_path / "plain.jsonl", SGD)
    with pytest.raises(InputError, match="do not have the same tensors, such as "):
        compare_runs(first, plain, replay)


# ---- names


def rename(path, target, names):
    """Write a recording under other names, the tensors in the reverse order."""
    lines = []
    for line in path.read_text().splitlines():
        content = json.loads(line)
        content["tensors"] = {
            names(name): values for name, values in reversed(content["tensors"].items())
        }
        lines.append(json.dumps(content))
    target.write_text("\n".join(lines) + "\n")
    return target


def test_tensors_of_other_names_are_matched_by_size_norm_and_first_gradient(unet, tmp_path):
    first, again, replay = unet.sgd
    names = read_recording(first).names
    codes = {name: f"p{number}" for number, name in enumerate(names)}
    report = compare_runs(first, again, rename(replay, tmp_path / "other.jsonl", codes.get))
    assert report.verdict == "equivalent"
    assert report.pairs == codes


def record_constants(
    path, prefix, *, steps=2, gradients=(1.0, 2.0), noise=0.0, weight=1.0, second=3
):
    """Record a run with two biases that begin at 0, and a kernel."""
    tensors: dict[str, Any] = {
        f"{prefix}1.kernel": np.full((2, 3), weight), f"{prefix}1.bias": np.zeros(3),
        f"{prefix}2.bias": np.zeros(second),
    }  # fmt: skip
    sizes = (1.0, *gradients)
    recorder = RunRecorder(path, tensors)
    for _ in range(steps):
        gradient = {n: np.full(a.shape, s * (1 + noise))
                    for (n, a), s in zip(tensors.items(), sizes, strict=True)}  # fmt: skip
        tensors = {n: a - 0.1 * gradient[n] for n, a in tensors.items()}
        recorder.record(0.5 + noise, tensors, gradient)
    return path


def test_tensors_of_one_norm_are_told_apart_by_their_sizes(tmp_path):
    options = {"gradients": (2.0, 1.0), "second": 12}  # 3 values of 2, and 12 of 1
    first = record_constants(tmp_path / "a.jsonl", "net.", **options)
    again = record_constants(tmp_path / "b.jsonl", "net.", noise=1e-7, **options)
    replay = record_constants(tmp_path / "c.jsonl", "layer", **options)
    assert compare_runs(first, again, replay).pairs["net.2.bias"] == "layer2.bias"


def test_tensors_that_nothing_tells_apart_are_refused_until_a_map_names_them(tmp_path):
    def record_all(**options):
        first = record_constants(tmp_path / "a.jsonl", "net.", **options)
        again = record_constants(tmp_path / "b.jsonl", "net.", noise=1e-7, **options)
        return first, again, record_constants(tmp_path / "c.jsonl", "layer", **options)

    recordings = record_all(gradients=(2.0, 2.0))
    with pytest.raises(InputError) as refusal:
        compare_runs(*recordings)
    assert str(refusal.value) == (
        f"several tensors of {recordings[2]} may be net.1.bias, net.2.bias of {recordings[0]}, "
        "because size, initial norm and first gradient do not tell them apart; name them with "
        "--names"
    )
    report = compare_runs(*recordings, names={"net.1": "layer1"})
    assert report.verdict == "equivalent"
    swapped = {"net.1.bias": "layer2.bias", "net.2.bias": "layer1.bias"}
    assert compare_runs(*recordings, names=swapped).pairs["net.1.bias"] == "layer2.bias"
    with pytest.raises(InputError, match=r'"net.3" = "layer1" of the map of names leads nowhere'):
        compare_runs(*recordings, names={"net.3": "layer1"})
    with pytest.raises(InputError, match=r"has no\s+tensor that is named layer9 or begins so"):
        compare_runs(*recordings, names={"net.1": "layer9"})
    with pytest.raises(InputError, match=r"net.1.bias has 3 values in .* layer1.kernel has 6"):
        compare_runs(*recordings, names={"net.1.bias": "layer1.kernel"})


def test_tensors_without_a_partner_are_named(tmp_path):
    first = record_constants(tmp_path / "a.jsonl", "net.")
    again = record_constants(tmp_path / "b.jsonl", "net.", noise=1e-7)
    other = record_constants(tmp_path / "c.jsonl", "layer", weight=1.1)
    with pytest.raises(InputError, match=r"no tensor of the size and the initial norm of net.1.ke"):
        compare_runs(first, again, other)
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines:
        line["tensors"]["extra"] = line["tensors"]["net.1.kernel"]
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="has no tensor for extra of "):
        compare_runs(first, again, more)


# ---- machines with one framework


TRAINED = {
    "torch": """
import torch
torch.manual_seed(0)
net = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
recorder = RunRecorder(sys.argv[1], net)
for step in range(3):
    optimizer.zero_grad()
    loss = net(torch.ones(2, 3)).square().mean()
    loss.backward()
    optimizer.step()
    recorder.record(loss, net)
""",
    "jax": """
import jax, jax.numpy as jnp
params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
recorder = RunRecorder(sys.argv[1], params)
for step in range(3):
    def loss_of(params):
        return jnp.square(jnp.ones((2, 3)) @ params["w"] + params["b"]).mean()
    loss, gradients = jax.value_and_grad(loss_of)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    recorder.record(loss, params, gradients)
""",
    "numpy": "compare_runs(*sys.argv[2:])\n",
}
BLOCKED = {
    "torch": ("jax", "jaxlib", "flax", "optax"),
    "jax": ("torch", "torchvision"),
    "numpy": ("torch", "jax", "jaxlib", "flax", "optax"),
}


@pytest.mark.parametrize("framework", TRAINED)
def test_a_machine_with_one_framework_records_and_one_with_none_compares(unet, framework, tmp_path):
    program = "import sys\nfrom unet_parity import RunRecorder, compare_runs\n"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=BLOCKED[framework]) + program
         + TRAINED[framework], str(tmp_path / "run.jsonl"), *map(str, unet.sgd)],
        capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if framework != "numpy":
        run = read_recording(tmp_path / "run.jsonl")
        assert (run.framework, run.steps) == (framework, 3)
        assert run.losses[2] < run.losses[0]


# ---- the command and the page


def test_the_command_compares_recordings_and_writes_a_page(unet, tmp_path):
    first, again, replay = unet.adamw
    done = run_unet(f"unet verify --recorded {first} {again} {replay}", tmp_path)
    assert (done.status, done.text.startswith("equivalent ")) == (0, True)
    early = unet.runs.record_jax(tmp_path / "early.jsonl", replace(ADAM, schedule=EARLY))
    done = run_unet(
        f"unet verify --recorded {first} {again} {early} --report page.html --json run.json",
        tmp_path,
    )
    assert done.status == 1
    assert "different step 7 is the first beyond: the loss and the gradients agree" in done.text
    assert "<-- first beyond" in done.text
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["verdict"], report["first_step"]) == ("different", 7)
    assert next(row["step"] for row in report["steps"] if row["share"] > 1) == 7
    html = (tmp_path / "page.html").read_text()
    assert "First at fault:</b> step 7 is the first beyond" in html
    assert html.count('class="beyond first"') == 1
    assert html.count('<polyline class="allowed"') == 3


def test_the_page_draws_what_is_infinite_and_what_is_0(unet, tmp_path):
    bug = unet.runs.record_jax(tmp_path / "bug.jsonl", SGD, BUGS["a loss that is no number"][0])
    html = page.make_page(compare(unet, "sgd", bug))
    assert "furthest is the loss: nan in the replay" in html
    points = re.findall(r'points="([^"]+)"', html)
    assert len(points) == 9
    assert all(re.fullmatch(r"[\d. ,-]+", one) for one in points)


DOCUMENT = shown.ROOT / "docs" / "any-net.md"


def test_the_document_shows_what_a_schedule_that_is_late_gives(tmp_path, monkeypatch):
    """test_documents.py runs every block; this compares the listing with the report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = shown.blocks(DOCUMENT)
    (listing,) = [b for b in blocks if b.text.startswith("different.\nstep 7 ")]
    names: dict[str, Any] = {"np": np}
    for block in blocks[: blocks.index(listing)]:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
    for own in ("series", "series_jax", "layers", "train_torch", "train_jax"):
        monkeypatch.delitem(sys.modules, own, raising=False)
    exec("from series import net\nfrom series_jax import convert", names)
    begin = next(n for n, block in enumerate(blocks) if '"batches.npz"' in block.text)
    for block in blocks[begin : blocks.index(listing)]:
        if block.language == "python" and block.file is None:
            exec(compile(block.text, block.name, "exec"), names)
    reports = names["compare_runs"]("torch.jsonl", "again.jsonl", "late.jsonl")
    lines = str(reports).splitlines()
    for shown_line, line in zip(listing.text.splitlines(), lines, strict=False):
        assert re.fullmatch(re.escape(shown_line).replace(r"\.\.\.", ".*"), line)
    assert (lines[0], reports.first_step) == ("different.", 7)


def test_what_are_no_recordings_of_runs_is_refused(unet, tmp_path):
    first, again, replay = unet.sgd
    (tmp_path / "x.npz").write_bytes(b"no recording")
    for words, message in {
        f"{first} {again}": "a training run is compared by 3 recordings, got 2",
        f"{first} {again} x.npz": "x.npz: no recording of a training run",
        f"{first} {again} nothing.jsonl": "nothing.jsonl: there is no such file",
        f"{first} {again} {replay} --size 8 8": "--size stands beside recordings",
    }.items():
        done = run_unet(f"unet verify --recorded {words}", tmp_path)
        assert done.status == 2
        assert message in done.text
