"""Every module of the twins by its path: what goes in, what comes out, forward and backward.

The reference's paths (`down_1.conv.conv.0`) are looked up in the port, so no list is kept by
hand: a path that only one of them has ends the comparison. Everything is numpy in torch's layout.

Three ways to look at the port: `recorded` runs it as it is; `wired` replaces every leaf by the
reference's own numbers, so that only crops, concatenations and the order of calls are left;
`local` feeds one leaf with the reference's own input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn

from unet_jax.functional import to_arrays, with_arrays
from unet_jax.layers import Numerics
from unet_jax.model import UNet as JaxUNet
from unet_parity.twins import (
    Masks,
    Pass,
    compiled,
    nchw,
    nhwc,
    numpy_of,
    statistic,
    torch_model,
    torch_run,
    wide,
)
from unet_spec import InputError, UNetConfig, layout
from unet_spec.parameters import Tensors, parameters

Maps = tuple[np.ndarray, ...]
Place = tuple[str, str]  # path of a module, `input` or `output`
OUTPUT: Place = ("", "output")  # the net's
Replace = Callable[[str, nn.Module, tuple[Any, ...]], Tensor | None]


@dataclass(frozen=True)
class Call:
    """One call of one module; maps are (b, c, h, w).

    Attributes:
        kind: class of torch's module.
        leaf: no modules in it, so it computes; the others only pass maps on.
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
        return {path: call for path, call in self.calls.items() if call.leaf}


def torch_trace(
    config: UNetConfig,
    tensors: Tensors,
    x: np.ndarray,
    cotangent: np.ndarray,
    *,
    dtype: str = "float32",
    train: bool = False,
    keep: Masks = (None, None),
    reference: nn.Module | None = None,
    replace: Replace | None = None,
) -> Trace:
    """A pass through the reference, recorded; the arguments of `torch_pass`.

    Args:
        reference: a module with the same names, in place of `unet_torch.UNet`.
        replace: `replace(path, module, inputs)` gives a leaf's output in its stead, or None.

    Raises:
        InputError: a module that is called twice: its path then names no single call.
    """
    model = torch_model(config, tensors, dtype=dtype, train=train, reference=reference)
    calls: dict[str, _Hooked] = {}
    for path, module in model.named_modules():
        if path:
            _Hooked(path, module, calls, replace)
    try:
        result = torch_run(model, x, cotangent, keep)
    except (RuntimeError, TypeError) as error:
        if reference is None:
            raise
        raise InputError(f"the reference does not run: {error}; mend it, or its config") from error
    arrays: dict[tuple[int, torch.Size], np.ndarray] = {}
    return Trace(result, {path: call.finished(arrays) for path, call in calls.items()})


