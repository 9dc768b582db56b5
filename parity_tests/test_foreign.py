"""Other people's nets come to both frameworks, proven by one recorded pair, and go back."""

from dataclasses import asdict, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import unet_jax
import unet_torch
from parity_tests.foreign_nets import NETS
from unet_convert import conversion
from unet_convert.evidence import Evidence
from unet_parity.differences import rms
from unet_parity.oracle import random_tensors
from unet_spec import InputError, UNetConfig, weight_file
from unet_spec.outputs import apply_output
from unet_spec.structure import recognise
from unet_torch import hidden

FILE = "parity_tests/foreign_nets.py"


def record(module, path, *, channels, size):
    """Write what a module gives in float32 for a random image; return (x, y)."""
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = module.eval()(x)
    np.savez(path, x=x.numpy(), y=y.numpy())
    return x.numpy(), y.numpy()


@pytest.fixture(scope="module", params=NETS)
def foreign(request, tmp_path_factory):
    """A foreign net, its checkpoint and a pair, and the weight file that was made by the pair."""
    folder = tmp_path_factory.mktemp(request.param)
    net = NETS[request.param]
    module = net.make()
    torch.save(module.state_dict(), folder / "theirs.pth")
    size = net.odd_size or net.size
    x, y = record(module, folder / "pair.npz", channels=net.config.in_channels, size=size)
    result = conversion.convert(
        folder / "theirs.pth",
        folder / "ours.safetensors",
        evidence=Evidence(recorded=folder / "pair.npz"),
    )
    return net, module, folder, x, y, result


def test_a_net_is_recognised_and_its_hidden_facts_are_those_of_the_pair(foreign):
    net, _, folder, _, _, result = foreign
    assert weight_file.read(folder / "ours.safetensors").config == net.config
    search = result.recognition.search
    assert search.count > 1
    assert search.next_error > 1000 * search.best.allowed


