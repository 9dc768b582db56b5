"""Training steps of both sides of a pair, from the same values on the same batches, in float64."""

from dataclasses import dataclass

from unet_parity.bounds import TRAINING_BOUND
from unet_parity.differences import difference
from unet_parity.pair.comparison import PairComparer
from unet_parity.pair.sides import Batches, Tensors
from unet_spec.recipe import Recipe


@dataclass(frozen=True)
class PairSteps:
    """Training steps of a pair.

    Attributes:
        torch_losses: before each step.
        jax_losses: likewise.
        distances: of the port's parameters from the reference's after each step: the largest
            difference over the largest value.
        furthest: after each step, the parameter that is furthest.
    """

    torch_losses: list[float]
    jax_losses: list[float]
    distances: list[float]
    furthest: list[str]

    @property
    def first_wrong(self) -> int | None:
        """Return the number of the first step after which they are too far apart, from 1."""
        return next((i + 1 for i, d in enumerate(self.distances) if not d <= TRAINING_BOUND), None)

    @property
    def problem(self) -> str:
        """Say what is out of bounds; empty if nothing is."""
        step = self.first_wrong
        if step is None:
            return ""
        return (
            f"after training step {step} the parameters are {self.distances[step - 1]:.1e} apart in"
            f" float64, {TRAINING_BOUND:.0e} allowed; furthest is {self.furthest[step - 1]}"
        )


def train_side_by_side(
    comparer: PairComparer, tensors: Tensors, batches: Batches, recipe: Recipe
) -> PairSteps:
    """Train both sides on the mean square of the distance to random targets.

    Args:
        batches: (inputs, targets) of each step, as the reference has them.
    """
    recipe = recipe.for_steps(len(batches))
    steps = PairSteps([], [], [], [])
    ours = comparer.reference.take_steps(tensors, batches, recipe, train=comparer.train)
    theirs = comparer.port.take_steps(tensors, batches, recipe, train=comparer.train)
    for (loss, values), (other_loss, others) in zip(ours, theirs, strict=True):
        sizes = {name: difference(values[name], others[name]) for name in others}
        furthest = max(sizes, key=lambda name: sizes[name])
        steps.torch_losses.append(loss)
        steps.jax_losses.append(other_loss)
        steps.distances.append(sizes[furthest])
        steps.furthest.append(furthest)
    return steps
