"""Weight files read a second time, by nothing of this project and by no reader that it uses.

Whoever compares wants a witness of its own: json and numpy for safetensors, zipfile and pickle with
stand-ins for what `torch.save` wrote. A file that contradicts itself is refused.
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

_OF_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf", "I64": "i8", "I32": "i4", "I16": "i2",
    "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?", "C64": "c8",
}  # fmt: skip
_OF_TORCH = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bf", "int64": "i8",
    "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?", "complex64": "c8",
    "complex128": "c16", "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2",
    "BFloat16Storage": "bf", "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2",
    "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?", "UntypedStorage": "u1",
    "ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16",
}  # fmt: skip
# two names of one module: protocol 2 has that of Python 2
_PLAIN = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("set", "complex", "bytearray")
} | {"collections.Counter", "argparse.Namespace", "torch.device", "torch.Size", "_codecs.encode"}
_BEHIND = 2**26  # bytes that tensors may take beside four times their file
_MOST_VALUES = 4_000_000


class NotConsistentError(Exception):
    """A file contradicts itself: a checksum, a length, a name that stands twice."""


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file by name; bfloat16 as float32.

    Raises:
        NotConsistentError: the file contradicts itself, or has a type that numpy does not.
    """
    try:
        return _read_safetensors(path.read_bytes())
    except Exception as error:  # damaged bytes bring anything up
        raise NotConsistentError(f"{path}: {error!r}") from error


def read_torch(path: Path) -> dict[str, np.ndarray] | None:
    """Return the tensors of a file of `torch.save`, by the keys of their dicts with dots between.

    bfloat16 is returned as float32. None stands for a file that holds more than tensors and plain
    values.

    Raises:
        NotConsistentError: the file contradicts itself, or is none of `torch.save`.
    """
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            content, values = (_read_zip if is_zip else _read_legacy)(stream)
        tensors = list(_list_tensors(content))
        names = [name for name, _ in tensors]
        _require(len({*names}) == len(names), "two tensors have one name")
        most = 4 * path.stat().st_size + _BEHIND
        _require(sum(math.prod(t.shape) * t.itemsize for _, t in tensors) <= most, "it repeats")
        return {name: _view(tensor, values) for name, tensor in tensors}
    except _MoreThanTensorsError:
        return None
    except Exception as error:  # damaged bytes bring anything up
        raise NotConsistentError(f"{path}: {error!r}") from error


class _MoreThanTensorsError(Exception):
    """A pickle names a class or a function that is not known here."""


class _Storage(NamedTuple):
    key: str
    kind: str
    numel: int
    offset: int = 0  # of the view that the old format can have


class _Tensor(NamedTuple):
    storage: _Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return _size(self.kind)


