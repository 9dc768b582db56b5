"""Somebody's own torch module and JAX's net, compared as any pair is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch

from unet_jax.functional import functional, split
from unet_jax.layers import Numerics
from unet_parity.bounds import OUTPUT_BOUND
from unet_parity.differences import difference
from unet_parity.own_net import OwnNet
from unet_parity.pair.matched_port import match_port
from unet_parity.pair.procedure import (
    RECIPE,
    SEEDS,
    compare_pair,
    compare_seed,
    make_comparers,
    run_given,
)
from unet_parity.pair.reference import open_reference
from unet_parity.pair.report import MOST_REASONS, PairReport
from unet_parity.torch_twin import numpy_of, torch_model
from unet_spec import InputError, UNetConfig
from unet_spec.outputs import apply_output


@dataclass(frozen=True)
class OwnReport:
    """What a comparison of somebody's own module with JAX's net found.

    Attributes:
        pair: the report on the two.
        to_torch: between the module and PyTorch's net here in float64, the largest relative
            difference of what they give in inference.
        no_training: why the module was not compared in training; empty if it was, or if training
            computes the same.
    """

    pair: PairReport
    to_torch: float
    no_training: str

    def __str__(self) -> str:
        """Say whether the two are the same net, and what was compared."""
        reasons = "; ".join(self.pair.reasons[:MOST_REASONS])
        return f"your module and JAX's net: {self.pair.verdict}; {reasons}. {self.pair.compared}"

    @property
    def modes(self) -> tuple[str, ...]:
        """Return in which modes the two were compared."""
        return tuple(dict.fromkeys(each.mode for each in self.pair.comparisons))

    def list_problems(self, *, has_fault: bool) -> list[str]:
        """Say what is wrong, with the first fault also which of three nets it is in.

        Args:
            has_fault: PyTorch's net here and JAX's differ.
        """
        net = self._name_net_at_fault(has_fault)
        if self.pair.verdict != "different":
            return [net] if net else []
        first, *others = [f"JAX's net beside your module: {reason}" for reason in self.pair.reasons]
        return [f"{first}; {net}" if net else first, *others]

    def _name_net_at_fault(self, has_fault: bool) -> str:
        """Say which of three nets differs from the two others; empty if that is not one."""
        if self.pair.verdict != "different":
            agree = "your module and JAX's net agree, so the fault is in PyTorch's net here"
            return agree if has_fault else ""
        if not has_fault:
            return (
                "PyTorch's net here and JAX's agree, so the difference is between your module and "
                "what the weight file says of it, or between your module and its own weights"
            )
        if self.to_torch <= OUTPUT_BOUND:
            return "your module and PyTorch's net here agree, so the fault is in JAX's net"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            **self.pair.to_json(),
            "to_torch": self.to_torch,
            "no_training": self.no_training,
        }


class OwnPair:
    """Somebody's module and JAX's net, ready to be compared.

    Args:
        x: a batch (b, in_channels, h, w).
        precision: of JAX's products.

    Raises:
        InputError: the module does not run, or draws random numbers in inference too.
    """

    def __init__(self, own: OwnNet, x: np.ndarray, *, precision: str = "highest"):
        self.own, self.x = own, x
        given, logits = own.run(x), _run_torch(own, x, train=False)
        if given.shape != logits.shape:
            raise InputError(
                f"the reference gives {given.shape} for an input of {x.shape}, and the net of "
                f"these weights gives {logits.shape}: their paddings or their classes differ; "
                "convert the weights with --reference, which finds out what the net is"
            )
        self.no_training = own.explain_no_training(x)
        reference, inputs = open_reference(own.module, [x])
        outputs = run_given(reference, inputs)
        trains = reference.has_statistics and not self.no_training
        net = _make_net(
            own.config, precision=precision, ends_in_training=trains and _ends_in_training(own, x)
        )
        # a port that takes no `train` is compared in inference alone
        port = match_port(
            reference, net if trains else lambda params, x: net(params, x), inputs, outputs,
            convert=own.convert, channels_last=True,
        )  # fmt: skip
        self.comparers, self.outputs = make_comparers(reference, port), tuple(outputs.values())
        self.to_torch = difference(given, apply_output(own.config, logits, axis=1))

    def compare(
        self,
        *,
        steps: int,
        other_sizes: bool = True,
        environment: Mapping[str, str] = {},
        say: Callable[[str], None] = lambda text: None,
    ) -> OwnReport:
        """Compare the two in every way in which a pair is compared.

        Args:
            steps: of training.
            other_sizes: compare the outputs at other sizes too.
            environment: as of `PairReport`.
        """
        pair = compare_pair(
            self.comparers, (self.x,), self.outputs, seeds=SEEDS, steps=steps, recipe=RECIPE,
            environment=environment, say=say, other_sizes=other_sizes,
        )  # fmt: skip
        return OwnReport(pair, self.to_torch, self.no_training)

    def name_first_difference(self) -> str:
        """Say where the module first does something else in inference; empty where it does not."""
        problems = compare_seed(self.comparers[0], (self.x,), self.outputs, seed=0).problems
        return problems[0] if problems else ""


def _make_net(config: UNetConfig, *, precision: str, ends_in_training: bool) -> Callable[..., Any]:
    """Return JAX's net as a function of (params, x, train).

    Args:
        ends_in_training: the function at its end (`config.output`) is there in training too.
    """
    config = replace(config, dropout=0.0)
    ends: dict[str, Callable[[jax.Array], jax.Array]] = {
        "logits": lambda logits: logits,
        "sigmoid": jax.nn.sigmoid,
        "softmax": jax.nn.softmax,
    }

    def run(params: Mapping[str, jax.Array], x: jax.Array, train: bool = False) -> Any:
        numerics = Numerics(x.dtype, x.dtype, precision)
        trained, stats = split(config, params)
        result = functional(config, numerics=numerics).apply(trained, x, stats, train=train)
        logits, moved = result if train else (result, stats)
        output = logits
        if ends_in_training or not train:
            output = ends[config.output](logits)
        return (output, {**trained, **moved}) if train else output

    return run


def _ends_in_training(own: OwnNet, x: np.ndarray) -> bool:
    """Say whether a module has its output function in training too; many have it in their loss."""
    if own.config.output == "logits":
        return True
    given, logits = own.run(x, train=True), _run_torch(own, x, train=True)
    ended = apply_output(own.config, logits, axis=1)
    return difference(given, ended) <= difference(given, logits)


def _run_torch(own: OwnNet, x: np.ndarray, *, train: bool) -> np.ndarray:
    """Return the logits of PyTorch's net here in float64."""
    config = replace(own.config, dropout=0.0)
    model = torch_model(config, own.tensors, dtype="float64", train=train)
    with torch.no_grad():
        return numpy_of(model(torch.tensor(x, dtype=torch.float64)))
