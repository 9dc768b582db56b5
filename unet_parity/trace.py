"""Every module of the reference by its path: what goes in and comes out, forward and backward.

Everything is numpy in torch's layout. What the port does with the same numbers is in three files:
`recording` runs it as it is, `wiring` looks at what lies between its leaves, `leaves` at each leaf
alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unet_parity.torch_twin import run_module, torch_model
from unet_parity.twins import Masks, Pass
from unet_spec import UNetConfig
from unet_spec.parameters import Tensors

Maps = tuple[np.ndarray, ...]  # each (b, c, h, w)
Place = tuple[str, str]  # path of a module, `input` or `output`
OUTPUT: Place = ("", "output")  # the net's
Replace = Callable[[str, nn.Module, tuple[Any, ...]], Tensor | None]


class ModuleMaps(NamedTuple):
    """What went into a module and what came out of it."""

    inputs: Maps
    outputs: Maps


@dataclass(frozen=True)
class Call:
    """One call of one module; maps are (b, c, h, w).

    Attributes:
        kind: class of torch's module.
        leaf: it computes; the others hold modules, and only pass maps on.
        masks: of dropout, as given.
        input_gradients: through this module alone.
        cotangents: gradients by the outputs, of all that use them outside of this module.
    """

    path: str
    kind: str
    leaf: bool
    inputs: Maps
    masks: tuple[np.ndarray | None, ...]
    outputs: Maps
    input_gradients: Maps
    cotangents: Maps


@dataclass(frozen=True)
class Trace:
    """A pass, and every call in it, in the order in which they began."""

    result: Pass
    calls: dict[str, Call]

    @property
    def leaves(self) -> dict[str, Call]:
        """The calls that compute."""
        return select_leaves(self.calls)

    @property
    def maps(self) -> dict[str, ModuleMaps]:
        """The maps around every module, by its path."""
        return {path: ModuleMaps(call.inputs, call.outputs) for path, call in self.calls.items()}


def select_leaves(calls: Mapping[str, Call]) -> dict[str, Call]:
    """Return the calls of modules that hold no others."""
    return {path: call for path, call in calls.items() if call.leaf}


def trace_torch(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    cotangent: np.ndarray,
    *,
    dtype: str = "float32",
    train: bool = False,
    keep: Masks = (None, None),
    replace: Replace | None = None,
) -> Trace:
    """Record a pass through the reference; the arguments are those of `torch_pass`.

    Args:
        replace: `replace(path, module, inputs)` gives a leaf's output in its stead, or None.
    """
    model = torch_model(config, tensors, dtype=dtype, train=train)
    hooks = Hooks(replace)
    for path, module in model.named_modules():
        if path:
            hooks.add(path, module)
    return Trace(run_module(model, x, cotangent, keep), hooks.read_calls())


class Hooks:
    """Hooks on modules, which see what goes in and comes out, forward and backward.

    Args:
        replace: as of `trace_torch`.
    """

    def __init__(self, replace: Replace | None):
        self.replace = replace
        self.calls: dict[str, _Hooked] = {}

    def add(self, path: str, module: nn.Module) -> None:
        """Watch a module."""
        _Hooked(path, module, self)

    def read_calls(self) -> dict[str, Call]:
        """Return what the hooks saw, in the order in which the calls began."""
        views = _SharedViews()
        return {path: hooked.to_call(views) for path, hooked in self.calls.items()}


class _SharedViews:
    """numpy views of tensors, one for each place in memory: what one module gives the next one
    takes, and the modules around them see it too."""

    def __init__(self) -> None:
        self._views: dict[tuple[int, torch.Size], np.ndarray] = {}

    def view(self, tensor: Tensor) -> np.ndarray:
        place = tensor.data_ptr(), tensor.shape
        if place not in self._views:
            self._views[place] = tensor.detach().numpy()
        return self._views[place]


class _Hooked:
    """The hooks of one module, and the tensors that they saw."""

    def __init__(self, path: str, module: nn.Module, hooks: Hooks):
        self.path, self.module, self.hooks = path, module, hooks
        self.leaf = not list(module.children())
        self.inputs: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.outputs: list[Tensor] = []
        self.gradients: dict[tuple[str, int], Tensor] = {}
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.hooks.calls[self.path] = self
        passed: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.is_floating_point():
                # a tensor of its own, so that its gradient is that through this module alone
                argument = argument.view_as(argument)
                self._watch("input", len(self.inputs), argument)
                self.inputs.append(argument)
            elif argument is None or isinstance(argument, Tensor):
                self.masks.append(argument)
            passed.append(argument)
        return tuple(passed)

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if self.leaf and self.hooks.replace is not None:
            other = self.hooks.replace(self.path, module, arguments)
            output = output if other is None else other
        # here too: what is used inside the module as well would count twice
        parts = [t.view_as(t) for t in (output if isinstance(output, tuple) else (output,))]
        for position, tensor in enumerate(parts):
            self._watch("output", position, tensor)
        self.outputs = parts
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    def _watch(self, side: str, position: int, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.register_hook(partial(self.gradients.__setitem__, (side, position)))

    def to_call(self, views: _SharedViews) -> Call:
        """Return what the hooks saw, as numpy; a gradient that never came is zero."""
        return Call(
            path=self.path,
            kind=type(self.module).__name__,
            leaf=self.leaf,
            inputs=tuple(map(views.view, self.inputs)),
            masks=tuple(None if mask is None else mask.numpy() for mask in self.masks),
            outputs=tuple(map(views.view, self.outputs)),
            input_gradients=self._gradients_of("input", self.inputs, views),
            cotangents=self._gradients_of("output", self.outputs, views),
        )

    def _gradients_of(self, side: str, tensors: list[Tensor], views: _SharedViews) -> Maps:
        gradients = []
        for position, tensor in enumerate(tensors):
            gradient = self.gradients.get((side, position))
            if gradient is None:
                gradients.append(np.zeros_like(views.view(tensor)))
            else:
                gradients.append(views.view(gradient))
        return tuple(gradients)
