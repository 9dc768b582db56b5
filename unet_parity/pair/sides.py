"""What a comparison asks of either side of a pair, whether the side is here or in a recording.

All values are numpy arrays in the reference's layout and names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from unet_parity.pair.integer_check import IntegerCheck
from unet_parity.pair.logs import BackwardLog, ForwardLog
from unet_parity.pair.numbers import Numbers, Shapes
from unet_parity.pair.passes import Arrays, PairPass, TakenStep
from unet_parity.pair.values import PortValues
from unet_spec.recipe import Recipe

Tensors = Mapping[str, np.ndarray]
Batches = Sequence[tuple[Arrays, Arrays]]
"""(inputs, targets) of each training step."""


@runtime_checkable
class ReferenceSide(Protocol):
    """The torch side of a pair.

    Attributes:
        state: all tensors, by their names.
        tied: names of tensors that are another one, and the name of that one.
        trained: the names of the parameters.
        has_statistics: a pass in training moves statistics, such as those of batch norm.
    """

    state: dict[str, np.ndarray]
    tied: dict[str, str]
    trained: tuple[str, ...]
    has_statistics: bool

    def run(self, numbers: Numbers, *, dtype: str, train: bool) -> PairPass:
        """Run a pass, forward and backward, in float64 or float32."""

    def run_forward(self, numbers: Numbers, *, dtype: str, train: bool) -> dict[str, np.ndarray]:
        """Return the outputs by their paths, such as `logits`, in order."""

    def can_log(self, numbers: Numbers) -> bool:
        """Say whether all operations on inputs of this size fit into memory, or a recording."""

    def log_forward(self, numbers: Numbers, *, train: bool) -> ForwardLog:
        """Return all operations of a forward pass in float64."""

    def log_backward(self, numbers: Numbers, *, train: bool) -> BackwardLog:
        """Return all calls of a pass in float64 with their gradients."""

    def count_near_ties(self, numbers: Numbers, *, train: bool) -> int:
        """Count what may fall the other way in float32 than in float64."""

    def check_integers(self, numbers: Numbers) -> IntegerCheck:
        """Say whether a pass over integers rounds any."""

    def list_sizes(self, tensors: Tensors, inputs: Arrays) -> list[Shapes]:
        """Return other shapes of the inputs that it takes."""

    def take_steps(
        self, tensors: Tensors, batches: Batches, recipe: Recipe, *, train: bool
    ) -> Iterable[TakenStep]:
        """Train in float64 on the mean square of the distance to targets."""

    def find_momentum(self, statistic: str) -> float:
        """Return the part that a new batch has in a statistic."""


class Matching(NamedTuple):
    """How a port goes with its reference.

    Attributes:
        has_training: the port computes something else in training, or may.
        unlike: its arrays that were given with other values than the reference has, and how far
            these are, relatively.
        narrow: its arrays of a type narrower than float32.
        missing: the reference's tensors of which it holds no value.
        unused: its arrays that hold nothing of the reference.
    """

    has_training: bool
    unlike: dict[str, float]
    narrow: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


@runtime_checkable
class PortSide(Protocol):
    """The JAX side of a pair.

    Attributes:
        matching: how it goes with the reference.
    """

    matching: Matching

    def run(self, numbers: Numbers, *, dtype: str, train: bool) -> PairPass:
        """Run a pass, forward and backward, in float64 or float32."""

    def run_forward(self, numbers: Numbers, *, train: bool) -> Arrays | None:
        """Return the outputs in float64; None where it does not run on such inputs."""

    def compute_forward(self, numbers: Numbers, *, train: bool) -> PortValues | None:
        """Return all values of a forward pass in float64; None if they were not recorded."""

    def compute_backward(self, numbers: Numbers, *, train: bool) -> PortValues | None:
        """Return likewise all values of a pass, forward and backward."""

    def find_narrowings(self, *, train: bool) -> tuple[str, ...]:
        """Return the functions in which it computes in float32 or less, though given float64."""

    def take_steps(
        self, tensors: Tensors, batches: Batches, recipe: Recipe, *, train: bool
    ) -> Iterable[TakenStep]:
        """Train in float64 on the mean square of the distance to targets."""
