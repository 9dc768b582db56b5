"""Files of weights that are made to do harm, or by programs that mean something else by them.

Each function writes one file of its kind, with sizes and places by chance, and returns its path.
All of them hold the tensors of a right net as far as their kind allows, so that reading gets far.
"""

import functools
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.damage import WRONG_VALUES, list_places, seal
from benchmarks.whole_files import draw_weights, write_weights

Rng = np.random.Generator
Maker = Callable[[Path, Rng], Path]
STEP = 2**20  # bytes of zeros that are compressed once and repeated


def draw_size(rng: Rng, low: float, high: float) -> int:
    """Draw a size between two powers of two, about as often of each order."""
    return int(2.0 ** rng.uniform(low, high))


def choose(rng: Rng, items: Any) -> Any:
    """Choose one item, as it is."""
    items = list(items)
    return items[int(rng.integers(len(items)))]


# what files are made of


@functools.cache
def read_whole() -> dict[str, bytes]:
    """Return the content of whole files of weights by their names."""
    with tempfile.TemporaryDirectory() as name:
        return {path.name: path.read_bytes() for path in write_weights(Path(name))}


def draw_state() -> dict[str, torch.Tensor]:
    """Return the tensors of a right net for torch."""
    return {name: torch.from_numpy(np.array(t)) for name, t in draw_weights().tensors.items()}


@dataclass
class Entry:
    """An `Entry` of a zip states what it likes of its size, its checksum and its place."""

    name: bytes
    data: bytes
    size: int | None = None
    stored: int | None = None
    method: int = 0
    crc: int | None = None
    flags: int = 0
    offset: int | None = None
    is_local: bool = True


def make_zip(entries: list[Entry], *, start: bytes = b"", comment: bytes = b"") -> bytes:
    """Return a zip of these entries."""
    body, directory = bytearray(start), bytearray()
    for entry in entries:
        size = len(entry.data) if entry.size is None else entry.size
        stored = len(entry.data) if entry.stored is None else entry.stored
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        offset = len(body) if entry.offset is None else entry.offset
        extra = b""
        if max(size, stored) >= 2**32:
            extra = struct.pack("<HHQQ", 1, 16, size % 2**64, stored % 2**64)
            size = stored = 2**32 - 1
        fields = (entry.flags, entry.method, 0, 0x21, crc, stored, size)
        lengths = (len(entry.name), len(extra))
        if entry.is_local:
            body += b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, *fields, *lengths)
            body += entry.name + extra + entry.data
        directory += b"PK\1\2" + struct.pack("<HHHHHHIIIHH", 20, 20, *fields, *lengths)
        directory += struct.pack("<HHHII", 0, 0, 0, 0, offset % 2**32) + entry.name + extra
    count, sizes = min(len(entries), 65535), (len(directory), len(body), len(comment))
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, *sizes)
    return bytes(body + directory + end + comment)


def list_entries(name: str = "weights.pt") -> list[Entry]:
    """List the entries of a right file of `torch.save`."""
    with zipfile.ZipFile(io.BytesIO(read_whole()[name])) as archive:
        return [Entry(e.filename.encode(), archive.read(e)) for e in archive.infolist()]


def find_entry(entries: list[Entry], end: str) -> Entry:
    """Return the entry whose name ends so."""
    return next(entry for entry in entries if entry.name.decode().endswith(end))


