"""An output that somebody recorded, beside both twins.

If a bug sits in one twin, the recorded output agrees with the other: so it is judged against the
float64 run of each, and rounding need explain it in one of them only.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from unet_jax.functional import functional
from unet_jax.layers import Numerics
from unet_parity.comparison import Comparison, Numbers, Outputs
from unet_parity.differences import rms
from unet_parity.jax_twin import fetch_tree, jax_arrays
from unet_parity.torch_twin import numpy_of, torch_model
from unet_parity.twins import nchw, nhwc
from unet_spec import UNetConfig
from unet_spec.judgement import Judgement, judge_output
from unet_spec.outputs import apply_output

NAMES = {"torch": "PyTorch's net", "jax": "JAX's net"}


@dataclass(frozen=True)
class RecordedOutput:
    """A recorded output against float64 on the same input; errors are root mean squares.

    Attributes:
        judgement: against the float64 run of the twin that it is nearer to.
        explained_by: the twins, `torch` and `jax`, whose float64 run and rounding explain it.
        torch_error: of torch here in float32, against the same float64 run.
        jax_error: likewise of JAX.
    """

    judgement: Judgement
    explained_by: tuple[str, ...]
    torch_error: float
    jax_error: float

    @property
    def holds(self) -> bool:
        """Whether it is the output of one of the twins, up to rounding."""
        return bool(self.explained_by)

    @property
    def ratio(self) -> float:
        """Return its error over that of the nearer net; infinite if that one has none."""
        nearest = self.judgement.nearest
        return self.judgement.error / nearest if nearest else np.inf

    def __str__(self) -> str:
        """Say whose output it is."""
        if self.explained_by == tuple(NAMES):
            return "the recorded output is that of both nets, up to rounding"
        for name, other in (("torch", "jax"), ("jax", "torch")):
            if self.explained_by == (name,):
                return (
                    f"the recorded output is that of {NAMES[name]}, up to rounding, and not that "
                    f"of {NAMES[other]}: so the fault is in {NAMES[other]}"
                )
        judgement = self.judgement
        return (
            f"the recorded output is {judgement.error / (judgement.scale or 1):.1e} from float64, "
            f"{judgement.allowed / (judgement.scale or 1):.1e} allowed as rounding in "
            f"{judgement.precision}: it is not of this net (another concat, padding, activation, "
            "output?)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            **asdict(self.judgement),
            "torch_error": self.torch_error,
            "jax_error": self.jax_error,
            "ratio": self.ratio,
            "holds": self.holds,
            "explained_by": list(self.explained_by),
        }


def judge_recorded(
    config: UNetConfig, numbers: Numbers, comparison: Comparison, recorded: np.ndarray
) -> RecordedOutput:
    """Judge what somebody's net gave for the input of a comparison.

    Args:
        comparison: of the twins in inference.
        recorded: (b, classes, h', w'), with the original's output function in it.

    Raises:
        InputError: it is no output of this shape.
    """
    outputs = Outputs(*(_finish(config, logits) for logits in comparison.outputs))
    floats = [outputs.torch32, outputs.jax32]
    run = _make_run(config, numbers, floats)
    truths = {"torch": outputs.torch64, "jax": outputs.jax64}
    judgements = {
        name: judge_output(recorded, truth, run)
        for name, truth in truths.items()
        if name == "torch" or _is_like(truth, truths["torch"])
    }
    nearer = min(judgements, key=lambda name: judgements[name].error)
    truth = truths[nearer]
    errors = [rms(o - truth) if _is_like(o, truth) else np.inf for o in floats]
    explained_by = tuple(name for name, judgement in judgements.items() if judgement.holds)
    return RecordedOutput(judgements[nearer], explained_by, *errors)


def _make_run(
    config: UNetConfig, numbers: Numbers, floats: list[np.ndarray]
) -> Callable[[str], list[np.ndarray]]:
    """Return how both twins run in a type of numbers, for `judge_output`.

    Args:
        floats: what both gave in float32, the output function applied.
    """

    @cache
    def run(precision: str) -> list[np.ndarray]:
        if precision == "float32":
            return floats
        model = torch_model(config, numbers.tensors, dtype=precision, train=False)
        with torch.no_grad():
            ours = numpy_of(model(torch.tensor(numbers.x, dtype=getattr(torch, precision))))
        logits = [ours]
        if _is_like(floats[1], floats[0]):
            logits.append(_run_jax(config, numbers, precision))
        # in float64, because the function's own rounding is no larger than storing its result
        return [_finish(config, output.astype(np.float64)) for output in logits]

    return run


def _run_jax(config: UNetConfig, numbers: Numbers, precision: str) -> np.ndarray:
    dtype = jnp.dtype(precision)
    params, stats = jax_arrays(config, numbers.tensors, dtype=precision)
    apply = functional(config, numerics=Numerics(dtype, dtype, "highest")).apply
    return nchw(fetch_tree(apply(params, jnp.asarray(nhwc(numbers.x), dtype), stats)))


def _finish(config: UNetConfig, logits: np.ndarray) -> np.ndarray:
    return apply_output(config, logits, axis=1)


def _is_like(output: np.ndarray, truth: np.ndarray) -> bool:
    return output.shape == truth.shape and bool(np.isfinite(output).all())
