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
from rich.console import Console
from torch import Tensor, nn

from parity_tests import planted
from parity_tests.own_nets import NAMED, OWN, SHARED, WIDTHS, Dropping, Named, Own, Shared
from parity_tests.slides import UNet as SlidesUNet
from unet_parity import oracle, page, report, verify
from unet_parity.comparison import Comparer, draw_numbers
from unet_parity.differences import difference
from unet_parity.own_comparison import OwnComparison, blame, choose_size, compare_own
from unet_parity.own_module import OwnModule, match_module
from unet_parity.torch_twin import torch_pass
from unet_spec import InputError, UNetConfig
from unet_spec.judgement import Run
from unet_spec.origin import Origin
from unet_spec.outputs import apply_output
from unet_spec.weight_file import WeightFile

ODD = (10, 14)


@cache
def tensors_of(config: UNetConfig) -> dict[str, np.ndarray]:
    return oracle.random_tensors(config, seed=0)


@cache
def comparer_of(config: UNetConfig, train: bool) -> Comparer:
    return Comparer(config, train=train)


def match(own: Own, module: nn.Module | None = None, *, origin: Origin | None = None) -> OwnModule:
    module = own.make() if module is None else module
    return match_module(own.config, module, tensors_of(own.config), origin or own.origin())


def compare(
    own: Own,
    module: nn.Module | None = None,
    *,
    train: bool = False,
    origin: Origin | None = None,
    comparer: Comparer | None = None,
    run: Run | None = None,
) -> OwnComparison:
    """The comparison without the twins beside it; in float64 alone, if nothing runs in float32."""
    config = own.config
    matched = match(own, module, origin=origin)
    size = ODD if config.fit != "error" else choose_size(matched, None)
    numbers = draw_numbers(config, tensors_of(config), size=size)
    logits = torch_pass(
        config, numbers.tensors, numbers.x, numbers.cotangent, dtype="float64", train=train
    ).output
    return compare_own(
        matched,
        numbers,
        comparer or comparer_of(config, train),
        torch_logits=logits,
        run=run,
    )


@pytest.mark.parametrize(
    ("name", "train"),
    [("named", False), ("named", True), ("shared", False), ("odd", False), ("narrow", True)],
)
def test_a_module_under_other_names_is_the_same_net(name, train):
    own = OWN[name]
    compared = compare(own, train=train)
    assert compared.problems == ()
    assert compared.untraced == ()
    assert compared.to_torch < 1e-13
    first = {"shared": "enc1_a"}.get(name, "inc.double_conv.0")
    assert compared.layers[0] == f"{first} (ours: down_1.conv.conv.0)"
    assert len(compared.layers) == {"shared": 13, "narrow": 21}.get(name, 23)
    assert compared.agreement is not None
    assert compared.agreement.gradients.keys() >= {"down_1.conv.conv.0.weight", "out.bias"}
    assert bool(compared.agreement.statistics) == (name != "shared")


def test_what_is_traced_in_a_net_that_works_in_place_is_what_its_layers_gave():
    """The same net without anything in place or shared has the same maps and gradients."""
    own = OWN["named"]
    numbers = draw_numbers(NAMED, tensors_of(NAMED))
    in_place = match(own).trace(numbers.x, numbers.cotangent, train=True).trace
    module = own.make()
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: x.clamp(min=0))
        plain = match(own, module).trace(numbers.x, numbers.cotangent, train=True).trace
    assert list(in_place.calls) == list(plain.calls)
    for path, call in plain.calls.items():
        other = in_place.calls[path]
        assert (other.outputs[0] < 0).any(), "a ReLU wrote into what the layer gave"
        for maps in ("inputs", "outputs", "input_gradients", "cotangents"):
            for right, value in zip(getattr(call, maps), getattr(other, maps), strict=True):
                assert difference(right, value) < 1e-14, (path, maps)


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


