"""A run of somebody's own net goes on in JAX and comes back to their own code."""

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import unet_jax.recipe
from parity_tests import shown
from unet_convert import conversion
from unet_convert.evidence import Evidence
from unet_jax.training_state import from_training_state, to_training_state
from unet_parity import training
from unet_spec import InputError, training_state
from unet_spec.training_state import TrainingState
from unet_torch import reference

torch.set_num_threads(1)

LEG, STEPS, DECAY = 20, 60, 0.1
DOCUMENT = shown.ROOT / "docs" / "your-own-net.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the net of the document: names and code as people have them."""
    folder = tmp_path_factory.mktemp("theirs")
    (code,) = [block for block in shown.blocks(DOCUMENT) if block.file == "my_unet.py"]
    (folder / "my_unet.py").write_text(code.text)
    return folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    """What that net is, as its code tells."""
    place = tmp_path_factory.mktemp("config")
    Theirs(folder).save(place / "begin.pt")
    return conversion.convert(
        place / "begin.pt", place / "begin", evidence=evidence_of(folder), weights_only=True
    ).weights.config


def evidence_of(folder: Path) -> Evidence:
    return Evidence(reference=f"{folder / 'my_unet.py'}:UNet", arguments="1, 3, width=2")


class Theirs:
    """Net, optimizer and scheduler as people write them: AdamW with two groups, and cosine."""

    def __init__(self, folder: Path):
        sys.path.insert(0, str(folder))
        module = importlib.import_module("my_unet")
        sys.path.remove(str(folder))
        torch.manual_seed(0)
        self.net: torch.nn.Module = module.UNet(1, 3, width=2).double()
        groups = [
            {"params": [p for p in self.net.parameters() if p.ndim == 1], "weight_decay": 0.0},
            {"params": [p for p in self.net.parameters() if p.ndim > 1], "weight_decay": DECAY},
        ]
        self.optimizer: Any = torch.optim.AdamW(groups, lr=1e-2)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)

    def run(self, batches):
        self.net.train()
        for batch in batches:
            self.optimizer.zero_grad()
            logits = self.net(torch.tensor(batch.x, dtype=torch.float64))
            torch.nn.functional.cross_entropy(logits, torch.tensor(batch.truth)).backward()
            self.optimizer.step()
            self.scheduler.step()

    def save(self, path):
        content = {
            "epoch": 7,
            "state_dict": {f"module.{n}": t for n, t in self.net.state_dict().items()},
            "best_score": 0.5,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
        }
        torch.save(content, path)
        return content

    def load(self, content):
        self.net.load_state_dict(
            {n.removeprefix("module."): t for n, t in content["state_dict"].items()}, strict=True
        )
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["lr_scheduler"])


def batches(config, first, steps):
    return [training.random_batch(config, seed=3, step=first + s) for s in range(steps)]


def in_jax(state: TrainingState, steps: int) -> TrainingState:
    """The run after some more steps in JAX, in float64."""
    config = state.weights.config
    with jax.enable_x64(True):
        params, stats, moments = from_training_state(state)
        move = jax.jit(unet_jax.recipe.make_update(unet_jax.recipe.build(state.recipe)))
        differentiate = training.jax_gradients(config, "float64")
        for batch in batches(config, state.step, steps):
            loss, stats, gradients = differentiate(
                params, stats, *training.jax_batch(batch, dtype="float64")
            )
            params, moments = move(params, moments, gradients, loss)
        return to_training_state(
            config, state.recipe, params, stats, moments, origin=state.weights.origin
        )


def test_20_steps_in_torch_20_in_jax_and_20_in_torch_equal_60_in_torch(folder, config, tmp_path):
    stays = Theirs(folder)
    leaves = Theirs(folder)
    begin = {n: t.clone() for n, t in leaves.net.state_dict().items()}
    stays.run(batches(config, 0, STEPS))
    leaves.run(batches(config, 0, LEG))
    before = leaves.save(tmp_path / "run.pt")
    result = conversion.convert(
        tmp_path / "run.pt", tmp_path / "START", evidence=evidence_of(folder)
    )
    state = result.content
    assert isinstance(state, TrainingState)
    assert (state.step, state.dtype) == (LEG, "float64")
    assert state.recipe.optimizer.undecayed
    after = in_jax(training_state.read(tmp_path / "START"), LEG)
    training_state.write(tmp_path / "after", after)
    conversion.convert(tmp_path / "after", tmp_path / "back.pt")

    content = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(content) == list(before)
    assert (content["epoch"], content["best_score"]) == (7, 0.5)
    assert list(content["state_dict"]) == list(before["state_dict"])
    for name, tensor in before["state_dict"].items():
        assert content["state_dict"][name].dtype == tensor.dtype, name
    assert content["optimizer"].keys() == before["optimizer"].keys()
    assert content["lr_scheduler"].keys() == before["lr_scheduler"].keys()
    returned = Theirs(folder)
    returned.load(content)
    returned.run(batches(config, 2 * LEG, LEG))

    assert apart(stays, returned) <= training.BOUND
    trained = dict(stays.net.named_parameters())
    moved = max(float((p - begin[n]).detach().abs().max()) for n, p in trained.items())
    assert moved > 0.01, "a run that stands still proves nothing"


