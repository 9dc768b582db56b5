"""Somebody's own torch module under our names: loaded strictly, its layers traced.

Their code says how the net computes, our tensors with what. The layers that hold tensors are found
through the names of these. Whatever else the net does, in modules or in its code (activations,
pools, concatenations), lies between such layers.
"""

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.differences import module_of
from unet_parity.torch_twin import gradient_of, numpy_of
from unet_parity.trace import Hooks, Trace
from unet_parity.twins import Pass
from unet_spec import InputError, UNetConfig
from unet_spec.origin import Origin
from unet_spec.parameters import Tensors, parameters
from unet_spec.wording import list_names
from unet_torch.model import UNet
from unet_torch.reference import find_prefix, take_output

Arrays = dict[str, np.ndarray]
LAST = "out"  # our path of the layer that gives the logits
COUNT = "num_batches_tracked"  # a tensor that files of an old torch do not have


@dataclass(frozen=True, eq=False)
class OwnModule:
    """A module of somebody's own, with our tensors in it, in float64.

    Attributes:
        names: (the module's name, our name) of every tensor; tied tensors have several of theirs.
        layers: our path of every layer that can be compared alone, and the module's own paths of
            it: it has more than one where a tensor is in the module twice.
    """

    config: UNetConfig
    module: nn.Module
    names: tuple[tuple[str, str], ...]
    layers: Mapping[str, tuple[str, ...]]

    def label(self, path: str) -> str:
        """Name a layer: as the module does, and as we do if that is another name."""
        return _name_both(self.layers[path][0], path)

    def label_tensor(self, name: str) -> str:
        """Name a tensor likewise."""
        return _name_both(next((t for t, ours in self.names if ours == name), name), name)

    @torch.no_grad()
    def run(self, x: np.ndarray, *, dtype: str, train: bool = False) -> np.ndarray:
        """Return what the module gives for a batch (b, in_channels, h, w).

        Raises:
            InputError: it raises an error, or gives anything but one tensor.
        """
        kind = getattr(torch, dtype)
        model = deepcopy(self.module).to(kind).train(train)
        return numpy_of(_call(model, torch.tensor(x, dtype=kind)))

    def is_random(self, x: np.ndarray, *, train: bool) -> bool:
        """Say whether two runs on one batch differ, as those of a dropout do."""
        with torch.random.fork_rng(devices=[]):
            first, second = (self.run(x, dtype="float64", train=train) for _ in range(2))
        return not np.array_equal(first, second)

    def trace(self, x: np.ndarray, cotangent: np.ndarray, *, train: bool) -> "OwnTrace":
        """Record a pass in float64, forward and backward.

        Args:
            cotangent: the gradient of the loss by what the module gives, of the shape of the
                logits; where the module gives another shape, its numbers are repeated.

        Raises:
            InputError: the module does not run, or calls a layer twice.
        """
        model = deepcopy(self.module).requires_grad_().train(train)
        hooks = Hooks(copies=True)
        for path, theirs in self.layers.items():
            # one module under two names is one module
            for layer in {id(m): m for m in map(model.get_submodule, theirs)}.values():
                hooks.add(path, layer, leaf=True, name=theirs[0])
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        # a copy, which the module may change in place
        output = _call(model, leaf.clone())
        output.backward(torch.tensor(np.resize(cotangent, output.shape), dtype=torch.float64))
        calls = hooks.read_calls()
        whole = numpy_of(output)
        logits = calls[LAST].outputs[0] if LAST in calls else whole
        gradients, statistics = self._read_tensors(model)
        result = Pass(logits, gradient_of(leaf), gradients, statistics)
        return OwnTrace(Trace(result, calls), whole)

    def _read_tensors(self, model: nn.Module) -> tuple[Arrays, Arrays]:
        """Return the gradients and the statistics after a pass, under our names."""
        trained = {p.name for p in parameters(self.config) if p.trained}
        held: dict[str, Tensor] = {}
        held.update(model.named_parameters(remove_duplicate=False))
        held.update(model.named_buffers(remove_duplicate=False))
        tensors: dict[str, dict[int, Tensor]] = defaultdict(dict)
        for theirs, ours in self.names:
            tensors[ours][id(held[theirs])] = held[theirs]
        gradients, statistics = {}, {}
        for ours, copies in tensors.items():
            if ours in trained:
                # of tied tensors that are two in the module, each has its share of the gradient
                gradients[ours] = np.sum([gradient_of(t) for t in copies.values()], axis=0)
            else:
                statistics[ours] = numpy_of(next(iter(copies.values())))
        order = [p.name for p in parameters(self.config)]
        return (
            {name: gradients[name] for name in order if name in gradients},
            {name: statistics[name] for name in order if name in statistics},
        )


