"""`verify_pair`: are a torch module and its port to JAX the same, and if not, where?"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from unet_parity import precision
from unet_parity.differences import hash_tensors
from unet_parity.pair.comparison import PairComparer, PairComparison
from unet_parity.pair.correspondence import (
    Correspondence,
    convert_state,
    match_tensors,
    read_converter,
)
from unet_parity.pair.integers import IntegerProof, prove
from unet_parity.pair.layouts import Layouts, find_layouts
from unet_parity.pair.numbers import draw_batch, draw_inputs, draw_shapes, draw_tensors
from unet_parity.pair.passes import Arrays, PortRun, Reference, name_outputs, to_torch
from unet_parity.pair.port import Port, make_port
from unet_parity.pair.report import PairReport, SizeComparison, judge
from unet_parity.pair.sizes import list_sizes
from unet_parity.pair.steps import PairSteps, train_side_by_side
from unet_spec import InputError
from unet_spec.environment import environment
from unet_spec.ranges import STEPS_OF_A_PROOF, check_number
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.wording import list_names

RECIPE = Recipe(Optimizer(name="sgd", lr=1e-2, momentum=0.9))
SEEDS = 3


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
    comparers, arrays, outputs = prepare_pair(
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
            comparison = compare_seed(comparer, arrays, outputs, seed=seed)
            comparisons.append(comparison)
            if comparison.problems:
                break
    sizes: list[SizeComparison] = []
    if not any(c.problems for c in comparisons):
        say("other sizes: both in float64, forward")
        sizes = list(_compare_sizes(comparers[0], arrays))
    say("exact proof: integers, compared with ==")
    is_sound = not any(c.problems for c in comparisons)
    integers = prove(comparers[0], arrays, outputs)
    trajectory = None
    if steps and is_sound and not comparers[-1].narrowings:
        say(f"training: {steps} steps of both in float64")
        batches = [draw_batch(arrays, outputs, step) for step in range(steps)]
        trajectory = train_side_by_side(
            comparers[-1], draw_tensors(origin.state, seed=1), batches, recipe
        )
    verdict, reasons = judge(
        tuple(comparisons), integers, trajectory, sizes, other=match.unlike(origin.state),
        notes=list(_list_notes(comparers, sizes, match)),
    )  # fmt: skip
    return PairReport(
        verdict, reasons, tuple(comparisons), tuple(sizes), integers, trajectory,
        _describe_scope(arrays, comparers, seeds, sizes, trajectory, integers),
        "Not compared: sizes and inputs other than these, dropout, and what is around the net.",
        {
            "tensors": hash_tensors(origin.state),
            "inputs": hash_tensors(dict(enumerate_names(arrays))),
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
    arrays = _read_inputs(inputs, reference)
    origin = Reference(reference)
    _refuse_infinite(origin.state, arrays)
    _refuse_random(origin, arrays)
    wrapped, match = match_pair(origin, port, params=params, convert=convert, names=names)
    truth = origin.run(origin.state, arrays, dtype="float64", train=False)
    layouts = _find_layouts(wrapped, match, origin, arrays, truth.outputs, channels_last)
    modes = (False, True) if _has_training(origin, wrapped) else (False,)
    comparers = [
        PairComparer(origin, wrapped, match, layouts, inputs=arrays, train=train) for train in modes
    ]
    return comparers, arrays, truth.outputs


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
        result = convert_state(convert, reference.state)
        if result is None:
            raise InputError("convert returns None; let it return the port's parameters")
        return make_port(port, result), match
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
    arrays = inputs if seed == 0 else draw_inputs(inputs, seed)
    rng = np.random.default_rng((seed, 1))
    cotangents = tuple(rng.standard_normal(y.shape).astype(np.float32) for y in outputs)
    return comparer(tensors, arrays, cotangents, seed=seed)


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
        arrays = draw_shapes(inputs, shapes, seed=1)
        try:
            yield SizeComparison(shapes, *comparer.compare_outputs(tensors, arrays))
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
    run = PortRun(port, lambda arrays: arrays, dtype="float64", train=False)
    leaves = match.to_port(reference.state)
    model = reference.load(reference.state, dtype="float64", train=False)
    names = name_outputs(model, to_torch(inputs, "float64"))
    try:
        return find_layouts(
            inputs,
            dict(zip(names, (y.shape for y in outputs), strict=True)),
            lambda arrays: run.list_outputs(leaves, arrays),
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
