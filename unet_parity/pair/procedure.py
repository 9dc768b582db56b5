"""What is compared of a pair, in which order, and the report that comes of it.

The sides may be here or in recordings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from unet_parity.differences import hash_tensors
from unet_parity.pair.comparison import PairComparer, PairComparison
from unet_parity.pair.integers import IntegerProof, prove
from unet_parity.pair.numbers import (
    Numbers,
    draw_batch,
    draw_numbers,
    draw_size,
    draw_tensors,
    name_inputs,
)
from unet_parity.pair.passes import Arrays
from unet_parity.pair.report import PairReport, SizeComparison, judge
from unet_parity.pair.sides import Batches, PortSide, ReferenceSide
from unet_parity.pair.steps import PairSteps, train_side_by_side
from unet_spec import InputError
from unet_spec.ranges import STEPS_OF_A_PROOF, check_number
from unet_spec.recipe import Optimizer, Recipe
from unet_spec.wording import list_names

RECIPE = Recipe(Optimizer(name="sgd", lr=1e-2, momentum=0.9))
SEEDS, STEPS = 3, 3


def check_counts(seeds: int, steps: int) -> None:
    """Refuse numbers of seeds and of steps with which nothing can be compared.

    Raises:
        InputError: naming the number.
    """
    check_number("seeds", seeds, STEPS_OF_A_PROOF)
    if not seeds:
        raise InputError("seeds is 0, so nothing would be compared; give at least 1")
    check_number("steps", steps, STEPS_OF_A_PROOF)


def run_given(reference: ReferenceSide, inputs: Arrays) -> dict[str, np.ndarray]:
    """Return the reference's outputs on the inputs that were given, by their paths."""
    numbers = Numbers("given inputs", reference.state, inputs)
    return reference.run_forward(numbers, dtype="float64", train=False)


def make_comparers(reference: ReferenceSide, port: PortSide) -> list[PairComparer]:
    """Return the comparers of a pair, one for each mode in which it computes something else."""
    has_training = reference.has_statistics and port.matching.has_training
    modes = (False, True) if has_training else (False,)
    return [PairComparer(reference, port, train=train) for train in modes]


def compare_pair(
    comparers: Sequence[PairComparer],
    inputs: Arrays,
    outputs: Arrays,
    *,
    seeds: int,
    steps: int,
    recipe: Recipe,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    other_sizes: bool = True,
) -> PairReport:
    """Compare a pair in every way, and return the report.

    Args:
        outputs: of the reference, for their shapes.
        seeds: of the values; the first is the reference's own values.
        steps: of training, side by side.
        recipe: of these steps.
        environment: versions, devices and precision in force.
        say: is called with a line when each part begins.
        other_sizes: compare the outputs at other sizes too.
    """
    reference = comparers[0].reference
    comparisons = list(_compare_seeds(comparers, inputs, outputs, seeds=seeds, say=say))
    is_sound = not any(c.problems for c in comparisons)
    sizes: list[SizeComparison] = []
    if is_sound and other_sizes:
        say("other sizes: both in float64, forward")
        sizes = list(_compare_sizes(comparers[0], inputs))
    say("exact proof: integers, compared with ==")
    integers = prove(comparers[0], inputs, outputs)
    trajectory = None
    if steps and is_sound and reference.trained and not comparers[-1].narrowings:
        say(f"training: {steps} steps of both in float64")
        batches = draw_batches(inputs, outputs, steps)
        tensors = draw_tensors(reference.state, seed=1)
        trajectory = train_side_by_side(comparers[-1], tensors, batches, recipe)
    verdict, reasons = judge(
        tuple(comparisons), integers, trajectory, sizes,
        other=comparers[0].port.matching.unlike, notes=list(_list_notes(comparers, sizes)),
    )  # fmt: skip
    return PairReport(
        verdict, reasons, tuple(comparisons), tuple(sizes), integers, trajectory,
        _describe_scope(inputs, comparers, seeds, sizes, trajectory, integers),
        "Not compared: sizes and inputs other than these, dropout, and what is around the net.",
        hash_pair(reference, inputs),
        dict(environment),
    )  # fmt: skip


