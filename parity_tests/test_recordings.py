"""Two recordings, each made with one framework alone, give the verdict of one process."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from parity_tests import shown
from parity_tests.compiling import CHEAP_FLAGS
from parity_tests.pairs.recorded import CASES
from parity_tests.test_isolation import BLOCKER
from unet_parity import record, verify_pair
from unet_parity.pair import numbers, procedure, recorded_sides, recording_file
from unet_parity.pair.passes import PairPass, TakenStep
from unet_parity.pair.record import NO_GUESS, compare_recordings
from unet_parity.pair.recording_file import read_recording, write_recording
from unet_spec import InputError

TORCH, JAX = ("torch", "unet_torch"), ("jax", "jaxlib", "flax", "optax", "unet_jax")
PROCESSES = {
    "record_references": JAX, "record_ports": TORCH, "verify_pairs": (),
    "compare_recordings": (*TORCH, *JAX),
}  # fmt: skip
"""What is recorded or compared, and what cannot be imported there."""
X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
GUESS = r"; the port seems to have [^;(]*"


def run_processes(folder):
    """Record and compare every case in processes of their own, and write all reports."""
    for name, blocked in PROCESSES.items():
        program = f"""
from pathlib import Path
from parity_tests.pairs import recorded
recorded.{name}(Path({str(folder)!r}))
"""
        done = run_without(blocked, program, folder)
        assert done.returncode == 0, done.stderr


def run_without(modules, program, folder):
    """Run a program in a process in which some modules cannot be imported."""
    blocker = BLOCKER.format(blocked=modules) if modules else ""
    return subprocess.run(
        [sys.executable, "-c", blocker + program], cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": CHEAP_FLAGS,
                          "PYTHONPATH": str(shown.ROOT)},
    )  # fmt: skip


def read_report(path):
    """Return a report as plain values, without what two processes cannot say."""
    report = json.loads(path.read_text())
    for one in (*report["comparisons"], *report["sizes"]):
        if one["blame"] is not None and not one["blame"]["what"].startswith("the gradient"):
            one["blame"]["looks_like"] = ""
        if "problems" in one:
            one["problems"] = [re.sub(GUESS, "", text) for text in one["problems"]]
    report["reasons"] = [
        re.sub(GUESS, "", text) if "gradient of its" not in text else text
        for text in report["reasons"]
    ]
    report["not_compared"] = report["not_compared"].replace(f" {NO_GUESS}", "")
    del report["environment"]
    return report


def test_recordings_give_the_reports_of_one_process(tmp_path):
    """All cases are one test, because all are recorded by the same processes."""
    run_processes(tmp_path)
    for case in CASES:
        one = read_report(tmp_path / f"{case.file}.json")
        two = read_report(tmp_path / f"{case.file}_recorded.json")
        # as texts, because a figure that was not measured is NaN
        unlike = [name for name in one if json.dumps(two[name]) != json.dumps(one[name])]
        assert not unlike, case.name
    reports = {c.name: json.loads((tmp_path / f"{c.file}_recorded.json").read_text())
               for c in CASES}  # fmt: skip
    verdicts = {name: report["verdict"] for name, report in reports.items()}
    right = {"transformer": "equivalent", "residual": "equivalent", "pool": "identical",
             "refused height": "identical"}  # fmt: skip
    assert verdicts == dict.fromkeys(reports, "different") | right
    check_places(reports)


def check_places(reports):
    """Check that each mistake was found by the part of the comparison that it was planted for."""
    modules = {name: report["module"] for name, report in reports.items() if report["module"]}
    assert modules == {
        "layer norm with the eps of Flax": "norm1",
        "attention weights detached": "attn", "biased running variance": "norm",
        "bias frozen": "conv", "odd widths": "the net",
    }  # fmt: skip
    assert reports["one bit"]["integers"]["unequal"]
    assert reports["second step"]["steps"]["distances"][1] > 1e-9
    assert any(size["blame"] is not None for size in reports["odd widths"]["sizes"])
    assert any(size["output"] is None for size in reports["refused height"]["sizes"])
    of_variance = reports["biased running variance"]["comparisons"]
    (blame,) = [one["blame"] for one in of_variance if one["blame"]]
    assert blame["looks_like"].startswith("a variance over n in place of n - 1")
    assert NO_GUESS in reports["layer norm with the eps of Flax"]["not_compared"]
    assert NO_GUESS not in reports["transformer"]["not_compared"]


def test_a_report_names_the_versions_of_both_machines(pair):
    reference, port = pair
    other = {**read_recording(port).environment, "numpy": "1.2.3"}
    write_recording(replace(read_recording(port), environment=other))
    found = compare_recordings(port, reference).environment
    assert found["numpy"] == f"{np.__version__} (reference), 1.2.3 (port)"
    assert found["torch_device"] == "cpu"
    assert found["jax_device"] == "cpu (cpu)"


# ---- one pair, recorded here


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def apply_port(params, x):
    return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"] + params["d"]


def convert_net(state):
    return {
        "a": state["0.weight"].T, "b": state["0.bias"],
        "c": state["2.weight"].T, "d": state["2.bias"],
    }  # fmt: skip


def record_pair(folder, *, net=None, inputs=(X,), seeds=2, steps=1):
    """Record a small pair, and return the paths of the reference's recording and of the port's."""
    reference, port = folder / "reference.safetensors", folder / "port.safetensors"
    record(
        reference, make_net() if net is None else net, inputs=list(inputs), seeds=seeds,
        steps=steps, overwrite=True,
    )  # fmt: skip
    record(port, apply_port, like=reference, convert=convert_net, overwrite=True)
    return reference, port


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_pair(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def pair(tmp_path, recorded):
    """Return copies of the two recordings, which a test may change."""
    return tuple(Path(shutil.copy(path, tmp_path)) for path in recorded)


def test_both_orders_give_one_report(pair):
    first, second = (compare_recordings(*paths) for paths in (pair, pair[::-1]))
    assert first == second
    assert first.verdict == "identical"


def change_answer(path, question, change):
    """Change an answer in a recording, and write it with the right hash."""
    recording = read_recording(path)
    (name,) = [name for name in recording.answers if name.startswith(question)]
    recording.answers[name] = change(recording.answers[name])
    write_recording(recording)


def shift_output(answer: PairPass) -> PairPass:
    """Return a pass of which one output is a little larger."""
    outputs = answer.outputs[0].copy()
    outputs[1, 1] += np.sqrt(np.finfo(outputs.dtype).eps)
    return replace(answer, outputs=(outputs,))


def shift_gradient(answer: PairPass) -> PairPass:
    """Return a pass of which the gradient of one weight is a little larger."""
    gradient = answer.gradients["2.weight"].copy()
    gradient[1, 1] += 1e-7
    return replace(answer, gradients={**answer.gradients, "2.weight": gradient})


def test_a_net_without_parameters_takes_no_steps(tmp_path):
    paths = tmp_path / "reference.safetensors", tmp_path / "port.safetensors"
    record(paths[0], nn.ReLU(), inputs=[X], seeds=1)
    record(paths[1], lambda params, x: jax.nn.relu(x), like=paths[0], params={})
    report = compare_recordings(*paths)
    assert (report.verdict, report.steps) == ("identical", None)
    assert verify_pair(nn.ReLU(), lambda params, x: jax.nn.relu(x), params={}, inputs=[X], seeds=1)


def shift_first(outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Return outputs of which one is a little larger."""
    return shift_output(PairPass(outputs, (), {}, {})).outputs