class _Value:
    """A `_Value` stands for a plain value that is no tensor, such as a number of numpy's."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Python's own class, because the one written in C takes memory for whatever place a PUT names
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _OF_TORCH:
            return _OF_TORCH[name]
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return OrderedDict
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
                return lambda storage, *rest: _Tensor(storage, storage.kind, *rest[:3])
            case "torch._utils._rebuild_tensor_v3":
                return lambda storage, *rest: _Tensor(storage, rest[5], *rest[:3])
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return lambda tensor, *rest: tensor
        if module.partition(".")[0] == "numpy" or f"{module}.{name}" in _PLAIN:
            return _Value
        raise _MoreThanTensorsError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, key, _, numel, *view = pid
        _require(word == "storage", "a persistent id of another kind")
        if view and view[0] is not None:
            _, offset, size = view[0]
            _require(0 <= offset <= offset + size <= numel, "a view larger than its storage")
            return _Storage(str(key), kind, numel, offset)
        return _Storage(str(key), kind, numel)


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    size = int.from_bytes(content[:8], "little")
    _require(8 + size <= len(content), "it ends within its header")
    header = json.loads(content[8 : 8 + size], object_pairs_hook=_make_dict)
    header.pop("__metadata__", None)
    data, at, tensors = content[8 + size :], 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        kind, shape = _OF_SAFETENSORS[entry["dtype"]], entry["shape"]
        _require(begin == at and end <= len(data), f"{name} lies elsewhere")
        _require(end - begin == math.prod(shape) * _size(kind), f"{name} has another length")
        tensors[name] = _make_values(data[begin:end], kind).reshape(shape)
        at = end
    _require(at == len(data), "bytes that belong to no tensor")
    return tensors


def _make_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    _require(len(content) == len(pairs), "a name stands twice")
    return content


def _read_zip(stream: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    """Return the content with stand-ins for its tensors, and the bytes of its storages."""
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        _require(len({*names}) == len(names), "two entries have one name")
        most = 4 * stream.seek(0, 2) + _BEHIND
        _require(sum(entry.file_size for entry in entries) <= most, "it inflates")
        if not any(entry.CRC for entry in entries):  # torch can leave them all out
            for entry in entries:
                del entry.CRC
        _require(archive.testzip() is None, "a CRC-32 differs")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            _require(archive.read(f"{folder}byteorder") == b"little", "another byte order")
        data = f"{folder}data/"
        values = {n.removeprefix(data): archive.read(n) for n in names if n.startswith(data)}
        with archive.open(pickled) as file:
            return _Unpickler(file).load(), values


def _read_legacy(stream: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    """Return the same of the format before torch 1.6: five pickles, and the storages behind."""
    magic, protocol, system, content, keys = (_Unpickler(stream).load() for _ in range(5))
    _require(magic == 0x1950A86A20F9469CFC6C and protocol == 1001, "another magic number")
    _require(system["little_endian"] is True, "another byte order")
    storages = {tensor.storage.key: tensor.storage for _, tensor in _list_tensors(content)}
    _require({*keys} == storages.keys() and len({*keys}) == len(keys), "other storages")
    values = {}
    for key in keys:
        numel = int.from_bytes(stream.read(8), "little")
        _require(numel == storages[key].numel, f"{key} has another length")
        values[key] = stream.read(numel * _size(storages[key].kind))
    return content, values


def _list_tensors(content: Any) -> Iterator[tuple[str, _Tensor]]:
    """List the tensors in dicts and lists, in their order."""
    waiting: list[tuple[str, Any]] = [("", content)]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        place, value = waiting.pop()
        if isinstance(value, _Tensor):
            yield place, value
        elif isinstance(value, dict | list | tuple) and not isinstance(value, _Storage):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            waiting += [(f"{place}.{key}" if place else str(key), v) for key, v in items[::-1]]
    raise ValueError("its dicts and lists name one another too often")


def _view(tensor: _Tensor, values: dict[str, bytes]) -> np.ndarray:
    """Return the values of a tensor as an array of its own."""
    storage, shape, stride = tensor.storage, tensor.shape, tensor.stride
    size = _size(tensor.kind)
    data = values[storage.key]
    _require(len(data) >= storage.numel * _size(storage.kind), "a storage that is cut short")
    _require(min([tensor.offset, *shape, *stride]) >= 0, "a negative size")
    if 0 in shape:
        return np.zeros(shape, _make_values(b"", tensor.kind).dtype)
    begin = storage.offset * _size(storage.kind) + tensor.offset * size
    numel = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    _require(begin + numel * size <= len(data), "a tensor outside its storage")
    flat = _make_values(data[begin : begin + numel * size], tensor.kind)
    strides = [s * flat.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(flat, shape, strides).copy()


def _size(kind: str) -> int:
    return 2 if kind == "bf" else np.dtype(kind).itemsize


def _make_values(data: bytes, kind: str) -> np.ndarray:
    """Return bytes as values of a type; a bfloat16 is the upper half of a float32."""
    if kind == "bf":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).copy()


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(what)
