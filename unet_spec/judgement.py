"""Whether a recorded output is that of a net, or more than rounding lies between the two.

One net gives other last digits on another machine, in another framework, or in a smaller type of
numbers. The net in float64 is the truth; how far it is from itself in float32 says how much
rounding does to this net with this input. A recorded output may be some times as far from the
truth. It may be as near as it likes: it may have been recorded in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unet_spec.errors import InputError

# 384 healthy nets, each in two frameworks: one error was at most 2.51 times the other
# (benchmarks/results/rounding.json)
FACTOR = 8.0
# types of so few digits round alike wherever they compute: 7 nets in torch, with and without
# oneDNN, in torch's autocast and in JAX were at most 1.62 times as far as the nearest of these
HALF_FACTOR = 4.0

# significand bits, and the exponent (as of `numpy.frexp`) of the smallest normal number
_TYPES = {"float32": (24, -125), "float16": (11, -13), "bfloat16": (8, -125)}

Run = Callable[[str], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Judgement:
    """A `Judgement` says how far a recorded output is from the truth, and how far it may be.

    Errors are root mean squares of differences.

    Attributes:
        precision: the type in which the nets computed beside which it was judged: `float32`; or
            `bfloat16` or `float16`, if this holds every recorded value and float32's rounding does
            not explain them.
        scale: root mean square of the truth.
        error: of the recorded output.
        nearest: of the net that is nearest to the truth in that precision.
        allowed: what rounding explains.
    """

    precision: str
    scale: float
    error: float
    nearest: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference."""
        return self.error <= self.allowed

    def explain_precision(self) -> str:
        """Say what a recorded output of a smaller type than float32 hides; empty for float32."""
        if self.precision == "float32":
            return ""
        share = self.allowed / (self.scale or 1.0)
        return (
            f"the recorded output is a {self.precision} one, whose rounding hides differences of "
            f"up to {share:.1g} of the output's size; record it in float32 to see smaller ones"
        )


def judge_output(recorded: np.ndarray, truth: np.ndarray, run: Run) -> Judgement:
    """Judge a recorded output beside the truth and what rounding does to it.

    The original's output function (`unet_spec.outputs`) is applied to all but the recorded output
    beforehand.

    Args:
        recorded: what somebody's net gave, floats of any type.
        truth: the net's output in float64, of the same shape.
        run: `run("float32")` gives the outputs of one or more nets that compute in that type, as
            float32 or float64. It is called with `float16` or `bfloat16` only if the recorded
            output is too far for float32, and if that type holds its every value. An output of
            another shape, or that is not finite, does not count.

    Raises:
        InputError: another shape than the truth's, values that are no finite floats, or no net
            that counts.
    """
    _check_recorded(recorded, truth)
    judgement = _judge(recorded, truth, run("float32"), "float32")
    if judgement.holds:
        return judgement
    # in this order, because float16 holds most of what bfloat16 holds
    for precision in ("bfloat16", "float16"):
        if is_representable(recorded, precision):
            return _judge(recorded, truth, run(precision), precision)
    return judgement


def is_representable(values: np.ndarray, precision: str) -> bool:
    """Say whether a type of numbers (`float32`, `float16`, `bfloat16`) holds every value."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16 if precision == "float16" else np.float32)
    if not np.array_equal(rounded, values):
        return False
    # bfloat16 is the upper half of float32
    return precision != "bfloat16" or not (rounded.view(np.uint32) & 0xFFFF).any()


def _judge(
    recorded: np.ndarray, truth: np.ndarray, outputs: Sequence[np.ndarray], precision: str
) -> Judgement:
    errors = [_rms(output - truth) for output in outputs if output.shape == truth.shape]
    errors = [error for error in errors if np.isfinite(error)]
    if not errors:
        raise InputError(
            f"no net here gives finite values in {precision}, so nothing says how large its "
            "rounding is; record the output in float32"
        )
    nearest = min(errors)
    # what the computation adds, and what storing its result adds
    factor = FACTOR if precision == "float32" else HALF_FACTOR
    allowed = float(np.hypot(factor * nearest, _rms(_half_spacing(truth, precision))))
    return Judgement(precision, _rms(truth), _rms(recorded - truth), nearest, allowed)


def _check_recorded(recorded: np.ndarray, truth: np.ndarray) -> None:
    if recorded.shape != truth.shape:
        raise InputError(
            f"the recorded output has the shape {recorded.shape}, the net gives {truth.shape}; "
            "record the net's own output, as (b, classes, h, w)"
        )
    if recorded.dtype.kind != "f":
        raise InputError(
            f"the recorded output holds {recorded.dtype}, not floats; record the net's own output, "
            "before any class is chosen: numpy.savez(FILE, x=x, y=y.float().numpy())"
        )
    if not np.isfinite(recorded).all():
        raise InputError(
            "the recorded output holds NaN or infinite values, which say nothing of the net; "
            "record another image, or in float32"
        )


def _half_spacing(values: np.ndarray, precision: str) -> np.ndarray:
    """Return by how much rounding to a type can move each value."""
    bits, smallest = _TYPES[precision]
    exponents = np.frexp(values)[1]
    exponents = np.where(values == 0, smallest, np.maximum(exponents, smallest))
    return np.exp2(exponents - bits - 1.0)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
