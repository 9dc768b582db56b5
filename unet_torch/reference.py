"""Somebody's own torch module, built from their file: its tensors, and what it gives.

This is the only place where code of a user is run, and only code that the user names.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_spec import InputError, UNetConfig
from unet_spec.parameters import Tensors, check_tensors
from unet_spec.wording import list_names
from unet_torch.hidden import watch_modules


@dataclass(frozen=True)
class Original:
    """An `Original` is somebody's own module with the tensors of their file.

    Attributes:
        module: in inference mode and in float64.
        names: of its tensors in the file, in the order in which its layers are called.
        parameters: of its trained parameters in the file, in the order in which an optimizer
            numbers them.
        has_dropout: it draws random numbers in training.
    """

    module: nn.Module
    names: tuple[str, ...]
    parameters: tuple[str, ...]
    has_dropout: bool


def build_original(place: str, arguments: str, tensors: Tensors, *, source: str) -> Original:
    """Return the module that FILE.py:NAME gives, with the tensors of a file.

    Args:
        tensors: by their names in the file; what is not the module's stays out.

    Raises:
        InputError: as `build` and `load`.
    """
    prefix, module = load(build(place, arguments), tensors, place=place, source=source)
    own = {prefix + name for name in module.state_dict()}
    return Original(
        module,
        tuple(sort_by_calls(module, prefix, [name for name in tensors if name in own])),
        tuple(prefix + name for name, _ in module.named_parameters()),
        has_dropout(module),
    )


def build(place: str, arguments: str = "") -> nn.Module:
    """Return the torch module that FILE.py:NAME gives; the file is run.

    NAME is a module, or a class or function that gives one. The file may import its neighbours,
    also relatively, as a part of the package that its folder is. Weights that it draws are the same
    each time.

    Args:
        arguments: of the call, as Python writes them: `3, 2, bilinear=False`.

    Raises:
        InputError: no such file or name, an error in it, or what it gives is no module.
    """
    path, name = _split_place(place, example="--reference net.py:UNet")
    positional, named = _parse_arguments(arguments)
    try:
        with _importing(path) as module:
            made = _find_name(module, name, place=place, others=_list_modules(module))
            if not isinstance(made, nn.Module):
                _check_call(place, made, positional, named)
                made = made(*positional, **named)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's file raises
        raise InputError(f"{place}: {type(error).__name__}: {error}; mend the file") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{place}: it gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def load_name(place: str, *, flag: str) -> Any:
    """Return what FILE.py:NAME is; the file is run.

    Args:
        flag: that names it.

    Raises:
        InputError: no such file or name, or an error in it.
    """
    path, name = _split_place(place, example=f"{flag} net.py:name")
    try:
        with _importing(path) as module:
            return _find_name(module, name, place=place, others=_list_own(module))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's file raises
        raise InputError(f"{place}: {type(error).__name__}: {error}; mend the file") from error


def _split_place(place: str, *, example: str) -> tuple[Path, str]:
    """Return the file and the name of FILE.py:NAME.

    Raises:
        InputError: there is no such file.
    """
    file, _, name = place.rpartition(":")
    if file and not Path(file).is_file():
        raise InputError(f"{place}: there is no file {file}; name it: {example}")
    if not file:
        raise InputError(f"{place}: name a file and what it defines: {example}")
    return Path(file), name


def _find_name(module: Any, name: str, *, place: str, others: str) -> Any:
    made = getattr(module, name, None)
    if made is None:
        file = Path(place.rpartition(":")[0]).name
        raise InputError(f"{place}: {file} defines no {name}{others}")
    return made


def check_names(module: nn.Module, config: UNetConfig, *, place: str) -> None:
    """Refuse a module that has not exactly the slides' names, with the shapes of this net.

    Raises:
        InputError: it names what is missing, unexpected or mis-shaped.
    """
    state = {n: np.broadcast_to(np.float32(0), t.shape) for n, t in module.state_dict().items()}
    check_tensors(config, state, source=place)


def load(module: nn.Module, tensors: Tensors, *, place: str, source: str) -> tuple[str, nn.Module]:
    """Return the prefix of a file's names, and a copy of a module that holds its tensors.

    The copy is in inference mode and in float64. The load is strict: the module's own names,
    behind one prefix, must all be in the file with their shapes. What the file holds without that
    prefix stays out.

    Raises:
        InputError: they are not; it names what is missing, unexpected or mis-shaped.
    """
    names = list(module.state_dict())
    prefix = find_prefix(names, tensors)
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    # an old torch had no counts of batches; torch itself takes them as 0
    missing = [n for n in expected if n not in own and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in own if name not in expected]
    misshaped = [
        f"{name} {own[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in own and own[name].shape != shape
    ]
    outside = [n for n, t in tensors.items() if t.ndim == 4 and not n.startswith(prefix)]
    outside = [n for n in outside if not any(n.endswith(f".{name}") for name in expected)]
    if outside and not missing:
        raise InputError(
            f"{source}: {place} is only a part of its net, without {list_names(outside, 3)}; name "
            "the class of the whole net"
        )
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    if any(kinds.values()):
        listed = "; ".join(f"{kind}: {list_names(n, 4)}" for kind, n in kinds.items() if n)
        raise InputError(
            f"{source}: {place} does not load it strictly ({listed}); name the class of these "
            "weights, and with --reference-arguments the numbers that it was built with"
        )
    copy = deepcopy(module).double()  # which holds the values of every type
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in own.items()}
    copy.load_state_dict({**copy.state_dict(), **state}, strict=True)
    return prefix, copy.eval()


@torch.no_grad()
def run(
    module: nn.Module, x: np.ndarray, *, dtype: torch.dtype, in_training: bool = False
) -> np.ndarray | None:
    """Return what a module gives for a batch (b, c, h, w), or None if it takes no such size.

    Args:
        in_training: in training mode; the module itself stays as it is.

    Raises:
        InputError: it gives anything but one tensor.
    """
    copy = deepcopy(module).to(dtype).train(in_training)
    try:
        y = copy(torch.from_numpy(x).to(dtype))
    except Exception:  # whatever a stranger's net raises
        return None
    return take_output(y).numpy()


def take_output(output: Any) -> Tensor:
    """Return the one tensor that a module gives, also out of a list, a tuple or a dict.

    Raises:
        InputError: it gives anything else.
    """
    if isinstance(output, list | tuple) and len(output) == 1:
        output = output[0]
    if isinstance(output, Mapping) and len(output) == 1:
        output = next(iter(output.values()))
    if not isinstance(output, Tensor):
        raise InputError(
            f"the reference gives a {type(output).__name__}, and a U-Net here gives one tensor; "
            "wrap it in a module that returns that one"
        )
    return output


@torch.no_grad()
def sort_by_calls(module: nn.Module, prefix: str, names: Sequence[str]) -> list[str]:
    """Return the names of a module's tensors in the order in which its layers are called.

    People define layers in other orders than they run. A module that runs on no small image keeps
    its own order.

    Args:
        prefix: of the names.
    """
    copy, calls = deepcopy(module), dict[str, np.ndarray]()
    layers = {path: path for path, part in copy.named_modules() if path and part._parameters}
    watch_modules(copy, layers, calls)
    first = next(iter(copy.parameters()))
    # the first layer that is called need not be the first that is defined
    channels = dict.fromkeys(t.shape[1] for t in copy.parameters() if t.ndim == 4)
    for count, side in product(channels, (32, 64, 96, 160, 256)):
        calls.clear()
        try:
            copy(torch.zeros(1, count, side, side, dtype=first.dtype))
            break
        except Exception:  # whatever a stranger's net raises
            continue
    else:
        return list(names)
    places = {path: place for place, path in enumerate(calls)}
    last = len(places)
    return sorted(
        names,
        key=lambda name: places.get(name.removeprefix(prefix).rpartition(".")[0], last),
    )


@torch.no_grad()
def trace_convolutions(
    module: nn.Module, names: Sequence[tuple[str, str]], x: np.ndarray
) -> dict[str, np.ndarray]:
    """Return by our paths what the convolutions of a module give, in float64.

    Args:
        names: (their name, our name) of the tensors, theirs with a prefix.
        x: the input (b, in_channels, h, w).
    """
    held = module.state_dict()
    ours = {theirs: ours for theirs, ours in names if ours.endswith(".weight")}
    paths = {
        own.removesuffix(".weight"): path.removesuffix(".weight")
        for own in held
        for theirs, path in ours.items()
        if held[own].ndim > 1 and (theirs == own or theirs.endswith(f".{own}"))
    }
    copy, outputs = deepcopy(module).double(), dict[str, np.ndarray]()
    watch_modules(copy, paths, outputs)
    copy(torch.from_numpy(x).double())
    return outputs


def has_dropout(module: nn.Module) -> bool:
    """Say whether a module draws random numbers in training."""
    kinds = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    return any(isinstance(part, kinds) and part.p > 0 for part in module.modules())


@contextmanager
def _importing(path: Path) -> Iterator[Any]:
    """Import a file as Python would in its own project, and leave no trace of it on the disk.

    In the block torch draws the same numbers each time.
    """
    path = path.resolve()
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    if top == path.parent and _imports_relatively(path):
        top = top.parent  # a package without __init__.py
    name = ".".join([*path.parent.relative_to(top).parts, path.stem])
    folders = [str(top), str(path.parent)]
    # another module that has the name of one of theirs stands aside meanwhile
    neighbours = {file.stem for file in path.parent.glob("*.py")} | {name.partition(".")[0]}
    aside = {n: sys.modules.pop(n) for n in neighbours - {"torch", "numpy"} if n in sys.modules}
    before = set(sys.modules)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path[:0] = folders
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = writes
        for folder in folders:
            sys.path.remove(folder)
        for new in set(sys.modules) - before:
            origin = getattr(sys.modules[new], "__file__", None) or ""
            if origin.startswith(f"{path.parent}/") or new.partition(".")[0] in neighbours:
                del sys.modules[new]
        sys.modules.update(aside)


def _imports_relatively(path: Path) -> bool:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in nodes)


def _parse_arguments(arguments: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the values of a call's arguments; only constants are allowed."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or any(a.arg is None for a in call.keywords):
            raise ValueError(arguments)
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {str(a.arg): ast.literal_eval(a.value) for a in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"--reference-arguments {arguments!r}: write them as in a call, with plain values: "
            "'3, 2, bilinear=False'"
        ) from error
    return positional, named


def _check_call(place: str, made: Any, positional: list[Any], named: dict[str, Any]) -> None:
    """Refuse arguments that the class does not take, before its own code is run."""
    if not callable(made):
        kind = "Python module" if inspect.ismodule(made) else type(made).__name__
        raise InputError(f"{place}: it is a {kind}, not a torch.nn.Module")
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise InputError(
            f"{place}: {error}: it is {place.rpartition(':')[2]}{signature}; give them as "
            "--reference-arguments '3, 2'"
        ) from error


def _list_own(module: Any) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    return f"; it defines {list_names(names, 8)}" if names else ""


def _list_modules(module: Any) -> str:
    classes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    ]
    return f"; its modules: {list_names(classes, 8)}" if classes else ""


def find_prefix(names: Sequence[str], longer: Collection[str]) -> str:
    """Return what stands before most of some names in longer ones; the shortest of equals."""
    ends = {each[: -len(name)] for each in longer for name in names if each.endswith(name)}
    prefixes = sorted((p for p in ends if p.endswith(".") or not p), key=len) or [""]
    return max(prefixes, key=lambda prefix: sum(f"{prefix}{name}" in longer for name in names))
