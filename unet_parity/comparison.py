"""Both twins on the same numbers, as a whole and module by module."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from unet_parity import fault, oracle
from unet_parity.decisions import count_flips, impose, read_decisions
from unet_parity.fault import Fault
from unet_parity.float32_errors import (
    GRADIENT_FACTOR,
    LOCAL_FACTOR,
    Gradient,
    Layer,
    compare_gradients,
    compare_layers,
)
from unet_parity.jax_net import match_modules
from unet_parity.jax_twin import JaxRun
from unet_parity.leaves import JaxLeaves, LeafResult, TorchLeaves
from unet_parity.oracle import Agreement
from unet_parity.recording import Recorder
from unet_parity.trace import Trace, trace_torch
from unet_parity.twins import Masks, Pass, is_small
from unet_parity.wiring import WiringProbe
from unet_spec import InputError, UNetConfig
from unet_spec.parameters import Tensors


@dataclass(frozen=True)
class Comparison:
    """The twins in one mode.

    Attributes:
        faults: modules of the port that differ in float64, the first at fault first.
        flips: ReLUs and pools that fell the other way than in float64, in torch and in JAX.
        outputs: of the whole nets.
        problems: all that is out of bounds, in words, the first fault first.
    """

    agreement: Agreement
    layers: tuple[Layer, ...]
    gradients: tuple[Gradient, ...]
    faults: tuple[Fault, ...]
    flips: tuple[int, int]
    outputs: "Outputs"
    problems: tuple[str, ...]


class Outputs(NamedTuple):
    """The logits of both nets; NaN from a net that does not run as a whole.

    Attributes:
        torch64: in float64; likewise the others.
    """

    torch64: np.ndarray
    torch32: np.ndarray
    jax64: np.ndarray
    jax32: np.ndarray


@dataclass(frozen=True)
class Numbers:
    """What both twins are given; maps are (b, c, h, w)."""

    tensors: Tensors
    x: np.ndarray
    cotangent: np.ndarray
    keep: Masks = (None, None)


@dataclass(frozen=True)
class _Instruments:
    """The three ways to look at JAX's net, in one type of numbers."""

    recorder: Recorder
    wiring: WiringProbe
    leaves: JaxLeaves


class Comparer:
    """Compares one net with itself, compiled once for many weights and inputs of one size.

    Args:
        train: with batch statistics and dropout, and not in inference.
        precision: of JAX's products.
        quick: as of `jax_twin.compile_jax`.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        train: bool,
        precision: str = "highest",
        quick: bool = True,
    ):
        self.config, self.train = config, train
        self.precision, self.quick = precision, quick
        self._instruments: dict[str, _Instruments] = {}
        self._whole: JaxRun | None = None

    def __call__(
        self, numbers: Numbers, *, say: Callable[[str], None] = lambda text: None
    ) -> Comparison:
        """Compare both twins in float64 and float32.

        Raises:
            InputError: numbers that say nothing.
        """
        mode = "training" if self.train else "inference"
        say(f"  {mode}: torch in float64, the truth")
        truth = self._trace_torch(numbers, "float64")
        _refuse_dead(truth)
        say(f"  {mode}: every module of JAX by itself in float64")
        faults, local64 = self._find_faults(numbers, truth)
        try:
            return self._compare_all(numbers, mode, truth, local64, faults, say)
        except (TypeError, ValueError):
            if not faults:
                raise
            ours = self._trace_torch(numbers, "float32").result
            return _report_broken_net(mode, truth, ours, faults)

    def _run_whole(self, numbers: Numbers) -> Pass:
        """Run JAX's net in float64."""
        if self._whole is None:
            self._whole = JaxRun(self.config, dtype="float64", train=self.train, quick=self.quick)
        return self._whole(numbers.tensors, numbers.x, numbers.cotangent, keep=numbers.keep)

    def faults(self, numbers: Numbers) -> tuple[Fault, ...]:
        """Find the modules of the port that differ in float64, the first at fault first."""
        return self._find_faults(numbers, self._trace_torch(numbers, "float64"))[0]

    def _find_faults(
        self, numbers: Numbers, truth: Trace
    ) -> tuple[tuple[Fault, ...], dict[str, LeafResult | None]]:
        """Find what is at fault; return every leaf of the port by itself too."""
        instruments = self._instruments_for(truth, "float64")
        local = instruments.leaves.run(numbers.tensors, truth.calls, backward=True)
        wiring = instruments.wiring.probe(
            numbers.tensors, truth.calls, numbers.x, numbers.cotangent, keep=numbers.keep
        )
        faults = fault.find_faults(
            self.config, numbers.tensors, truth, wiring, local, train=self.train
        )
        return faults, local

    def _compare_all(
        self,
        numbers: Numbers,
        mode: str,
        truth: Trace,
        local64: dict[str, LeafResult | None],
        faults: tuple[Fault, ...],
        say: Callable[[str], None],
    ) -> Comparison:
        given = numbers.tensors, numbers.x, numbers.cotangent
        say(f"  {mode}: JAX in float64")
        port = self._run_whole(numbers)
        say(f"  {mode}: both in float32, forward and backward")
        ours = self._trace_torch(numbers, "float32")
        instruments = self._instruments_for(truth, "float32")
        theirs = instruments.recorder.record(*given, keep=numbers.keep)
        agreement = oracle.measure_agreement(
            truth.result, port, ours.result, theirs.result, mode=mode
        )
        right, *runs = (read_decisions(truth.calls, run.maps) for run in (truth, ours, theirs))
        turned = [count_flips(right, run) for run in runs]
        decided = [
            self._trace_torch(numbers, "float64", decided=run).result if turn else truth.result
            for run, turn in zip(runs, turned, strict=True)
        ]
        say(f"  {mode}: every module by itself in float32")
        local = self._run_leaves(numbers, truth, instruments.leaves)
        layers = compare_layers(truth, ours, theirs, local, local64, (turned[0], turned[1]))
        gradients = compare_gradients(
            truth,
            (ours.result, decided[0]),
            (theirs.result, decided[1]),
            agreement.input_gradient,
            agreement.gradients,
        )
        first, second = (sum(turn.values()) for turn in turned)
        return Comparison(
            agreement,
            layers,
            gradients,
            faults,
            (first, second),
            Outputs(truth.result.output, ours.result.output, port.output, theirs.result.output),
            (*map(str, faults[:1]), *_describe_outliers(layers, gradients), *agreement.problems),
        )

    def _trace_torch(
        self, numbers: Numbers, dtype: str, decided: dict[str, np.ndarray] | None = None
    ) -> Trace:
        return trace_torch(
            self.config,
            numbers.tensors,
            numbers.x,
            numbers.cotangent,
            dtype=dtype,
            train=self.train,
            keep=numbers.keep,
            replace=None if decided is None else impose(decided),
        )

    def _instruments_for(self, truth: Trace, dtype: str) -> _Instruments:
        if dtype not in self._instruments:
            net = match_modules(
                self.config, truth.calls, dtype=dtype, train=self.train, precision=self.precision
            )
            self._instruments[dtype] = _Instruments(
                Recorder(net, quick=self.quick),
                WiringProbe(net, quick=self.quick),
                JaxLeaves(net, quick=self.quick),
            )
        return self._instruments[dtype]

    def _run_leaves(
        self, numbers: Numbers, truth: Trace, leaves: JaxLeaves
    ) -> dict[str, tuple[np.ndarray, np.ndarray, LeafResult | None]]:
        """Run every leaf in float64, torch and JAX on the truth's input, rounded to float32 for
        all."""
        inputs = {
            path: tuple(m.astype(np.float32) for m in call.inputs)
            for path, call in truth.leaves.items()
        }
        theirs = leaves.run(numbers.tensors, truth.calls, inputs=inputs, backward=False)
        exact, ours = (self._torch_leaves(numbers, dtype) for dtype in ("float64", "float32"))
        return {
            path: (
                exact.run(call, inputs=inputs[path]),
                ours.run(call, inputs=inputs[path]),
                theirs[path],
            )
            for path, call in truth.leaves.items()
        }

    def _torch_leaves(self, numbers: Numbers, dtype: str) -> TorchLeaves:
        return TorchLeaves(self.config, numbers.tensors, dtype=dtype, train=self.train)