def deflate_zeros(size: int) -> bytes:
    """Compress very many zeros, quickly."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(STEP)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    return block * (size // STEP) + last.compress(bytes(size % STEP)) + last.flush()


@dataclass(frozen=True)
class _Storage:
    key: str
    numel: Any
    kind: Any = torch.FloatStorage


@dataclass
class View:
    """A `View` is pickled as the tensor that it states, which need not be there."""

    numel: Any = 4
    shape: Any = (4,)
    stride: Any = (1,)
    offset: Any = 0
    kind: Any = torch.FloatStorage
    data: bytes = bytes(16)


class _Pickler(pickle.Pickler):
    """Pickles as `torch.save` does, and views with what they state."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, 2)
        self.records: list[bytes] = []

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return "storage", value.kind, value.key, "cpu", value.numel
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            kinds = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}
            data = value.contiguous().numpy().tobytes()
            view = View(value.numel(), tuple(value.shape), value.stride(), 0, kinds[value.dtype])
            return self._reduce(view, data)
        if isinstance(value, View):
            return self._reduce(value, value.data)
        return NotImplemented

    def _reduce(self, view: View, data: bytes) -> Any:
        storage = _Storage(str(len(self.records)), view.numel, view.kind)
        self.records.append(data)
        parts: Any = (storage, view.offset, view.shape, view.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, parts


def make_pt(content: Any) -> list[Entry]:
    """Return the entries of a zip as `torch.save` writes it, of content that may hold views."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    records = [Entry(f"a/data/{i}".encode(), data) for i, data in enumerate(pickler.records)]
    return [Entry(b"a/data.pkl", stream.getvalue()), *records, Entry(b"a/version", b"3\n")]


def write_pt(folder: Path, content: Any) -> Path:
    """Write a zip as `torch.save` does, of content that may hold views."""
    return write(folder / "x.pt", make_zip(make_pt(content)))


def write_pickle(folder: Path, code: bytes) -> Path:
    """Write a zip of torch with another pickle in it."""
    entries = list_entries()
    find_entry(entries, "/data.pkl").data = code
    return write(folder / "x.pt", make_zip(entries))


def write(path: Path, content: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(content)
    return path


def write_safetensors(folder: Path, header: Any, data: bytes, *, end: bytes = b"") -> Path:
    """Write a safetensors file whose header may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data + end
    return write(folder / "x.safetensors", seal(content))


def open_safetensors(name: str = "weights.safetensors") -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a right file."""
    content = read_whole()[name]
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def choose_tensor(header: Mapping[str, Any], rng: Rng) -> dict[str, Any]:
    """Choose what a header says of one tensor."""
    return header[choose(rng, [name for name in header if name != "__metadata__"])]


# zips of torch


def inflating_entry(folder: Path, rng: Rng) -> Path:
    """An entry of a zip inflates to up to 8 GB, as its directory says, or says otherwise."""
    entries, size = list_entries(), draw_size(rng, 26, 33)
    entry = choose(rng, entries)
    entry.data, entry.method, entry.crc = deflate_zeros(size), 8, 0
    entry.size = choose(rng, [size, size, 16, len(entry.data)])
    return write(folder / "x.pt", make_zip(entries))


def false_sizes(folder: Path, rng: Rng) -> Path:
    """The directory of a zip states other sizes than its entries have."""
    entries = list_entries()
    for entry in entries[:: int(rng.integers(1, 6))]:
        size = choose(
            rng, [draw_size(rng, 0, 62), len(entry.data) + 1, max(0, len(entry.data) - 1)]
        )
        entry.size, entry.stored = size, choose(rng, [size, None])
    return write(folder / "x.pt", make_zip(entries))


def many_entries(folder: Path, rng: Rng) -> Path:
    """A zip has very many entries beside those of the net."""
    more = [Entry(b"a/data/x%d" % i, b"") for i in range(draw_size(rng, 8, 15.9))]
    return write(folder / "x.pt", make_zip([*list_entries(), *more]))


def overlapping_entries(folder: Path, rng: Rng) -> Path:
    """Many entries of a zip are the same large bytes."""
    data, entries = bytes(draw_size(rng, 16, 22)), list_entries()
    large = Entry(b"archive/data/large", data)
    same = [
        Entry(b"archive/data/y%d" % i, data, offset=0, is_local=False)
        for i in range(draw_size(rng, 4, 12))
    ]
    return write(folder / "x.pt", make_zip([large, *entries, *same]))


def entries_twice(folder: Path, rng: Rng) -> Path:
    """Two entries of a zip have one name, and other bytes."""
    entries = list_entries()
    entry = choose(rng, entries)
    other = bytes(b ^ 1 for b in entry.data)
    copy = Entry(entry.name, choose(rng, [other, entry.data, b""]))
    entries.insert(int(rng.integers(len(entries) + 1)), copy)
    return write(folder / "x.pt", make_zip(entries))


def strange_entries(folder: Path, rng: Rng) -> Path:
    """Entries are encrypted, of unknown methods, with paths that lead out, or of false CRC-32."""
    entries = list_entries()
    entry = choose(rng, entries)
    match int(rng.integers(5)):
        case 0:
            entry.flags = choose(rng, [1, 8, 0x40, 0x2000, 0x800, 0xFFFF])
        case 1:
            entry.method = int(rng.integers(1, 100))
        case 2:
            entry.name = choose(
                rng, [b"../../x", b"/etc/x", b"", b"a\0b", b"\xff\xfe", b"x" * 60000]
            )
        case 3:
            entry.crc = int(rng.integers(2**32))
        case _:
            entry.offset = choose(rng, [2**32 - 1, 0, 1, draw_size(rng, 0, 31)])
    return write(folder / "x.pt", make_zip(entries))


def junk_around(folder: Path, rng: Rng) -> Path:
    """Bytes stand before, behind or within the comment of a zip, or another zip behind it."""
    whole = make_zip(list_entries())
    junk = rng.bytes(draw_size(rng, 0, 16))
    other = make_zip([Entry(b"a/data.pkl", b"\x80\x02}.")])
    made = [junk + whole, whole + junk, make_zip(list_entries(), comment=junk[:65535]),
            whole + other, other + whole, make_zip(list_entries(), start=junk)]  # fmt: skip
    return write(folder / "x.pt", choose(rng, made))


def other_records(folder: Path, rng: Rng) -> Path:
    """The small records of a zip (version, byte order, ...) say something else."""
    entries = list_entries()
    small = [e for e in entries if b"/data" not in e.name] or entries
    entry = choose(rng, small)
    values = [b"", b"big", b"little", b"x", b"0", b"-1", b"9" * 5000, rng.bytes(64)]
    entry.data = choose(rng, values)
    if rng.random() < 0.2:
        entries.remove(entry)
    return write(folder / "x.pt", make_zip(entries))


def script_archive(folder: Path, rng: Rng) -> Path:
    """A zip is one of TorchScript, or of a package, with code in it."""
    names = [b"a/constants.pkl", b"a/code/__torch__.py", b"a/.data/extern_modules", b"a/model.json"]
    extra = [Entry(name, b"import os; os.system('touch run')") for name in names]
    entries = [*list_entries(), *extra[: int(rng.integers(1, 5))]]
    return write(folder / "x.pt", make_zip(entries))


# tensors that state something else


def huge_storage(folder: Path, rng: Rng) -> Path:
    """A storage states up to 2**63 values and has four."""
    size = draw_size(rng, 3, 63)
    view = View(numel=size, shape=choose(rng, [(4,), (size,)]))
    return write_pt(folder, {**draw_state(), "out.bias": view})


def repeated_values(folder: Path, rng: Rng) -> Path:
    """A tensor of strides 0 states up to 2**60 values, and repeats a few."""
    shape = tuple(draw_size(rng, 0, 20) for _ in range(int(rng.integers(1, 5))))
    view = View(shape=shape, stride=(0,) * len(shape))
    name = choose(rng, [*draw_state(), "more.weight"])
    return write_pt(folder, {**draw_state(), name: view})


def strange_strides(folder: Path, rng: Rng) -> Path:
    """Strides, offsets and shapes are huge, negative, of another length or of another type."""
    values: list[Any] = [-1, 0, 1, 2, 5, 2**31, 2**62, 2**63, 2**64, 2**200, True, 1.5, "1", None]
    view = View()
    for _ in range(int(rng.integers(1, 3))):
        name = choose(rng, ["numel", "offset", "shape", "stride"])
        wrong = choose(rng, values)
        if name in ("shape", "stride"):
            wrong = tuple(choose(rng, [*values[:5], wrong]) for _ in range(int(rng.integers(4))))
        setattr(view, name, wrong)
    return write_pt(folder, {**draw_state(), "out.bias": view})


def legal_views(folder: Path, rng: Rng) -> Path:
    """Tensors are right views: turned, overlapping, of one storage, or with an offset."""
    state = draw_state()
    one = torch.cat([t.flatten() for t in state.values() if t.dtype == torch.float32])
    at = 0
    for name, tensor in state.items():
        if tensor.dtype == torch.float32:
            state[name] = one[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
    name = choose(rng, [n for n, t in state.items() if t.ndim == 4])
    turned = state[name].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    state[name] = choose(rng, [turned, state[name][:1].expand(state[name].shape), state[name]])
    path = folder / "x.pt"
    torch.save(state, path, _use_new_zipfile_serialization=bool(rng.random() < 0.6))
    return path


def other_dtypes(folder: Path, rng: Rng) -> Path:
    """Some tensors are complex, of 8 or 16 bits, integers, bools, sparse, quantized or on meta."""
    kinds = ("complex64", "complex128", "complex32", "float8_e4m3fn", "float8_e5m2", "bfloat16",
             "float16", "float64", "bool", "uint8", "int8", "int16", "int32", "int64", "uint16",
             "uint32", "uint64")  # fmt: skip
    state = draw_state()
    names = list(state) if rng.random() < 0.3 else [choose(rng, state)]
    kind = getattr(torch, choose(rng, kinds))
    for name in names:
        state[name] = state[name].to(kind)
    last = choose(rng, state)
    match int(rng.integers(8)):
        case 0:
            state[last] = state[last].float().to_sparse()
        case 1:
            state[last] = torch.quantize_per_tensor(state[last].float(), 0.1, 0, torch.qint8)
        case 2:
            state[last] = state[last].to("meta")
    path = folder / "x.pt"
    torch.save(state, path, _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    return path


def not_finite(folder: Path, rng: Rng) -> Path:
    """One value is NaN, infinite, or no number of the smaller type in which it is written."""
    state = draw_state()
    name = choose(rng, [n for n, t in state.items() if t.dtype == torch.float32])
    kind = choose(rng, [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    wide = state[name].double()
    wide.view(-1)[0] = choose(rng, [float("nan"), float("inf"), -float("inf"), 1e300, 1e-42])
    state[name] = wide.to(kind)
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


def other_shapes(folder: Path, rng: Rng) -> Path:
    """Tensors are missing, are too many, or have other shapes."""
    state = draw_state()
    name = choose(rng, state)
    tensor = state[name]
    match int(rng.integers(6)):
        case 0:
            del state[name]
        case 1:
            state[f"{name}.more"] = tensor
        case 2:
            state[name] = tensor[None]
        case 3:
            state[name] = tensor.repeat((2,) * max(1, tensor.ndim))
        case 4:
            state[name] = tensor.reshape(-1)[:0]
        case _:
            state[name] = tensor.transpose(0, -1) if tensor.ndim > 1 else tensor[None, None]
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


def many_tensors(folder: Path, rng: Rng) -> Path:
    """A file names one tensor up to 60,000 times."""
    tensor, state = torch.zeros(3), draw_state()
    count = draw_size(rng, 8, 15.9)
    names = [f"layers.{i}.{choose(rng, ['weight', 'bias'])}" for i in range(count)]
    state |= dict.fromkeys(names, tensor)
    torch.save(state, folder / "x.pt", _use_new_zipfile_serialization=bool(rng.random() < 0.5))
    return folder / "x.pt"


def many_levels(folder: Path, rng: Rng) -> Path:
    """A net has far more levels, or far more values to search through, than one has."""
    depth = draw_size(rng, 2, 8)
    state, last = {}, 1
    for level in range(depth):
        state[f"down_{level + 1}.conv.conv.0.weight"] = torch.zeros(2, last, 3, 3)
        state[f"down_{level + 1}.conv.conv.0.bias"] = torch.zeros(2)
        state[f"down_{level + 1}.conv.conv.2.weight"] = torch.zeros(2, 2, 3, 3)
        state[f"down_{level + 1}.conv.conv.2.bias"] = torch.zeros(2)
        last = 2
    if rng.random() < 0.5:
        state |= {f"up_{level + 1}.up.weight": torch.zeros(2, 2, 2, 2) for level in range(depth)}
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


def strange_names(folder: Path, rng: Rng) -> Path:
    """Names are very long, empty, with control characters, no texts, or the same twice."""
    state: dict[Any, Any] = dict(draw_state())
    name = choose(rng, state)
    names = ["", "\n", "\x1b[31m", "x" * 100_000, "é", "\u202e", "a.b." * 5000, "../../x",
             "[bold]", "{path}", 3, None, (1, 2), b"bytes", 1.5, f"module.{name}",
             f"model.{name}"]  # fmt: skip
    tensor = state[name] + 1
    if rng.random() < 0.5:
        tensor = state.pop(name)
    state[choose(rng, names)] = tensor
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


# pickles


def running_code(folder: Path, rng: Rng) -> Path:
    """A pickle calls a program, Python's own functions, or torch's that read or write files."""
    calls = [
        ("os", "system", b"touch run"), ("posix", "system", b"touch run"),
        ("subprocess", "Popen", b"ls"), ("builtins", "eval", b"open('run','w')"),
        ("builtins", "exec", b"open('run','w')"), ("builtins", "open", b"run"),
        ("torch", "load", b"x.pt"), ("torch.hub", "load_state_dict_from_url", b"http://localhost"),
        ("ctypes", "CDLL", b"./x.so"), ("webbrowser", "open", b"http://localhost"),
        ("numpy", "load", b"x.npy"), ("torch.serialization", "load", b"x.pt"),
        ("runpy", "run_path", b"x.py"), ("os", "remove", b"x.pt"),
        ("shutil", "rmtree", b"none"),
    ]  # fmt: skip
    module, name, argument = choose(rng, calls)
    text = b"X" + struct.pack("<I", len(argument)) + argument
    call = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + text + b"\x85R"
    code = b"\x80\x02" + choose(rng, [call, b"}X\5\0\0\0model" + call + b"s", call + b"0}"]) + b"."
    if rng.random() < 0.4:  # the old format, or a bare pickle
        head = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
        system = pickle.dumps(
            {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2
        )
        old = b"".join([*head, system, code, pickle.dumps([], 2)])
        return write(folder / "x.pt", choose(rng, [code, old]))
    return write_pickle(folder, code)


def deep_pickle(folder: Path, rng: Rng) -> Path:
    """Lists, tuples or dicts stand in one another up to a million times."""
    depth = draw_size(rng, 6, 20)
    kind = choose(rng, ["lists", "tuples", "dicts", "marks"])
    code = {
        "lists": b"]" * depth + b"a" * (depth - 1),
        "tuples": b")" + b"\x85" * depth,
        "dicts": b"}K\1" * depth + b"N" + b"s" * depth,
        "marks": b"(" * depth + b"t" * depth,
    }[kind]
    return write_pickle(folder, b"\x80\x02" + code + b".")


def repeating_pickle(folder: Path, rng: Rng) -> Path:
    """Lists name lists that name lists: few bytes state up to 2**60 items."""
    ladder: Any = [torch.zeros(1)] if rng.random() < 0.5 else ["x" * draw_size(rng, 0, 12)]
    for _ in range(int(rng.integers(5, 60))):
        ladder = [ladder, ladder] if rng.random() < 0.8 else {"a": ladder, "b": ladder}
    state: dict[str, Any] = {"model": draw_state(), "beside": ladder}
    if rng.random() < 0.3:
        state["model"]["itself"] = state
    torch.save(state, folder / "x.pt")
    return folder / "x.pt"


def huge_statement(folder: Path, rng: Rng) -> Path:
    """One step of a pickle states a text, a number or a place in the memo of up to 2**63."""
    size = draw_size(rng, 8, 63)
    small = min(size, 2**32 - 1).to_bytes(4, "little")
    steps = [
        b"X" + small, b"\x8d" + size.to_bytes(8, "little"), b"B" + small, b"T" + small,
        b"\x8e" + size.to_bytes(8, "little"), b"\x8b" + min(size, 2**31 - 1).to_bytes(4, "little"),
        b"}r" + small, b"}r" + small + b"j" + small, b"\x95" + size.to_bytes(8, "little") + b"}",
        b"\x96" + size.to_bytes(8, "little"), b"I" + b"9" * min(size, 10**6) + b"\n",
        b"L" + b"9" * min(size, 10**6) + b"L\n", b"cbuiltins\nbytearray\n\x8a\x08" +
        size.to_bytes(8, "little") + b"\x85R", b"cbuiltins\nlist\nccollections\nCounter\n)R\x85R",
        b"\x8a\xff" + rng.bytes(254) + b"\x7f",
    ]  # fmt: skip
    return write_pickle(folder, b"\x80\x02" + choose(rng, steps) + b".")


def drawn_pickle(folder: Path, rng: Rng) -> Path:
    """A pickle is made of steps by chance."""
    steps = b"()]}NK0123.\x85\x86\x87tasubcRq\x01h\x01\x88\x89\x80\x02QXU\x8ae"
    code = bytes(steps[int(i)] for i in rng.integers(len(steps), size=int(rng.integers(1, 200))))
    return write_pickle(folder, b"\x80\x02" + code + b".")


def other_content(folder: Path, rng: Rng) -> Path:
    """A file of torch holds a number, a text, a list, a whole module's settings, or nothing."""
    contents: list[Any] = [
        None, 3, "text", [], {}, [1, 2], {"model": None}, {"model": {}}, {"state_dict": []},
        torch.zeros(3), {"model": draw_state(), "optimizer": choose(rng, WRONG_VALUES[:-2])},
        {"model": draw_state(), "unet": choose(rng, WRONG_VALUES[:12])}, [draw_state()],
        {"model": draw_state(), "state_dict": draw_state()}, {"a": draw_state(), "b": draw_state()},
        {"unet": {}, "model": draw_state()}, {"step": 2**70, "model": draw_state()},
        OrderedDict(draw_state()), {"epoch": 3, "state_dict": draw_state()},
    ]  # fmt: skip
    content = choose(rng, contents)
    torch.save(content, folder / "x.pt", _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    return folder / "x.pt"


def wrong_settings(folder: Path, rng: Rng) -> Path:
    """One setting of a run in a file of torch, anywhere in it, has another type or value."""
    content = torch.load(io.BytesIO(read_whole()["run.pt"]), weights_only=True)
    parts = [content, content["optimizer"]["param_groups"], content["optimizer"]["state"]]
    for _ in range(int(rng.integers(1, 3))):
        holder, key = choose(rng, list_places(choose(rng, parts)))
        values = [v for v in WRONG_VALUES if v != "\ud800"] + [torch.tensor(float("nan")), 2**70]
        holder[key] = choose(rng, values)
    if rng.random() < 0.5:
        settings = json.loads(content["unet"])
        holder, key = choose(rng, list_places(settings))
        holder[key] = choose(rng, WRONG_VALUES)
        content["unet"] = json.dumps(settings)
    torch.save(content, folder / "x.pt", _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    return folder / "x.pt"


# safetensors


def false_header_size(folder: Path, rng: Rng) -> Path:
    """The header states a length of up to 2**64, or one that is a little wrong."""
    content = read_whole()["weights.safetensors"]
    right = int.from_bytes(content[:8], "little")
    size = choose(rng, [draw_size(rng, 0, 63.9), right - 1, right + 1, right + 8, 0, 2**64 - 1,
                        len(content) - 8, len(content), 10**8 + 1])  # fmt: skip
    return write(folder / "x.safetensors", size.to_bytes(8, "little") + content[8:])


def strange_header(folder: Path, rng: Rng) -> Path:
    """The header is deep, is no object, ends in spaces or junk, or says a name twice."""
    header, data = open_safetensors()
    text, depth = json.dumps(header).encode(), draw_size(rng, 4, 21)
    name = choose(rng, [key for key in header if key != "__metadata__"])
    again = json.dumps({name: choose_tensor(header, rng)}).encode()
    texts = [
        b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"null", b"[]", b"3",
        b"{}", text + b" " * draw_size(rng, 0, 22), b" " * 8 + text, text + b"x", text + b"\0" * 8,
        text[:-1] + b"," + again[1:], again[:-1] + b"," + text[1:], text.replace(b"[", b"[ ", 3),
        text[:-1] + b',"__metadata__":{"unet":"{}"}}', b"\xff" + text, "é".encode() * depth,
        b'{"x":' + b"9" * depth + b"}", b"\xef\xbb\xbf" + text,
    ]  # fmt: skip
    return write_safetensors(folder, choose(rng, texts), data)


def strange_offsets(folder: Path, rng: Rng) -> Path:
    """Tensors overlap, leave holes, lie behind the end, or state sizes of up to 2**70."""
    header, data = open_safetensors(choose(rng, ["weights.safetensors", "foreign.safetensors"]))
    one, other = choose_tensor(header, rng), choose_tensor(header, rng)
    begin, end = one["data_offsets"]
    size = draw_size(rng, 0, 70)
    match int(rng.integers(9)):
        case 0:
            one["data_offsets"] = list(other["data_offsets"])
        case 1:
            one["data_offsets"] = choose(rng, [[end, begin], [begin, size], [size, size],
                                               [begin + 4, end + 4], [-4, end]])  # fmt: skip
        case 2:
            one["shape"] = choose(
                rng, [[size], [2**32, 2**32], [2**63, 2], [], [0], [-1, -4], [1] * 500]
            )
        case 3:
            one["data_offsets"] = choose(
                rng, [[begin], [], [begin, end, end], "0", None, [0.0, 4.0]]
            )
        case 4:
            one["shape"] = choose(rng, [None, "x", [1.5], [True], {}, [[2]], [None]])
        case 5:
            header["more"] = {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}
        case 6:
            end_of_all = max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
            place = [end_of_all + 8, end_of_all + 16]
            header["more"] = {"dtype": "I64", "shape": [1], "data_offsets": place}
            data += bytes(16)
        case 7:
            data += rng.bytes(draw_size(rng, 0, 12))
        case _:
            one["more"] = choose(rng, WRONG_VALUES[:8])
    return write_safetensors(folder, header, data)


def other_safetensors_dtypes(folder: Path, rng: Rng) -> Path:
    """A tensor states another type, of the same size, of another, or one that nobody knows."""
    kinds = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I64",
             "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "C128", "f32", "",
             "X")  # fmt: skip
    header, data = open_safetensors(choose(rng, ["weights.safetensors", "run.safetensors"]))
    every = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in every if rng.random() < 0.2 else [choose_tensor(header, rng)]:
        entry["dtype"] = choose(rng, kinds)
    return write_safetensors(folder, header, data)


def wrong_card(folder: Path, rng: Rng) -> Path:
    """One or two fields of the card, drawn from all of them, have another type or value."""
    header, data = open_safetensors(choose(rng, ["weights.safetensors", "run.safetensors"]))
    card = json.loads(header["__metadata__"]["unet"])
    for _ in range(int(rng.integers(1, 3))):
        holder, key = choose(rng, [place for place in list_places(card) if place[1] != "sha256"])
        wrong = choose(
            rng, [*WRONG_VALUES, 2**31, 2**63, 1e-320, -0.0, "relu", "batch", [2] * 3000]
        )
        holder[key] = wrong
    header["__metadata__"]["unet"] = json.dumps(card, sort_keys=True)
    return write_safetensors(folder, header, data)


def huge_net(folder: Path, rng: Rng) -> Path:
    """The card states a net of up to a million levels, or of widths up to 2**40."""
    header, data = open_safetensors(choose(rng, ["weights.safetensors", "run.safetensors"]))
    card = json.loads(header["__metadata__"]["unet"])
    name = choose(rng, ["widths", "classes", "in_channels", "convolutions", "groups", "window_px",
                        "step", "channels"])  # fmt: skip
    wide = choose(rng, [draw_size(rng, 1, 40)])
    holder = next((h for h, key in list_places(card) if key == name), card)
    lists = [[wide] * int(rng.integers(1, 6)), [2] * draw_size(rng, 2, 16), list(range(1, 300))]
    holder[name] = choose(rng, lists) if name in ("widths", "channels") else wide
    header["__metadata__"]["unet"] = json.dumps(card, sort_keys=True)
    return write_safetensors(folder, header, data)


def strange_card(folder: Path, rng: Rng) -> Path:
    """The card is no JSON, deep, says a name twice, has huge numbers, or unknown fields."""
    header, data = open_safetensors(choose(rng, ["weights.safetensors", "run.safetensors"]))
    text, depth = header["__metadata__"]["unet"], draw_size(rng, 4, 18)
    card = json.loads(text)
    texts = [
        "", "x", "[]", "null", "{}", "[" * depth + "]" * depth, text[:-1] + ', "version": 1}',
        '{"config": {}, ' + text[1:], text.replace("0.01", "1e999"),
        text.replace("[2, 3]", "[2, 3.0]"), text.replace("true", "NaN", 1),
        text.replace('"version": 1', '"version": ' + "1" * 5000),
        text.replace('"a"', '"\\ud800"'), text.replace('"a"', '"\\u0000\\n\\u001b[2J"'),
        text.replace('"a"', json.dumps("a" * depth)), json.dumps({**card, "more": 1}),
        json.dumps({**card, "config": {**card["config"], "more": 1}}), text + " " * depth, text * 2,
        json.dumps({**card, "class_names": ["x"] * depth}), json.dumps({**card, "version": 2}),
        json.dumps({**card, "origin": choose(rng, WRONG_VALUES)}),
        json.dumps({**card, "origin": {"names": {"a": ["b"] * 3}, "form": 1}}),
    ]  # fmt: skip
    header["__metadata__"]["unet"] = choose(rng, texts)
    if rng.random() < 0.2:
        right = header["__metadata__"]
        wrong = [{"unet": 3}, {"unet": None}, [], "x", {"format": "pt"}, None]
        header["__metadata__"] = choose(rng, [*wrong, {**right, "format": "pt"}])
    return write_safetensors(folder, header, data)


# files of another kind, and things that are no files


def another_kind(folder: Path, rng: Rng) -> Path:
    """A file of another kind has the name of weights."""
    zipped, tarred, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(zipfile.ZipInfo("word/document.xml"), "<x/>")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):  # torch once wrote such ones
            tar.addfile(tarfile.TarInfo(name))
    np.savez(arrays, x=np.zeros(3), y=np.zeros(3))
    size = draw_size(rng, 0, 16)
    contents = [
        zipped.getvalue(), tarred.getvalue(), arrays.getvalue(), b"", b"\0", b"PK", b"PK\3\4",
        b"PK\5\6" + bytes(18), b"\x80", b"\x80\x02.", b"\x80\x05.", b"%PDF-1.7\n" + bytes(size),
        b"\x89PNG\r\n\x1a\n" + bytes(size), b"\x89HDF\r\n\x1a\n" + bytes(size),
        b"\x1f\x8b\x08" + bytes(size), b"MZ" + rng.bytes(size),
        b"<!DOCTYPE html>" + b"x" * size, b"version https://git-lfs.github.com/spec/v1\n",
        b"x" * size, bytes(size), rng.bytes(size), b"\x7fELF" + rng.bytes(size),
        b"%!PS-Adobe-3.0\n(run) (w) file\n", b"#!/bin/sh\ntouch run\n", b"\xff" * size,
        b"\x08\x07\x12\x07pytorch" + rng.bytes(size), b"GGUF\3\0\0\0" + rng.bytes(size),
        pickle.dumps({"w": np.zeros(3)}), pickle.dumps(draw_weights().tensors), b'{"a": 1}',
        b"BZh9" + rng.bytes(size), b"\xfd7zXZ\0" + rng.bytes(size), b"(\xb5/\xfd" + rng.bytes(size),
    ]  # fmt: skip
    return write(folder / choose(rng, NAMES), choose(rng, contents))


def no_file(folder: Path, rng: Rng) -> Path:
    """Under the name is a pipe, a folder, a device, or a link that leads nowhere or in a circle."""
    path = folder / choose(rng, NAMES)
    match int(rng.integers(7)):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.mkdir()
            write(path / "y.safetensors", read_whole()["weights.safetensors"])
        case 3:
            path.symlink_to(choose(rng, ["/dev/zero", "/dev/full", "/dev/null", "/dev/urandom"]))
        case 4:
            path.symlink_to(path.name)
        case 5:
            path.symlink_to(choose(rng, ["nothing", "/", ".", "/proc/self/mem", "/dev/stdin"]))
        case _:
            write(folder / "real.pt", read_whole()["weights.pt"])
            path.symlink_to("real.pt")
    return path


def right_under_another_name(folder: Path, rng: Rng) -> Path:
    """A right file has the name of another kind, or one that is no usual name."""
    content = choose(rng, read_whole().values())
    names = [*NAMES, "x", "x.PT", "é.pt", "a b.pt", "-x.pt", "[x].pt", "{x}.pt", "x" * 240 + ".pt"]
    return write(folder / choose(rng, names), content)


NAMES = ("x.pt", "x.pth", "x.ckpt", "x.bin", "x.safetensors")
WEIGHTS: tuple[Maker, ...] = (
    inflating_entry, false_sizes, many_entries, overlapping_entries, entries_twice, strange_entries,
    junk_around, other_records, script_archive, huge_storage, repeated_values, strange_strides,
    legal_views, other_dtypes, not_finite, other_shapes, many_tensors, many_levels, strange_names,
    running_code, deep_pickle, repeating_pickle, huge_statement, drawn_pickle, other_content,
    wrong_settings, false_header_size, strange_header, strange_offsets, other_safetensors_dtypes,
    wrong_card, wrong_card, wrong_card, huge_net, strange_card, strange_card, another_kind, no_file,
    right_under_another_name,
)  # fmt: skip
"""Fields of a card are many, so their kinds are drawn more often."""


# recorded pairs, which are zips of arrays


def make_array(header: bytes, data: bytes, *, version: int = 1) -> bytes:
    """Return a `.npy` with any header."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def recorded_pair(folder: Path, rng: Rng) -> Path:
    """A zip of recorded arrays is a bomb, states huge shapes, other types, or a name twice."""
    size = draw_size(rng, 4, 40)
    shape = choose(rng, [(1, 1, 4, 4), (size,), (2**40, 2**40), (-1,), (0,), (), (1,) * 40])
    kinds = ["<f4", "<f8", "<c8", "|O", "|V8", "<U4", "<M8[s]", "|b1", "<i8", "zz", "<f2", ">f4"]
    words = {"descr": choose(rng, kinds), "fortran_order": False, "shape": shape}
    headers = [
        repr(words).encode(), repr(words).encode(), b"(" * min(size, 60000), b"{}", b"",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"+1" * min(size, 30000) + b",)}",
        b"{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (1,)}",
    ]  # fmt: skip
    array = make_array(choose(rng, headers)[:65535], bytes(64))
    right = io.BytesIO()
    np.save(right, np.zeros((1, 1, 4, 4), np.float32))
    zeros = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1, 4, 4), np.float32))
    zeros["shape"] = (1, 1, 2**14, draw_size(rng, 14, 17))
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, zeros)
    total = 4 * 2**14 * zeros["shape"][3] + start.tell()
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = packer.compress(start.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = Entry(b"y.npy", head + deflate_zeros(total - start.tell()), total, method=8, crc=0)
    x, y = Entry(b"x.npy", right.getvalue()), Entry(b"y.npy", array)
    good = Entry(b"y.npy", right.getvalue())
    pairs = [[x, y], [x, y], [x, bomb], [x, x, y], [y, Entry(b"x.npy", array)], [x], [], [x, good],
             [x, good, *[Entry(b"z%d.npy" % i, array) for i in range(9)]], [x, good, y],
             [x, Entry(b"y.npy", right.getvalue(), crc=1)], [x, Entry(b"y", b"text")]]  # fmt: skip
    return write(folder / "x.npz", make_zip(choose(rng, pairs)))


RECORDED: tuple[Maker, ...] = (recorded_pair, another_kind, no_file)
