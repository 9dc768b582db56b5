"""Both sides of a pair by their recordings.

A side is recorded by being asked: each answer is kept by its question. A recording that is read
gives these answers again, and has no side behind it that could give others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from unet_parity.pair.integer_check import IntegerCheck
from unet_parity.pair.logs import BackwardLog, ForwardLog
from unet_parity.pair.numbers import Numbers, Shapes
from unet_parity.pair.passes import Arrays, PairPass, TakenStep
from unet_parity.pair.sides import Batches, PortSide, ReferenceSide, Tensors
from unet_parity.pair.values import PortValues
from unet_spec import InputError
from unet_spec.recipe import Recipe

MOST_BYTES = 2**26
"""The operations on inputs of another size are recorded up to so many bytes."""
Side = TypeVar("Side")
PassSide = TypeVar("PassSide", ReferenceSide, PortSide)
Answer = TypeVar("Answer")


class Memory(Generic[Side]):
    """What a side was asked and what it answered.

    Args:
        path: of the recording.
        answers: by their questions.
        side: that is asked what has no answer yet; None for a recording that was read.
    """

    def __init__(self, path: Path, answers: dict[str, Any], side: Side | None) -> None:
        self.path, self.answers, self.side = path, answers, side

    def ask(
        self, question: str, compute: Callable[[Side], Answer], numbers: Numbers | None = None
    ) -> Answer:
        """Return the answer to a question.

        Args:
            compute: gets the answer from the side itself.
            numbers: that the side is given.

        Raises:
            InputError: there is neither an answer nor a side, or the numbers are others than those
                of the recording.
        """
        if numbers is not None:
            self._check(numbers)
            question = f"{question}, {numbers.name}"
        if question not in self.answers:
            if self.side is None:
                raise InputError(
                    f"{self.path}: it does not say: {question}; record both sides again, with the "
                    "same version"
                )
            self.answers[question] = compute(self.side)
        answer: Answer = self.answers[question]
        return answer

    def _check(self, numbers: Numbers) -> None:
        """Refuse numbers other than those that the side was given when it was recorded."""
        sha256 = self.answers.setdefault(f"sha256 of {numbers.name}", numbers.sha256)
        if sha256 != numbers.sha256:
            raise InputError(
                f"{self.path}: numpy draws other numbers here than where this was recorded "
                f"({numbers.name}); use one version of numpy for both"
            )


class _RecordedPasses(Generic[PassSide]):
    """What is asked of either side."""

    def __init__(self, memory: Memory[PassSide]) -> None:
        self._memory: Memory[PassSide] = memory

    def run(self, numbers: Numbers, *, dtype: str, train: bool) -> PairPass:
        """Return a pass, forward and backward."""
        return self._memory.ask(
            f"pass in {dtype} in {_name_mode(train)}",
            lambda side: side.run(numbers, dtype=dtype, train=train),
            numbers,
        )

    def take_steps(
        self, tensors: Tensors, batches: Batches, recipe: Recipe, *, train: bool
    ) -> Iterable[TakenStep]:
        """Return training steps."""
        return self._memory.ask(
            f"steps in {_name_mode(train)}",
            lambda side: tuple(side.take_steps(tensors, batches, recipe, train=train)),
            _name_batches(tensors, batches),
        )


class RecordedReference(_RecordedPasses[ReferenceSide]):
    """The torch side of a pair, by its recording."""

    def __init__(self, memory: Memory[ReferenceSide]) -> None:
        super().__init__(memory)
        self.state = memory.ask("tensors", lambda side: side.state)
        self.tied = memory.ask("tied tensors", lambda side: side.tied)
        self.trained = memory.ask("trained tensors", lambda side: side.trained)
        self.has_statistics = memory.ask("has statistics", lambda side: side.has_statistics)

    def run_forward(self, numbers: Numbers, *, dtype: str, train: bool) -> dict[str, np.ndarray]:
        """Return the outputs by their paths."""
        return self._memory.ask(
            f"outputs in {dtype} in {_name_mode(train)}",
            lambda side: side.run_forward(numbers, dtype=dtype, train=train),
            numbers,
        )

    def can_log(self, numbers: Numbers) -> bool:
        """Say whether all operations on inputs of this size are in the recording."""
        return self._memory.ask(
            "has operations",
            lambda side: (
                side.can_log(numbers)
                and _count_bytes(side.log_forward(numbers, train=False)) <= MOST_BYTES
            ),
            numbers,
        )

    def log_forward(self, numbers: Numbers, *, train: bool) -> ForwardLog:
        """Return all operations of a forward pass, without torch's own calls."""
        return self._memory.ask(
            f"operations in {_name_mode(train)}",
            lambda side: side.log_forward(numbers, train=train)._replace(calls=()),
            numbers,
        )

    def log_backward(self, numbers: Numbers, *, train: bool) -> BackwardLog:
        """Return all calls of a pass with their gradients."""
        return self._memory.ask(
            f"gradients in {_name_mode(train)}",
            lambda side: side.log_backward(numbers, train=train),
            numbers,
        )

    def count_near_ties(self, numbers: Numbers, *, train: bool) -> int:
        """Return how much may fall the other way in float32 than in float64."""
        return self._memory.ask(
            f"near-ties in {_name_mode(train)}",
            lambda side: side.count_near_ties(numbers, train=train),
            numbers,
        )

    def check_integers(self, numbers: Numbers) -> IntegerCheck:
        """Say whether a pass over integers rounds any."""
        return self._memory.ask(
            "check of integers", lambda side: side.check_integers(numbers), numbers
        )

    def list_sizes(self, tensors: Tensors, inputs: Arrays) -> list[Shapes]:
        """Return other shapes of the inputs that it takes."""
        return list(self._memory.ask("sizes", lambda side: side.list_sizes(tensors, inputs)))

    def find_momentum(self, statistic: str) -> float:
        """Return the part that a new batch has in a statistic."""
        return self._memory.ask(
            f"momentum of {statistic}", lambda side: side.find_momentum(statistic)
        )