BUGS: dict[str, tuple[str, bool, Callable[[nn.Module], object], str, str]] = {
    "swapped concat": (
        "named", False, _swap, "up1.conv.double_conv.0 (ours: up_1.conv.conv.0): what reaches its "
        "input differs", "a concatenation in the other order",
    ),
    "swapped concat of a narrow decoder": (
        "narrow", False, _swap, "up1.conv.double_conv.0 (ours: up_1.conv.conv.0): what reaches its "
        "input differs", "a concatenation in the other order",
    ),
    "corners that are not aligned": (
        "narrow", False, _leave_corners,
        "up1.conv.double_conv.0 (ours: up_1.conv.conv.0): what reaches its input differs", "",
    ),
    "crop for pad": (
        "odd", False, _crop, "up1.conv.double_conv.0 (ours: up_1.conv.conv.0): what reaches its "
        "input is missing, misshapen", "a map of another size",
    ),
    "eps": (
        "named", False, _set_eps, "down1.maxpool_conv.1.double_conv.1 (ours: down_2.conv.conv.1): "
        "its output differs", "eps=0.001 in your module and 1e-05 in the file's net",
    ),
    "momentum": (
        "named", True, _set_momentum, "down1.maxpool_conv.1.double_conv.4 (ours: "
        "down_2.conv.conv.4): its running_mean differs",
        "momentum=0.01 in your module and 0.1 in the file's net",
    ),
    "another slope": (
        "shared", False, lambda net: setattr(net, "slope", 0.2), "enc1_b (ours: "
        "down_1.conv.conv.2): what reaches its input differs",
        "leaky ReLU of slope 0.2 in your module in place of ReLU",
    ),
    "missing ReLU": (
        "shared", False, lambda net: setattr(net, "without", "enc2_a"), "enc2_b (ours: "
        "down_2.conv.conv.2): what reaches its input differs",
        "no activation in your module in place of ReLU",
    ),
    "missing ReLU before a pool": (
        "shared", False, lambda net: setattr(net, "without", "enc2_b"), "bottleneck_a (ours: "
        "neck.conv.0): what reaches its input differs",
        "no activation and max-pool in your module in place of ReLU and max-pool",
    ),
    "average pool": (
        "shared", False, lambda net: setattr(net, "pool", nn.AvgPool2d(2)), "enc2_a (ours: "
        "down_2.conv.conv.0): what reaches its input differs",
        "ReLU and average pool in your module in place of ReLU and max-pool",
    ),
    "padding by reflection": (
        "shared", False, _pad_by_reflection, "enc2_b (ours: down_2.conv.conv.2): its output "
        "differs", "padding_mode=reflect in your module and zeros in the file's net",
    ),
    "missing sigmoid": (
        "shared", False, lambda net: setattr(net, "end", lambda x: x), "the net: what it gives "
        "differs", "output=logits",
    ),
    "two sigmoids": (
        "shared", False, lambda net: setattr(net, "end", lambda x: x.sigmoid().sigmoid()),
        "the net: what it gives differs", "",
    ),
    "skip without a gradient": (
        "shared", False, lambda net: setattr(net, "detaches", True), "enc2_b (ours: "
        "down_2.conv.conv.2): the gradient that reaches its output differs", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_module_is_named_where_it_is(bug):
    name, train, plant, start, guess = BUGS[bug]
    own = OWN[name]
    module = own.make()
    plant(module)
    compared = compare(own, module, train=train)
    assert compared.problems[0].startswith(start)
    assert guess in compared.problems[0]
    assert blame(compared, ()).startswith("PyTorch's net here and JAX's agree")


def test_weights_in_the_wrong_order_are_named():
    own = OWN["shared"]
    exchanged = {"down_1.conv.conv.2.weight": "up_2.conv.conv.2.weight"}
    exchanged |= {ours: theirs for theirs, ours in exchanged.items()}
    origin = own.origin()
    names = tuple((theirs, exchanged.get(ours, ours)) for theirs, ours in origin.names)
    compared = compare(own, origin=replace(origin, names=names))
    # the layer's tensors are those of two of ours, so that it is no layer of ours
    assert {"down_1.conv.conv.2", "up_2.conv.conv.2"} == set(compared.untraced)
    assert compared.problems[0].startswith("enc2_a (ours: down_2.conv.conv.0): what reaches its")
    whole = {f"{a}.{kind}": f"{b}.{kind}" for kind in ("weight", "bias")
             for a, b in (("down_1.conv.conv.2", "up_2.conv.conv.2"),)}  # fmt: skip
    whole |= {ours: theirs for theirs, ours in whole.items()}
    names = tuple((theirs, whole.get(ours, ours)) for theirs, ours in origin.names)
    compared = compare(own, origin=replace(origin, names=names))
    assert compared.problems[0].startswith("enc1_b (ours: up_2.conv.conv.2): what reaches its")


@pytest.mark.parametrize(
    ("bug", "name", "start"),
    [
        ("concat swapped", "shared", "dec2_a (ours: up_1.conv.conv.0): what reaches its input"),
        ("skip without a gradient", "shared", "enc2_b (ours: down_2.conv.conv.2): the gradient"),
        ("up-convolution's bias missing", "named", "up1.up (ours: up_1.up): its output"),
        ("pool averages", "shared", "enc2_a (ours: down_2.conv.conv.0): what reaches its input"),
        ("Flax's eps in batch norm", "named", "inc.double_conv.1 (ours: down_1.conv.conv.1): its"),
        ("momentum not complemented", "named", "inc.double_conv.1 (ours: down_1.conv.conv.1): its"),
        ("height and width swapped", "shared", "enc1_a (ours: down_1.conv.conv.0): what reaches"),
        ("padding by reflection", "named", "inc.double_conv.0 (ours: down_1.conv.conv.0): its"),
    ],
)
def test_a_bug_in_jax_is_named_under_the_modules_names(bug, name, start):
    own = OWN[name]
    train = bug == "momentum not complemented"
    with planted.planted(bug):
        compared = compare(own, train=train, comparer=Comparer(own.config, train=train))
    assert compared.problems[0].startswith(start)
    agree = "your module and PyTorch's net here agree, so the fault is in JAX's net"
    assert blame(compared, ("a problem of the twins",)) == agree


def test_a_bug_in_torch_here_is_not_blamed_on_the_module(monkeypatch):
    compared = compare(OWN["shared"])
    assert blame(compared, ("a problem of the twins",)) == ""
    wrong = replace(compared, problems=("a small one",), to_torch=1.0)
    assert blame(wrong, ("one",)).endswith("so the fault is in PyTorch's net here")


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
def test_layers_that_are_no_modules_are_compared_with_what_is_around_them(wrong, monkeypatch):
    own = OWN["shared"]
    parts = {"enc2_a": "whole.one", "enc2_b": "whole.two"}
    names = tuple(
        (theirs if theirs[:6] not in parts else f"{parts[theirs[:6]]}_{theirs[7:]}", ours)
        for theirs, ours in own.origin().names
    )
    if wrong:
        monkeypatch.setattr(Block, "forward", lambda self, x, right=Block.forward: right(self, -x))
    compared = compare(own, Functional(), origin=Origin(names, {}, None))
    assert compared.untraced == ("down_2.conv.conv.0", "down_2.conv.conv.2")
    assert "down_2.conv.conv.0, down_2.conv.conv.2" in str(compared)
    if wrong:
        assert compared.problems[0].startswith("bottleneck_a (ours: neck.conv.0): what reaches")
    else:
        assert compared.problems == ()


class Scaling(Shared):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1))


