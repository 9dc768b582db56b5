"""Somebody's own torch module and JAX's net as a pair.

Their code says how the net computes, our tensors with what.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from unet_jax.functional import functional, split
from unet_jax.layers import Numerics
from unet_parity import oracle
from unet_parity.bounds import OUTPUT_BOUND
from unet_parity.differences import difference
from unet_parity.pair.matched_port import match_port
from unet_parity.pair.procedure import (
    RECIPE,
    SEEDS,
    compare_pair,
    compare_seed,
    make_comparers,
    run_given,
)
from unet_parity.pair.reference import copy_without_dropout, open_reference
from unet_parity.pair.report import MOST_REASONS, PairReport
from unet_parity.torch_twin import numpy_of, torch_model
from unet_spec import InputError, UNetConfig, geometry, layout
from unet_spec.origin import Origin
from unet_spec.outputs import apply_output
from unet_spec.parameters import Tensors, parameters
from unet_spec.wording import list_names
from unet_torch.reference import find_prefix, take_output

COUNT = "num_batches_tracked"  # a tensor that files of an old torch do not have
SIDES = (64, 96, 128, 256, 512)  # sizes to try, in pixels, where a module does not take small ones


@dataclass(frozen=True, eq=False)
class OwnNet:
    """A module of somebody's own, with our tensors in it.

    Attributes:
        module: without dropout, because what two frameworks draw at random is not the same.
        tensors: ours, by our names.
        names: (the module's name, our name) of every tensor; tied tensors have several of theirs.
    """

    config: UNetConfig
    module: nn.Module
    tensors: Tensors
    names: tuple[tuple[str, str], ...]

    @torch.no_grad()
    def run(self, x: np.ndarray, *, train: bool = False) -> np.ndarray:
        """Return what the module gives for a batch (b, in_channels, h, w) in float64.

        Raises:
            InputError: it raises an error, or gives anything but one tensor.
        """
        model = deepcopy(self.module).to(torch.float64).train(train)
        try:
            output = model(torch.tensor(x, dtype=torch.float64))
        except Exception as error:  # whatever a stranger's code raises
            raise InputError(
                f"the reference does not run on {x.shape[2]} x {x.shape[3]} pixels: "
                f"{type(error).__name__}: {error}; mend it, or name a size that it takes with "
                "--size"
            ) from error
        return numpy_of(take_output(output))

    def convert(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the module's tensors as those of JAX's net, under our names."""
        named = {ours: np.asarray(state[theirs]) for theirs, ours in reversed(self.names)}
        return layout.to_jax(self.config, {**self.tensors, **named})

    def explain_no_training(self, x: np.ndarray) -> str:
        """Say why the module cannot be compared in training; empty if it can."""
        try:
            with torch.random.fork_rng(devices=[]):
                first, second = (self.run(x, train=True) for _ in range(2))
        except InputError:  # in training many nets give several outputs, or want the truth too
            return "it does not run as in inference"
        return "" if np.array_equal(first, second) else "it drops values at random"


def match_module(
    config: UNetConfig, module: nn.Module, tensors: Tensors, origin: Origin | None
) -> OwnNet:
    """Put our tensors into a copy of somebody's module, under its own names.

    Args:
        origin: of the tensors; without it the module has our names.

    Raises:
        InputError: the module's tensors are not those of the net, by name and shape.
    """
    state = module.state_dict()
    pairs = [(p.name, p.name) for p in parameters(config)] if origin is None else list(origin.names)
    names = _match_names(list(state), pairs)
    misshaped = [
        f"{theirs} {tuple(state[theirs].shape)} instead of {tensors[ours].shape}"
        for theirs, ours in names
        if tuple(state[theirs].shape) != tensors[ours].shape
    ]
    if misshaped:
        raise InputError(
            f"the reference's tensors have other shapes than the weights: "
            f"{list_names(misshaped, 4)}; give its constructor the arguments of these weights"
        )
    copy = copy_without_dropout(module)
    filled = {theirs: torch.tensor(tensors[ours]) for theirs, ours in names}
    copy.load_state_dict({**copy.state_dict(), **filled}, strict=True)
    _tie(copy, names)
    return OwnNet(config, copy, tensors, names)


def _match_names(own: list[str], pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return (the module's name, our name) of every tensor of the module.

    Names in a file may have a prefix that the module does not have (`module.`), or the reverse.
    """
    ours = dict(pairs)
    to_file = {name: f"{find_prefix(own, list(ours))}{name}" for name in own}
    if not any(name in ours for name in to_file.values()):
        prefix = find_prefix(list(ours), own)
        to_file = {name: name.removeprefix(prefix) for name in own}
    missing = [name for name in ours if name not in to_file.values()]
    unexpected = [name for name, of_file in to_file.items() if of_file not in ours]
    problems = [
        f"{sentence} {list_names(names, 4)}"
        for sentence, names in (
            ("it has no", [n for n in missing if not n.endswith(COUNT)]),
            ("the weights have no", [n for n in unexpected if not n.endswith(COUNT)]),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"the reference does not have the tensors of these weights: {'; '.join(problems)}; "
            "name the class of these weights, and give its constructor their arguments"
        )
    return tuple((name, ours[of_file]) for name, of_file in to_file.items() if of_file in ours)


def _tie(module: nn.Module, names: tuple[tuple[str, str], ...]) -> None:
    """Make one parameter of those that are one of ours, as their file has them."""
    first: dict[str, nn.Parameter] = {}
    for theirs, ours in names:
        part, _, name = theirs.rpartition(".")
        own = getattr(module.get_submodule(part), name)
        if isinstance(own, nn.Parameter):
            setattr(module.get_submodule(part), name, first.setdefault(ours, own))


def choose_size(own: OwnNet, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return a size, (height, width), that the net here and somebody's module both take.

    Args:
        size: the only one that is tried; without it small ones, and then larger ones.

    Raises:
        InputError: none, with the error of the module.
    """
    config = own.config
    sizes = [size] if size else [_small_size(config)]
    if not size:
        sizes += [(s, s) for s in SIDES if geometry.is_legal(config, s) and s > sizes[0][0]]
    refusal: InputError | None = None
    for height, width in sizes:
        try:
            own.run(np.zeros((2, config.in_channels, height, width)))
        except InputError as error:
            refusal = refusal or error
        else:
            return height, width
    assert refusal is not None
    raise refusal


def _small_size(config: UNetConfig) -> tuple[int, int]:
    height, width = oracle.random_input(config, seed=0, batch=1)[0].shape[2:]
    return height, width


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
        sentences = ". ".join([*self.pair.reasons[:MOST_REASONS], self.pair.compared])
        return f"your module and JAX's net: {self.pair.verdict}. {sentences}"

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
        ends_in_training = trains and _ends_in_training(own, x)
        net = make_port(own.config, precision=precision, ends_in_training=ends_in_training)
        port = match_port(
            reference, net if trains else partial(_run_inference, net), inputs, outputs,
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


def make_port(config: UNetConfig, *, precision: str, ends_in_training: bool) -> Callable[..., Any]:
    """Return JAX's net as the port of a pair: a function of (params, x).

    Args:
        ends_in_training: the function at its end (`config.output`) is there in training too.
    """
    config = replace(config, dropout=0.0)

    def run(params: Mapping[str, jax.Array], x: jax.Array, train: bool = False) -> Any:
        numerics = Numerics(x.dtype, x.dtype, precision)
        trained, stats = split(config, params)
        result = functional(config, numerics=numerics).apply(trained, x, stats, train=train)
        logits, moved = result if train else (result, stats)
        if config.output == "logits" or (train and not ends_in_training):
            output = logits
        else:
            output = (
                jax.nn.sigmoid(logits) if config.output == "sigmoid" else jax.nn.softmax(logits)
            )
        return (output, {**trained, **moved}) if train else output

    return run


def _run_inference(net: Callable[..., Any], params: Any, x: jax.Array) -> Any:
    return net(params, x)


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
