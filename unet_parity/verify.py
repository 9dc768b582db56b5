"""The instrument behind `unet verify`: structure, exact proof, ordinary weights, verdict."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import nn

from unet_jax.functional import to_arrays
from unet_jax.model import UNet as JaxUNet
from unet_parity import exact, integer_cases, oracle, precision, subnormal, training
from unet_parity.certificate import pad_otherwise
from unet_parity.comparison import Comparer, Comparison, draw_numbers
from unet_parity.differences import hash_tensors
from unet_parity.exact import ExactRow
from unet_parity.float32_errors import GRADIENT_FACTOR, LOCAL_FACTOR
from unet_parity.oracle import FACTOR
from unet_parity.other_sizes import (
    PredictionRow,
    SizeRow,
    compare_predictions,
    compare_sizes,
)
from unet_parity.own_net import choose_size, match_module
from unet_parity.own_pair import OwnPair, OwnReport
from unet_parity.recorded_output import RecordedOutput, judge_recorded
from unet_parity.scope import Scope
from unet_parity.subnormal import Subnormal
from unet_parity.training import Trajectory
from unet_parity.twins import is_small
from unet_spec import InputError, UNetConfig, geometry, layout, memory
from unet_spec.environment import environment
from unet_spec.errors import ConfigError
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, parameter_count, parameters
from unet_spec.ranges import STEPS_OF_A_PROOF, check_number
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.weight_file import WeightFile
from unet_spec.wording import list_names
from unet_torch.model import UNet as TorchUNet

BIT_FOR_BIT = "In the exact proof, where nothing is rounded, every value is equal, bit for bit."
ROUNDING = (
    "With ordinary weights both agree to rounding in float64. In float32 the error of each against "
    f"float64 is of the same size, within a factor of {max(FACTOR, LOCAL_FACTOR):g} "
    f"(gradients {GRADIENT_FACTOR:g})."
)
VERIFIED_RECIPE = Recipe(Optimizer(name="sgd", lr=1e-3, momentum=0.9))


@dataclass(frozen=True)
class ParityReport:
    """What `verify` found.

    Attributes:
        verdict: `identical` (bit for bit, in exact arithmetic), `equivalent` (ordinary weights:
            equal to rounding in float64, with float32 errors of the same size) or `different`.
        reasons: why, in sentences; of `different`, the first names what is at fault.
        structure: numbers of tensors, values and convolutions, and what does not match.
        exact: the exact proof, a row for each rung and padding.
        comparisons: ordinary weights, for each mode.
        own: somebody's own module and JAX's net, where a module was given.
        sizes: outputs for inputs of other sizes; none where the twins differ already.
        prediction: both `predict`s on one image; None without weights of one's own.
        steps: training steps of both twins side by side, in float64 and in float32.
        recorded: an output of somebody else's, where one was given.
        x: the input of the comparisons, (b, in_channels, h, w); random where none was given.
        hashes: sha256 of the weights and of the input.
        environment: versions, devices and precision in force.
        scope: what was compared, and what not.
        bits: of a float32 factor that JAX's device keeps in a product.
        subnormal: the weights and values of the input that are subnormal numbers.
    """

    verdict: str
    reasons: tuple[str, ...]
    config: UNetConfig
    structure: dict[str, Any]
    exact: tuple[ExactRow, ...]
    comparisons: tuple[Comparison, ...]
    own: OwnReport | None
    sizes: tuple[SizeRow, ...]
    prediction: PredictionRow | None
    steps: tuple[Trajectory, ...]
    recorded: RecordedOutput | None
    x: np.ndarray
    hashes: dict[str, str]
    environment: dict[str, str]
    scope: Scope
    bits: int
    subnormal: Subnormal

    def to_json(self) -> dict[str, Any]:
        """Return the report as the plain values that `--json` writes."""

        def rows(name: str) -> list[dict[str, Any]]:
            return [
                {"mode": c.agreement.mode, **asdict(row)}
                for c in self.comparisons
                for row in getattr(c, name)
            ]

        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "scope": {
                "compared": self.scope.compared,
                "not_compared": self.scope.not_compared,
                **asdict(self.scope),
            },
            "config": asdict(self.config),
            "structure": self.structure,
            "exact": [row.to_json() for row in self.exact],
            "float64": [asdict(c.agreement) for c in self.comparisons],
            "layers": rows("layers"),
            "gradients": rows("gradients"),
            "faults": [
                {"mode": c.agreement.mode, **fault.to_json()}
                for c in self.comparisons
                for fault in c.faults
            ],
            "flips": [
                {"mode": c.agreement.mode, "torch": c.flips[0], "jax": c.flips[1]}
                for c in self.comparisons
            ],
            "reference": None if self.own is None else self.own.to_json(),
            "sizes": [asdict(row) for row in self.sizes],
            "prediction": None if self.prediction is None else asdict(self.prediction),
            "steps": [asdict(trajectory) for trajectory in self.steps],
            "recorded": None if self.recorded is None else self.recorded.to_json(),
            "input": list(self.x.shape),
            "subnormal": asdict(self.subnormal),
            "hashes": self.hashes,
            "environment": self.environment,
        }


def verify(
    config: UNetConfig,
    *,
    weights: WeightFile | None = None,
    x: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    recorded: np.ndarray | None = None,
    reference: nn.Module | None = None,
    origin: Origin | None = None,
    steps: int = 10,
    other_sizes: bool = True,
    jax_precision: str = "highest",
    say: Callable[[str], None] = print,
) -> ParityReport:
    """Say whether the twins are the same net.

    Args:
        config: the architecture; both paddings are proven if no weights are given.
        weights: compared as they are, in place of random ones.
        x: the input of the comparison, (b, in_channels, h, w); a random one without it.
        size: (height, width) of the random inputs: of the comparison, of the training steps and of
            the exact proof; small ones without it. A padding for which this size is illegal is
            proven at its small size.
        recorded: what the original gave for `x`, (b, classes, h', w'), with its output function
            (`config.output`) in it.
        reference: somebody's own torch module, compared with JAX's net beside `unet_torch.UNet`.
        origin: of the weights, with the reference's names; without it the reference has ours.
        steps: of training, side by side.
        other_sizes: compare the outputs at other sizes too, and the predictions of given weights.
        jax_precision: of JAX's products, as in `jax.lax.Precision`.
        say: is called with a line when each part begins.

    Raises:
        InputError: weights or an input that are not finite, that say nothing, or that do not fit;
            an illegal size; a reference that is not this net by its tensors, or does not run.
    """
    if size is not None:
        if x is not None:
            raise InputError("x and size both give the input; leave one out")
        geometry.check(config, *size)
    check_number("steps", steps, STEPS_OF_A_PROOF)
    precision.use_full_precision()
    run = partial(
        _verify, config, size=size, recorded=recorded, reference=reference, origin=origin,
        steps=steps, other_sizes=other_sizes, jax_precision=jax_precision,
    )  # fmt: skip
    report = run(weights=weights, x=x, say=say)
    causes = [] if report.verdict != "different" else list(_explain(report, weights, run, say))
    return replace(report, reasons=(*causes, *report.reasons))


def _verify(
    config: UNetConfig,
    *,
    weights: WeightFile | None,
    x: np.ndarray | None,
    size: tuple[int, int] | None,
    recorded: np.ndarray | None,
    reference: nn.Module | None,
    origin: Origin | None,
    steps: int,
    other_sizes: bool,
    jax_precision: str,
    say: Callable[[str], None],
) -> ParityReport:
    """Compare the twins; the arguments are those of `verify`."""
    _check_room(config, (x.shape[2], x.shape[3]) if x is not None else size)
    tensors = oracle.random_tensors(config, seed=0) if weights is None else weights.tensors
    _refuse_infinite("the weights", tensors)
    scope = Scope(own_input=x is not None, own_weights=weights is not None, precision=jax_precision)
    own = None if reference is None else match_module(config, reference, tensors, origin)
    if x is not None:
        _refuse_infinite("the input", {"it": x})
    elif own is not None:
        size = choose_size(own, size)
    numbers = draw_numbers(config, tensors, x=x, size=size)
    x = numbers.x
    _refuse_single_values(config, x)
    own_pair = None if own is None else OwnPair(own, x, precision=jax_precision)
    subnormals = subnormal.count_given(tensors, x)
    say("structure: names, shapes, layouts")
    structure = check_structure(config)
    if structure["problems"]:
        return _report_structure(config, structure, tensors, x, scope, subnormals)
    say("exact proof: integers, compared with ==")
    rows = tuple(
        _prove_exactly(
            config, both_paddings=weights is None, size=size, jax_precision=jax_precision, say=say
        )
    )
    say("ordinary weights: float64 and float32, forward and gradients")
    stateful = config.norm == "batch" or config.dropout > 0
    comparers = [
        Comparer(config, train=train, precision=jax_precision, quick=is_small(x))
        for train in ((False, True) if stateful else (False,))
    ]
    comparisons = tuple(comparer(numbers, say=say) for comparer in comparers)
    surroundings = {**environment(), **precision.describe_precision(jax_precision)}
    theirs = None
    if own_pair is not None:
        say("your module and JAX's net, as a pair")
        theirs = own_pair.compare(
            steps=steps, other_sizes=other_sizes, environment=surroundings,
            say=lambda text: say(f"  {text}"),
        )  # fmt: skip
    output = None if recorded is None else judge_recorded(config, numbers, comparisons[0], recorded)
    sizes: tuple[SizeRow, ...] = ()
    prediction = None
    if other_sizes and not any(c.problems for c in comparisons):
        say("other sizes: float64 and float32, forward")
        sizes = tuple(compare_sizes(config, tensors, precision=jax_precision, say=say))
        if weights is not None:
            say("predict: from an image to its mask")
            prediction = compare_predictions(weights)
    trajectories = tuple(_train_both(config, tensors, comparisons, steps, size, say))
    bits = precision.significand_bits(jax_precision)
    verdict, reasons = judge(
        config, structure, rows, comparisons, trajectories, output, theirs, sizes, prediction,
        own_weights=weights is not None, bits=bits,
    )  # fmt: skip
    scope = replace(
        scope,
        input_size=(x.shape[2], x.shape[3]),
        modes=tuple(c.agreement.mode for c in comparisons),
        reference=() if theirs is None else theirs.modes,
        no_training="" if theirs is None else theirs.no_training,
        steps=len(trajectories[0].parameters) if trajectories else 0,
        step_size=(trajectories[0].batch[2], trajectories[0].batch[3]) if trajectories else None,
        exact_sizes=tuple(dict.fromkeys((r.padding, r.size) for r in rows if not r.refused)),
        other_sizes=tuple(row.size for row in sizes),
        predicted=None if prediction is None else prediction.size,
    )
    return ParityReport(
        verdict, reasons, config, structure, rows, comparisons, theirs, sizes, prediction,
        trajectories, output, x,
        {"weights": hash_tensors(tensors), "input": hash_tensors({"x": x})},
        surroundings, scope, bits, subnormals,
    )  # fmt: skip


def _check_room(config: UNetConfig, size: tuple[int, int] | None) -> None:
    """Refuse, before anything is drawn, a proof that cannot fit into the memory by arithmetic.

    Raises:
        ConfigError: with both figures, and what makes it smaller.
    """
    # the weights in float32, and in float64 in both frameworks with gradients; the maps likewise
    need = (4 + 4 * 8) * parameter_count(config)
    if size is not None:
        need += 2 * 8 * memory.count_map_values(config, *size)
    free = memory.free_bytes()
    if free is not None and need > free:
        raise ConfigError(
            config,
            "the proof needs at least {need} of memory, and {free} are free; lower {widths} "
            "or {size}",
            need=memory.show_gigabytes(need),
            free=memory.show_gigabytes(free),
            size="the size of the input",
        )


def _explain(
    report: ParityReport,
    weights: WeightFile | None,
    run: Callable[..., ParityReport],
    say: Callable[[str], None],
) -> Iterator[str]:
    """Yield the cause of a difference in float32, if it is how JAX takes subnormal numbers.

    It is the cause if the difference is gone where both take them for 0.

    Args:
        run: compares again, with other weights, another input or in another mode.
    """
    given, config = report.subnormal, report.config
    if not given.are_zero or any(c.faults for c in report.comparisons):
        return
    tensors = oracle.random_tensors(config, seed=0) if weights is None else weights.tensors
    if given:
        say("again, with 0 in the place of subnormal numbers")
        zeros = {name: subnormal.make_zero(tensor) for name, tensor in tensors.items()}
        content = WeightFile(config, zeros) if weights is None else replace(weights, tensors=zeros)
        outcome = _compare_again(partial(run, weights=content, x=subnormal.make_zero(report.x)))
        if outcome is not None:
            yield f"the cause is the {given}; with 0 in their place {outcome}"
            return
    numbers = draw_numbers(config, tensors, x=report.x)
    counts = subnormal.find_computed(config, numbers, train=config.norm == "batch")
    if not counts:
        return
    say("again, with subnormal numbers taken for 0 in torch too")
    with subnormal.zero_in_torch() as is_possible:
        compare = partial(run, weights=weights, x=report.x)
        outcome = _compare_again(compare) if is_possible else None
    if outcome is not None:
        names = [f"{name} ({count})" for name, count in counts.items()]
        yield (
            "the cause is the subnormal numbers of float32 among what the net computes, in "
            f"{list_names(names, 4)}: JAX takes them for 0 on this device, and PyTorch computes "
            f"with them; where PyTorch takes them for 0 too {outcome}"
        )


def _compare_again(run: Callable[..., ParityReport]) -> str | None:
    """Return how another comparison ends, in words; None where it is different as well."""
    try:
        verdict = run(say=lambda text: None).verdict
    except InputError:  # the net is dead then: its only values were these
        return "nothing is left to compare"
    return None if verdict == "different" else f"the verdict is {verdict}"


def _report_structure(
    config: UNetConfig,
    structure: dict[str, Any],
    tensors: Tensors,
    x: np.ndarray,
    scope: Scope,
    subnormals: Subnormal,
) -> ParityReport:
    """Report on twins whose names or shapes differ already."""
    verdict, reasons = judge(config, structure, (), (), own_weights=True)
    return ParityReport(
        verdict, reasons, config, structure, (), (), None, (), None, (), None, x,
        {"weights": hash_tensors(tensors), "input": hash_tensors({"x": x})},
        {**environment(), **precision.describe_precision()}, scope, precision.significand_bits(),
        subnormals,
    )  # fmt: skip


def judge(
    config: UNetConfig,
    structure: dict[str, Any],
    rows: tuple[ExactRow, ...],
    comparisons: tuple[Comparison, ...],
    trajectories: tuple[Trajectory, ...] = (),
    recorded: RecordedOutput | None = None,
    own: OwnReport | None = None,
    sizes: tuple[SizeRow, ...] = (),
    prediction: PredictionRow | None = None,
    *,
    own_weights: bool,
    bits: int = precision.FLOAT32_BITS,
) -> tuple[str, tuple[str, ...]]:
    """Return the verdict and its reasons, the module at fault first."""
    faults = [] if own is None else _list_own_problems(own, config, comparisons)
    faults += [f"{c.agreement.mode}: {problem}" for c in comparisons for problem in c.problems]
    faults += [row.problem for row in sizes if row.problem]
    if prediction is not None and prediction.problem:
        faults.append(prediction.problem)
    faults += structure["problems"]
    for row in rows:
        if not row.refused and not row.holds:
            wrong = row.mismatches + row.gradients["mismatches"] + row.input_gradient["mismatches"]
            where = f", {row.first_wrong} among them" if row.first_wrong else ""
            faults.append(
                f"exact proof, {row.rung}, padding={row.padding}: "
                + ("" if row.fault is None else f"{row.fault}; ")
                + f"{wrong} values are not equal ({row.mismatches} of {row.outputs} outputs){where}"
            )
    faults += [problem for t in trajectories for problem in training.list_problems(t)]
    if recorded is not None and (not recorded.holds or faults):
        faults.append(str(recorded))
    if faults:
        return "different", tuple(faults)
    refused = [f"{row.rung}, padding={row.padding}: {row.refused}" for row in rows if row.refused]
    if reason := integer_cases.explain_no_proof(config):
        refused.append(f"no exact proof exists for this net: {reason}")
    left_out = [
        f"{rung.name} is not asked: this device's products keep {bits} bits of a factor"
        for rung in integer_cases.RUNGS
        if rung.bits > bits
    ]
    if recorded is not None and (hidden := recorded.judgement.explain_precision()):
        refused.append(hidden)
    if own_weights or refused:
        return "equivalent", (ROUNDING, *refused, *left_out)
    return "identical", (f"{BIT_FOR_BIT} {ROUNDING}", *left_out)


def _list_own_problems(
    own: OwnReport, config: UNetConfig, comparisons: tuple[Comparison, ...]
) -> list[str]:
    """Say what is wrong with somebody's own module, and which of the three nets it is."""
    if own.pair.verdict != "different":
        # that it agrees with JAX's net says nothing of what it was not asked, such as a dropout
        comparisons = tuple(
            c
            for c in comparisons
            if c.agreement.mode in own.modes
            and (c.agreement.mode == "inference" or not config.dropout)
        )
    return own.list_problems(has_fault=any(c.problems for c in comparisons))