def shift_step(steps: tuple[TakenStep, ...]) -> tuple[TakenStep, ...]:
    """Return steps of which the first moves all weights a little further."""
    values = {name: value + 1e-6 for name, value in steps[0].values.items()}
    return (steps[0]._replace(values=values),)


@pytest.mark.parametrize(
    ("question", "change", "reason"),
    [
        ("pass in float64 in inference, seed 0", shift_output, "the output differs by "),
        ("pass in float64 in inference, seed 1", shift_gradient, "the gradient of 2.weight diff"),
        ("pass in float32 in inference, seed 1", shift_output, "in float32 the port is "),
        ("outputs in inference, inputs of (5, 3)", shift_first, "for inputs of (5, 3): the outp"),
        ("pass in float32 in inference, integers", shift_output, "in exact arithmetic output 1"),
        ("steps in inference", shift_step, "after training step 1 the parameters are"),
    ],
)
def test_one_changed_value_of_a_port_is_told(pair, question, change, reason):
    reference, port = pair
    change_answer(port, question, change)
    report = compare_recordings(port, reference)
    assert report.verdict == "different"
    assert report.reasons[0].startswith(reason)


def test_a_flipped_byte_of_either_recording_is_told(pair):
    for path in pair:
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}: it holds other bytes than were writ"):
            compare_recordings(*pair)
        content[-9] ^= 1
        path.write_bytes(content)


# ---- refusals