def hash_pair(reference: ReferenceSide, inputs: Arrays) -> dict[str, str]:
    """Return the sha256 of a reference's tensors and of its inputs."""
    return {
        "tensors": hash_tensors(reference.state),
        "inputs": hash_tensors(name_inputs(inputs)),
    }


def draw_batches(inputs: Arrays, outputs: Arrays, steps: int) -> Batches:
    """Draw the inputs and the targets of some training steps."""
    return [draw_batch(inputs, outputs, step) for step in range(steps)]


def _compare_seeds(
    comparers: Sequence[PairComparer],
    inputs: Arrays,
    outputs: Arrays,
    *,
    seeds: int,
    say: Callable[[str], None],
) -> Iterator[PairComparison]:
    """Compare a pair on several values in every mode, in each until something differs."""
    for comparer in comparers:
        mode = "training" if comparer.train else "inference"
        say(f"{mode}: both in float64 and float32, forward and gradients, {seeds} times")
        # drawn values first: where biases are 0 and norms 1, a fault may show in gradients alone
        for seed in [*range(1, seeds), 0]:
            comparison = compare_seed(comparer, inputs, outputs, seed=seed)
            yield comparison
            if comparison.problems:
                break


def compare_seed(
    comparer: PairComparer, inputs: Arrays, outputs: Arrays, *, seed: int
) -> PairComparison:
    """Compare a pair on the values of a seed: 0 is the reference's own values and inputs.

    Args:
        outputs: of the reference, for their shapes.
    """
    numbers = draw_numbers(comparer.reference.state, inputs, outputs, seed=seed)
    return comparer(numbers, seed=seed)


def _compare_sizes(comparer: PairComparer, inputs: Arrays) -> Iterator[SizeComparison]:
    """Compare the outputs at other sizes that the reference takes."""
    reference = comparer.reference
    for shapes in reference.list_sizes(draw_tensors(reference.state, seed=1), inputs):
        found = comparer.compare_outputs(draw_size(reference.state, inputs, shapes))
        yield SizeComparison(shapes, None) if found is None else SizeComparison(shapes, *found)


def _list_notes(
    comparers: Sequence[PairComparer], sizes: Sequence[SizeComparison]
) -> Iterator[str]:
    """Yield what a verdict rests on besides its figures."""
    comparer = comparers[-1]
    matching = comparer.port.matching
    if comparer.narrowings:
        names = [name for name in comparer.narrowings if name]
        where = f" in {list_names(names, 2)}" if names else ""
        yield (
            f"the port computes in float32 or less{where}, even where it is given float64: so a "
            "mistake smaller than float32's rounding is not seen, and no training steps are taken"
        )
    if matching.narrow:
        yield (
            f"the port keeps {list_names(matching.narrow, 3)} in a type narrower than float32; "
            "both sides were compared with the reference's values in float32 and float64"
        )
    refused = [one.size for one in sizes if one.output is None]
    if refused:
        yield f"the port does not run on inputs of {', '.join(refused)}; the reference does"
    if matching.missing:
        yield f"the port holds no values of {list_names(matching.missing, 4)}"
    if matching.unused:
        yield f"nothing of the reference is in the port's {list_names(matching.unused, 4)}"
    if matching.has_training and not comparer.train:
        yield "the port was not run in training, because there the reference computes the same"


def _describe_scope(
    inputs: Arrays,
    comparers: Sequence[PairComparer],
    seeds: int,
    sizes: list[SizeComparison],
    steps: PairSteps | None,
    integers: IntegerProof,
) -> str:
    shapes = " and ".join(str(x.shape) for x in inputs)
    modes = " and ".join("training" if c.train else "inference" for c in comparers)
    draws = f", and {seeds - 1} draw{'s' * (seeds > 2)} of both" if seeds > 1 else ""
    parts = [
        f"the reference's weights on inputs of {shapes}{draws}, forward and gradients, in {modes}"
    ]
    if sizes:
        listed = [size.size for size in sizes if size.output is not None]
        parts.append(f"outputs for inputs of {', '.join(listed)}")
    if steps is not None:
        parts.append(f"{len(steps.distances)} training steps in float64")
    if not integers.refused:
        parts.append("an exact proof on integers of these shapes")
    return f"Compared: {'; '.join(parts)}."