@dataclass(frozen=True)
class ShapeDifference:
    """A tensor that one framework's net has in another shape than the table.

    Attributes:
        shape: None where the net does not have the tensor.
        expected: None where the table does not.
    """

    framework: str
    tensor: str
    shape: tuple[int, ...] | None
    expected: tuple[int, ...] | None

    def __str__(self) -> str:
        shape = "missing" if self.shape is None else self.shape
        expected = "there" if self.expected is None else self.expected
        return f"{self.framework}: {self.tensor} is {shape}, not {expected}"


def check_structure(config: UNetConfig) -> dict[str, Any]:
    """Compare names and shapes of both twins with the table, a third witness."""
    with torch.device("meta"):
        reference = TorchUNet(config)
    convolutions = [m for m in reference.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    return {
        "tensors": len(parameters(config)),
        "parameters": parameter_count(config),
        "convolutions": len(convolutions),
        "problems": list(map(str, compare_shapes(config))),
    }


def compare_shapes(config: UNetConfig) -> list[ShapeDifference]:
    """List the tensors of both twins whose shapes are not those of the table."""
    table = {p.name: p.shape for p in parameters(config)}
    with torch.device("meta"):
        reference = TorchUNet(config)
    torch_shapes = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    port = nnx.eval_shape(lambda: JaxUNet(config, rngs=nnx.Rngs(0)))
    jax_shapes = {name: tuple(a.shape) for name, a in to_arrays(port).items()}
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in table.items()}
    jax_table = {name: array.shape for name, array in layout.to_jax(config, blank).items()}
    return [
        ShapeDifference(framework, name, shapes.get(name), expected.get(name))
        for framework, shapes, expected in (
            ("torch", torch_shapes, table),
            ("JAX", jax_shapes, jax_table),
        )
        for name in sorted(shapes.keys() | expected.keys())
        if shapes.get(name) != expected.get(name)
    ]