def cut_short(reference, port):
    port.write_bytes(port.read_bytes()[:-7])
    return reference, port


def name_twice(reference, port):
    return port, port


def take_weights(reference, port):
    from safetensors.numpy import save_file

    save_file({"x": X}, port)
    return reference, port


def write_other_format(reference, port):
    recording = read_recording(port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording_file, "FORMAT", 2)
        write_recording(recording)
    return reference, port


def record_other(**changes):
    """Return a function that records the reference anew, with something changed."""

    def change(reference, port):
        kept = port.read_bytes()
        record_pair(reference.parent, **changes)
        port.write_bytes(kept)
        return reference, port

    return change


def record_again(reference, port):
    recording = read_recording(reference)
    write_recording(replace(recording, environment={**recording.environment, "cores": "99"}))
    return reference, port


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, r"port\.safetensors: not a whole safetensors file"),
        (name_twice, r"are both recordings of a port; give one of a reference and one of its port"),
        (take_weights, r"port\.safetensors: no recording of a pair; make one with unet_parity\.re"),
        (write_other_format, "a recording of format 2, and 1 is read here; record it again"),
        (record_other(net=nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))),
         r"was recorded for other weights than those of .* \(sha256 [0-9a-f]{12} and "),
        (record_other(inputs=[2 * X]), r"was recorded for other inputs than those of "),
        (record_other(seeds=3), r"was recorded with seeds=2, and .* with 3; record the port again"),
        (record_other(steps=2), r"was recorded with steps=1, and .* with 2; record the port again"),
        (record_again, r"was recorded like another recording of the same reference than "),
    ],
)  # fmt: skip
def test_recordings_that_do_not_belong_together_are_refused(pair, change, message):
    first, second = change(*pair)
    with pytest.raises(InputError, match=message):
        compare_recordings(first, second)


def test_a_numpy_that_draws_other_numbers_is_told(pair, monkeypatch):
    def draw(state, *, seed):
        return {name: array + seed for name, array in state.items()}

    monkeypatch.setattr(numbers, "draw_tensors", draw)
    with pytest.raises(InputError, match=r"numpy draws other numbers here .* \(seed 1\); use one"):
        compare_recordings(*pair)


def test_a_question_that_was_not_asked_is_told(pair):
    reference, port = pair
    recording = read_recording(reference)
    del recording.answers["sizes"]
    write_recording(recording)
    write_recording(replace(read_recording(port), like=read_recording(reference).sha256))
    with pytest.raises(InputError, match=r"reference\.safetensors: it does not say: sizes; record"):
        compare_recordings(reference, port)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("new.pt", {"inputs": [X]}, r"new\.pt: the name of a recording ends in \.safetensors"),
        ("reference.safetensors", {"inputs": [X]}, "the file exists already; name another, or"),
        ("new.safetensors", {}, "a torch module is recorded with inputs, and a port with like"),
        ("new.safetensors", {"inputs": [X], "convert": dict}, "convert is of a port; give like"),
        ("new.safetensors", {"inputs": [X], "like": "reference"}, "inputs stands in the recording"),
        ("new.safetensors", {"like": "port"}, "the recording of a port; give like that of its"),
        ("new.safetensors", {"inputs": [X], "seeds": 0}, "seeds is 0, so nothing would be comp"),
        ("none/new.safetensors", {"inputs": [X]}, "the folder .*none does not exist; make"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused(pair, name, options, message):
    folder = pair[0].parent
    if "like" in options:
        options = {**options, "like": folder / f"{options['like']}.safetensors"}
    with pytest.raises(InputError, match=message):
        record(folder / name, make_net(), **options)


def test_a_net_that_is_no_module_is_refused(tmp_path):
    with pytest.raises(InputError, match="the net is a function; give a torch"):
        record(tmp_path / "a.safetensors", apply_port, inputs=[X])


def test_numbers_that_files_do_not_have_are_refused(tmp_path):
    class Real(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x.real.to(self.linear.weight.dtype))

    with pytest.raises(InputError, match="a recording holds numbers, and not values of type compl"):
        record(tmp_path / "a.safetensors", Real(), inputs=[X.astype(np.complex64)])


# ---- kinds of nets


class Pooled(nn.Module):
    """Attention pooling over the first tokens of each row; a mask has infinite values."""

    def __init__(self):
        super().__init__()
        self.embed, self.score = nn.Embedding(9, 4), nn.Linear(4, 1)

    def forward(self, tokens, lengths):
        x = self.embed(tokens)
        outside = torch.arange(tokens.shape[1]) >= lengths[:, None]
        weights = self.score(x)[..., 0].masked_fill(outside, -torch.inf).softmax(-1)
        return {"weights": weights, "pooled": torch.einsum("bt,btd->bd", weights, x)}


def pool_tokens(params, tokens, lengths, *, fill=-jnp.inf):
    x = params["embed"][tokens]
    inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(inside, (x @ params["s"] + params["b"])[..., 0], fill))
    return {"pooled": (weights[..., None] * x).sum(1), "weights": weights}


