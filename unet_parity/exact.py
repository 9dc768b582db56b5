"""The exact proof: nets in which nothing is ever rounded, compared with `==`.

Weights are small integers with few non-zero taps per output, inputs are small integers. Then
every product and every partial sum is an integer that the arithmetic represents, the order of
summation cannot matter, and both frameworks must agree bit for bit, with each other and with
float64: outputs, every parameter's gradient, the input's gradient. A wrong layout, crop, tie or
order shows as whole numbers, not as digits.

A rung is a significand: float32 holds integers to 2^24, TF32 to 2^11, bfloat16 to 2^8. Before
anything is compared, a float64 run certifies the case: every stored value fits the rung, every
sum of absolute products fits the float32 accumulators that all three share, and the case is not
vacuous. What cannot be certified is refused, not passed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.comparison import Comparer, Numbers
from unet_parity.fault import Fault
from unet_parity.twins import QUICK_PIXELS, JaxRun, Pass, torch_pass
from unet_spec import UNetConfig, geometry
from unet_spec.parameters import Tensors, parameters
from unet_torch.layers import Dropout
from unet_torch.model import UNet

ACCUMULATOR_BITS = 24
LEAST_DISTINCT = 16
SEEDS = 8


@dataclass(frozen=True)
class Rung:
    """An arithmetic and what fits it.

    Attributes:
        bits: integers up to 2^bits are exact.
        dtype: in which both twins compute.
        taps: non-zero weights per output, on average, to begin with: 2 keep the size of the
            values level from layer to layer (He's initialisation), more let it grow.
    """

    name: str
    bits: int
    dtype: str
    taps: float


RUNGS = (
    Rung("fp32", 24, "float32", 4),
    Rung("tf32", 11, "float32", 2.5),
    Rung("bf16", 8, "bfloat16", 2),
)


@dataclass(frozen=True)
class Case:
    """One exact net: integer tensors (torch's layout), input and cotangent, and its truth."""

    taps: float
    seed: int
    tensors: Tensors
    x: np.ndarray
    cotangent: np.ndarray


@dataclass(frozen=True)
class Certificate:
    """What the float64 run says of a case.

    Attributes:
        truth: the pass in float64.
        largest: the largest stored value: activations, gradients of activations, of parameters.
        largest_sum: the largest sum of absolute products in any convolution, forward or back.
        distinct: number of distinct output values.
        refusals: why the case proves nothing; empty if it does.
    """

    truth: Pass
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


def explain_no_proof(config: UNetConfig) -> str:
    """Say why no exact proof exists for a config; empty if one does."""
    if config.norm != "none":
        return f"norm={config.norm} divides and takes roots"
    if config.activation == "leaky_relu":
        return f"activation=leaky_relu multiplies by {config.negative_slope}, which is rounded"
    if config.up.startswith("bilinear"):
        return f"up={config.up} multiplies by fractions"
    return ""


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
    case, certificate = find_case(config, rung, size=size)
    return compare_exactly(config, case, rung, certificate, port=port, comparer=comparer)


def find_case(
    config: UNetConfig, rung: Rung, *, size: tuple[int, int] | None = None
) -> tuple[Case, Certificate]:
    """Find the first case that float64 certifies, or the last that it refuses."""
    for taps in np.arange(rung.taps, 0.5, -0.5):
        for seed in range(SEEDS):
            case = make_case(config, taps=float(taps), seed=seed, size=size)
            certificate = certify(config, case, rung)
            if not certificate.refusals:
                return case, certificate
    return case, certificate


def make_case(
    config: UNetConfig, *, taps: float, seed: int, size: tuple[int, int] | None = None
) -> Case:
    """Draw integer weights in {-1, 0, 1} with `taps` non-zero ones per output on average,
    biases in {-1, 0, 1}, an input in -2..2, and a sparse cotangent in {-1, 0, 1}.

    Args:
        size: (height, width) of the input; `small_size` without it.
    """
    rng = np.random.default_rng((seed, int(2 * taps)))
    height, width = size or small_size(config)
    out_h, out_w = (geometry.output_size(config, size) for size in (height, width))
    shape = (1, config.classes, out_h, out_w)
    sparse = rng.random(shape) < 64 / np.prod(shape)
    return Case(
        taps,
        seed,
        {p.name: _draw_integers(rng, p.shape, p.kind, taps) for p in parameters(config)},
        rng.integers(-2, 3, (1, config.in_channels, height, width)).astype(np.float32),
        (rng.choice((-1, 1), shape) * sparse).astype(np.float32),
    )


def small_size(config: UNetConfig) -> tuple[int, int]:
    """Return a height and a width, not equal, with a neck of more than one pixel and with outputs
    enough to be distinct."""
    side = max(2 ** (config.depth + 1), 2 * geometry.margin(config) + 16)
    height = geometry.next_legal(config, side)
    return height, geometry.next_legal(config, height + 1)


def certify(config: UNetConfig, case: Case, rung: Rung) -> Certificate:
    """Run the case in float64 and check that it is exact on the rung, and says something."""
    truth = torch_pass(config, case.tensors, case.x, case.cotangent, dtype="float64")
    largest, largest_sum = _measure_magnitudes(config, case)
    largest = max(largest, *(float(np.abs(g).max()) for g in truth.gradients.values()))
    distinct = len(np.unique(truth.output))
    dead = [name for name, gradient in truth.gradients.items() if not gradient.any()]
    refusals = []
    if largest > 2**rung.bits:
        refusals.append(f"a value of {largest:.0f} overflows the rung, 2^{rung.bits}")
    if largest_sum > 2**ACCUMULATOR_BITS:
        refusals.append(f"a sum of {largest_sum:.0f} overflows the accumulator, 2^24")
    if distinct < LEAST_DISTINCT:
        refusals.append(f"only {distinct} distinct outputs, {LEAST_DISTINCT} needed")
    if dead:
        refusals.append(f"{len(dead)} gradients are all zero, {dead[0]} among them")
    if not truth.input_gradient.any():
        refusals.append("the input's gradient is all zero")
    return Certificate(truth, largest, largest_sum, distinct, tuple(refusals))


def compare_exactly(
    config: UNetConfig,
    case: Case,
    rung: Rung,
    certificate: Certificate,
    *,
    port: JaxRun | None = None,
    comparer: Comparer | None = None,
    locate: bool = True,
) -> ExactRow:
    """Compare both twins on the rung with each other and with float64, value by value, with `==`;
    nothing is compared where the certificate refuses.

    Args:
        locate: look for the module at fault where values are not equal, which takes longer.
    """
    truth = certificate.truth
    inputs, outputs, wrong = 0, 0, dict.fromkeys(truth.gradients, 0)
    if not certificate.refusals:
        arguments = (case.tensors, case.x, case.cotangent)
        ours = torch_pass(config, *arguments, dtype=rung.dtype)
        theirs = _run_port(port or JaxRun(config, dtype=rung.dtype), *arguments, like=truth)
        outputs = count_mismatches(truth.output, ours.output, theirs.output)
        inputs = count_mismatches(truth.input_gradient, ours.input_gradient, theirs.input_gradient)
        wrong = {
            name: count_mismatches(value, ours.gradients[name], theirs.gradients[name])
            for name, value in truth.gradients.items()
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
        largest=certificate.largest,
        outputs=truth.output.size,
        mismatches=outputs,
        distinct=certificate.distinct,
        gradients={"tensors": len(wrong), "mismatches": sum(wrong.values())},
        input_gradient={"values": truth.input_gradient.size, "mismatches": inputs},
        first_wrong=next((name for name, count in wrong.items() if count), ""),
        fault=at_fault[0] if at_fault else None,
        refused="; ".join(certificate.refusals),
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


def _draw_integers(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, taps: float
) -> np.ndarray:
    if kind == "vector":
        return rng.integers(-1, 2, shape).astype(np.float32)
    # one row for each output value: (out, in * h * w), or (out * h * w, in) for up-convolutions
    outputs = int(np.prod(shape[1:])) if kind == "up_conv" else shape[0]
    rows = np.zeros((outputs, int(np.prod(shape)) // outputs), np.float32)
    for row in rows:
        chosen = rng.choice(row.size, min(int(taps + rng.random()), row.size), replace=False)
        row[chosen] = rng.choice((-1, 1), chosen.size)
    return np.ascontiguousarray(rows.T if kind == "up_conv" else rows).reshape(shape)


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
