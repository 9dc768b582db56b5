"""Every module is seen, in both frameworks, and what is seen is what is computed."""

from dataclasses import replace

import numpy as np
import pytest

from unet_parity import jax_net, oracle
from unet_parity.comparison import Comparer, Numbers
from unet_parity.decisions import count_flips, impose, read_decisions
from unet_parity.differences import difference
from unet_parity.jax_net import match_modules
from unet_parity.leaves import JaxLeaves
from unet_parity.torch_twin import torch_pass
from unet_parity.trace import trace_torch
from unet_parity.wiring import WiringProbe
from unet_spec import UNetConfig
from unet_torch import UNet

SMALL = UNetConfig(in_channels=3, classes=4, widths=(6, 8, 10))
BATCH = replace(SMALL, norm="batch", dropout=0.3)


def numbers(config, seed=0):
    return Numbers(
        oracle.random_tensors(config, seed=seed), *oracle.random_input(config, seed=seed)
    )


def probe(config, given, trace):
    """What arrives between the leaves of JAX's net in float64."""
    net = match_modules(config, trace.calls, dtype="float64", train=False)
    return WiringProbe(net).probe(given.tensors, trace.calls, given.x, given.cotangent)


def traced(config, given, **options):
    return trace_torch(config, given.tensors, given.x, given.cotangent, keep=given.keep, **options)


@pytest.mark.parametrize("config", [SMALL, BATCH], ids=["plain", "batch_norm_and_dropout"])
def test_a_traced_pass_equals_a_plain_one(config):
    given = numbers(config)
    trace = traced(config, given, dtype="float64", train=True)
    plain = torch_pass(
        config, given.tensors, given.x, given.cotangent,
        dtype="float64", train=True, keep=given.keep,
    )  # fmt: skip
    np.testing.assert_array_equal(trace.result.output, plain.output)
    for name, gradient in plain.gradients.items():
        np.testing.assert_array_equal(trace.result.gradients[name], gradient)
    modules = {path for path, _ in UNet(config).named_modules() if path}
    assert trace.calls.keys() == modules


def test_gradients_are_those_through_one_module_alone():
    given = numbers(SMALL)
    calls = traced(SMALL, given, dtype="float64").calls
    # the skip is used twice: by the pool, and by the expanding path
    through_pool, through_up = calls["down_1.pool"], calls["up_2"]
    total = through_pool.input_gradients[0] + through_up.input_gradients[1]
    np.testing.assert_allclose(calls["down_1.conv"].cotangents[0], total, rtol=1e-13)


def test_a_map_that_is_its_neighbours_is_kept_once():
    calls = traced(SMALL, numbers(SMALL)).calls
    assert calls["neck.conv.0"].outputs[0] is calls["neck.conv.1"].inputs[0]


def test_a_healthy_port_has_no_fault_and_arrives_exactly():
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    wiring = probe(SMALL, given, trace)
    for path, call in trace.calls.items():
        for side, maps in (("input", call.inputs), ("output", call.outputs)):
            for arrived, expected in zip(wiring.arrived[path, side], maps, strict=True):
                np.testing.assert_array_equal(arrived, expected)
    assert Comparer(SMALL, train=False).faults(given) == ()


def test_gradients_between_the_leaves_are_those_of_the_reference():
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    gradients = probe(SMALL, given, trace).gradients
    for path, call in trace.calls.items():
        expected = {"output": call.cotangents}
        if not call.leaf:  # to a leaf's input the reference's own gradient is given
            expected["input"] = call.input_gradients
        for side, maps in expected.items():
            for gradient, right in zip(gradients[path, side], maps, strict=True):
                assert difference(right, gradient) < 1e-14, (path, side)


def test_a_pass_that_stops_says_how_far_it_came_and_the_next_one_starts_anew(monkeypatch):
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    whole = probe(SMALL, given, trace)
    with monkeypatch.context() as patch:
        patch.setattr("unet_jax.model.match_sizes", lambda x, skip, config: (x, skip[:, 1:]))
        stopped = probe(SMALL, given, trace)
    assert (stopped.arrived, stopped.gradients) == ({}, {})
    assert stopped.order == whole.order[: whole.order.index(("up_1.up", "output")) + 1]
    assert probe(SMALL, given, trace).order == whole.order


def test_every_map_is_moved_to_jax_once(monkeypatch):
    """What one leaf gives, the next one takes: that is one array, and one transfer."""
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    moved = []

    def count(array, dtype, move=jax_net.move_map):
        moved.append(array)
        return move(array, dtype)

    monkeypatch.setattr(jax_net, "move_map", count)
    probe(SMALL, given, trace)
    leaves = trace.leaves.values()
    used = [m for call in leaves for m in (*call.outputs, *call.input_gradients)]
    assert len(moved) == len({id(array) for array in used})

    moved.clear()
    net = match_modules(SMALL, trace.calls, dtype="float64", train=False)
    JaxLeaves(net).run(given.tensors, trace.calls, backward=True)
    used = [m for call in leaves for m in (*call.inputs, call.cotangents[0])]
    assert len(moved) == len({id(array) for array in used}) < len(used)


def test_imposed_decisions_change_nothing_where_they_are_the_runs_own():
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    own = read_decisions(trace.calls, trace.maps)
    again = traced(SMALL, given, dtype="float64", replace=impose(own))
    np.testing.assert_array_equal(again.result.output, trace.result.output)
    for name, gradient in trace.result.gradients.items():
        assert difference(gradient, again.result.gradients[name]) < 1e-14


def test_a_flip_is_counted_and_its_gradient_is_not_held_against_anybody():
    given = numbers(SMALL)
    trace = traced(SMALL, given, dtype="float64")
    own = read_decisions(trace.calls, trace.maps)
    path = "neck.conv.1"
    turned = {**own, path: own[path].copy()}
    turned[path].flat[0] ^= True
    assert count_flips(own, turned) == {path: 1}
    other = traced(SMALL, given, dtype="float64", replace=impose(turned))
    moved = max(
        difference(gradient, other.result.gradients[name])
        for name, gradient in trace.result.gradients.items()
    )
    assert moved > 1e-6, "without its own decisions a flipped run would look like a bug"


def test_a_path_that_jax_does_not_have_is_named():
    calls = traced(SMALL, numbers(SMALL)).calls
    with pytest.raises(ValueError, match="JAX's net has no down_9"):
        match_modules(SMALL, {**calls, "down_9": calls["down_1"]}, dtype="float32", train=False)