@pytest.mark.parametrize(("fill", "verdict"), [(-jnp.inf, "equivalent"), (-1.0, "different")])
def test_integers_names_of_outputs_and_infinite_values_are_recorded(tmp_path, fill, verdict):
    def port(params, tokens, lengths):
        return pool_tokens(params, tokens, lengths, fill=fill)

    options: dict[str, Any] = {
        "convert": lambda s: {
            "embed": s["embed.weight"], "s": s["score.weight"].T, "b": s["score.bias"]
        }
    }  # fmt: skip
    torch.manual_seed(0)
    reference = Pooled()
    inputs = {
        "lengths": np.array([2, 5, 3]),
        "tokens": np.random.default_rng(0).integers(0, 9, (3, 5)),
    }
    paths = tmp_path / "reference.safetensors", tmp_path / "port.safetensors"
    record(paths[0], reference, inputs=inputs, seeds=1, steps=1)
    record(paths[1], port, like=paths[0], **options)
    two = compare_recordings(*paths)
    one = verify_pair(reference, port, inputs=inputs, seeds=1, steps=1, **options)
    assert two.verdict == one.verdict == verdict
    assert two.module == one.module
    assert [c.output for c in two.comparisons] == [c.output for c in one.comparisons]
    assert [c.gradients for c in two.comparisons] == [c.gradients for c in one.comparisons]


def test_operations_that_take_too_many_bytes_are_not_recorded_and_still_compared(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(recorded_sides, "MOST_BYTES", 0)

    def port(params, x):
        return apply_port(params, x) + 1e-9 * (len(x) > 4)

    paths = tmp_path / "reference.safetensors", tmp_path / "port.safetensors"
    record(paths[0], make_net(), inputs=[X], seeds=1, steps=0)
    record(paths[1], port, like=paths[0], convert=convert_net)
    report = compare_recordings(*paths)
    assert report.verdict == "different"
    assert report.module == ""
    assert report.reasons[0].startswith("for inputs of (5, 3): the output differs by ")


# ---- the command


def test_the_command_compares_recordings_and_writes_both_reports(pair):
    folder = pair[0].parent
    command = "unet verify --recorded port.safetensors reference.safetensors"
    done = shown.run_unet(f"{command} --report a.html --json a.json", folder)
    assert done.status == 0, done.text
    assert "identical" in done.text
    assert json.loads((folder / "a.json").read_text())["verdict"] == "identical"
    assert "unet verify --recorded" in (folder / "a.html").read_text()
    change_answer(pair[1], "pass in float32 in inference, integers", shift_output)
    assert shown.run_unet(command, folder).status == 1


def test_the_command_needs_neither_framework_nor_pillow(pair):
    words = ["unet", "verify", "--recorded", *(path.name for path in pair), "--report", "b.html"]
    program = f"import sys, unet_cli\nsys.argv = {words}\nunet_cli.main()"
    done = run_without((*TORCH, *JAX, "PIL"), program, pair[0].parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "identical" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("port.safetensors", "takes two recordings of a pair, that of its reference and that of"),
        ("port.safetensors port.safetensors", "are both recordings of a port"),
        ("port.safetensors x.npz", "x.npz: "),
        ("port.safetensors reference.safetensors --steps 3", "--steps stands beside recordings"),
        (
            "a.npz b.npz",
            "takes one .npz with an output, or recordings (.safetensors or .jsonl)",
        ),
    ],
)
def test_the_command_refuses_in_one_sentence(pair, words, message):
    folder = pair[0].parent
    np.savez(folder / "x.npz", x=X)
    done = shown.run_unet(f"unet verify --recorded {words}", folder)
    assert done.status == 2
    assert message in done.text
    done = shown.run_unet("unet verify w.safetensors --recorded port.safetensors", folder)
    assert "WEIGHTS stands beside recordings" in done.text


def test_recording_knows_no_other_seeds_and_steps_than_the_whole_comparison():
    assert (procedure.SEEDS, procedure.STEPS) == (3, 3)