def _prove_exactly(
    config: UNetConfig,
    *,
    both_paddings: bool,
    size: tuple[int, int] | None,
    jax_precision: str,
    say: Callable[[str], None],
) -> Iterator[ExactRow]:
    if integer_cases.explain_no_proof(config):
        return
    configs = [config]
    if both_paddings:
        configs.append(pad_otherwise(config))
    bits = precision.significand_bits(jax_precision)
    for rung in integer_cases.RUNGS:
        if rung.bits > bits:
            say(f"  {rung.name}: left out, this device's products keep {bits} bits")
    rungs = tuple(rung for rung in integer_cases.RUNGS if rung.bits <= bits)
    for each in configs:
        fits = size is not None and all(geometry.is_legal(each, side) for side in size)
        rows = exact.prove_rungs(
            each, rungs=rungs, size=size if fits else None, precision=jax_precision
        )
        for row in rows:
            say(f"  {row.rung}, padding={each.padding}, {row.size[0]} x {row.size[1]} pixels: "
                f"{row.outcome}")  # fmt: skip
            yield row


def _train_both(
    config: UNetConfig,
    tensors: Tensors,
    comparisons: tuple[Comparison, ...],
    steps: int,
    size: tuple[int, int] | None,
    say: Callable[[str], None],
) -> Iterator[Trajectory]:
    """Train both twins, unless the net is at fault already: its steps would only inherit that."""
    if not steps or any(c.faults for c in comparisons):
        return
    for dtype in ("float64", "float32"):
        say(f"training: {steps} steps of both in {dtype}")
        yield training.train_side_by_side(
            config, tensors, VERIFIED_RECIPE, steps=steps, dtype=dtype, size=size
        )


def _refuse_single_values(config: UNetConfig, x: np.ndarray) -> None:
    """Refuse an input of which the neck, the smallest map, holds one value: a norm has no variance
    there."""
    pixels = math.prod(geometry.levels(config, size).neck for size in x.shape[2:])
    values = {
        "none": 2,
        "batch": len(x) * pixels,
        "instance": pixels,
        # torch counts the images too, though it does not mix them
        "group": len(x) * pixels * config.widths[-1] // config.groups,
    }[config.norm]
    if values < 2:
        raise InputError(
            f"an input of {x.shape[2]} x {x.shape[3]} pixels leaves norm={config.norm} one value "
            "in the neck, which has no variance; take a larger one"
        )


def _refuse_infinite(what: str, tensors: Tensors) -> None:
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise InputError(
            f"{what} hold NaN or infinite values, in {list_names(bad, 1)}"
            "; nothing can be said of them: take an earlier checkpoint, or another image"
        )
