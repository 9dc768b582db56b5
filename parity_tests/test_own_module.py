"""Somebody's own torch module, under other names, against JAX's net."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from markupsafe import escape
from rich.console import Console
from torch import Tensor, nn

from parity_tests import planted
from parity_tests.own_nets import NAMED, OWN, WIDTHS, Dropping, Named, Own, Shared
from parity_tests.slides import UNet as SlidesUNet
from unet_parity import oracle, page, report, verify
from unet_parity.own_net import OwnNet, choose_size, match_module
from unet_parity.own_pair import OwnPair, OwnReport
from unet_parity.pair import sizes
from unet_spec import InputError, UNetConfig
from unet_spec.origin import Origin
from unet_spec.weight_file import WeightFile

ODD = (10, 14)


@cache
def tensors_of(config: UNetConfig) -> dict[str, np.ndarray]:
    return oracle.random_tensors(config, seed=0)


def match(own: Own, module: nn.Module | None = None, *, origin: Origin | None = None) -> OwnNet:
    module = own.make() if module is None else module
    return match_module(own.config, module, tensors_of(own.config), origin or own.origin())


def pair_up(own: Own, module: nn.Module | None = None, *, origin: Origin | None = None) -> OwnPair:
    matched = match(own, module, origin=origin)
    size = ODD if own.config.fit != "error" else choose_size(matched, None)
    return OwnPair(matched, oracle.random_input(own.config, seed=0, size=size)[0])


def compare(
    own: Own,
    module: nn.Module | None = None,
    *,
    origin: Origin | None = None,
    steps: int = 0,
) -> OwnReport:
    """The comparison without the twins beside it."""
    return pair_up(own, module, origin=origin).compare(steps=steps, other_sizes=False)


def first_problem(compared: OwnReport) -> str:
    assert compared.pair.verdict == "different"
    return compared.pair.reasons[0]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("named", "equivalent"), ("shared", "equivalent"), ("odd", "equivalent"),
     ("narrow", "equivalent")],
)  # fmt: skip
def test_a_module_under_other_names_is_the_same_net(name, verdict):
    own = OWN[name]
    compared = compare(own, steps=2)
    assert compared.pair.verdict == verdict
    assert compared.to_torch < 1e-13
    trained = {n for n, _ in own.make().named_parameters()}
    for comparison in compared.pair.comparisons:
        assert comparison.gradients.keys() == trained
        assert bool(comparison.statistics) == (name != "shared")
    assert compared.modes == (("inference",) if name == "shared" else ("inference", "training"))
    assert compared.pair.steps is not None
    assert len(compared.pair.steps.distances) == 2


class Logits(Shared):
    """Without a sigmoid at its end."""

    def end(self, x: Tensor) -> Tensor:
        return x


def test_a_module_without_a_norm_takes_part_in_the_exact_proof():
    own = Own(replace(OWN["shared"].config, output="logits"), Logits)
    proof = compare(own, origin=OWN["shared"].origin()).pair.integers
    assert proof.holds
    assert proof.values > 1000


def _swap(net):
    net.up1.swapped = True


def _crop(net):
    net.up1.crops = True


def _set_eps(net):
    net.down1.maxpool_conv[1].double_conv[1].eps = 1e-3


def _set_momentum(net):
    net.down1.maxpool_conv[1].double_conv[4].momentum = 0.01


def _leave_corners(net):
    net.up1.up.align_corners = False


def _pad_by_reflection(net):
    net.enc2_b.padding_mode = "reflect"


BUGS: dict[str, tuple[str, Callable[[nn.Module], object], str, str]] = {
    "swapped concat": (
        "named", _swap, "up1: its concatenation differs", "a concatenation in the other order",
    ),
    "swapped concat of a narrow decoder": (
        "narrow", _swap, "up1: its concatenation differs", "a concatenation in the other order",
    ),
    "corners that are not aligned": (
        "narrow", _leave_corners, "up1.up: its interpolation differs",
        "bilinear interpolation with aligned corners",
    ),
    "crop for pad": ("odd", _crop, "up1: its concatenation differs", ""),
    "eps": (
        "named", _set_eps, "down1.maxpool_conv.1.double_conv.1: its batch norm differs",
        "eps=1e-05 in place of 0.001",
    ),
    "momentum": (
        "named", _set_momentum,
        "down1.maxpool_conv.1.double_conv.4: its running_mean after a pass in training differs",
        "a momentum of 0.1 in place of 0.01",
    ),
    "another slope": (
        "shared", lambda net: setattr(net, "slope", 0.2),
        "the net: its leaky ReLU, number 1 of 10, differs", "ReLU",
    ),
    "missing ReLU": (
        "shared", lambda net: setattr(net, "without", "enc2_a"),
        "enc2_b: its convolution differs", "ReLU in front of it",
    ),
    "missing ReLU before a pool": (
        "shared", lambda net: setattr(net, "without", "enc2_b"),
        "pool: its max-pool, number 2 of 2, differs", "ReLU in front of it",
    ),
    "average pool": (
        "shared", lambda net: setattr(net, "pool", nn.AvgPool2d(2)),
        "pool: its average pool, number 1 of 2, differs", "a max-pool",
    ),
    "padding by reflection": (
        "shared", _pad_by_reflection, "enc2_b: its reflection_pad2d differs", "",
    ),
    "missing sigmoid": (
        "shared", lambda net: setattr(net, "end", lambda x: x),
        "the net: its output is computed, but given in another place, order or form",
        "sigmoid behind it",
    ),
    "two sigmoids": (
        "shared", lambda net: setattr(net, "end", lambda x: x.sigmoid().sigmoid()),
        "the net: its sigmoid, number 2 of 2, differs", "no activation",
    ),
    "skip without a gradient": (
        "shared", lambda net: setattr(net, "detaches", True),
        "relu: a gradient on the way to enc2_b.bias differs", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_module_is_named_where_it_is(bug):
    name, plant, start, guess = BUGS[bug]
    own = OWN[name]
    module = own.make()
    plant(module)
    compared = compare(own, module)
    problem = first_problem(compared)
    assert problem == (f"{start}; the port seems to have {guess}" if guess else start)
    first = compared.list_problems(has_fault=False)[0]
    assert first.startswith(
        f"JAX's net beside your module: {problem}; PyTorch's net here and JAX's agree, so"
    )


def test_weights_in_the_wrong_order_are_named():
    own = OWN["shared"]
    origin = own.origin()
    exchanged = {"down_1.conv.conv.2.weight": "up_2.conv.conv.2.weight"}
    whole = {n.replace("weight", kind): o.replace("weight", kind)
             for kind in ("weight", "bias") for n, o in exchanged.items()}  # fmt: skip
    for swapped in (exchanged, whole):
        both = swapped | {ours: theirs for theirs, ours in swapped.items()}
        names = tuple((theirs, both.get(ours, ours)) for theirs, ours in origin.names)
        compared = compare(own, origin=replace(origin, names=names))
        assert first_problem(compared).startswith("enc1_b: its convolution differs")


@pytest.mark.parametrize(
    ("bug", "name", "start"),
    [
        ("concat swapped", "shared", "the net: its concatenation"),
        ("skip without a gradient", "shared", "the net: a gradient on the way to"),
        ("up-convolution's bias missing", "named", "up1: its concatenation"),
        ("pool averages", "shared", "pool: its max-pool"),
        ("Flax's eps in batch norm", "named", "inc.double_conv.1: its batch norm"),
        ("momentum not complemented", "named", "inc.double_conv.1: its running_mean"),
        ("padding by reflection", "named", "inc.double_conv.0: its convolution"),
    ],
)
def test_a_bug_in_jax_is_named_under_the_modules_names(bug, name, start):
    own = OWN[name]
    with planted.planted(bug):
        compared = compare(own)
    assert first_problem(compared).startswith(start)
    agree = "your module and PyTorch's net here agree, so the fault is in JAX's net"
    assert compared.list_problems(has_fault=True)[0].endswith(f"; {agree}")


def test_a_bug_in_torch_here_is_not_blamed_on_the_module():
    compared = compare(OWN["shared"])
    assert compared.list_problems(has_fault=False) == []
    (sentence,) = compared.list_problems(has_fault=True)
    assert sentence == "your module and JAX's net agree, so the fault is in PyTorch's net here"
    different = replace(compared.pair, verdict="different", reasons=("a problem", "another"))
    wrong = replace(compared, pair=different, to_torch=1.0)
    assert wrong.list_problems(has_fault=True) == [
        f"JAX's net beside your module: {reason}" for reason in ("a problem", "another")
    ]


class Sizes(Shared):
    """Takes no small sizes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 32 or x.shape[3] % 32:
            raise ValueError("sizes are multiples of 32")
        return super().forward(x)


