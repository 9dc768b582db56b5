"""A recorded pair: an input, and what somebody's net gave for it, in one .npz file.

An .npz is a zip of arrays. numpy inflates each one whole, whatever its size, so here the sizes are
checked before, and no more is inflated than the array's own header says.
"""

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from unet_spec.errors import InputError
from unet_spec.files import refuse_no_file
from unet_spec.wording import list_names

MOST_BYTES = 1 << 28
"""Both arrays together take at most so many bytes as float32, and four times their file more."""

_OUTPUTS = ("y", "y0", "output", "logits")
_DEFLATE = 1032  # a byte of deflated data becomes at most so many: 258 bytes from 2 bits


class _NotWholeError(ValueError):
    """The file is not what numpy writes."""


def read_recorded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read (x, y) of an .npz: `x`, (b, in_channels, h, w), as float32, and `y`, (b, classes, h',
    w').

    Raises:
        InputError: not an .npz, without these arrays, or with other values than finite numbers.
    """
    with _open(path) as archive:
        entries = _list_entries(archive)
        x_name, y_name = _choose(entries, path=path)
        headers = {name: _read_header(archive, entries[name]) for name in (x_name, y_name)}
        _check_batches(headers, path=path)
        _check_sizes(headers, path=path)
        x, y = (_read_array(archive, entries[name]) for name in (x_name, y_name))
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = x.astype(np.float32)
    _refuse_infinite({x_name: x, y_name: y}, path=path)
    return x, y


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of numbers of an .npz, in their order.

    Raises:
        InputError: not an .npz, none in it, or with other values than finite numbers.
    """
    with _open(path) as archive:
        entries = _list_entries(archive)
        if not entries:
            raise InputError(f"{path}: it holds no array; record them with numpy.savez(FILE, x=x)")
        headers = {name: _read_header(archive, entry) for name, entry in entries.items()}
        for name, (_, dtype) in headers.items():
            if dtype.kind not in "fiub":
                raise InputError(f"{path}: {name} is of type {dtype}, and numbers are needed")
        _check_sizes(headers, path=path)
        arrays = {name: _read_array(archive, entry) for name, entry in entries.items()}
    _refuse_infinite({n: a for n, a in arrays.items() if a.dtype.kind == "f"}, path=path)
    return arrays


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz for a block, and word what goes wrong in it.

    Raises:
        InputError: it is no file, no .npz, or not whole.
    """
    refuse_no_file(path)
    # opened here: numpy and zipfile leave a damaged file open
    stream = path.open("rb")
    try:
        with stream, zipfile.ZipFile(stream) as archive:
            yield archive
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: its arrays do not fit into memory; record less") from error
    except Exception as error:  # in damaged bytes numpy and zipfile raise whatever comes up
        reason = f" ({error})" if isinstance(error, _NotWholeError) else ""
        raise InputError(
            f"{path}: not a whole .npz file{reason}; record it with numpy.savez"
        ) from error


def _refuse_infinite(arrays: dict[str, np.ndarray], *, path: Path) -> None:
    for name, values in arrays.items():
        if lost := values.size - int(np.isfinite(values).sum()):
            raise InputError(
                f"{path}: {lost} of the {values.size} values of {name} are not finite float32 "
                "numbers; record another input"
            )


def _list_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by the names of their arrays."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in entries:
            raise _NotWholeError("two of its arrays have one name")
        entries[name] = entry
    return entries


def _choose(entries: dict[str, zipfile.ZipInfo], *, path: Path) -> tuple[str, str]:
    """Return the names of the input and of the output."""
    output = next((name for name in _OUTPUTS if name in entries), None)
    if "x" not in entries or output is None:
        raise InputError(
            f"{path}: it holds {list_names(list(entries), 4) or 'nothing'}; the input is named x "
            "and the output y: numpy.savez(FILE, x=x, y=y)"
        )
    return "x", output


def _read_header(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype]:
    """Return (shape, dtype) of an array, if its entry has exactly so many bytes."""
    stored, inflated = entry.compress_size, entry.file_size
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _NotWholeError("it is compressed in another way than numpy does")
    if inflated > stored * (_DEFLATE if entry.compress_type else 1):
        raise _NotWholeError("an array states more bytes than its entry can hold")
    with archive.open(entry) as stream:
        shape, dtype = _read_form(stream)
        # an array of objects is a pickle, of any length; its type is refused below
        if not dtype.hasobject and inflated != stream.tell() + math.prod(shape) * dtype.itemsize:
            raise _NotWholeError("an array has another length than its header says")
    return shape, dtype


def _read_form(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return (shape, dtype) as the header of an array says them."""
    # a later version is for longer headers, which arrays of numbers do not have
    if np.lib.format.read_magic(stream) != (1, 0):
        raise _NotWholeError("an array has a header that no array of numbers has")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header by Python 2 is as good as others
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if min(shape, default=1) < 0:
        raise _NotWholeError("an array has a negative size")
    return shape, dtype


def _check_batches(headers: dict[str, tuple[tuple[int, ...], np.dtype]], *, path: Path) -> None:
    """Refuse arrays of other values than a net takes and gives.

    Raises:
        InputError: naming the array.
    """
    for name, (shape, dtype) in headers.items():
        needed = "real numbers" if name == "x" else "floats"
        if dtype.kind not in ("fiub" if name == "x" else "f"):
            raise InputError(
                f"{path}: {name} is of type {dtype}, and {needed} are needed; record it as float32"
            )
        if len(shape) != 4 or 0 in shape:
            raise InputError(
                f"{path}: {name} has the shape {shape}, and a batch is needed: (b, c, h, w), with "
                "at least one value"
            )


def _check_sizes(headers: dict[str, tuple[tuple[int, ...], np.dtype]], *, path: Path) -> None:
    """Refuse arrays of too many values.

    Raises:
        InputError: with both figures.
    """
    total = sum(math.prod(shape) * max(dtype.itemsize, 4) for shape, dtype in headers.values())
    most = MOST_BYTES + 4 * path.stat().st_size
    if total > most:
        raise InputError(
            f"{path}: its arrays become {total:,} bytes long, and at most {most:,} are read from "
            "a file of this size; record a smaller input, or store it with numpy.savez"
        )


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # the end of an entry, where its CRC-32 is compared
    return array
