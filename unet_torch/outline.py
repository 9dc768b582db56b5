"""The outline of a pickle that `torch.save` wrote: what it would make, with nothing made or run.

A pickle is a program for a small stack machine. Here its steps are followed with stand-ins in the
place of tensors and objects, so that sizes are known before anything of that size is allocated.
"""

import io
import math
import mmap
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

from unet_spec import InputError

MOST_TENSORS = 20_000
"""A file has at most so many; a run of a U-Net of five levels has about three hundred."""
MOST_STEPS = 2_000_000
"""A pickle has at most so many; a plain number takes one and a tensor about forty."""
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}  # fmt: skip


class MoreThanTensorsError(ValueError):
    """A pickle asks for something that is neither a tensor nor a plain value."""


@dataclass(frozen=True)
class Storage:
    """A `Storage` is a run of bytes in the file, of which tensors are views.

    Attributes:
        key: its name in the file.
        itemsize: bytes of one value.
        numel: number of values.
    """

    key: str
    itemsize: int
    numel: int

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, eq=False)
class TensorOutline:
    """A `TensorOutline` says which values of a storage a tensor has.

    Attributes:
        itemsize: bytes of one value.
        offset: place of the first value in the storage, in values.
        stride: how many values lie from one index to the next, by axis.
    """

    storage: Storage
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Number of bytes that it takes as an array of its own."""
        return math.prod(self.shape) * self.itemsize

    @property
    def fits(self) -> bool:
        """Whether all of its values lie in its storage."""
        if not math.prod(self.shape):
            return True
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.itemsize <= self.storage.nbytes


@dataclass(frozen=True, eq=False)
class _Named:
    """A `_Named` stands for a class or a function that is not used here."""

    name: str


class _Object:
    """An `_Object` stands for what a class or a function would have made."""

    state: Any = None


def read_outline(stream: io.BytesIO | mmap.mmap) -> tuple[Any, list[Storage]]:
    """Follow one pickle, and return its stand-in for the object and the storages that it names.

    Dicts, lists, tuples and plain values are themselves; a tensor is a `TensorOutline`.

    Raises:
        MoreThanTensorsError: it names something else than tensors and plain values.
        Exception: its steps make no sense; what it is depends on the damage.
    """
    machine = _Machine()
    for count, (code, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if count > MOST_STEPS:
            raise InputError(f"its pickle has more than {MOST_STEPS:,} steps")
        machine.step(code.name, argument)
    (result,) = machine.stack
    return result, machine.storages


class _Machine:
    """A `_Machine` has the state of one pickle while it is followed."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # one stack for each open mark
        self.memo: dict[int, Any] = {}
        self.storages: list[Storage] = []

    def step(self, code: str, argument: Any) -> None:
        """Do one step of those that torch's own reader knows."""
        stack = self.stack
        match code:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINSTRING"
            ):  # fmt: skip
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(code[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items = self._close_mark()
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if code == "APPEND" else self._close_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(), stack.pop()][::-1] if code == "SETITEM" else []
                items = items or self._close_mark()
                self._top(dict).update(_make_items(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_find_global(argument.replace(" ", ".")))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self._find_storage(stack.pop()))
            case _:
                raise ValueError(f"a step {code}, which torch.save does not write")

    def _close_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _top(self, kind: type) -> Any:
        top = self.stack[-1]
        if not isinstance(top, kind):
            raise TypeError(f"{kind.__name__} is needed, got {type(top).__name__}")
        return top

    def _find_storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id; those of the old format have a view in them."""
        word, kind, key, _, numel, *view = identity
        if word != "storage" or not isinstance(kind, Storage) or type(key) is not str:
            raise MoreThanTensorsError("a persistent id of something else than a storage")
        storage = Storage(key, kind.itemsize, _check_size(numel))
        self.storages.append(storage)
        if len(self.storages) > MOST_TENSORS:
            raise InputError(f"it has more than {MOST_TENSORS:,} tensors")
        if view and view[0] is not None:
            _, offset, size = view[0]
            if _check_size(offset) + _check_size(size) > numel:
                raise ValueError("a view that is larger than its storage")
            return Storage(key, kind.itemsize, size)
        return storage


def _rebuild_tensor(
    storage: Storage, offset: Any, shape: Any, stride: Any, *others: Any
) -> TensorOutline:
    """Return the outline of a tensor; its type is that of its storage, or stands behind."""
    kinds = [other for other in others if isinstance(other, torch.dtype)]
    itemsize = kinds[0].itemsize if kinds else storage.itemsize
    sizes = [tuple(_check_size(size) for size in axis) for axis in (shape, stride)]
    if len(sizes[0]) != len(sizes[1]):
        raise ValueError("a tensor with another number of strides than axes")
    return TensorOutline(storage, itemsize, _check_size(offset), *sizes)


def _rebuild_parameter(tensor: TensorOutline, *others: Any) -> TensorOutline:
    return tensor


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, *state: Any) -> Any:
    """Return a tensor that had attributes of its own, without them."""
    return _call(function, arguments)


def _make_array(kind: Any, shape: Any, letter: Any) -> _Object:
    """Return an empty array, as numpy pickles them: the values come with its state."""
    if tuple(shape) != (0,):
        raise ValueError("an array that is not empty before its values come")
    return _Object()


def _make_object(*arguments: Any) -> _Object:
    made = _Object()
    made.state = arguments
    return made


def _make_items(pairs: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Return pairs of keys and values, if no key takes long to hash.

    A tuple that holds another one twice, which holds another one twice, and so on, is hashed as
    often as it is reached.
    """
    items = []
    for key, value in pairs:
        if isinstance(key, tuple) and any(isinstance(item, tuple) for item in key):
            raise ValueError("tuples in a tuple as a key")
        items.append((key, value))
    return items


def _make_dict(content: Any = ()) -> dict[Any, Any]:
    """Return what OrderedDict or Counter gives: Python 2 wrote its pairs as their argument."""
    return dict(_make_items(content.items() if isinstance(content, dict) else content))


def _make_set(content: Any) -> _Object:
    _make_items((item, None) for item in content)
    return _make_object(content)


def _make_bytes(*arguments: Any) -> _Object:
    """Return bytes that are written out; a number alone would ask for so many zeros."""
    if not (arguments and isinstance(arguments[0], str | bytes | _Object)):
        raise ValueError("bytes that are not written out")
    return _Object()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _make_dict,
    "collections.Counter": _make_dict,
    "builtins.set": _make_set,
    "builtins.complex": complex,
    "builtins.bytearray": _make_bytes,
    "_codecs.encode": _make_bytes,
    "torch.Size": tuple,
    "torch.device": _make_object,
    "torch.serialization._get_layout": _make_object,
    "numpy.dtype": _make_object,
    **{f"numpy.{core}.multiarray.scalar": _make_object for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _make_array for core in ("core", "_core")},
    "argparse.Namespace": _make_object,
}
_RENAMED = {"__builtin__": "builtins"}  # as Python 2 called it, and protocol 2 does


def _find_global(name: str) -> Any:
    """Return the stand-in for what a pickle names by its module and name.

    Raises:
        MoreThanTensorsError: it is no part of tensors and plain values.
    """
    module, _, last = name.rpartition(".")
    name = f"{_RENAMED.get(module, module)}.{last}"
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if module in ("torch", "torch.storage"):
        kind = getattr(torch, last, None)
        if isinstance(kind, torch.dtype):
            return kind
        if last == "UntypedStorage":
            return Storage("", 1, 0)
        if last in _STORAGES:
            return Storage("", _STORAGES[last].itemsize, 0)
    if name.startswith(("numpy.ndarray", "numpy.dtypes.")) or name in (
        "torch.nn.parameter.Parameter", "torch.Tensor",
    ):  # fmt: skip
        return _Named(name)
    raise MoreThanTensorsError(name)


def _call(function: Any, arguments: Any) -> Any:
    """Return the stand-in for what a function gives.

    Raises:
        MoreThanTensorsError: it is called by no file of `torch.save`.
    """
    if function not in _FUNCTIONS.values():
        raise MoreThanTensorsError(function.name if isinstance(function, _Named) else "a call")
    return function(*arguments)


def _check_size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a size that is a {type(value).__name__}, or below 0")
    return value