def test_a_size_that_the_module_takes_is_chosen():
    matched = match(OWN["shared"], Sizes())
    assert choose_size(matched, None) == (64, 64)
    with pytest.raises(InputError, match=r"does not run on 8 x 12 pixels.*multiples of 32.*--size"):
        choose_size(matched, (8, 12))
    assert choose_size(match(OWN["shared"]), None) == (8, 12)


class Block(nn.Module):
    """Two convolutions in one module's code."""

    def __init__(self) -> None:
        super().__init__()
        top, middle, _ = WIDTHS
        self.one_weight = nn.Parameter(torch.zeros(middle, top, 3, 3))
        self.one_bias = nn.Parameter(torch.zeros(middle))
        self.two_weight = nn.Parameter(torch.zeros(middle, middle, 3, 3))
        self.two_bias = nn.Parameter(torch.zeros(middle))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.one_weight, self.one_bias, padding=1).relu()
        return F.conv2d(x, self.two_weight, self.two_bias, padding=1).relu()


class Functional(Shared):
    """With one block whose layers are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = Block()
        del self.enc2_a, self.enc2_b

    def block(self, name: str, x: Tensor) -> Tensor:
        return self.whole(x) if name == "enc2" else super().block(name, x)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_layers_that_are_no_modules_are_compared_too(wrong, monkeypatch):
    own = OWN["shared"]
    parts = {"enc2_a": "whole.one", "enc2_b": "whole.two"}
    names = tuple(
        (theirs if theirs[:6] not in parts else f"{parts[theirs[:6]]}_{theirs[7:]}", ours)
        for theirs, ours in own.origin().names
    )
    if wrong:
        monkeypatch.setattr(Block, "forward", lambda self, x, right=Block.forward: right(self, -x))
    compared = compare(own, Functional(), origin=Origin(names, {}, None))
    if wrong:
        assert first_problem(compared).startswith("whole: its neg")
    else:
        assert compared.pair.verdict == "equivalent"


class Scaling(Shared):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1))


def test_a_module_may_write_into_its_input():
    assert compare(OWN["shared"], Scaling()).pair.verdict == "equivalent"


class Padding(Shared):
    """Pads one of its convolutions by a word, and another one by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1_a = nn.Conv2d(3, WIDTHS[0], 3, padding="same")
        self.enc1_b = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(WIDTHS[0], WIDTHS[0], 3))