def test_a_module_may_write_into_its_input():
    compared = compare(OWN["shared"], Scaling())
    assert compared.problems == ()


class Padding(Shared):
    """Pads one of its convolutions by a word, and another one by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1_a = nn.Conv2d(3, WIDTHS[0], 3, padding="same")
        self.enc1_b = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(WIDTHS[0], WIDTHS[0], 3))


@pytest.mark.parametrize("padding", [1, (1, 1, 0, 2)], ids=["as_ours", "another"])
def test_a_layer_that_is_padded_elsewhere_is_compared_with_its_padding(padding):
    own = OWN["shared"]
    names = tuple((t.replace("enc1_b", "enc1_b.1"), ours) for t, ours in own.origin().names)
    module = Padding()
    module.enc1_b[0] = nn.ZeroPad2d(padding)
    compared = compare(own, module, origin=Origin(names, {}, None))
    assert compared.untraced == ("down_1.conv.conv.2",)
    if padding == 1:
        assert compared.problems == ()
    else:
        assert compared.problems[0].startswith("enc2_a (ours: down_2.conv.conv.0): what reaches")


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
    assert compare(own, module, origin=origin).problems == ()


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
    compared = compare(own, origin=Origin(tuple(names), {}, None), train=True)
    assert compared.problems == ()
    assert compared.agreement is not None
    assert not any("num_batches" in name for name in compared.agreement.statistics)


class Buffered(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


class TwoOutputs(Shared):
    def end(self, x: Tensor) -> Tensor:
        return x, x  # type: ignore[return-value]  # as some nets do


class Twice(Shared):
    """Calls a block a second time."""

    def end(self, x: Tensor) -> Tensor:
        return self.block("dec1", x.new_zeros(1, 8, 2, 2)).sum() * 0 + super().end(x)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Named(), "it has no enc1_a.weight"),
        (Buffered(), "the weights have no mean"),
        (TwoOutputs(), "gives a tuple, and a U-Net here gives one tensor"),
        (Twice(), "calls dec1_a twice"),
    ],
    ids=["other_names", "a_tensor_more", "two_outputs", "called_twice"],
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
    assert [own.mode for own in dropping.owns] == ["inference"]
    assert [c.agreement.mode for c in dropping.comparisons] == ["inference", "training"]
    assert dropping.scope.reference == ("inference",)
    assert "where it drops values at random" in dropping.scope.not_compared
    (own,) = dropping.owns
    assert own.float32 is not None
    assert own.float32.precision == "float32"
    assert own.float32.holds


def test_every_report_says_in_what_the_module_took_part(dropping):
    (own,) = dropping.owns
    assert str(own) in terminal(dropping)
    text = page.make_page(dropping)
    assert "Your module" in text
    for layer in own.layers:
        assert f"<li>{layer}</li>" in text
    (plain,) = json.loads(json.dumps(dropping.to_json()))["reference"]
    assert plain["mode"] == "inference"
    assert plain["layers"] == list(own.layers)
    assert (plain["faults"], plain["problems"], plain["float32"]["holds"]) == ([], [], True)
    assert plain["gradients"]["out.weight"] < 1e-13


def test_a_bug_in_the_module_comes_first_in_the_verdict(dropping):
    own = OWN["named"]
    module = own.make()
    _swap(module)
    wrong = compare(own, module)
    verdict, reasons = verify.judge(
        own.config, dropping.structure, (), dropping.comparisons, (), None, (wrong,),
        own_weights=True,
    )  # fmt: skip
    assert verdict == "different"
    assert reasons[0] == f"inference, your module: {wrong.problems[0]}"
    assert reasons[1].startswith("inference: PyTorch's net here and JAX's agree")
    result = replace(dropping, verdict=verdict, reasons=reasons, owns=(wrong,))
    assert "up1.conv.double_conv.0 (ours: up_1.conv.conv.0)" in terminal(result)
    (plain,) = json.loads(json.dumps(result.to_json()))["reference"]
    assert plain["faults"][0]["module"] == "up1.conv.double_conv.0 (ours: up_1.conv.conv.0)"
    assert plain["faults"][0]["ours"] == "up_1.conv.conv.0"


class Deep(Named):
    """Gives a second output in training."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y, y) if self.training else y  # type: ignore[return-value]  # as some nets do