def compare_twins(
    config: UNetConfig,
    tensors: Tensors,
    *,
    train: bool,
    seed: int = 0,
    x: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Comparison:
    """Compare the twins on one input, once.

    Args:
        x: the input, (b, in_channels, h, w); a random one, by `seed`, without it.
        options: of `Comparer`.
    """
    numbers = draw_numbers(config, tensors, seed=seed, x=x)
    comparer = Comparer(config, train=train, quick=is_small(numbers.x), **options)
    return comparer(numbers, say=say)


def draw_numbers(
    config: UNetConfig,
    tensors: Tensors,
    *,
    seed: int = 0,
    x: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> Numbers:
    """Draw what a comparison needs beside the tensors.

    Args:
        x: the input, (b, in_channels, h, w); a random one without it.
        size: (height, width) of a random input; small ones without it.
    """
    if x is None:
        return Numbers(tensors, *oracle.random_input(config, seed=seed, size=size))
    size, batch = (x.shape[2], x.shape[3]), len(x)
    _, cotangent, keep = oracle.random_input(config, seed=seed, size=size, batch=batch)
    return Numbers(tensors, x, cotangent, keep)


def _report_broken_net(
    mode: str, truth: Trace, ours: Pass, faults: tuple[Fault, ...]
) -> Comparison:
    """Report on a port that does not run as a whole: nothing but its fault is known."""
    nothing = np.full_like(truth.result.output, np.nan)
    empty = replace(truth.result, output=nothing)
    return Comparison(
        oracle.measure_agreement(truth.result, empty, truth.result, empty, mode=mode),
        (),
        (),
        faults,
        (0, 0),
        Outputs(truth.result.output, ours.output, nothing, nothing),
        (str(faults[0]), "JAX's net does not run as a whole"),
    )


def _refuse_dead(truth: Trace) -> None:
    output = truth.result.output
    if np.ptp(output) == 0 or not truth.result.input_gradient.any():
        raise InputError(
            "the net gives the same output whatever its input is (every value "
            f"{output.flat[0]:.3g}): nothing can be said of it with this input and these weights; "
            "give another image, or the weights of a trained net"
        )


def _describe_outliers(
    layers: tuple[Layer, ...], gradients: tuple[Gradient, ...]
) -> tuple[str, ...]:
    """Describe the first module and the first gradient whose float32 is out of line."""
    problems = [
        f"{layer.name}: in float32, by itself, JAX is {layer.local_ratio:.3g} times as far from "
        f"float64 as torch, {LOCAL_FACTOR:g} allowed"
        for layer in layers
        if not layer.holds
    ][:1]
    problems += [
        f"the gradient of {gradient.name}: in float32 JAX is {gradient.ratio:.3g} times as far "
        f"from float64 as torch, {GRADIENT_FACTOR:g} allowed"
        for gradient in gradients
        if not gradient.holds
    ][:1]
    return tuple(problems)