@pytest.mark.parametrize("padding", [1, (1, 1, 0, 2)], ids=["as_ours", "another"])
def test_a_layer_may_be_padded_elsewhere(padding):
    own = OWN["shared"]
    names = tuple((t.replace("enc1_b", "enc1_b.1"), ours) for t, ours in own.origin().names)
    module = Padding()
    module.enc1_b[0] = nn.ZeroPad2d(padding)
    compared = compare(own, module, origin=Origin(names, {}, None))
    if padding == 1:
        assert compared.pair.verdict == "equivalent"
    else:
        assert first_problem(compared).startswith("enc1_b.0: its constant_pad_nd differs")


class Tied(Shared):
    """With a convolution under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.enc1_a


@pytest.mark.parametrize("copied", [False, True], ids=["one_module", "two_modules"])
def test_a_tensor_under_two_names_is_one(copied):
    own = OWN["shared"]
    module = Tied()
    if copied:
        module.first = nn.Conv2d(3, 4, 3)
    ties = (
        ("first.weight", "down_1.conv.conv.0.weight"),
        ("first.bias", "down_1.conv.conv.0.bias"),
    )
    origin = Origin((*own.origin().names, *ties), {}, None)
    assert compare(own, module, origin=origin).pair.verdict == "equivalent"


class Copied(Shared):
    """Uses a second convolution in the place of the first, with which its file has tied it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTHS[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        own = self.get_submodule("enc1_a")
        self.enc1_a = self.first
        y = super().forward(x)
        self.add_module("enc1_a", own)
        return y


def test_the_copy_of_a_tied_tensor_may_be_the_one_that_is_used():
    own = OWN["shared"]
    ties = (
        ("first.weight", "down_1.conv.conv.0.weight"),
        ("first.bias", "down_1.conv.conv.0.bias"),
    )
    origin = Origin((*own.origin().names, *ties), {}, None)
    assert compare(own, Copied(), origin=origin).pair.verdict == "equivalent"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_prefix_of_the_file_comes_off(prefix):
    own = OWN["named"]
    assert match(own, origin=own.origin(prefix)).names == match(own).names
    wrapped = nn.Sequential()
    wrapped.add_module("net", Named())
    names = match(own, wrapped, origin=own.origin()).names
    assert names == tuple((f"net.{theirs}", ours) for theirs, ours in match(own).names)


def test_a_file_without_counts_of_batches_loads():
    own = OWN["named"]
    names = [pair for pair in own.origin().names if not pair[0].endswith("num_batches_tracked")]
    compared = compare(own, origin=Origin(tuple(names), {}, None))
    assert compared.pair.verdict == "equivalent"
    assert not any("num_batches" in n for c in compared.pair.comparisons for n in c.statistics)


class Buffered(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


class TwoOutputs(Shared):
    def end(self, x: Tensor) -> Tensor:
        return x, x  # type: ignore[return-value]  # as some nets do


class Narrower(Shared):
    """Cuts its output."""

    def end(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1, 1:-1]


class Twice(Shared):
    """Calls a block a second time."""

    def end(self, x: Tensor) -> Tensor:
        return self.block("dec1", x.new_zeros(1, 8, 2, 2)).sum() * 0 + super().end(x)


def test_a_module_may_call_a_layer_twice():
    assert compare(OWN["shared"], Twice()).pair.verdict == "equivalent"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Named(), "it has no enc1_a.weight"),
        (Buffered(), "the weights have no mean"),
        (TwoOutputs(), "gives a tuple, and a U-Net here gives one tensor"),
        (Narrower(), r"gives \(2, 2, 6, 10\) .* gives \(2, 2, 8, 12\): their paddings"),
    ],
    ids=["other_names", "a_tensor_more", "two_outputs", "another_size"],
)
def test_a_module_that_cannot_be_compared_is_refused(module, sentence):
    with pytest.raises(InputError, match=sentence):
        compare(OWN["shared"], module)


