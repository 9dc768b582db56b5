"""`verify_pair`: are a torch module and its port to JAX the same, and if not, where?"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from unet_parity import precision
from unet_parity.differences import hash_tensors
from unet_parity.float32_errors import GRADIENT_FACTOR
from unet_parity.oracle import FACTOR, OUTPUT_BOUND
from unet_parity.pair.blame import Blame
from unet_parity.pair.comparison import PairComparer, PairComparison
from unet_parity.pair.correspondence import (
    Correspondence,
    convert_state,
    match_tensors,
    read_converter,
)
from unet_parity.pair.integers import IntegerProof, prove
from unet_parity.pair.layouts import Layouts, find_layouts
from unet_parity.pair.passes import Arrays, PortRun, Reference, name_outputs, to_torch
from unet_parity.pair.port import Port, make_port
from unet_parity.pair.sizes import Shapes, draw_shapes, list_sizes
from unet_parity.pair.steps import PairSteps, train_side_by_side
from unet_spec import InputError
from unet_spec.environment import environment
from unet_spec.ranges import STEPS_OF_A_PROOF, check_number
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.wording import list_names

RECIPE = Recipe(Optimizer(name="sgd", lr=1e-2, momentum=0.9))
SEEDS = 3
MOST_REASONS = 5
"""A report in words has so many of them, and says how many others there are."""


@dataclass(frozen=True)
class SizeComparison:
    """A `SizeComparison` is the outputs of a pair in float64 for inputs of another size.

    Attributes:
        shapes: of the inputs.
        output: the largest relative difference; infinite if the port gives another shape, and None
            if it does not run, which nobody can overlook.
        allowed: up to which it is rounding.
        blame: where the port leaves the reference.
    """

    shapes: Shapes
    output: float | None
    allowed: float = OUTPUT_BOUND
    blame: Blame | None = None

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        if self.output is None or self.output <= self.allowed:
            return ""
        what = f"the output differs by {self.output:.1e} in float64"
        if not self.output < np.inf:
            what = "the output has another shape, or is not finite"
        if self.blame is not None:
            what = f"{self.blame} ({what})"
        return f"for inputs of {self.size}: {what}"

    @property
    def size(self) -> str:
        """Return the shapes in words."""
        return " and ".join(map(str, self.shapes))


@dataclass(frozen=True)
class PairReport:
    """What `verify_pair` found.

    Attributes:
        verdict: `identical` (bit for bit, in arithmetic that rounds nothing), `equivalent` (equal
            to rounding in float64, with float32 errors of the same size) or `different`.
        reasons: why, in sentences; of `different`, the first names what is at fault.
        comparisons: ordinary values, for each mode and seed.
        sizes: outputs for inputs of other sizes.
        integers: the exact proof, or why there is none.
        steps: of training, side by side; None where there are none.
        compared: what was compared, in a sentence.
        not_compared: and what was not.
        hashes: sha256 of the reference's tensors and of the inputs.
        environment: versions, devices and precision in force.
    """

    verdict: str
    reasons: tuple[str, ...]
    comparisons: tuple[PairComparison, ...]
    sizes: tuple[SizeComparison, ...]
    integers: IntegerProof
    steps: PairSteps | None
    compared: str
    not_compared: str
    hashes: dict[str, str]
    environment: dict[str, str]

    @property
    def module(self) -> str:
        """Return the path of the reference's module at fault; empty where none is."""
        blames = [*(c.blame for c in self.comparisons), *(s.blame for s in self.sizes)]
        return next((blame.module for blame in blames if blame is not None), "")

    def __str__(self) -> str:
        """Say the verdict, why, and what it was found on."""
        return "\n".join([f"{self.verdict}.", *self.list_sentences()])

    def list_sentences(self) -> list[str]:
        """Return why, and what it was found on; of many reasons the first ones."""
        sentences = list(self.reasons[:MOST_REASONS])
        more = len(self.reasons) - MOST_REASONS
        if more > 0:
            sentences.append(f"and {more} more, most of which follow from the first")
        return [*sentences, self.compared, self.not_compared]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "module": self.module,
            "compared": self.compared,
            "not_compared": self.not_compared,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "sizes": [asdict(size) for size in self.sizes],
            "integers": asdict(self.integers),
            "steps": None if self.steps is None else asdict(self.steps),
            "hashes": self.hashes,
            "environment": self.environment,
        }