def test_both_frameworks_give_what_the_original_gave(foreign):
    net, _, folder, x, y, _ = foreign
    port = unet_jax.load(folder / "ours.safetensors")
    twin = unet_torch.load(folder / "ours.safetensors")
    with torch.no_grad():
        logits = {
            "torch": twin(torch.from_numpy(x)).numpy(),
            "jax": np.asarray(port(jnp.asarray(x.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2),
        }
        truth = apply_output(
            net.config, twin.double()(torch.from_numpy(x).double()).numpy(), axis=1
        )
    for framework, values in logits.items():
        error = rms(apply_output(net.config, values, axis=1) - truth)
        assert error <= 3 * rms(y - truth), framework


def test_the_way_back_gives_the_same_file_content(foreign):
    _, module, folder, _, _, _ = foreign
    conversion.convert(folder / "ours.safetensors", folder / "back.pt")
    back = torch.load(folder / "back.pt", weights_only=True)
    before = module.state_dict()
    assert list(back) == list(before)
    for name, tensor in before.items():
        assert back[name].dtype == tensor.dtype, name
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    shared = {n: t.data_ptr() for n, t in before.items()}
    for name, tensor in back.items():
        for other, second in back.items():
            tied = shared[name] == shared[other]
            assert (tensor.data_ptr() == second.data_ptr()) == tied, (name, other)
    module.load_state_dict(back, strict=True)


def test_without_a_pair_it_is_refused_or_right_but_never_a_guess(foreign, tmp_path):
    _, _, folder, _, _, _ = foreign
    reason = r"do not say which half of a concatenation comes first|blocks of equal shapes"
    with pytest.raises(InputError, match=reason):
        conversion.convert(folder / "theirs.pth", tmp_path / "no.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_code_settles_it_as_the_pair_does(foreign, tmp_path):
    net, _, folder, _, _, result = foreign
    name = type(foreign[1]).__name__
    (tmp_path / "net.py").write_text(
        f"from parity_tests.foreign_nets import NETS\n{name} = NETS['{name}'].make\n"
    )
    by_code = conversion.convert(
        folder / "theirs.pth",
        tmp_path / "ours.safetensors",
        evidence=Evidence(reference=f"{tmp_path / 'net.py'}:{name}"),
    )
    config = by_code.weights.config
    assert replace(config, fit=net.config.fit) == net.config
    assert by_code.recognition is not None
    assert by_code.recognition.search is not None
    assert by_code.recognition.search.best.error < 1e-12
    ours, theirs = by_code.weights.tensors, result.weights.tensors
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)


def test_the_right_flags_settle_it_too(foreign, tmp_path):
    net, module, folder, _, _, _ = foreign
    evidence = Evidence(config=net.config, settled=frozenset(asdict(net.config)))
    if type(module).__name__ == "NamedByScale":  # of which two blocks have equal shapes
        with pytest.raises(InputError, match="blocks of equal shapes"):
            conversion.convert(folder / "theirs.pth", tmp_path / "a", evidence=evidence)
        return
    by_flags = conversion.convert(folder / "theirs.pth", tmp_path / "a", evidence=evidence)
    assert by_flags.weights.config == net.config
    assert by_flags.recognition is not None
    assert by_flags.recognition.search is None
    assert (tmp_path / "a").read_bytes() == (folder / "ours.safetensors").read_bytes()


PLANTS: dict[str, dict[str, Any]] = {
    "swapped concat": {"concat": "skip_first"},
    "a sigmoid": {"output": "sigmoid"},
    "a softmax": {"output": "softmax"},
    "another group count": {"groups": 4},
    "instance norm": {"norm": "instance", "groups": 8},
    "crop for pad": {"fit": "crop"},
    "edge for zeros": {"fit": "edge"},
    "a slope": {"activation": "leaky_relu", "negative_slope": 0.1},
    "norm behind": {"norm_place": "after"},
    "another interpolation": {"up": "bilinear"},
    "aligned corners": {"up": "bilinear_aligned"},
}
BASE = UNetConfig(
    in_channels=2, classes=3, widths=(4, 12), norm="group", groups=2, up="nearest", fit="zeros"
)


@pytest.mark.parametrize("plant", PLANTS)
def test_the_pair_tells_each_hidden_fact(plant):
    """What the original does otherwise than the convention, a pair shows, and alone that."""
    original = replace(BASE, **PLANTS[plant])
    tensors = random_tensors(original, seed=3)
    x = np.random.default_rng(0).standard_normal((1, 2, 29, 23)).astype(np.float32)
    y = apply_output(original, hidden.run(original, tensors, x, "float32"), axis=1)
    structures = recognise(tensors, given=BASE, settled=frozenset(), ties={}, source="theirs")
    found = hidden.search(structures, tensors, [hidden.Pair(x, y, "pair.npz")])
    assert found.best.holds
    assert found.best.config == original


def test_one_run_leaves_nothing_to_the_next():
    """Nets of one config share a skeleton: neither its hooks nor its values may stay."""
    x = np.ones((1, 2, 8, 8), np.float32)
    seen: list[dict[str, np.ndarray]] = [{}, {}]
    first, second = (
        hidden.run(BASE, random_tensors(BASE, seed=seed), x, "float32", watch=(("out",), outputs))
        for seed, outputs in enumerate(seen)
    )
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(seen[0]["out"], first)
    np.testing.assert_array_equal(seen[1]["out"], second)


def test_nets_that_share_a_skeleton_do_not_disturb_each_other():
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 11)).astype(np.float32)
    leaky = replace(BASE, activation="leaky_relu")
    tensors = random_tensors(BASE, seed=0)
    configs = [
        leaky, replace(leaky, concat="skip_first"), replace(leaky, fit="crop"),
        replace(leaky, negative_slope=0.3),
    ]  # fmt: skip
    first, *others = [hidden.run(config, tensors, x, "float32") for config in configs]
    assert not any(np.array_equal(first, other) for other in others)
    np.testing.assert_array_equal(hidden.run(leaky, tensors, x, "float32"), first)
    with pytest.raises(InputError, match="9"):
        hidden.run(replace(leaky, fit="error"), tensors, x, "float32")


def test_what_the_first_pair_does_not_tell_the_second_does():
    """Planted: a few finalists only. Of positive numbers no activation shows its slope, so in the
    first pair all slopes are equally near."""
    original = UNetConfig(widths=(4, 6), activation="leaky_relu", negative_slope=0.25)
    tensors = {n: np.abs(t) for n, t in random_tensors(original, seed=1).items()}
    pairs = []
    for sign in (1, -1):
        x = sign * np.abs(np.random.default_rng(0).standard_normal((1, 1, 8, 12)))
        x = x.astype(np.float32)
        pairs.append(hidden.Pair(x, hidden.run(original, tensors, x, "float32"), "pair.npz"))
    structures = recognise(
        tensors, given=UNetConfig(), settled=frozenset(), ties={}, source="theirs"
    )
    found = hidden.search(structures, tensors, pairs)
    assert found.best.holds
    assert found.best.config == original


def test_an_original_that_does_something_else_is_refused_with_the_closest(foreign, tmp_path):
    _, _, folder, x, y, _ = foreign
    np.savez(tmp_path / "pair.npz", x=x, y=y + 0.1 * y.std() * np.sin(y))
    with pytest.raises(InputError, match=r"none of \d+ combinations .* the closest \(padding="):
        conversion.convert(
            folder / "theirs.pth", tmp_path / "a", evidence=Evidence(recorded=tmp_path / "pair.npz")
        )
    assert not (tmp_path / "a").exists()