def apart(a, b):
    """The largest relative difference of any tensor of net or optimizer, and of the rate."""
    pairs = [
        (a.net.state_dict().values(), b.net.state_dict().values()),
        *(
            (
                [s[slot] for s in a.optimizer.state_dict()["state"].values()],
                [s[slot] for s in b.optimizer.state_dict()["state"].values()],
            )
            for slot in ("step", "exp_avg", "exp_avg_sq")
        ),
    ]
    worst = [abs(a.scheduler.get_last_lr()[0] - b.scheduler.get_last_lr()[0]) / 1e-2]
    for ones, others in pairs:
        scale = max(float(t.abs().max()) for t in ones)
        worst += [float((x - y).abs().max()) / scale for x, y in zip(ones, others, strict=True)]
    return max(worst)


@pytest.mark.parametrize("plant", ["decay on all", "groups exchanged", "a step lost"])
def test_what_would_be_wrong_in_a_hand_over_is_seen(folder, config, tmp_path, plant):
    stays, leaves = Theirs(folder), Theirs(folder)
    stays.run(batches(config, 0, LEG))
    leaves.run(batches(config, 0, LEG - (plant == "a step lost")))
    content = leaves.save(tmp_path / "run.pt")
    groups = content["optimizer"]["param_groups"]
    if plant == "decay on all":
        groups[0]["weight_decay"] = DECAY
    if plant == "groups exchanged":
        groups[0]["weight_decay"], groups[1]["weight_decay"] = DECAY, 0.0
    leaves.load(content)
    for theirs in (stays, leaves):
        theirs.run(batches(config, LEG, 2))
    assert apart(stays, leaves) > 100 * training.BOUND


def test_numbers_of_batches_come_back(folder, tmp_path):
    theirs = Theirs(folder)
    content = theirs.save(tmp_path / "begin.pt")
    conversion.convert(
        tmp_path / "begin.pt", tmp_path / "a", evidence=evidence_of(folder), weights_only=True
    )
    conversion.convert(tmp_path / "a", tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)["state_dict"]
    for name, tensor in content["state_dict"].items():
        assert np.array_equal(back[name].numpy(), tensor.numpy()), name


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (("BatchNorm2d(outputs)", "BatchNorm2d(outputs, eps=1e-3)"),
         r"original: inc\.double_conv\.1: .*seems to have eps=1e-05 in place of 0\.001"),
        (("return self.outc(x)", "return self.outc(x) + x[:, :1]"),
         "original: the net: its slice differs"),
        (("nn.ReLU(inplace=True)", "nn.GELU()"),
         r"original: inc\.double_conv\.2: its GELU differs; the port seems to have ReLU"),
    ],
    ids=["eps", "a sum at the end", "GELU"],
)  # fmt: skip
def test_code_that_does_something_else_is_refused_and_its_layer_named(
    folder, tmp_path, plant, sentence
):
    theirs = Theirs(folder)
    theirs.save(tmp_path / "run.pt")
    code = (folder / "my_unet.py").read_text()
    assert plant[0] in code
    (tmp_path / "other.py").write_text(code.replace(*plant))
    evidence = Evidence(reference=f"{tmp_path / 'other.py'}:UNet", arguments="1, 3, width=2")
    with pytest.raises(InputError, match=f"none of .* combinations .* allowed: .*({sentence})"):
        conversion.convert(
            tmp_path / "run.pt", tmp_path / "a", evidence=evidence, weights_only=True
        )
    assert not (tmp_path / "a").exists()