def verify_pair(
    reference: nn.Module,
    port: Any = None,
    *,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
    seeds: int = SEEDS,
    steps: int = 3,
    recipe: Recipe = RECIPE,
    say: Callable[[str], None] = lambda text: None,
) -> PairReport:
    """Say whether a torch module and its port to JAX compute the same, and if not, where.

    Both are given the same values: those of the reference, and for each further seed values drawn
    around them, so that no bias of 0 and no weight of 1 hides a mistake.

    Args:
        reference: any torch module whose outputs are tensors, or lists or dicts of them.
        port: a function of (params, *inputs), an `nnx.Module`, or a linen module; left out where
            `convert` gives an `nnx.Module`.
        inputs: in the reference's layout, in the order of its arguments.
        params: of the port, converted from the reference's.
        convert: returns the port's params (or its `nnx.Module`) for the reference's `state_dict`.
            With it nothing is guessed of layouts and names.
        names: of tensors or modules in the reference, and the paths in the port, where there is no
            `convert` and they are not alike.
        channels_last: the port takes images as (b, h, w, c); None finds out by the shapes.
        seeds: of the values; the first is the reference's own values.
        steps: of training, side by side.
        recipe: of these steps.
        say: is called with a line when each part begins.

    Raises:
        InputError: one of them does not run, or they cannot be matched.
    """
    check_number("seeds", seeds, STEPS_OF_A_PROOF)
    if not seeds:
        raise InputError("seeds is 0, so nothing would be compared; give at least 1")
    check_number("steps", steps, STEPS_OF_A_PROOF)
    precision.use_full_precision()
    say("matching: which value of the port is which of the reference")
    comparers, given, outputs = prepare_pair(
        reference, port, inputs=inputs, params=params, convert=convert, names=names,
        channels_last=channels_last,
    )  # fmt: skip
    origin, match = comparers[0].reference, comparers[0].match
    comparisons = []
    for comparer in comparers:
        mode = "training" if comparer.train else "inference"
        say(f"{mode}: both in float64 and float32, forward and gradients, {seeds} times")
        # drawn values first: where biases are 0 and norms 1, a fault may show in gradients alone
        for seed in [*range(1, seeds), 0]:
            comparison = compare_seed(comparer, given, outputs, seed=seed)
            comparisons.append(comparison)
            if comparison.problems:
                break
    sizes: list[SizeComparison] = []
    if not any(c.problems for c in comparisons):
        say("other sizes: both in float64, forward")
        sizes = list(_compare_sizes(comparers[0], given))
    say("exact proof: integers, compared with ==")
    is_sound = not any(c.problems for c in comparisons)
    integers = prove(comparers[0], given, outputs)
    trajectory = None
    if steps and is_sound and not comparers[-1].narrowings:
        say(f"training: {steps} steps of both in float64")
        batches = [_draw_batch(given, outputs, step) for step in range(steps)]
        trajectory = train_side_by_side(
            comparers[-1], draw_tensors(origin.state, seed=1), batches, recipe
        )
    verdict, reasons = judge(
        tuple(comparisons), integers, trajectory, sizes, other=match.unlike(origin.state),
        notes=list(_list_notes(comparers, sizes, match)),
    )  # fmt: skip
    return PairReport(
        verdict, reasons, tuple(comparisons), tuple(sizes), integers, trajectory,
        _describe_scope(given, comparers, seeds, sizes, trajectory, integers),
        "Not compared: sizes and inputs other than these, dropout, and what is around the net.",
        {
            "tensors": hash_tensors(origin.state),
            "inputs": hash_tensors(dict(enumerate_names(given))),
        },
        {**environment(), **precision.describe_precision()},
    )  # fmt: skip


def prepare_pair(
    reference: nn.Module,
    port: Any,
    *,
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    params: Any = None,
    convert: Callable[[Any], Any] | None = None,
    names: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
) -> tuple[list[PairComparer], Arrays, Arrays]:
    """Return the comparers of a pair, one for each mode, its inputs, and the reference's outputs.

    The arguments are those of `verify_pair`.

    Raises:
        InputError: one side does not run, or they cannot be matched.
    """
    given = _read_inputs(inputs, reference)
    origin = Reference(reference)
    _refuse_infinite(origin.state, given)
    _refuse_random(origin, given)
    wrapped, match = match_pair(origin, port, params=params, convert=convert, names=names)
    truth = origin.run(origin.state, given, dtype="float64", train=False)
    layouts = _find_layouts(wrapped, match, origin, given, truth.outputs, channels_last)
    modes = (False, True) if _has_training(origin, wrapped) else (False,)
    comparers = [
        PairComparer(origin, wrapped, match, layouts, inputs=given, train=train) for train in modes
    ]
    return comparers, given, truth.outputs


def match_pair(
    reference: Reference,
    port: Any,
    *,
    params: Any,
    convert: Callable[[Any], Any] | None,
    names: Mapping[str, str] | None,
) -> tuple[Port, Correspondence]:
    """Return the port, and which of its values are which of the reference's.

    Raises:
        InputError: they cannot be matched.
    """
    if convert is not None:
        if params is not None or names is not None:
            raise InputError("convert says all that params and names say; leave these out")
        match = read_converter(convert, reference.state, reference.tied)
        made = convert_state(convert, reference.state)
        if made is None:
            raise InputError("convert returns None; let it return the port's parameters")
        return make_port(port, made), match
    wrapped = make_port(port, params)
    return wrapped, match_tensors(reference.state, wrapped.leaves, names, reference.tied)


