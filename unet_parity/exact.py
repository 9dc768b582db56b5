"""The exact proof: nets in which nothing is ever rounded, compared with `==`.

The net is one of small integers (`integer_cases`). So the order of summation cannot matter, and
both frameworks must agree bit for bit, with each other and with float64: outputs, every parameter's
gradient, the input's gradient. A wrong layout, crop, tie or order shows as whole numbers, not as
digits.

A rung is a significand: float32 holds integers to 2^24, TF32 to 2^11, bfloat16 to 2^8. Before
anything is compared, a float64 run checks the case: every stored value fits the rung, every
sum of absolute products fits the float32 accumulators that all three share, and the case is not
vacuous. A case that fails is refused, and proves nothing.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.comparison import Comparer, Numbers
from unet_parity.fault import Fault
from unet_parity.integer_cases import RUNGS, Case, Rung, make_case, small_size
from unet_parity.jax_twin import JaxRun
from unet_parity.torch_twin import torch_pass
from unet_parity.twins import QUICK_PIXELS, Pass
from unet_spec import UNetConfig
from unet_spec.parameters import Tensors
from unet_torch.layers import Dropout
from unet_torch.model import UNet

ACCUMULATOR_BITS = 24
LEAST_DISTINCT = 16
SEEDS = 8


@dataclass(frozen=True)
class CaseTruth:
    """What the float64 run says of a case.

    Attributes:
        result: the pass in float64.
        largest: the largest stored value: activations, gradients of activations, of parameters.
        largest_sum: the largest sum of absolute products in any convolution, forward or back.
        distinct: number of distinct output values.
        refusals: why the case proves nothing; empty if it does.
    """

    result: Pass
    largest: float
    largest_sum: float
    distinct: int
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class ExactRow:
    """The proof on one rung: numbers of values, and of those on which torch, JAX and float64
    are not all equal. `size` is the input's (height, width). `refused` says why nothing was proven,
    and is empty otherwise; `fault` names the module at fault, where values are not equal."""

    rung: str
    padding: str
    size: tuple[int, int]
    dtype: str
    taps: float
    seed: int
    largest: float
    outputs: int
    mismatches: int
    distinct: int
    gradients: dict[str, int]
    input_gradient: dict[str, int]
    first_wrong: str
    fault: Fault | None
    refused: str

    @property
    def holds(self) -> bool:
        wrong = self.mismatches + self.gradients["mismatches"] + self.input_gradient["mismatches"]
        return not self.refused and wrong == 0

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; what a fault differs in is in words."""
        return {**asdict(self), "fault": None if self.fault is None else self.fault.to_json()}

    @property
    def outcome(self) -> str:
        return self.refused or ("holds" if self.holds else "FAILS")


def explain_tf32(bits: int) -> str:
    """Say in one sentence in which arithmetic the rung tf32 was computed.

    Args:
        bits: of a float32 factor that JAX's device keeps (`precision.significand_bits`).
    """
    if bits >= RUNGS[0].bits:
        return (
            "On this device the row tf32 is float32 arithmetic, "
            "with integers small enough for TF32."
        )
    return f"The row tf32: JAX's products kept {bits} bits of their factors, PyTorch's all 24."


def prove_rungs(
    config: UNetConfig,
    *,
    rungs: tuple[Rung, ...] = RUNGS,
    size: tuple[int, int] | None = None,
    precision: str = "highest",
) -> Iterator[ExactRow]:
    """Prove on each rung; rungs that compute in one type share a compiled net, and all share
    the search for the module at fault.

    Args:
        size: (height, width) of the input; without it a small legal one.
        precision: of JAX's products.
    """
    ports: dict[str, JaxRun] = {}
    height, width = size or small_size(config)
    comparer = Comparer(config, train=False, quick=height * width <= QUICK_PIXELS)
    for rung in rungs:
        if rung.dtype not in ports:
            ports[rung.dtype] = JaxRun(config, dtype=rung.dtype, precision=precision)
        yield prove(config, rung, size=size, port=ports[rung.dtype], comparer=comparer)


def prove(
    config: UNetConfig,
    rung: Rung,
    *,
    size: tuple[int, int] | None = None,
    port: JaxRun | None = None,
    comparer: Comparer | None = None,
) -> ExactRow:
    """Prove on one rung, on the first case that float64 certifies."""
    case, truth = find_case(config, rung, size=size)
    return compare_exactly(config, case, rung, truth, port=port, comparer=comparer)


def find_case(
    config: UNetConfig, rung: Rung, *, size: tuple[int, int] | None = None
) -> tuple[Case, CaseTruth]:
    """Find the first case that float64 certifies, or the last that it refuses."""
    for taps in np.arange(rung.taps, 0.5, -0.5):
        for seed in range(SEEDS):
            case = make_case(config, taps=float(taps), seed=seed, size=size)
            truth = find_truth(config, case, rung)
            if not truth.refusals:
                return case, truth
    return case, truth