def test_layers_that_are_defined_in_another_order_than_they_run_are_told_by_the_code(
    folder, tmp_path
):
    """And the slope, the dropout and the states under unknown keys are not lost either."""
    code = (folder / "my_unet.py").read_text()
    block = code[code.index("        self.double_conv") : code.index("    def forward(self, x):")]
    forward = "        return self.double_conv(x)\n"
    assert forward in code
    reverse = (
        "        self.b = nn.Conv2d(outputs, outputs, 3, padding=1)\n"
        "        self.a = nn.Conv2d(inputs, outputs, 3, padding=1)\n"
        "        self.drop = nn.Dropout2d(0.1)\n\n"
    )
    code = code.replace(block, reverse).replace(
        forward,
        "        x = F.leaky_relu(self.a(x), 0.15)\n"
        "        return self.drop(F.leaky_relu(self.b(x), 0.15))\n",
    )
    (tmp_path / "other.py").write_text(code)
    net = reference.build(f"{tmp_path / 'other.py'}:UNet", "1, 2, width=3").double()
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    net(torch.randn(1, 1, 32, 32, dtype=torch.float64)).sum().backward()
    optimizer.step()
    scheduler.step()
    content = {
        "weights": net.state_dict(), "opt": optimizer.state_dict(),
        "lr_sched": scheduler.state_dict(),
    }  # fmt: skip
    torch.save(content, tmp_path / "run.pt")
    evidence = Evidence(reference=f"{tmp_path / 'other.py'}:UNet", arguments="1, 2, width=3")
    result = conversion.convert(tmp_path / "run.pt", tmp_path / "a", evidence=evidence)
    assert isinstance(result.content, TrainingState)
    assert result.weights.config.negative_slope == 0.15
    assert any("the original drops values in training" in line for line in result.sentences())
    assert not any("another net" in line for line in result.sentences())
    conversion.convert(tmp_path / "a", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back["weights"]) == list(content["weights"])
    for index, state in content["opt"]["state"].items():
        assert torch.equal(back["opt"]["state"][index]["exp_avg"], state["exp_avg"]), index
    assert back["lr_sched"]["last_epoch"] == 1


def test_what_a_pair_does_not_tell_is_said_to_be_the_convention(folder, tmp_path):
    """Of positive numbers no activation shows its slope."""
    theirs = Theirs(folder)
    with torch.no_grad():
        for parameter in theirs.net.parameters():
            parameter.abs_()
    theirs.save(tmp_path / "run.pt")
    x = torch.rand(2, 1, 33, 35, dtype=torch.float64)
    with torch.no_grad():
        np.savez(tmp_path / "pair.npz", x=x.numpy(), y=theirs.net.eval()(x.float().double()))
    evidence = Evidence(recorded=tmp_path / "pair.npz")
    result = conversion.convert(
        tmp_path / "run.pt", tmp_path / "a", evidence=evidence, weights_only=True
    )
    assert result.weights.config.activation == "relu"
    (line,) = [line for line in result.sentences() if "the only one of" in line]
    assert line.endswith(
        "but activation, which it does not tell, is the convention of milesial/Pytorch-UNet"
    )


def test_code_that_resizes_odd_maps_is_converted_for_even_sizes(folder, tmp_path):
    theirs = Theirs(folder)
    theirs.save(tmp_path / "run.pt")
    code = (folder / "my_unet.py").read_text()
    pad = "F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])"
    assert pad in code
    (tmp_path / "other.py").write_text(code.replace(pad, "F.interpolate(x, skip.shape[2:])"))
    evidence = Evidence(reference=f"{tmp_path / 'other.py'}:UNet", arguments="1, 3, width=2")
    result = conversion.convert(
        tmp_path / "run.pt", tmp_path / "a", evidence=evidence, weights_only=True
    )
    assert result.weights.config.fit == "error"
    assert any("no option here does; such sizes are refused" in s for s in result.sentences())


def test_code_that_takes_multiples_of_64_alone_is_converted(folder, tmp_path):
    theirs = Theirs(folder)
    theirs.save(tmp_path / "run.pt")
    code = (folder / "my_unet.py").read_text()
    head, body, tail = code.rpartition("    def forward(self, x):\n")
    check = "        assert x.shape[2] % 64 == 0 and x.shape[3] % 64 == 0\n"
    (tmp_path / "other.py").write_text(head + body + check + tail)
    evidence = Evidence(reference=f"{tmp_path / 'other.py'}:UNet", arguments="1, 3, width=2")
    result = conversion.convert(
        tmp_path / "run.pt", tmp_path / "a", evidence=evidence, weights_only=True
    )
    assert result.weights.config.fit == "error"