class RecordedPort(_RecordedPasses[PortSide]):
    """The JAX side of a pair, by its recording."""

    def __init__(self, memory: Memory[PortSide]) -> None:
        super().__init__(memory)
        self.matching = memory.ask("matching", lambda side: side.matching)

    def run_forward(self, numbers: Numbers, *, train: bool) -> Arrays | None:
        """Return the outputs in float64; None where it does not run on such inputs."""
        return self._memory.ask(
            f"outputs in {_name_mode(train)}",
            lambda side: side.run_forward(numbers, train=train),
            numbers,
        )

    def compute_forward(self, numbers: Numbers, *, train: bool) -> "RecordedValues | None":
        """Return which values of the reference are in a forward pass; None where both sides agreed
        when the port was recorded, so that nobody asked."""
        return self._find_values(
            f"values in {_name_mode(train)}",
            lambda side: side.compute_forward(numbers, train=train),
            numbers,
        )

    def compute_backward(self, numbers: Numbers, *, train: bool) -> "RecordedValues | None":
        """Return likewise which gradients of the reference are in a pass."""
        return self._find_values(
            f"values and gradients in {_name_mode(train)}",
            lambda side: side.compute_backward(numbers, train=train),
            numbers,
        )

    def find_narrowings(self, *, train: bool) -> tuple[str, ...]:
        """Return the functions in which it computes in float32 or less, though given float64."""
        return self._memory.ask(
            f"narrowings in {_name_mode(train)}", lambda side: side.find_narrowings(train=train)
        )

    def _find_values(
        self, question: str, compute: Callable[[PortSide], PortValues | None], numbers: Numbers
    ) -> "RecordedValues | None":
        question = f"{question}, {numbers.name}"
        side = self._memory.side
        if side is None and question not in self._memory.answers:
            return None
        answers = self._memory.ask(question, lambda side: dict[str, bool]())
        values = None if side is None else compute(side)
        return RecordedValues(Memory(self._memory.path, answers, values))


@dataclass(frozen=True, eq=False)
class RecordedValues:
    """These are the answers of a port to which values of the reference it computes."""

    memory: Memory[PortValues]

    def contains(self, place: str, array: np.ndarray) -> bool:
        """Say whether the port computes a value of the reference."""
        return self.memory.ask(place, lambda values: values.contains(place, array))


def _count_bytes(log: ForwardLog) -> int:
    return sum(array.nbytes for operation in log.operations for array in operation.outputs)


def _name_mode(train: bool) -> str:
    return "training" if train else "inference"


def _name_batches(tensors: Tensors, batches: Batches) -> Numbers:
    """Return the numbers of training steps under one name."""
    inputs = tuple(x for arrays, _ in batches for x in arrays)
    targets = tuple(y for _, arrays in batches for y in arrays)
    return Numbers("training", tensors, inputs, targets)
