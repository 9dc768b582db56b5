"""Somebody's own torch module under our names, with our tensors in it.

Their code says how the net computes, our tensors with what.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from unet_parity import oracle
from unet_parity.pair.reference import copy_without_dropout
from unet_parity.torch_twin import numpy_of
from unet_spec import InputError, UNetConfig, geometry, layout
from unet_spec.origin import Origin
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