def compare_seed(
    comparer: PairComparer, inputs: Arrays, outputs: Arrays, *, seed: int
) -> PairComparison:
    """Compare a pair on the values of a seed: 0 is the reference's own values and inputs.

    Args:
        outputs: of the reference, for their shapes.
    """
    state = comparer.reference.state
    tensors = state if seed == 0 else draw_tensors(state, seed=seed)
    given = inputs if seed == 0 else _draw_inputs(inputs, seed)
    rng = np.random.default_rng((seed, 1))
    cotangents = tuple(rng.standard_normal(y.shape).astype(np.float32) for y in outputs)
    return comparer(tensors, given, cotangents, seed=seed)


def draw_tensors(state: Mapping[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """Draw values around those of a reference; what is never negative stays so."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, array in state.items():
        if array.dtype.kind != "f":
            drawn[name] = array
        elif name.endswith("running_var"):
            drawn[name] = (array * rng.uniform(0.5, 1.5, array.shape)).astype(array.dtype)
        else:
            spread = float(array.std()) if array.size > 1 else 0.0
            noise = rng.standard_normal(array.shape) * (spread or 0.2)
            drawn[name] = (array + noise).astype(array.dtype)
    return drawn


def judge(
    comparisons: tuple[PairComparison, ...],
    integers: IntegerProof,
    steps: PairSteps | None,
    sizes: Sequence[SizeComparison],
    *,
    other: Mapping[str, float],
    notes: Sequence[str],
) -> tuple[str, tuple[str, ...]]:
    """Return the verdict and its reasons.

    Args:
        other: arrays of the port that were given with other values than the reference has, and how
            far these are.
        notes: what a person has to know who is told that both are the same.
    """
    problems = [
        f"{name} of the port has not the values of the reference: they are {size:.1e} apart"
        for name, size in other.items()
    ]
    problems += [problem for c in comparisons for problem in c.problems]
    problems += [one.problem for one in sizes if one.problem]
    if integers.unequal:
        problems.append(str(integers))
    if steps is not None and steps.problem:
        problems.append(steps.problem)
    if problems:
        return "different", tuple(dict.fromkeys(problems))
    agreement = (
        "float64 agrees to rounding; the float32 error of each side against float64 is of the same "
        f"size, within a factor of {FACTOR:g} (gradients {GRADIENT_FACTOR:g})"
    )
    ties = sum(c.near_ties for c in comparisons)
    if ties:
        notes = [
            *notes,
            f"{ties} near-ties of ReLUs or pools: where they fall in float32 is chance, so the "
            "float32 gradients of these inputs say nothing",
        ]
    return ("identical" if integers.holds else "equivalent"), (str(integers), agreement, *notes)


def _list_notes(
    comparers: list[PairComparer], sizes: Sequence[SizeComparison], match: Correspondence
) -> Iterator[str]:
    """Yield what a verdict rests on besides its figures."""
    comparer = comparers[-1]
    if comparer.narrowings:
        names = [name for name in comparer.narrowings if name]
        where = f" in {list_names(names, 2)}" if names else ""
        yield (
            f"the port computes in float32 or less{where}, even where it is given float64: so a "
            "mistake smaller than float32's rounding is not seen, and no training steps are taken"
        )
    narrow = match.list_narrow()
    if narrow:
        yield (
            f"the port keeps {list_names(narrow, 3)} in a type narrower than float32; both sides "
            "were compared with the reference's values in float32 and float64"
        )
    refused = [one.size for one in sizes if one.output is None]
    if refused:
        yield f"the port does not run on inputs of {', '.join(refused)}; the reference does"
    if match.missing():
        yield f"the port holds no values of {list_names(match.missing(), 4)}"
    if match.unused():
        yield f"nothing of the reference is in the port's {list_names(match.unused(), 4)}"
    if comparer.port.has_training and not comparer.train:
        yield "the port's training mode was not run: the reference computes nothing else in its own"


def _compare_sizes(comparer: PairComparer, inputs: Arrays) -> Iterator[SizeComparison]:
    """Compare the outputs at other sizes that the reference takes."""
    tensors = draw_tensors(comparer.reference.state, seed=1)
    for shapes in list_sizes(comparer.reference, tensors, inputs):
        given = draw_shapes(inputs, shapes, seed=1)
        try:
            yield SizeComparison(shapes, *comparer.compare_outputs(tensors, given))
        except InputError:
            yield SizeComparison(shapes, None)


def enumerate_names(inputs: Arrays) -> list[tuple[str, np.ndarray]]:
    """Return (a name, an input) of each input."""
    return [(f"input {place + 1}", x) for place, x in enumerate(inputs)]


def _has_training(reference: Reference, port: Port) -> bool:
    """Say whether a pair computes something else in training, other than dropping values."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    return port.has_training and any(
        isinstance(part, kinds) and part.track_running_stats for part in reference.module.modules()
    )


def _find_layouts(
    port: Port,
    match: Correspondence,
    reference: Reference,
    inputs: Arrays,
    outputs: Arrays,
    channels_last: bool | None,
) -> Layouts:
    run = PortRun(port, lambda given: given, dtype="float64", train=False)
    leaves = match.to_port(reference.state)
    model = reference.load(reference.state, dtype="float64", train=False)
    names = name_outputs(model, to_torch(inputs, "float64"))
    try:
        return find_layouts(
            inputs,
            dict(zip(names, (y.shape for y in outputs), strict=True)),
            lambda given: run.list_outputs(leaves, given),
            channels_last=channels_last,
        )
    except InputError as error:
        if match.missing():
            missing = list_names(match.missing(), 4)
            raise InputError(f"{error}; it is given no values of {missing}") from error
        raise


def _read_inputs(
    inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray], module: nn.Module
) -> Arrays:
    """Return the inputs in the order of the arguments of `forward`.

    Raises:
        InputError: there is none, or several have names that are no arguments.
    """
    if not inputs:
        raise InputError("inputs are empty; give the arrays that the reference takes")
    if not isinstance(inputs, Mapping):
        return tuple(np.asarray(array) for array in inputs)
    arguments = list(inspect.signature(module.forward).parameters)
    other = [name for name in inputs if name not in arguments]
    if not other:
        return tuple(np.asarray(inputs[name]) for name in arguments if name in inputs)
    is_numbered = all(re.fullmatch(r"arr_\d+", name) for name in inputs)  # by numpy.savez
    if len(inputs) > 1 and not is_numbered:
        raise InputError(
            f"{list_names(other, 3)}: no such argument of the reference's forward, which takes "
            f"{', '.join(arguments)}; name the inputs like these"
        )
    return tuple(np.asarray(array) for array in inputs.values())


