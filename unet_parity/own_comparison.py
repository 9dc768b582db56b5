"""Somebody's own torch module against JAX's net, layer by layer under the module's own names.

The module in float64 is the truth. Each of its layers that hold tensors is one of ours. JAX's
layer, alone on the same input, must give the same output and gradients. JAX's net, with the
module's maps in place of what its own layers give, must bring the same maps to the next layer: so
all that the module does between its layers is compared, whether that is a module or a line of code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from unet_parity import fault, oracle
from unet_parity.compared import NET, describe_at_layer
from unet_parity.comparison import Comparer, Numbers, draw_numbers
from unet_parity.differences import difference, module_of
from unet_parity.fault import Fault
from unet_parity.jax_net import match_modules
from unet_parity.leaves import JaxLeaves
from unet_parity.oracle import OUTPUT_BOUND, Float64Agreement
from unet_parity.own_difference import explain_difference
from unet_parity.own_module import LAST, OwnModule, OwnTrace, match_module
from unet_parity.torch_twin import torch_pass
from unet_parity.twins import Pass, is_small
from unet_parity.wiring import WiringProbe
from unet_spec import InputError, UNetConfig, geometry
from unet_spec.judgement import Judgement, Run, judge_output
from unet_spec.origin import Origin
from unet_spec.outputs import apply_output
from unet_spec.parameters import Tensors, parameters
from unet_spec.wording import list_names

SIDES = (64, 96, 128, 256, 512)  # sizes to try, in pixels, where a module does not take small ones


@dataclass(frozen=True)
class OwnFault:
    """A layer of somebody's own module that JAX's net does not follow.

    Attributes:
        layer: its name in the module, and ours.
        fault: under our path.
    """

    layer: str
    fault: Fault

    def __str__(self) -> str:
        return self.fault.describe(self.layer, describe_at_layer(self.fault.compared))

    def to_json(self) -> dict[str, Any]:
        """Return the fault as plain values."""
        return {**self.fault.to_json(), "module": self.layer, "ours": self.fault.compared.place[0]}


@dataclass(frozen=True)
class OwnComparison:
    """Somebody's own module against JAX's net in one mode, in float64; differences are relative.

    Attributes:
        mode: `inference` or `training`.
        layers: the names of those that were compared one by one.
        untraced: our paths of those that the module has no module for, does not call, or pads
            elsewhere: they are compared with what lies between the others.
        agreement: of the whole nets; None if JAX's does not run.
        to_torch: between the module and PyTorch's net here, the largest difference of the logits.
        float32: the module's output in float32, judged as a recorded one; None in training.
        faults: the first at fault first.
        problems: all that is out of bounds, in words, the first fault first.
    """

    mode: str
    layers: tuple[str, ...]
    untraced: tuple[str, ...]
    agreement: Float64Agreement | None
    to_torch: float
    float32: Judgement | None
    faults: tuple[OwnFault, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """Say in one sentence what was compared, and how far the two are from one another."""
        text = (
            f"your module and JAX's net, {self.mode}: {len(self.layers)} layers one by one, and "
            "what lies between them"
        )
        if self.faults:
            text += f": {list_names([fault.layer for fault in self.faults], 1)} differ"
        if self.agreement is not None:
            output, gradient, gradients, statistics, _ = self.agreement
            text += (
                f"; whole nets in float64: output {output:.1e} apart, gradient of the input "
                f"{gradient:.1e}, worst gradient of a parameter {max(gradients.values()):.1e}"
            )
            if statistics:
                text += f", batch statistics {max(statistics.values()):.1e}"
        if self.float32 is not None:
            scale = self.float32.scale or 1.0
            text += (
                f"; your output in float32 is {self.float32.error / scale:.1e} from float64, up to "
                f"{self.float32.allowed / scale:.1e} is rounding"
            )
        if self.untraced:
            text += (
                "; compared with what is around them, because they are no modules, are not "
                f"called, or pad elsewhere: {list_names(list(self.untraced), 3)}"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        agreement = {} if self.agreement is None else self.agreement._asdict()
        float32 = self.float32
        return {
            "mode": self.mode,
            "layers": list(self.layers),
            "untraced": list(self.untraced),
            **{name: value for name, value in agreement.items() if name != "problems"},
            "to_torch": self.to_torch,
            "float32": None if float32 is None else {**vars(float32), "holds": float32.holds},
            "faults": [each.to_json() for each in self.faults],
            "problems": list(self.problems),
        }


def compare_own(
    own: OwnModule,
    numbers: Numbers,
    comparer: Comparer,
    *,
    torch_logits: np.ndarray,
    run: Run | None,
    say: Callable[[str], None] = lambda text: None,
) -> OwnComparison:
    """Compare somebody's module with JAX's net in the mode of a comparer of the twins.

    Args:
        torch_logits: of PyTorch's net here in float64.
        run: as of `judge_output`, for the module's output in float32; None leaves it out.

    Raises:
        InputError: the module does not run, or computes in a way that cannot be compared.
    """
    config, train = own.config, comparer.train
    mode = "training" if train else "inference"
    say(f"  {mode}: your module in float64, every layer, against JAX")
    owns = own.trace(numbers.x, numbers.cotangent, train=train)
    trace = owns.trace
    if config.output != "logits" and LAST not in trace.calls:
        raise InputError(
            f"the reference ends in a {config.output}, and its last layer is no module of its own, "
            "so its logits cannot be read; make that layer a module"
        )
    logit_cotangent = trace.calls[LAST].cotangents[0] if LAST in trace.calls else numbers.cotangent
    numbers = replace(numbers, cotangent=logit_cotangent)
    net = match_modules(config, trace.calls, dtype="float64", train=train)
    quick = is_small(numbers.x)
    local = JaxLeaves(net, quick=quick).run(numbers.tensors, trace.calls, backward=True)
    wiring = WiringProbe(net, quick=quick).probe(
        numbers.tensors, trace.calls, numbers.x, numbers.cotangent, keep=numbers.keep
    )
    at_fault = fault.find_faults(config, numbers.tensors, trace, wiring, local, train=train)
    faults = tuple(OwnFault(_name_layer(own, each), each) for each in at_fault)
    if faults:
        guess = explain_difference(own, trace, wiring, at_fault[0].compared)
        first = replace(at_fault[0], looks_like=guess or at_fault[0].looks_like)
        faults = (replace(faults[0], fault=first), *faults[1:])
    agreement = _run_whole(own, comparer, numbers, trace.result, is_broken=bool(faults))
    problems = [str(each) for each in faults[:1]]
    if not faults:
        problems += _compare_end(config, owns, train=train)
    if agreement is None:
        problems.append("JAX's net does not run as a whole")
    else:
        problems += agreement.problems
    float32 = None
    if run is not None and not train and not faults:  # beside another net it says nothing
        float32 = judge_output(own.run(numbers.x, dtype="float32"), owns.output, run)
        if not float32.holds:
            problems.append(
                f"its output in float32 is {float32.error / (float32.scale or 1):.1e} from its "
                f"float64, {float32.allowed / (float32.scale or 1):.1e} allowed as rounding in "
                f"{float32.precision}"
            )
    return OwnComparison(
        mode,
        tuple(own.label(path) for path in trace.calls),
        tuple(path for path in _list_layers(config) if path not in trace.calls),
        agreement,
        difference(trace.result.output, torch_logits),
        float32,
        faults,
        tuple(problems),
    )


def name_first_difference(
    config: UNetConfig, module: nn.Module, tensors: Tensors, origin: Origin
) -> str:
    """Say where somebody's module first does something else than the net of a config, in inference.

    Returns:
        a sentence; empty where nothing differs.

    Raises:
        InputError: the module cannot be compared layer by layer.
    """
    own = match_module(config, module, tensors, origin)
    numbers = draw_numbers(config, tensors, size=choose_size(own, None))
    twin = torch_pass(config, tensors, numbers.x, numbers.cotangent, dtype="float64")
    comparer = Comparer(config, train=False, quick=is_small(numbers.x))
    own_comparison = compare_own(own, numbers, comparer, torch_logits=twin.output, run=None)
    return own_comparison.problems[0] if own_comparison.problems else ""


def choose_size(own: OwnModule, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return a size, (height, width), that the net here and somebody's module both take.

    Args:
        size: the only one that is tried; without it small ones, and then larger ones.

    Raises:
        InputError: none, with the error of the module.
    """
    config = own.config
    sizes = [size] if size else [_small_size(config)]
    if not size:
        sizes += [(s, s) for s in SIDES if geometry.is_legal(config, s) and s > sizes[0][0]]
    refusal: InputError | None = None
    for height, width in sizes:
        try:
            own.run(np.zeros((2, config.in_channels, height, width)), dtype="float64")
        except InputError as error:
            refusal = refusal or error
        else:
            return height, width
    assert refusal is not None
    raise refusal


