"""Any pair of nets: those that are the same are told so, and bugs are found and named."""

import os
import re
import subprocess
import sys
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from parity_tests import shown
from parity_tests.pairs import table
from parity_tests.pairs.bugs import BUGS
from parity_tests.pairs.catalogue import PAIRS, WIDTHS
from parity_tests.pairs.loading import draw_inputs, load_port
from unet_jax.forms import max_pool
from unet_parity import verify_pair
from unet_parity.pair.correspondence import match_tensors, read_converter
from unet_parity.pair.integers import prove
from unet_parity.pair.near_ties import count_ties
from unet_parity.pair.numbers import draw_tensors
from unet_parity.pair.operations import log_forward
from unet_parity.pair.procedure import RECIPE, compare_seed
from unet_parity.pair.steps import train_side_by_side
from unet_parity.pair.verify import prepare_pair
from unet_parity.testing import assert_equivalent
from unet_spec import InputError

SEEDS = 5
NAMES = [pair.name for pair in PAIRS]
EXACT = "mixer"
"""The pair of which no operation rounds integers."""
X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@cache
def linear_pair():
    def convert(state):
        return {"w": state["weight"].T, "b": state["bias"]}

    torch.manual_seed(0)
    return nn.Linear(3, 3), convert


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_right_port_has_no_problem_at_any_width_and_seed(name, width):
    comparers, inputs, outputs = table.make_comparers(name, width=width)
    assert [comparer.train for comparer in comparers] == [False, True][: 1 + (name == "residual")]
    for comparer in comparers:
        for seed in range(SEEDS):
            comparison = compare_seed(comparer, inputs, outputs, seed=seed)
            assert comparison.problems == ()
            assert 0 < comparison.torch_error < 1e-5
    proof = prove(comparers[0], inputs, outputs)
    assert proof.holds == (name == EXACT), proof
    assert bool(proof.refused) == (name != EXACT)


def test_the_exact_proof_says_which_operation_rounds():
    refusals = {}
    for name in set(NAMES) - {EXACT}:
        comparers, inputs, outputs = table.make_comparers(name)
        refusals[name] = prove(comparers[0], inputs, outputs).refused
    assert refusals == {
        "residual": "native_batch_norm in norm rounds",
        "transformer": "native_layer_norm in norm1 rounds",
        "lstm": "sigmoid in cell rounds",
    }


# ---- planted bugs

TRIED = BUGS[::3]
"""The others are tried when the table is written."""


@pytest.mark.parametrize("bug", TRIED, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found_and_named_as_the_table_says(bug):
    comparison = table.compare_bug(bug)
    assert comparison.problems
    assert table.describe(bug, comparison) in table.TABLE.read_text()
    if bug.mode == "gradient":
        assert comparison.output <= 1e-12
    assert comparison.mode == ("training" if bug.mode == "training" else "inference")


def test_the_table_has_every_bug_and_counts_what_is_named():
    _, rest = table.TABLE.read_text().split(table.BEGIN)
    text, _ = rest.split(table.END)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[1] for row in rows] == [bug.name for bug in BUGS]
    named = len(rows) - text.count("(not named)")
    assert f"All {len(BUGS)} mistakes are found, and {named} of them are named" in text
    assert named >= 0.9 * len(BUGS)


def test_the_exact_proof_finds_one_bit_that_nothing_else_sees():
    """In float32, and only there, a row of pixels is wrong by one unit in the last place."""
    module = load_port(EXACT)
    right = module.make_port(6)

    def port(params, x):
        y = right.apply(params, x)
        return y.at[0, 0].multiply(1 + 2.0**-23) if y.dtype == jnp.float32 else y

    torch.manual_seed(0)
    reference = table.MAKERS[EXACT](6)
    inputs = draw_inputs(EXACT, 6, 0)
    report = verify_pair(reference, port, inputs=inputs, convert=module.convert, seeds=1, steps=0)
    assert report.verdict == "different"
    (reason,) = report.reasons
    assert reason.startswith("in exact arithmetic output 1, gradient of ")