def test_a_module_that_cannot_be_compared_in_training_has_its_reason():
    own = OWN["named"]
    x = draw_numbers(NAMED, tensors_of(NAMED)).x
    sentences = {Named: "", Dropping: "it drops values at random",
                 Deep: "it does not run as in inference"}  # fmt: skip
    for make, sentence in sentences.items():
        assert verify._explain_no_training(match(own, make()), x) == sentence


class AlwaysDropping(Named):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.3))


def test_a_module_that_is_random_in_inference_is_refused():
    own = OWN["named"]
    with pytest.raises(InputError, match="another output each time, also in inference"):
        report_on(own, AlwaysDropping(), origin=own.origin())


class Short(Shared):
    """Is off by more than rounding in float32 alone."""

    factor = 1 + 1e-4

    def end(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x if x.dtype == torch.float64 else x * self.factor)


@pytest.mark.parametrize("factor", [1, Short.factor])
def test_a_module_that_is_off_in_float32_alone_is_another(factor):
    own, module = OWN["shared"], Short()
    module.factor = factor
    numbers = draw_numbers(SHARED, tensors_of(SHARED))
    logits = torch_pass(SHARED, numbers.tensors, numbers.x, numbers.cotangent).output
    (problem, *_) = compare(own, module, run=lambda precision: [sigmoid(logits)]).problems or [""]
    assert problem.startswith("its output in float32 is") == (factor != 1)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return apply_output(SHARED, logits, axis=1)


def test_the_slides_module_needs_no_names():
    config = UNetConfig(in_channels=3, classes=4, widths=(2, 4, 8, 16, 32))
    own = Own(config, lambda: SlidesUNet(3, 4, 2))
    origin = Origin(tuple((n, n) for n in tensors_of(config)), {}, None)
    compared = compare(own, origin=origin)
    assert compared.problems == ()
    assert compared.layers[0] == "down_1.conv.conv.0"
    assert match_module(config, own.make(), tensors_of(config), None).names == origin.names