def blame(own: OwnComparison, problems: tuple[str, ...]) -> str:
    """Say which of three nets differs from the two others; empty if that is not one.

    Args:
        problems: of PyTorch's net here beside JAX's.
    """
    if not own.problems:
        return ""
    if not problems:
        return (
            "PyTorch's net here and JAX's agree, so the difference is between your module and "
            "what the weight file says of it, or between your module and its own weights"
        )
    if own.to_torch <= OUTPUT_BOUND:
        return "your module and PyTorch's net here agree, so the fault is in JAX's net"
    if own.agreement is not None and own.agreement.output <= OUTPUT_BOUND:
        return "your module and JAX's net agree, so the fault is in PyTorch's net here"
    return ""


def _small_size(config: UNetConfig) -> tuple[int, int]:
    height, width = oracle.random_input(config, seed=0, batch=1)[0].shape[2:]
    return height, width


def _name_layer(own: OwnModule, each: Fault) -> str:
    path = each.compared.place[0]
    return own.label(path) if path else NET


def _run_whole(
    own: OwnModule, comparer: Comparer, numbers: Numbers, truth: Pass, *, is_broken: bool
) -> Float64Agreement | None:
    """Compare the whole nets; None if JAX's net, in which a fault is known, does not run."""
    try:
        return oracle.measure_float64(truth, comparer.run_whole(numbers), label=own.label_tensor)
    except (TypeError, ValueError):
        if not is_broken:
            raise
        return None


def _compare_end(config: UNetConfig, own: OwnTrace, *, train: bool) -> list[str]:
    """Compare what the module gives with the function of its own logits that the config names."""
    logits = own.trace.result.output
    functions = {name: apply_output(replace(config, output=name), logits, axis=1)
                 for name in ("logits", "sigmoid", "softmax")}  # fmt: skip
    # many nets leave the function out in training, where their loss has it
    allowed = {config.output, "logits"} if train else {config.output}
    sizes = {name: difference(own.output, value) for name, value in functions.items()}
    if min(sizes[name] for name in allowed) <= OUTPUT_BOUND:
        return []
    other = next((name for name, size in sizes.items() if size <= OUTPUT_BOUND), "")
    guess = f"; it looks like output={other}" if other else ""
    size = sizes[config.output]
    how = f"differs by {size:.1e}" if size < np.inf else f"has the shape {own.output.shape}"
    return [
        f"{NET}: what it gives {how} from output={config.output} of its last layer, "
        f"{OUTPUT_BOUND:.0e} allowed{guess}"
    ]


def _list_layers(config: UNetConfig) -> list[str]:
    return list(dict.fromkeys(module_of(p.name) for p in parameters(config)))