class Unstable(nn.Module):
    """It doubles every error eight times and more."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.9, 7))

    def forward(self, x):
        x = torch.sigmoid(x * self.weight)
        for _ in range(9):
            x = 4 * x * (1 - x)
        return x


def test_a_net_that_enlarges_errors_is_no_false_alarm_and_hides_no_bug():
    def port(params, x, *, error=0.0):
        x = jax.nn.sigmoid(x * params["weight"]) + error
        for _ in range(9):
            x = 4 * (x - x * x)
        return x

    options: dict[str, Any] = {
        "params": {"weight": np.linspace(0.1, 0.9, 7, dtype=np.float32)},
        "inputs": [np.linspace(-2, 2, 35).reshape(5, 7)],
        "steps": 0,
    }
    right = verify_pair(Unstable(), port, **options)
    assert right.verdict == "equivalent"
    assert right.comparisons[0].output > 1e-12
    wrong = verify_pair(Unstable(), partial(port, error=1e-9), **options)
    assert wrong.verdict == "different"


# ---- matching


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))


STATE = {name: t.numpy() for name, t in net().state_dict().items()}


@pytest.mark.parametrize(
    "convert",
    [
        lambda s: {"a": s["0.weight"].T, "b": s["0.bias"], "c": s["2.weight"].T},
        lambda s: [np.concatenate([s["0.weight"].ravel(), s["0.bias"], s["2.weight"].ravel()])],
        lambda s: {"a": s["0.weight"][::-1], "b": s["0.bias"].reshape(1, 3, 1),
                   "c": np.pad(s["2.weight"], 1), "d": np.ones(5)},
        lambda s: {"a": s["0.weight"].astype(jnp.bfloat16), "b": s["0.bias"], "c": s["2.weight"]},
        lambda s: {"a": s["0.weight"].permute(1, 0), "b": s["0.bias"].clone(), "c": s["2.weight"]},
    ],
    ids=["transposed", "joined", "mirrored and padded", "narrow", "of torch's tensors"],
)  # fmt: skip
def test_a_converter_is_read_from_where_it_moves_values(convert):
    match = read_converter(convert, STATE)
    other = {name: array + 1 for name, array in STATE.items()}
    moved = match.to_port(other)
    try:
        expected = jax.tree.leaves(convert(other))
    except AttributeError:
        expected = jax.tree.leaves(convert({n: torch.tensor(a) for n, a in other.items()}))
    for ours, theirs in zip(moved.values(), expected, strict=True):
        # values that the converter put there itself are those of the state it was read with
        np.testing.assert_allclose(ours, np.asarray(theirs, np.float32), rtol=1e-2)
    assert match.missing() == []
    back = match.to_reference(moved)
    for name, array in other.items():
        np.testing.assert_allclose(back[name], array, rtol=1e-2)


def test_a_converter_that_computes_is_refused():
    with pytest.raises(InputError, match=r"does not only move values: it computes those of a\b"):
        read_converter(lambda s: {"a": 2 * s["0.weight"], "b": s["0.bias"]}, STATE)
    with pytest.raises(InputError, match="KeyError: 'conv1'"):
        read_converter(lambda s: s["conv1"], STATE)


def test_a_tensor_that_the_converter_leaves_out_is_missing():
    match = read_converter(lambda s: {"a": s["0.weight"], "c": s["2.weight"]}, STATE)
    assert match.missing() == ["0.bias"]
    assert match.sources("c") == ["2.weight"]


@pytest.mark.parametrize("names", [None, {"0": "first", "2.weight": "second.kernel"}])
def test_tensors_are_matched_by_values_and_names(names):
    leaves = {
        "first.kernel": STATE["0.weight"].T,
        "first.bias": STATE["0.bias"],
        "second.kernel": STATE["2.weight"].T,
    }
    match = match_tensors(STATE, leaves, names)
    other = draw_tensors(STATE, seed=1)
    moved = match.to_port(other)
    np.testing.assert_array_equal(moved["first.kernel"], other["0.weight"].T)
    np.testing.assert_array_equal(moved["second.kernel"], other["2.weight"].T)


def test_a_square_kernel_that_nobody_transposed_keeps_the_layout_that_its_values_show():
    leaves = {"a": STATE["0.weight"], "b": STATE["0.bias"], "c": STATE["2.weight"].T}
    moved = match_tensors(STATE, leaves, None).to_port(draw_tensors(STATE, seed=1))
    np.testing.assert_array_equal(moved["a"], draw_tensors(STATE, seed=1)["0.weight"])


@pytest.mark.parametrize(
    ("leaves", "names", "message"),
    [
        ({"a": np.ones(7)}, None, "no array of the port belongs to 0.weight, 0.bias, 2.weight"),
        ({"a": np.ones((4, 3))}, {"0.weight": "a"}, r"a of the port has the shape \(4, 3\)"),
        ({"a": np.ones((3, 3))}, {"1": "a"}, '"1" = "a" of names leads nowhere for 1'),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(leaves, names, message):
    state = {"0.weight": STATE["0.weight"]} if names and "0.weight" in names else STATE
    with pytest.raises(InputError, match=message):
        match_tensors(state, leaves, names)


def test_tied_tensors_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    def port(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["w"]

    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    torch.manual_seed(0)
    options: dict[str, Any] = {"convert": lambda s: {"w": s["first.weight"].T}, "inputs": [x]}
    assert verify_pair(Tied(), port, **options).verdict == "identical"
    frozen = verify_pair(
        Tied(), lambda p, x: jax.nn.relu(x @ p["w"]) @ jax.lax.stop_gradient(p["w"]), **options
    )
    assert frozen.module == "second"


# ---- outputs, inputs and types


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.deviation = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return {"mean": self.mean(x), "deviation": self.deviation(x)}


def convert_heads(state):
    return {name: (state[f"{name}.weight"].T, state[f"{name}.bias"])
            for name in ("mean", "deviation")}  # fmt: skip


def apply_heads(params, x, names):
    return {n: x @ params[p][0] + params[p][1] for n, p in names.items()}


def test_outputs_of_a_dict_are_matched_by_their_names():
    right = {"mean": "mean", "deviation": "deviation"}
    options: dict[str, Any] = {"convert": convert_heads, "inputs": [X], "steps": 2}
    torch.manual_seed(0)
    report = verify_pair(TwoHeads(), partial(apply_heads, names=right), **options)
    assert report.verdict == "identical"
    swapped = dict(zip(right, reversed(right.values()), strict=True))
    report = verify_pair(TwoHeads(), partial(apply_heads, names=swapped), **options)
    assert report.verdict == "different"
    assert report.reasons[0].endswith("given in another place, order or form")


class Masked(nn.Module):
    """Attention pooling over the first tokens of each row."""

    def __init__(self):
        super().__init__()
        self.embed, self.key, self.score = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, tokens, lengths):
        x = self.embed(tokens)
        scores = self.score(torch.tanh(self.key(x)))[..., 0]
        outside = torch.arange(tokens.shape[1]) >= lengths[:, None]
        weights = scores.masked_fill(outside, -torch.inf).softmax(-1)
        return torch.einsum("bt,btd->bd", weights, x)


def pool_tokens(params, tokens, lengths, act=jnp.tanh, fill=-1e9, table=None):
    x = params["embed"][tokens]
    scores = (act(x @ params["k"] + params["kb"]) @ params["s"] + params["sb"])[..., 0]
    inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(inside, scores, fill), axis=-1)
    return (weights[..., None] * x).sum(1)


def compare_masked(**changes):
    def convert(state):
        return {"embed": state["embed.weight"], "k": state["key.weight"].T, "kb": state["key.bias"],
                "s": state["score.weight"].T, "sb": state["score.bias"]}  # fmt: skip

    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 9, (3, 5))
    return verify_pair(
        Masked(), partial(pool_tokens, **changes), convert=convert, steps=1,
        inputs={"lengths": np.array([2, 5, 3]), "tokens": tokens},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"act": jax.nn.relu}, "the net: its tanh differs; the port seems to have ReLU"),
        ({"fill": 0.0}, "the net: its mask differs"),
        ({"fill": -1.0}, "the net: its mask differs"),
    ],
)
def test_mistakes_around_a_mask_of_integers_are_named(changes, reason):
    report = compare_masked(**changes)
    assert (report.verdict == "different") == bool(reason)
    assert report.reasons[0].startswith(reason)


class SharedLayer(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear_pair()[0]

    def forward(self, x):
        y = torch.sigmoid(x)
        return self.layer(torch.tanh(x)) * self.layer(y) + y


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"bias": 0.0}, "layer: its linear layer, number 2 of 2, differs; the port seems to have a"
                        " missing bias"),
        ({"act": jnp.tanh}, "the net: its linear layer differs; the port seems to have another"
                            " value in the place of an input, that of the net's tanh"),
    ],
)  # fmt: skip
def test_the_call_of_a_layer_is_counted_in_the_layer_and_not_in_what_gives_its_input(wrong, reason):
    def port(p, x, act=jax.nn.sigmoid, bias=1.0):
        first, second = jnp.tanh(x) @ p["w"] + p["b"], act(x) @ p["w"] + bias * p["b"]
        return first * second + jax.nn.sigmoid(x)

    def convert(state):
        return linear_pair()[1]({n.removeprefix("layer."): t for n, t in state.items()})

    report = verify_pair(SharedLayer(), partial(port, **wrong), convert=convert, inputs=[X])
    assert report.reasons[0] == reason


def test_a_port_that_computes_in_float32_is_judged_by_float32_and_told_so():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def port(params, q, k, v, *, scale=None):
        moved = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(*moved, scale=scale), 1, 2)

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, 3, 5, 4)).astype(np.float32) for _ in range(3)]
    options: dict[str, Any] = {"inputs": inputs, "params": {}, "channels_last": False}
    report = verify_pair(Attention(), port, **options)
    assert report.verdict == "equivalent"
    assert any("the port computes in float32 or less" in reason for reason in report.reasons)
    assert verify_pair(Attention(), partial(port, scale=0.501), **options).verdict == "different"


def test_parameters_of_other_values_are_told_and_narrow_ones_noted():
    def port(params, x):
        return x @ params["w"].astype(x.dtype) + params["b"].astype(x.dtype)

    reference, _ = linear_pair()
    weight, bias = reference.weight.detach().numpy().T, reference.bias.detach().numpy()
    narrow = {"w": weight.astype(jnp.bfloat16), "b": bias}
    names = {"weight": "w", "bias": "b"}
    report = verify_pair(reference, port, params=narrow, names=names, inputs=[X])
    assert report.verdict == "identical"
    assert any("the port keeps w in a type narrower" in reason for reason in report.reasons)
    other = {"w": 1.001 * weight, "b": bias}
    report = verify_pair(reference, port, params=other, names=names, inputs=[X])
    assert report.verdict == "different"
    assert "w of the port has not the values of the reference: they are 1.0e-03" in str(report)


def test_a_reference_that_draws_random_numbers_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.5)

    with pytest.raises(InputError, match="it draws random numbers even in inference"):
        verify_pair(Noisy(), lambda p, x: x, params={}, inputs=[X])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {"input": X, "size": X}}, "size: no such argument of the reference's forward"),
        ({"convert": lambda state: None}, "convert returns None"),
        ({"convert": lambda state: {"w": state["weight"].T}}, "it is given no values of bias"),
    ],
)
def test_what_was_forgotten_is_named(options, message):
    with pytest.raises(InputError, match=message):
        verify_pair(linear_pair()[0], lambda p, x: x @ p["w"] + p["b"],
                    **{"inputs": [X], "convert": linear_pair()[1], **options})  # fmt: skip


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_less_precise_arithmetic_in_float32_alone_is_found(kind):
    """bfloat16 where float32 is given; float64 does not show it."""

    @jax.custom_vjp
    def multiply(x, w):
        return x @ w

    def narrow(a, when):
        return a.astype(jnp.bfloat16).astype(a.dtype) if a.dtype == jnp.float32 and when else a

    def forward(x, w):
        return narrow(x, kind == "forward") @ w, (x, w)

    def backward(kept, g):
        x, w = kept
        return narrow(g, kind == "backward") @ w.T, x.T @ narrow(g, kind == "backward")

    multiply.defvjp(forward, backward)
    reference, convert = linear_pair()
    report = verify_pair(
        reference, lambda p, x: multiply(x, p["w"]) + p["b"], convert=convert, inputs=[X], steps=0
    )
    assert report.verdict == "different"
    what = "in float32 the port is" if kind == "forward" else "the gradient of weight: in float32"
    assert any(reason.startswith(what) for reason in report.reasons)


def test_values_that_rounding_may_turn_are_counted():
    x = torch.tensor([[[[1.0, 1.0 + 1e-12, 0.0, 1e-12], [-1.0, 0.0, -3.0, -2.0]]]]).double()
    x[..., 0, 1] += 1e-12
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    operations, _, _ = log_forward(model, lambda: model(x))
    counts = {one.name: count_ties(one) for one in operations}
    assert counts["relu"] == 3
    assert counts["max_pool2d_with_indices"] == 2
    clear = torch.tensor([[[[1.0, 2.0, -0.5, 3.0], [4.0, 5.0, -3.0, -2.0]]]]).double()
    assert not any(map(count_ties, log_forward(model, lambda: model(clear))[0]))


def test_equal_tensors_go_with_their_layers_or_are_refused():
    """Biases of zeros have the same values in every layer."""
    state = {**STATE, "0.bias": np.zeros(3, np.float32), "2.bias": np.zeros(3, np.float32)}
    state["2.weight"] = state["0.weight"] + 1
    leaves = {
        "b.bias": state["0.bias"], "a.bias": state["0.bias"],
        "a.kernel": state["0.weight"].T, "b.kernel": state["2.weight"].T,
    }  # fmt: skip
    match = match_tensors(state, leaves, None)
    assert (match.sources("a.bias"), match.sources("b.bias")) == (["0.bias"], ["2.bias"])
    flat = {name.replace(".", ""): array for name, array in leaves.items()}
    with pytest.raises(InputError, match=r"bbias, abias of the port may each be 0\.bias"):
        match_tensors(state, flat, None)


def test_the_document_shows_what_comes_and_its_test_leaves_a_page(tmp_path):
    """Its listing is the beginning of the report; its test runs with the option that it names."""
    blocks = shown.blocks(table.TABLE)
    files = [block for block in blocks if block.file is not None]
    (listing, *_) = [block for block in blocks if block.language == "text"]
    for block in files:
        path = tmp_path / str(block.file)
        if not path.exists():  # the first `layers.py` has the mistake
            path.write_text(block.text)
    (first, *_) = [b for b in blocks if b.language == "python" and b.file is None]
    printed = run_python(tmp_path, "-c", first.text, status=0)
    assert listing.text in printed
    command = ("-m", "pytest", "-q", "--parity-pages", "PAGES", "test_series.py")
    assert "its GELU differs; the port seems to have GELU by tanh" in run_python(
        tmp_path, *command, status=1
    )
    (page,) = (tmp_path / "PAGES").iterdir()
    assert page.name == "test_series_py_test_the_port_is_the_same.html"
    mended = [block for block in files if block.file == "layers.py"][-1]
    (tmp_path / "layers.py").write_text(mended.text)
    run_python(tmp_path, *command, status=0)


def run_python(folder, *words, status):
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(shown.ROOT)},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port pair.py:prot", "pair.py defines no prot; it defines port"),
        ("--port none.py:port", "there is no file none.py; name it: --port net.py:name"),
        ("--convert pair.py:port --inputs x.npz", "a port of your own needs --reference beside"),
        ("--port pair.py:port --precision high", "--precision is of a U-Net here"),
        ("--port pair.py:port --config.norm batch", "--config is of a U-Net here"),
        ("--port pair.py:port --inputs text.npz", "text.npz: x is of type <U1, and numbers are"),
        ("--port pair.py:port --inputs nan.npz", "1 of the 2 values of x are not finite"),
        ("--port pair.py:port --inputs nothing.npz", "it holds no array; record them with"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, flags, message):
    (tmp_path / "pair.py").write_text(
        "from torch import nn\nnet = nn.Linear(3, 2)\n\ndef port(params, x):\n    return x\n"
    )
    np.savez(tmp_path / "x.npz", x=X)
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    np.savez(tmp_path / "nan.npz", x=np.array([1, np.nan]))
    np.savez(tmp_path / "nothing.npz")
    if "--inputs x.npz" not in flags:
        flags += " --reference pair.py:net"
    if "--inputs" not in flags:
        flags += " --inputs x.npz"
    done = shown.run_unet(f"unet verify {flags}", tmp_path)
    assert done.status == 2
    assert message in done.text


# ---- kinds of ports


class Nnx(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.second(self.drop(nnx.relu(self.first(x))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.relu(linen.Dense(3, name="first")(x))
        return linen.Dense(2, use_bias=False, name="second")(x)


def test_an_nnx_module_is_a_port_with_its_weights():
    port = Nnx()
    port.first.kernel.set_value(jnp.asarray(STATE["0.weight"].T))
    assert port.first.bias is not None
    port.first.bias.set_value(jnp.asarray(STATE["0.bias"]))
    port.second.kernel.set_value(jnp.asarray(STATE["2.weight"].T))
    assert verify_pair(net(), port, inputs={"x": X}).verdict == "identical"


def test_a_linen_module_is_a_port_with_its_variables():
    params = {
        "first": {"kernel": STATE["0.weight"].T, "bias": STATE["0.bias"]},
        "second": {"kernel": STATE["2.weight"].T},
    }
    report = verify_pair(net(), Linen(), params={"params": params}, inputs=[X])
    assert report.verdict == "identical"
    assert "3 training steps in float64" in report.compared


class DropsInTraining(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.drop(self.norm(x))


def test_a_dropout_drops_nothing_in_training_on_either_side():
    reference = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    names = {
        "0.weight": "norm.scale",
        "0.bias": "norm.bias",
        "0.running_mean": "norm.mean",
        "0.running_var": "norm.var",
    }
    report = verify_pair(reference, DropsInTraining(), inputs=[X], names=names)
    assert report.reasons[0] == (
        "0: its running_var after a pass in training differs; the port seems to have a variance "
        "over n in place of n - 1, for n = 4"
    )


@pytest.mark.parametrize(
    ("port", "options", "message"),
    [
        (lambda p, x: x, {}, "the port has no parameters; give convert"),
        (3, {"params": {"a": np.ones(3)}}, "the port is a int; give a function"),
        (lambda p, x: p["w"], {"params": STATE}, "the port does not run on inputs of the shapes"),
        (lambda p, x: x[0], {"params": STATE}, r"the port gives outputs of the shapes \(3,\)"),
        (lambda p, x: x, {"params": STATE, "convert": dict}, "convert says all"),
        (lambda p, x: x, {"params": STATE, "inputs": []}, "inputs are empty"),
        (lambda p, x: x, {"params": STATE, "seeds": 0}, "seeds is 0, so nothing would be compared"),
        (lambda p, x: x, {"params": STATE, "inputs": [X[:, :2]]}, "the reference does not run on"),
        (lambda p, x: x, {"params": STATE, "inputs": [np.inf * X]}, "infinite values in input 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_a_sentence(port, options, message):
    with pytest.raises(InputError, match=message):
        verify_pair(net(), port, **{"inputs": [X], **options})


# ---- sizes


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return torch.nn.functional.max_pool2d(self.conv(x), 2)


def pool_port(params, x):
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return max_pool(y + params["bias"])


def compare_pools(port):
    def convert(state):
        return {"kernel": state["conv.weight"].transpose(2, 3, 1, 0), "bias": state["conv.bias"]}

    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 12)).astype(np.float32)
    return verify_pair(Pool(), port, convert=convert, inputs=[x], seeds=1, steps=0)


def test_other_sizes_are_tried_and_said():
    report = compare_pools(pool_port)
    assert report.verdict == "identical"
    shapes = {size.shapes[0] for size in report.sizes}
    assert shapes >= {(2, 3, 9, 12), (2, 3, 7, 12), (2, 3, 8, 13), (2, 3, 8, 11), (3, 3, 8, 12)}
    assert max(shape[2] for shape in shapes) > 256
    assert "(2, 3, 9, 12)" in report.compared


@pytest.mark.parametrize(
    ("is_wrong", "size"),
    [(lambda shape: shape[1] > 256, "rows"), (lambda shape: shape[2] % 2, "(2, 3, 8, 13)")],
)
def test_a_bug_at_other_sizes_is_found(is_wrong, size):
    def port(params, x):
        wrong = {**params, "bias": params["bias"] + 1e-9 * bool(is_wrong(x.shape))}
        return pool_port(wrong, x)

    report = compare_pools(port)
    assert report.verdict == "different"
    assert report.reasons[0].startswith("for inputs of (2, 3, ")
    assert size == "rows" or size in report.reasons[0]


def test_a_size_that_the_port_refuses_is_a_note():
    def port(params, x):
        assert x.shape[1] < 256
        return pool_port(params, x)

    report = compare_pools(port)
    assert report.verdict == "identical"
    assert any("the port does not run on inputs of " in reason for reason in report.reasons)


# ---- in people's tests


def test_an_assertion_carries_the_report_and_leaves_a_page(tmp_path, monkeypatch):
    reference, convert = linear_pair()
    monkeypatch.setenv("UNET_PARITY_PAGES", str(tmp_path / "pages"))
    report = assert_equivalent(
        reference, lambda p, x: x @ p["w"] + p["b"], convert=convert, inputs=[X]
    )
    assert report.verdict == "identical"
    with pytest.raises(AssertionError) as failure:
        assert_equivalent(
            reference, lambda p, x: x @ p["w"].T + p["b"], convert=convert, inputs=[X]
        )
    text = str(failure.value)
    assert text.startswith(
        "different.\nthe net: its linear layer differs; the port seems to have a trans"
    )
    page = re.search(r"the page: (.*)$", text)
    assert page is not None
    assert page[1].endswith("test_an_assertion_carries_the_report_and_leaves_a_page.html")
    html = (tmp_path / "pages" / page[1].rpartition("/")[2]).read_text()
    assert "the port seems to have a transposed weight" in html
    assert html.count('class="fault"') >= 1


def test_pytest_has_the_option_of_the_pages(pytestconfig):
    assert pytestconfig.getoption("--parity-pages") is None


def test_the_first_wrong_step_of_training_is_named():
    """A port that computes something else as soon as its weights have moved."""
    reference, convert = linear_pair()
    start = jnp.asarray(reference.weight.detach().numpy().T)

    def port(params, x):
        has_moved = (params["w"] != start).any() & (jnp.abs(params["w"] - start).max() < 1e-2)
        return x @ params["w"] + params["b"] * jnp.where(has_moved, 1.001, 1)

    right = verify_pair(
        reference, lambda p, x: x @ p["w"] + p["b"], convert=convert, inputs=[X], steps=4, seeds=1
    )
    assert right.steps is not None
    assert right.steps.first_wrong is None
    assert right.steps.distances[-1] < 1e-14
    comparers, inputs, outputs = prepare_pair(reference, port, inputs=[X], convert=convert)
    batches = [(inputs, tuple(np.ones_like(y) for y in outputs))] * 4
    wrong = train_side_by_side(comparers[0], comparers[0].reference.state, batches, RECIPE)
    assert wrong.first_wrong == 2
    assert wrong.problem.startswith("after training step 2 the parameters are ")