def test_a_module_of_another_width_is_refused():
    wide = Shared()
    wide.final = nn.Conv2d(4, 5, 1)
    with pytest.raises(InputError, match=r"final.weight \(5, 4, 1, 1\) instead of \(2, 4, 1, 1\)"):
        match(OWN["shared"], wide)


# in the report


def report_on(own: Own, module: nn.Module, **options) -> verify.ParityReport:
    weights = WeightFile(own.config, tensors_of(own.config))
    options = {"steps": 0, "say": lambda text: None, "weights": weights, **options}
    return verify.verify(own.config, reference=module, other_sizes=False, **options)


@pytest.fixture(scope="module")
def dropping():
    """A report on a module that drops values at random in training."""
    own = OWN["named"]
    return report_on(own, Dropping(), origin=own.origin("module."))


def terminal(result: verify.ParityReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    report.show(result, console)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_a_module_that_is_random_in_training_is_compared_in_inference(dropping):
    assert dropping.verdict == "equivalent"
    assert dropping.own.modes == ("inference",)
    assert [c.agreement.mode for c in dropping.comparisons] == ["inference", "training"]
    assert dropping.scope.reference == ("inference",)
    assert "where it drops values at random" in dropping.scope.not_compared


def test_every_report_says_in_what_the_module_took_part(dropping):
    assert str(dropping.own) in terminal(dropping)
    text = page.make_page(dropping)
    assert "Your module" in text
    for sentence in dropping.own.pair.list_sentences():
        assert f"<li>{escape(sentence)}</li>" in text
    plain = json.loads(json.dumps(dropping.to_json()))["reference"]
    assert plain["verdict"] == "equivalent"
    assert plain["no_training"] == "it drops values at random"
    assert plain["comparisons"][0]["gradients"]["outc.weight"] < 1e-13


def test_a_bug_in_the_module_comes_first_in_the_verdict(dropping):
    own = OWN["named"]
    module = own.make()
    _swap(module)
    wrong = compare(own, module)
    verdict, reasons = verify.judge(
        own.config, dropping.structure, (), dropping.comparisons, (), None, wrong,
        own_weights=True,
    )  # fmt: skip
    assert verdict == "different"
    assert reasons[0].startswith(f"JAX's net beside your module: {first_problem(wrong)}")
    result = replace(dropping, verdict=verdict, reasons=reasons, own=wrong)
    text = terminal(result)
    assert "up1: its concatenation differs" in text
    assert "PyTorch's net here and JAX's agree, so the difference is between your module" in text
    assert page.OTHER_MODULE in page.make_page(result)
    assert page.OTHER_MODULE not in page.make_page(dropping)
    plain = json.loads(json.dumps(result.to_json()))["reference"]
    assert plain["module"] == "up1"


class WithDropout(Named):
    """With a dropout as a module, in front of its neck."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("down2", nn.Sequential(nn.Dropout(0.5), self.down2))


def test_a_dropout_that_is_a_module_is_switched_off():
    own = OWN["named"]
    names = tuple((t.replace("down2.", "down2.1."), ours) for t, ours in own.origin().names)
    compared = compare(own, WithDropout(), origin=Origin(names, {}, None))
    assert (compared.pair.verdict, compared.no_training) == ("equivalent", "")
    assert compared.modes == ("inference", "training")


def test_a_module_without_dropout_says_nothing_of_a_dropout(dropping):
    """JAX's net and PyTorch's differ in training alone, and the module was not asked there."""
    own = OWN["named"]
    healthy = replace(dropping.own, no_training="")
    wrong = replace(dropping.comparisons[1], problems=("a dropout",))
    for config, modes, said in (
        (replace(own.config, dropout=0.5), ("inference", "training"), False),
        (own.config, ("inference",), False),
        (own.config, ("inference", "training"), True),
    ):
        pairs = tuple(replace(healthy.pair.comparisons[0], mode=mode) for mode in modes)
        pair = replace(healthy.pair, comparisons=pairs)
        _, reasons = verify.judge(
            config, dropping.structure, (), (dropping.comparisons[0], wrong), (), None,
            replace(healthy, pair=pair), own_weights=True,
        )  # fmt: skip
        assert any("so the fault is in PyTorch's net" in reason for reason in reasons) == said


class Deep(Named):
    """Gives a second output in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y, y) if self.training else y  # type: ignore[return-value]  # as some nets do


