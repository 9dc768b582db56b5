"""The instrument behind `unet verify`: structure, exact proof, ordinary weights, verdict."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from unet_jax.functional import to_arrays
from unet_jax.model import UNet as JaxUNet
from unet_parity import exact, oracle
from unet_parity.exact import Row
from unet_parity.oracle import Agreement
from unet_spec import InputError, UNetConfig, layout
from unet_spec.environment import environment
from unet_spec.parameters import Tensors, parameter_count, parameters
from unet_spec.weight_file import WeightFile
from unet_torch.model import UNet as TorchUNet


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        verdict: `identical` (bit for bit, in exact arithmetic), `equivalent` (ordinary weights:
            both frameworks equally far from float64) or `different`.
        reasons: why, in sentences.
        structure: numbers of tensors, values and convolutions, and what does not match.
        exact: the exact proof, a row for each rung and padding.
        agreements: ordinary weights, for each mode.
        environment: versions, devices and precision in force.
    """

    verdict: str
    reasons: tuple[str, ...]
    config: UNetConfig
    structure: dict[str, Any]
    exact: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    environment: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        layers = [
            {"name": f"output ({a.mode})", "scale": a.scale, "torch_error": a.torch_error,
             "jax_error": a.jax_error}
            for a in self.agreements
        ]  # fmt: skip
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "config": asdict(self.config),
            "structure": self.structure,
            "exact": [asdict(row) for row in self.exact],
            "float64": [asdict(agreement) for agreement in self.agreements],
            "layers": layers,
            "environment": self.environment,
        }


def verify(
    config: UNetConfig, *, weights: WeightFile | None = None, say: Callable[[str], None] = print
) -> Report:
    """Whether the twins are the same net.

    Args:
        config: the architecture; both paddings are proven if no weights are given.
        weights: compared as they are, in place of random ones.
        say: is told what begins, for work that takes a minute at full width.

    Raises:
        InputError: weights that are not finite.
    """
    if weights is not None:
        _refuse_infinite(weights.tensors)
    say("structure: names, shapes, layouts")
    structure = check_structure(config)
    say("exact proof: integers, compared with ==")
    rows = tuple(_exact_rows(config, both_paddings=weights is None, say=say))
    say("ordinary weights: float64 and float32, forward and gradients")
    tensors = oracle.random_tensors(config, seed=0) if weights is None else weights.tensors
    stateful = config.norm == "batch" or config.dropout > 0
    agreements = tuple(
        oracle.compare(config, tensors, train=train)
        for train in ((False, True) if stateful else (False,))
    )
    verdict, reasons = judge(config, structure, rows, agreements, own_weights=weights is not None)
    return Report(verdict, reasons, config, structure, rows, agreements, devices())


def judge(
    config: UNetConfig,
    structure: dict[str, Any],
    rows: tuple[Row, ...],
    agreements: tuple[Agreement, ...],
    *,
    own_weights: bool,
) -> tuple[str, tuple[str, ...]]:
    """The verdict and its reasons."""
    faults = list(structure["problems"])
    for row in rows:
        if not row.refused and not row.holds:
            wrong = row.mismatches + row.gradients["mismatches"] + row.input_gradient["mismatches"]
            where = f", {row.first_wrong} among them" if row.first_wrong else ""
            faults.append(
                f"exact proof, {row.rung}, padding={row.padding}: {wrong} values are not equal "
                f"({row.mismatches} of {row.outputs} outputs){where}"
            )
    faults += [f"{a.mode}: {problem}" for a in agreements for problem in a.problems]
    if faults:
        return "different", tuple(faults)
    refused = [f"{row.rung}, padding={row.padding}: {row.refused}" for row in rows if row.refused]
    if reason := exact.why_not(config):
        refused.append(f"no exact proof exists for this net: {reason}")
    if own_weights or refused:
        return "equivalent", ("both frameworks are equally far from float64", *refused)
    return "identical", ("every value is equal, bit for bit, wherever nothing is rounded",)


def check_structure(config: UNetConfig) -> dict[str, Any]:
    """Names and shapes of both twins against the table, a third witness."""
    table = {p.name: p.shape for p in parameters(config)}
    with torch.device("meta"):
        reference = TorchUNet(config)
    torch_shapes = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    port = nnx.eval_shape(lambda: JaxUNet(config, rngs=nnx.Rngs(0)))
    jax_shapes = {name: tuple(a.shape) for name, a in to_arrays(port).items()}
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in table.items()}
    expected = {name: array.shape for name, array in layout.to_jax(config, blank).items()}
    problems = _differences("torch", torch_shapes, table) + _differences(
        "JAX", jax_shapes, expected
    )
    convolutions = [m for m in reference.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    return {
        "tensors": len(table),
        "parameters": parameter_count(config),
        "convolutions": len(convolutions),
        "problems": problems,
    }


def devices() -> dict[str, str]:
    """What computes, and in which precision: the verdict holds for these."""
    return {
        **environment(),
        "jax_device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "jax_precision": "highest (float32 products in float32)",
        "torch_device": "cpu",
        "torch_threads": str(torch.get_num_threads()),
        "torch_precision": "float32 products in float32",
    }


def _exact_rows(config: UNetConfig, *, both_paddings: bool, say: Callable[[str], None]):
    if exact.why_not(config):
        return
    configs = [config]
    if both_paddings:
        if config.padding == "same":
            configs.append(replace(config, padding="valid", fit="error"))
        else:
            configs.append(replace(config, padding="same", fit="error"))
    for each in configs:
        for rung in exact.RUNGS:
            row = exact.prove(each, rung)
            say(f"  {rung.name}, padding={each.padding}: {row.outcome}")
            yield row


def _differences(who: str, found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{who}: {name} is {found.get(name, 'missing')}, not {expected.get(name, 'there')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def _refuse_infinite(tensors: Tensors) -> None:
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise InputError(
            f"the weights hold NaN or infinite values, in {bad[0]}"
            + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
            + "; nothing can be said of them: take an earlier checkpoint"
        )