def _refuse_random(reference: Reference, inputs: Arrays) -> None:
    """Refuse a reference that draws random numbers: nothing can be compared with it."""
    first, second = (
        reference.run(reference.state, inputs, dtype="float64", train=False).outputs
        for _ in range(2)
    )
    if not all(map(np.array_equal, first, second)):
        raise InputError(
            "the reference gives another output each time: it draws random numbers even in "
            "inference; let it draw none (a functional dropout needs training=self.training)"
        )


def _refuse_infinite(state: Mapping[str, np.ndarray], inputs: Arrays) -> None:
    named = {**state, **dict(enumerate_names(inputs))}
    bad = [name for name, array in named.items() if not np.isfinite(array).all()]
    if bad:
        raise InputError(
            f"NaN or infinite values in {list_names(bad, 3)}: nothing can be said of them; take "
            "other weights or inputs"
        )


def _draw_inputs(inputs: Arrays, seed: int) -> Arrays:
    """Draw inputs of the same shapes and spread; integers stay as they are."""
    rng = np.random.default_rng((seed, 2))
    return tuple(
        (x.mean() + (x.std() or 1.0) * rng.standard_normal(x.shape)).astype(x.dtype)
        if x.dtype.kind == "f"
        else x
        for x in inputs
    )


def _draw_batch(inputs: Arrays, outputs: Arrays, step: int) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng((step, 3))
    targets = tuple(rng.standard_normal(y.shape).astype(np.float32) for y in outputs)
    return _draw_inputs(inputs, step + 1), targets


def _describe_scope(
    inputs: Arrays,
    comparers: list[PairComparer],
    seeds: int,
    sizes: list[SizeComparison],
    steps: PairSteps | None,
    integers: IntegerProof,
) -> str:
    shapes = " and ".join(str(x.shape) for x in inputs)
    modes = " and ".join("training" if c.train else "inference" for c in comparers)
    draws = f", and {seeds - 1} draws of both" if seeds > 1 else ""
    parts = [
        f"the reference's weights on the given inputs of {shapes}{draws}, forward and gradients, "
        f"in {modes}"
    ]
    if sizes:
        listed = [size.size for size in sizes if size.output is not None]
        parts.append(f"outputs for inputs of {', '.join(listed)}")
    if steps is not None:
        parts.append(f"{len(steps.distances)} training steps in float64")
    if not integers.refused:
        parts.append("an exact proof on integers of these shapes")
    return f"Compared: {'; '.join(parts)}."