def test_a_module_that_cannot_be_compared_in_training_has_its_reason():
    own = OWN["named"]
    x, _, _ = oracle.random_input(NAMED, seed=0)
    sentences = {Named: "", Dropping: "it drops values at random",
                 Deep: "it does not run as in inference"}  # fmt: skip
    for make, sentence in sentences.items():
        assert match(own, make()).explain_no_training(x) == sentence


class DroppingShared(Shared):
    """With a dropout in the code, and nothing else that training changes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.3, self.training))


def test_a_net_without_statistics_says_too_that_it_drops_values():
    compared = compare(OWN["shared"], DroppingShared())
    assert (compared.pair.verdict, compared.modes) == ("equivalent", ("inference",))
    assert compared.no_training == "it drops values at random"
    assert not any("computes the same" in reason for reason in compared.pair.reasons)


class PositiveLogits(Shared):
    """Gives its logits, which are above 0, so that a ReLU behind them changes nothing."""

    def end(self, x: Tensor) -> Tensor:
        return x


def test_a_function_that_changes_no_value_is_no_guess():
    own = OWN["shared"]
    raised = {n: t + 20 * (n == "out.bias") for n, t in tensors_of(own.config).items()}
    matched = match_module(own.config, PositiveLogits(), raised, own.origin())
    x = 0.1 * oracle.random_input(own.config, seed=0)[0]
    assert matched.run(x).min() > 0
    assert OwnPair(matched, x).name_first_difference().endswith("seems to have sigmoid behind it")


class AlwaysDropping(Named):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.3))


def test_a_module_that_is_random_in_inference_is_refused():
    own = OWN["named"]
    with pytest.raises(InputError, match="another output each time: it draws random numbers"):
        report_on(own, AlwaysDropping(), origin=own.origin())


class Short(Shared):
    """Is off by more than rounding in float32 alone."""

    factor = 1 + 1e-4

    def end(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x if x.dtype == torch.float64 else x * self.factor)


@pytest.mark.parametrize("factor", [1, Short.factor])
def test_a_module_that_is_off_in_float32_alone_is_another(factor):
    module = Short()
    module.factor = factor
    compared = compare(OWN["shared"], module)
    assert (compared.pair.verdict == "different") == (factor != 1)
    if factor != 1:
        assert first_problem(compared).startswith("in float32 the port is")


class SixAndMore(Shared):
    """Has ReLU6 in the place of its ReLUs, and no function at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()  # type: ignore[assignment]  # as ReLU is its own class

    def end(self, x: Tensor) -> Tensor:
        return x