def _name_both(theirs: str, ours: str) -> str:
    return theirs if theirs == ours else f"{theirs} (ours: {ours})"


@dataclass(frozen=True)
class OwnTrace:
    """A pass through somebody's own module.

    Attributes:
        trace: of its layers, whose result ends in the logits.
        output: what the module gives; behind the logits there may be a function.
    """

    trace: Trace
    output: np.ndarray


def match_module(
    config: UNetConfig, module: nn.Module, tensors: Tensors, origin: Origin | None
) -> OwnModule:
    """Put our tensors into a copy of somebody's module, under its own names.

    Args:
        origin: of the tensors; without it the module has our names.

    Raises:
        InputError: the module's tensors are not those of the net, by name and shape.
    """
    state = module.state_dict()
    names = _match_names(list(state), _list_pairs(config, origin))
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
    copy = deepcopy(module).to(torch.float64)
    filled = {theirs: torch.tensor(tensors[ours]) for theirs, ours in names}
    copy.load_state_dict({**copy.state_dict(), **filled}, strict=True)
    layers = {
        ours: theirs
        for ours, theirs in _find_layers(config, names).items()
        if _pads_alike(config, ours, copy.get_submodule(theirs[0]))
    }
    return OwnModule(config, copy, names, layers)


def _pads_alike(config: UNetConfig, path: str, layer: nn.Module) -> bool:
    """Say whether a layer pads as ours does; if not, the code around it may do that, so that the
    layer alone says nothing."""
    with torch.device("meta"):
        ours = UNet(config).get_submodule(path)
    if not (isinstance(ours, nn.Conv2d) and isinstance(layer, nn.Conv2d)):
        return True
    padding = ours.padding if layer.padding == "same" else layer.padding
    return padding == ours.padding


def _list_pairs(config: UNetConfig, origin: Origin | None) -> list[tuple[str, str]]:
    """List (their name, our name) of every tensor, as their file has them."""
    if origin is None:
        return [(p.name, p.name) for p in parameters(config)]
    return list(origin.names)


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


def _find_layers(
    config: UNetConfig, names: tuple[tuple[str, str], ...]
) -> dict[str, tuple[str, ...]]:
    """Find the modules that hold exactly the tensors of one of our layers.

    A layer whose tensors lie in a larger module, whose code computes with them, is not found.
    """
    held: dict[str, set[str]] = defaultdict(set)  # our names of all tensors in a module
    for theirs, ours in names:
        parts = theirs.split(".")[:-1]
        for depth in range(len(parts)):
            held[".".join(parts[: depth + 1])].add(ours)
    ours_of: dict[str, set[str]] = defaultdict(set)
    for parameter in parameters(config):
        if parameter.kind != "count":
            ours_of[module_of(parameter.name)].add(parameter.name)
    layers: dict[str, tuple[str, ...]] = {}
    for theirs, _ in names:
        path = module_of(theirs)
        inside = {name for name in held[path] if not name.endswith(COUNT)}
        for ours, expected in ours_of.items():
            if inside == expected:
                layers[ours] = tuple(dict.fromkeys((*layers.get(ours, ()), path)))
    return layers


def _call(model: nn.Module, x: Tensor) -> Tensor:
    try:
        output = model(x)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise InputError(
            f"the reference does not run on {size} pixels in {str(x.dtype).removeprefix('torch.')}:"
            f" {type(error).__name__}: {error}; mend it, or name a size that it takes with --size"
        ) from error
    return take_output(output)