class _Hooked:
    """The hooks of one module, and the tensors that they saw."""

    def __init__(
        self, path: str, module: nn.Module, calls: dict[str, "_Hooked"], replace: Replace | None
    ):
        self.path, self.module, self.calls, self.replace = path, module, calls, replace
        self.leaf = not list(module.children())
        self.inputs: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.outputs: list[Tensor] = []
        self.gradients: dict[tuple[str, int], Tensor] = {}
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.path in self.calls:
            raise InputError(
                f"the reference calls {self.path} twice, so its layers cannot be matched one to "
                "one; give every call a module of its own"
            )
        self.calls[self.path] = self
        passed: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.is_floating_point():
                # a view of its own, so that its gradient is that through this module alone
                argument = argument.view_as(argument)
                self._watch("input", len(self.inputs), argument)
                self.inputs.append(argument)
            elif argument is None or isinstance(argument, Tensor):
                self.masks.append(argument)
            passed.append(argument)
        return tuple(passed)

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if self.leaf and self.replace is not None:
            other = self.replace(self.path, module, arguments)
            output = output if other is None else other
        # views here too: what is used inside the module as well would count twice
        self.outputs = [t.view_as(t) for t in (output if isinstance(output, tuple) else (output,))]
        for position, tensor in enumerate(self.outputs):
            self._watch("output", position, tensor)
        return tuple(self.outputs) if isinstance(output, tuple) else self.outputs[0]

    def _watch(self, side: str, position: int, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.register_hook(partial(self.gradients.__setitem__, (side, position)))

    def finished(self, arrays: dict[tuple[int, torch.Size], np.ndarray]) -> Call:
        """What was seen; a gradient that never came is zero.

        Args:
            arrays: by their place in memory: what one module gives, the next one takes, and the
                modules around them see it too.
        """

        def array(tensor: Tensor) -> np.ndarray:
            place = tensor.data_ptr(), tensor.shape
            return arrays.setdefault(place, tensor.detach().numpy())

        def gradients(side: str, tensors: list[Tensor]) -> Maps:
            return tuple(
                array(self.gradients[side, i])
                if (side, i) in self.gradients
                else np.zeros(tensor.shape, array(tensor).dtype)
                for i, tensor in enumerate(tensors)
            )

        return Call(
            path=self.path,
            kind=type(self.module).__name__,
            leaf=self.leaf,
            inputs=tuple(map(array, self.inputs)),
            masks=tuple(None if m is None else m.numpy() for m in self.masks),
            outputs=tuple(map(array, self.outputs)),
            input_gradients=gradients("input", self.inputs),
            cotangents=gradients("output", self.outputs),
        )


@dataclass(frozen=True)
class Wiring:
    """What arrived where.

    Attributes:
        order: the places in the order of arrival, as far as it came.
        arrived: values; none if a map of another shape stopped the pass.
        gradients: likewise.
    """

    order: tuple[Place, ...]
    arrived: dict[Place, Maps]
    gradients: dict[Place, Maps]


@dataclass(frozen=True)
class Local:
    """What one leaf of the port made of given inputs."""

    output: np.ndarray
    input_gradients: Maps
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


class Port:
    """The JAX net with the paths of the reference; compiled once for many weights.

    Args:
        calls: of a trace of the reference.
        quick: as of `twins.compiled`.

    Raises:
        InputError: a path of the reference that the port does not have.
    """

    def __init__(
        self,
        config: UNetConfig,
        calls: Mapping[str, Call],
        *,
        dtype: str,
        train: bool,
        precision: Any = "highest",
        quick: bool = True,
    ):
        self.config, self.dtype, self.train = config, dtype, train
        self.paths = {path: call.leaf for path, call in calls.items()}
        self.order: list[Place] = []
        with self._exactly():
            numerics = Numerics(jnp.dtype(dtype), jnp.dtype(dtype), precision)
            self.net = nnx.eval_shape(lambda: JaxUNet(config, numerics=numerics, rngs=nnx.Rngs(0)))
        unmatched = [path for path in calls if _found(self.net, path) is None]
        if unmatched:
            raise InputError(
                f"the reference's layers cannot be matched: the port has no {unmatched[0]}"
                + (f" and {len(unmatched) - 1} more" if len(unmatched) > 1 else "")
                + "; name the reference's modules as unet_torch does (down_1.conv.conv.0 ...)"
            )
        self._record = compiled(self._recorded, dtype, quick=quick)
        self._wire = compiled(self._wired, dtype, quick=quick, static_argnums=0)
        self._locals = compiled(self._apart, dtype, quick=quick)

    def recorded(
        self, tensors: Tensors, x: np.ndarray, cotangent: np.ndarray, *, keep: Masks = (None, None)
    ) -> tuple[Pass, dict[str, tuple[Maps, Maps]]]:
        """A compiled pass, and the inputs and outputs of every module."""
        with self._exactly():
            output, stats, seen, gradients, input_gradient = self._record(
                *self._arrays(tensors), self._array(x), self._array(cotangent), self._masks(keep)
            )
            result = Pass(
                nchw(wide(output)),
                nchw(wide(input_gradient)),
                layout.to_torch(self.config, wide(gradients)),
                layout.to_torch(self.config, wide(stats)),
            )
            return result, _as_maps(seen)

    def wired(
        self,
        tensors: Tensors,
        calls: Mapping[str, Call],
        x: np.ndarray,
        cotangent: np.ndarray,
        *,
        keep: Masks = (None, None),
    ) -> Wiring:
        """A pass in which every leaf gives the reference's output and input gradient, whatever
        comes in: what arrives between them is the work of crops, concatenations and calls.

        Gradients come from taps, zeros that are added to every input and output: the sum of
        <output, cotangent> and of <a leaf's input, its input gradient> has as its gradient by a
        tap what would arrive there.
        """
        with self._exactly():
            shapes = {
                (path, side): tuple(_nhwc_shape(m) for m in maps)
                for path, call in calls.items()
                for side, maps in (("input", call.inputs), ("output", call.outputs))
            }
            shapes[OUTPUT] = (_nhwc_shape(cotangent),)
            leaves = {path: call for path, call in calls.items() if call.leaf}
            array = self._once()
            outputs = {path: tuple(map(array, c.outputs)) for path, c in leaves.items()}
            pulls = {path: tuple(map(array, c.input_gradients)) for path, c in leaves.items()}
            values = outputs, pulls, self._array(x), self._array(cotangent), self._masks(keep)
            try:
                gradients, arrived = self._wire(
                    tuple(shapes.items()), *self._arrays(tensors), *values
                )
            except (TypeError, ValueError):
                return Wiring(tuple(self.order), {}, {})
            return Wiring(tuple(self.order), _as_maps(arrived), _as_maps(gradients))

    def local(
        self,
        tensors: Tensors,
        calls: Mapping[str, Call],
        *,
        inputs: Mapping[str, Maps] | None = None,
        backward: bool,
    ) -> dict[str, Local | None]:
        """Every leaf by itself, on the inputs of `calls` or those given; None where it refuses
        their shape."""
        leaves = {path: call for path, call in calls.items() if call.leaf}
        given = {path: call.inputs for path, call in leaves.items()} if inputs is None else inputs
        with self._exactly():
            array = self._once()
            found = self._locals(
                *self._arrays(tensors),
                {path: tuple(map(array, maps)) for path, maps in given.items()},
                {path: tuple(map(self._mask, call.masks)) for path, call in leaves.items()},
                {p: array(c.cotangents[0]) for p, c in leaves.items() if backward},
            )
            return {path: self._as_local(result) for path, result in found.items()}

    def _recorded(self, params, stats, x, cotangent, masks):
        def forward(params, x):
            seen: dict[str, Any] = {}

            def watch(path: str, module: Callable[..., Any], *arguments: Any) -> Any:
                output = module(*arguments)
                seen[path] = _maps(arguments), _maps(output)
                return output

            output, new_stats = self._run(watch, {**params, **stats}, x, masks)
            return output, (new_stats, seen)

        output, pull, (new_stats, seen) = jax.vjp(forward, params, x, has_aux=True)
        return output, new_stats, seen, *pull(cotangent)

    def _wired(self, shapes, *values):
        taps = {place: tuple(jnp.zeros(shape, self.dtype) for shape in of) for place, of in shapes}
        return jax.grad(self._pulled, has_aux=True)(taps, *values)

    def _pulled(self, taps, params, stats, outputs, pulls, x, cotangent, masks):
        self.order.clear()
        arrived: dict[Place, tuple[jax.Array, ...]] = {}
        total = jnp.zeros((), x.dtype)

        def arrive(place: Place, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            self.order.append(place)
            arrived[place] = maps
            if [m.shape for m in maps] != [tap.shape for tap in taps[place]]:
                raise ValueError("a map of another shape")
            return tuple(m + tap for m, tap in zip(maps, taps[place], strict=True))

        def watch(path: str, module: Callable[..., Any], *arguments: Any) -> Any:
            nonlocal total
            inputs = arrive((path, "input"), _maps(arguments))
            if path in outputs:
                for value, gradient in zip(inputs, pulls[path], strict=True):
                    total = total + (value * gradient).sum()
                output: Any = outputs[path]
            else:
                rest = iter(inputs)
                output = module(*(next(rest) if _is_map(a) else a for a in arguments))
            result = arrive((path, "output"), _maps(output))
            return result if len(result) > 1 else result[0]

        logits, _ = self._run(watch, {**params, **stats}, x, masks)
        (logits,) = arrive(OUTPUT, (logits,))
        return total + (logits * cotangent).sum(), arrived

    def _apart(self, params, stats, inputs, masks, cotangents):
        """Output, statistics and, where there is a cotangent, gradients of every leaf."""

        model = self._model({**params, **stats})

        def alone(path: str) -> Any:
            leaf = _found(model, path)
            held = to_arrays(leaf) if isinstance(leaf, nnx.Module) else {}
            trained = {n: a for n, a in held.items() if f"{path}.{n}" in params}

            def run(trained, maps):
                filled = with_arrays(leaf, {**held, **trained}) if held else leaf
                output = filled(*maps, *masks[path])
                after = to_arrays(filled) if held else {}
                return output, {f"{path}.{n}": a for n, a in after.items() if n not in trained}

            try:
                if path not in cotangents:
                    return *run(trained, inputs[path]), {}, ()
                output, pull, new_stats = jax.vjp(run, trained, inputs[path], has_aux=True)
                if output.shape != cotangents[path].shape:
                    return output, new_stats, {}, ()
                gradients, input_gradients = pull(cotangents[path])
                named = {f"{path}.{n}": gradient for n, gradient in gradients.items()}
                return output, new_stats, named, input_gradients
            except (TypeError, ValueError):
                return None

        return {path: alone(path) for path in inputs}

    def _as_local(self, result: Any) -> Local | None:
        if result is None:
            return None
        output, stats, gradients, input_gradients = result
        return Local(
            _as_maps(output),
            _as_maps(input_gradients),
            layout.to_torch(self.config, wide(gradients)),
            wide(stats),
        )

    def _arrays(self, tensors: Tensors) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        arrays = layout.to_jax(self.config, tensors)
        trained = {p.name for p in parameters(self.config) if p.trained}
        return (
            {n: jnp.asarray(a, self.dtype) for n, a in arrays.items() if n in trained},
            {n: statistic(a, self.dtype) for n, a in arrays.items() if n not in trained},
        )

    def _model(self, arrays: dict[str, jax.Array]) -> JaxUNet:
        model = with_arrays(self.net, arrays)
        if self.train:
            model.train()
        else:
            model.eval()
        return model

    def _run(
        self, watch: Callable[..., Any], arrays: dict[str, jax.Array], x: jax.Array, masks: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Output and statistics of the net with `watch(path, module, ...)` around each module."""
        model = self._model(arrays)
        stats = {p.name for p in parameters(self.config) if not p.trained}
        modules = {path: _found(model, path) for path in self.paths}
        for path, module in modules.items():
            _put(modules, model, path, partial(watch, path, module))
        output = model(x, masks)
        for path, module in modules.items():
            _put(modules, model, path, module)
        return output, {n: a for n, a in to_arrays(model).items() if n in stats}

    def _exactly(self):
        return jax.enable_x64(self.dtype == "float64")

    def _array(self, maps: np.ndarray) -> jax.Array:
        return jnp.asarray(nhwc(maps), self.dtype)

    def _once(self) -> Callable[[np.ndarray], jax.Array]:
        """`_array`, which moves an array that comes again only once."""
        moved: dict[int, jax.Array] = {}
        return lambda maps: moved.setdefault(id(maps), self._array(maps))

    def _masks(self, keep: Masks) -> list[jax.Array | None]:
        return [self._mask(mask) for mask in keep]

    def _mask(self, mask: np.ndarray | None) -> jax.Array | None:
        return None if mask is None else jnp.asarray(nhwc(mask))


class TorchLocal:
    """Single leaves of the reference, on inputs that are given."""

    def __init__(
        self,
        config: UNetConfig,
        tensors: Tensors,
        *,
        dtype: str,
        train: bool,
        reference: nn.Module | None = None,
    ):
        self.model = torch_model(config, tensors, dtype=dtype, train=train, reference=reference)
        self.dtype = getattr(torch, dtype)

    @torch.no_grad()
    def output(self, call: Call, *, inputs: Maps) -> np.ndarray:
        """The output of one leaf."""
        masks = [None if m is None else torch.tensor(m) for m in call.masks]
        maps = [torch.tensor(m, dtype=self.dtype) for m in inputs]
        return numpy_of(self.model.get_submodule(call.path)(*maps, *masks))


def _as_maps(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a).transpose(0, 3, 1, 2), tree)


def _nhwc_shape(maps: np.ndarray) -> tuple[int, ...]:
    b, c, h, w = maps.shape
    return b, h, w, c


def _found(model: nnx.Module, path: str) -> Any:
    """The module or function of the port at a path; None if there is none."""
    here: Any = model
    for name in path.split("."):
        if isinstance(here, nnx.Sequential):
            here = here.layers[int(name)] if int(name) < len(here.layers) else None
        else:
            here = getattr(here, name, None)
    return here


def _put(modules: dict[str, Any], model: nnx.Module, path: str, value: Any) -> None:
    above, _, name = path.rpartition(".")
    parent = modules[above] if above else model
    if isinstance(parent, nnx.Sequential):
        parent.layers[int(name)] = value
    else:
        setattr(parent, name, value)


def _is_map(argument: Any) -> bool:
    return isinstance(argument, jax.Array) and jnp.issubdtype(argument.dtype, jnp.floating)


def _maps(arguments: Any) -> tuple[jax.Array, ...]:
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    return tuple(a for a in arguments if _is_map(a))