class NormedSix(Named):
    """Has ReLU6 in the place of its ReLUs, behind batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "relu", lambda x, inplace=False: F.relu6(x))
            return super().forward(x)


def pair_of_small_values(own: Own, module: nn.Module) -> OwnPair:
    """The pair of a net of which no value comes near 6 on its given input."""
    config = replace(own.config, output="logits")
    small = {n: t / 2 if n.endswith("weight") else t for n, t in tensors_of(own.config).items()}
    matched = match_module(config, module, small, own.origin())
    pair = OwnPair(matched, 0.3 * oracle.random_input(config, seed=0)[0])
    assert pair.to_torch < 1e-13
    return pair


def test_what_shows_in_large_values_alone_is_told_by_the_large_draw():
    report = pair_of_small_values(OWN["named"], NormedSix()).compare(steps=0, other_sizes=False)
    seeds = [c.seed for c in report.pair.comparisons if c.problems and c.mode == "inference"]
    assert seeds == [2], "the first draw has small inputs"


def test_what_shows_in_large_values_alone_is_told_by_integers():
    report = pair_of_small_values(OWN["shared"], SixAndMore()).compare(steps=0, other_sizes=False)
    assert report.pair.integers.unequal


class Larger(Shared):
    """Computes something else of maps that are wider than 16 pixels."""

    def block(self, name: str, x: Tensor) -> Tensor:
        y = super().block(name, x)
        return 2 * y if name == "enc1" and x.shape[-1] > 16 else y


def test_what_shows_at_a_larger_size_alone_is_told(monkeypatch):
    """Its pools take no odd size, so the next size that it takes is compared."""
    monkeypatch.setattr(sizes, "MOST_VALUES", 2**12)
    compared = pair_up(OWN["shared"], Larger()).compare(steps=0)
    assert first_problem(compared).startswith("for inputs of (2, 3, ")
    assert "its product differs" in first_problem(compared)
    right = pair_up(OWN["shared"]).compare(steps=0)
    assert right.pair.verdict == "equivalent"
    assert {(2, 3, 12, 12), (2, 3, 8, 16)} <= {size.shapes[0] for size in right.pair.sizes}


def test_the_function_at_the_end_may_be_left_out_in_training():
    config = replace(NAMED, output="sigmoid")
    for in_training in (True, False):

        class Ends(Named):
            def forward(self, x: Tensor, ends: bool = in_training) -> Tensor:
                y = super().forward(x)
                return torch.sigmoid(y) if ends or not self.training else y

        own = Own(config, Ends)
        compared = compare(own)
        assert compared.modes == ("inference", "training")
        assert compared.pair.verdict == "equivalent"


def test_the_slides_module_needs_no_names():
    config = UNetConfig(in_channels=3, classes=4, widths=(2, 4, 8, 16, 32))
    own = Own(config, lambda: SlidesUNet(3, 4, 2))
    origin = Origin(tuple((n, n) for n in tensors_of(config)), {}, None)
    assert compare(own, origin=origin).pair.verdict == "identical"
    assert match_module(config, own.make(), tensors_of(config), None).names == origin.names