def find_truth(config: UNetConfig, case: Case, rung: Rung) -> CaseTruth:
    """Run the case in float64 and check that it is exact on the rung, and says something."""
    result = torch_pass(config, case.tensors, case.x, case.cotangent, dtype="float64")
    largest, largest_sum = _measure_magnitudes(config, case)
    largest = max(largest, *(float(np.abs(g).max()) for g in result.gradients.values()))
    distinct = len(np.unique(result.output))
    dead = [name for name, gradient in result.gradients.items() if not gradient.any()]
    refusals = []
    if largest > 2**rung.bits:
        refusals.append(f"a value of {largest:.0f} overflows the rung, 2^{rung.bits}")
    if largest_sum > 2**ACCUMULATOR_BITS:
        refusals.append(f"a sum of {largest_sum:.0f} overflows the accumulator, 2^24")
    if distinct < LEAST_DISTINCT:
        refusals.append(f"only {distinct} distinct outputs, {LEAST_DISTINCT} needed")
    if dead:
        refusals.append(f"{len(dead)} gradients are all zero, {dead[0]} among them")
    if not result.input_gradient.any():
        refusals.append("the input's gradient is all zero")
    return CaseTruth(result, largest, largest_sum, distinct, tuple(refusals))


def compare_exactly(
    config: UNetConfig,
    case: Case,
    rung: Rung,
    truth: CaseTruth,
    *,
    port: JaxRun | None = None,
    comparer: Comparer | None = None,
    locate: bool = True,
) -> ExactRow:
    """Compare both twins on the rung with each other and with float64, value by value, with `==`;
    nothing is compared where that refuses.

    Args:
        locate: look for the module at fault where values are not equal, which takes longer.
    """
    result = truth.result
    inputs, outputs, wrong = 0, 0, dict.fromkeys(result.gradients, 0)
    if not truth.refusals:
        arguments = (case.tensors, case.x, case.cotangent)
        ours = torch_pass(config, *arguments, dtype=rung.dtype)
        theirs = _run_port(port or JaxRun(config, dtype=rung.dtype), *arguments, like=result)
        outputs = count_mismatches(result.output, ours.output, theirs.output)
        inputs = count_mismatches(result.input_gradient, ours.input_gradient, theirs.input_gradient)
        wrong = {
            name: count_mismatches(value, ours.gradients[name], theirs.gradients[name])
            for name, value in result.gradients.items()
        }
    unequal = outputs + inputs + sum(wrong.values())
    numbers = Numbers(case.tensors, case.x, case.cotangent)
    comparer = comparer or Comparer(config, train=False)
    at_fault = comparer.faults(numbers) if unequal and locate else ()
    return ExactRow(
        rung=rung.name,
        padding=config.padding,
        size=(case.x.shape[2], case.x.shape[3]),
        dtype=rung.dtype,
        taps=case.taps,
        seed=case.seed,
        largest=truth.largest,
        outputs=result.output.size,
        mismatches=outputs,
        distinct=truth.distinct,
        gradients={"tensors": len(wrong), "mismatches": sum(wrong.values())},
        input_gradient={"values": result.input_gradient.size, "mismatches": inputs},
        first_wrong=next((name for name, count in wrong.items() if count), ""),
        fault=at_fault[0] if at_fault else None,
        refused="; ".join(truth.refusals),
    )


def _run_port(
    port: JaxRun, tensors: Tensors, x: np.ndarray, cotangent: np.ndarray, *, like: Pass
) -> Pass:
    """Run the port; where its maps do not even fit one another, return a pass of NaN."""
    try:
        return port(tensors, x, cotangent)
    except (TypeError, ValueError):
        nothing = {name: np.full_like(g, np.nan) for name, g in like.gradients.items()}
        output, gradient = (np.full_like(m, np.nan) for m in (like.output, like.input_gradient))
        return Pass(output, gradient, nothing, {})


def count_mismatches(truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> int:
    """Count the values on which the three are not all equal; all, if the shapes differ."""
    if not truth.shape == ours.shape == theirs.shape:
        return max(truth.size, ours.size, theirs.size)
    equal = (truth == ours.astype(np.float64)) & (truth == theirs.astype(np.float64))
    return int(np.count_nonzero(~equal))


def _measure_magnitudes(config: UNetConfig, case: Case) -> tuple[float, float]:
    """Measure the largest value stored in any activation or its gradient, and the largest sum of
    absolute products in any convolution, forward or backward."""
    model = UNet(config).double().eval().requires_grad_(False)
    model.load_state_dict({n: torch.tensor(t) for n, t in case.tensors.items()})
    stored: list[Tensor] = []
    products: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(stored.append)
        stored.append(output.detach())
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            source = inputs[0].detach()
            output.register_hook(lambda g: products.append((module, source, g)))

    hooks = [module.register_forward_hook(record) for module in _leaves(model)]
    x = torch.tensor(case.x, dtype=torch.float64, requires_grad=True)
    model(x).backward(torch.tensor(case.cotangent, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    largest = max(float(value.abs().max()) for value in stored)
    return largest, max(_largest_sum(*product) for product in products)


def _leaves(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if not list(m.children()) and not isinstance(m, Dropout))


def _largest_sum(module: nn.Module, x: Tensor, gradient: Tensor) -> float:
    """Return the largest sum when every product of a convolution is taken absolutely."""
    source = x.abs().requires_grad_()
    weight, bias = (getattr(module, n) for n in ("weight", "bias"))
    positive = {"weight": weight.detach().abs().requires_grad_()}
    if bias is not None:
        positive["bias"] = bias.detach().abs().requires_grad_()
    output = torch.func.functional_call(module, positive, source)
    sums = torch.autograd.grad(output, [source, *positive.values()], gradient.abs())
    return max(float(t.detach().max()) for t in (output, *sums))
