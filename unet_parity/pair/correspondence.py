"""Which value of the port is which value of the reference.

Every layout, transposition, split and mirror is one thing here: for each value of each of the
port's arrays, the place of the reference's value that it holds. So nothing has to be known of the
layouts of this or that framework, and gradients go the same way back.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from unet_parity.differences import difference, module_of
from unet_parity.pair.port import Leaves, is_float, make_port, name_leaves
from unet_spec import InputError
from unet_spec.wording import list_names

Tensors = Mapping[str, np.ndarray]
DIGIT = 256
"""Places are written as numbers below this, which every float type holds exactly."""
NOWHERE = -1
SAME = 1e-6
"""Values of float32 that were converted may be so far apart, relatively."""
SAME_NAMES = {
    "kernel": "weight", "scale": "weight", "embedding": "weight", "w": "weight", "gamma": "weight",
    "b": "bias", "beta": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip
"""What JAX's libraries call a tensor, and what torch does."""


@dataclass(frozen=True, eq=False)
class Correspondence:
    """A `Correspondence` says which value of a port is which value of a reference.

    Attributes:
        shapes: of the reference's floating-point tensors, by their names.
        places: for each of the port's arrays, of its shape, where each value stands in the row of
            all of the reference's values; `NOWHERE` for a value that is the port's own.
        own: the port's arrays, for values that are its own.
    """

    shapes: dict[str, tuple[int, ...]]
    places: dict[str, np.ndarray]
    own: dict[str, np.ndarray]

    def to_port(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """Return the port's arrays that hold the values of the reference's tensors."""
        row = np.concatenate([np.zeros(1), *(np.ravel(tensors[name]) for name in self.shapes)])[1:]
        leaves = {}
        for name, places in self.places.items():
            own = self.own[name]
            if is_float(own):
                own = np.where(places == NOWHERE, own.astype(np.float64), row[places])
            leaves[name] = own
        return leaves

    def to_reference(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the reference's tensors of the port's values; where it has a value more than
        once, their sum, as for gradients."""
        row = np.zeros(sum(map(_count, self.shapes.values())))
        for name, places in self.places.items():
            held = places != NOWHERE
            np.add.at(row, places[held], leaves[name][held])
        return _cut(row, self.shapes)

    def copies(self) -> dict[str, np.ndarray]:
        """Return how many times the port holds each value of the reference."""
        ones = {name: np.ones(places.shape) for name, places in self.places.items()}
        return self.to_reference(ones)

    def missing(self) -> list[str]:
        """Return the reference's tensors of which the port holds no value."""
        return [name for name, count in self.copies().items() if count.size and not count.any()]

    def unlike(self, tensors: Tensors) -> dict[str, float]:
        """Return the port's arrays that were given with other values than a reference's tensors
        have, and the largest relative difference; arrays of narrow types are rounded, and right."""
        moved = self.to_port(tensors)
        sizes = {
            name: difference(moved[name], own.astype(np.float64))
            for name, own in self.own.items()
            if is_float(own) and own.dtype.itemsize >= 4
        }
        return {name: size for name, size in sizes.items() if not size <= SAME}

    def list_narrow(self) -> list[str]:
        """Return the port's arrays of a type narrower than float32."""
        return [n for n, own in self.own.items() if is_float(own) and own.dtype.itemsize < 4]

    def unused(self) -> list[str]:
        """Return the port's floating-point arrays that hold nothing of the reference."""
        return [
            name
            for name, places in self.places.items()
            if is_float(self.own[name]) and places.size and (places == NOWHERE).all()
        ]

    def sources(self, leaf: str) -> list[str]:
        """Return the reference's tensors whose values one of the port's arrays holds."""
        places = self.places[leaf]
        matches = np.unique(np.searchsorted(self._ends(), places[places != NOWHERE], side="right"))
        names = list(self.shapes)
        return [names[index] for index in matches]

    def _ends(self) -> np.ndarray:
        return np.cumsum([_count(shape) for shape in self.shapes.values()])


def _cut(row: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the tensors of these shapes that a row of values holds one after the other."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        tensors[name] = row[start : start + _count(shape)].reshape(shape)
        start += _count(shape)
    return tensors


def read_converter(
    convert: Callable[[Any], Any], state: Tensors, tied: Mapping[str, str] = {}
) -> Correspondence:
    """Find out where a converter moves each value, by converting numbers that say their places.

    Args:
        convert: takes the reference's `state_dict` as numpy arrays, or as torch tensors where it
            only takes these, and returns what the port takes.
        state: the reference's tensors.
        tied: names of tensors that are another one, and its name.

    Raises:
        InputError: it raises an error, or computes with the values.
    """
    shapes = {n: array.shape for n, array in state.items() if is_float(array) and n not in tied}
    total = sum(map(_count, shapes.values()))
    own = _convert(convert, state)
    forth = _read_places(convert, state, tied, np.arange(total))
    back = _read_places(convert, state, tied, np.arange(total)[::-1])
    places = {}
    for name, array in own.items():
        first, second = forth[name], back[name]
        # numbers that are counted from the other end tell a value that was moved from one that
        # the converter put there
        is_moved = (first + second == total - 1) & (first >= 0) & (first < total)
        is_same = first == second
        if not (is_moved | is_same).all():
            raise InputError(
                f"convert does not only move values: it computes those of {name}; let it transpose,"
                " reshape, split and join, and nothing else"
            )
        places[name] = np.where(is_moved & is_float(array), first, NOWHERE)
    return Correspondence(shapes, places, own)


def match_tensors(
    state: Tensors,
    leaves: Leaves,
    names: Mapping[str, str] | None,
    tied: Mapping[str, str] = {},
) -> Correspondence:
    """Match tensors by their names and values, where there is no converter.

    The layout of a tensor is the one in which the port holds its values; where several do, or none,
    the one that JAX's libraries have.

    Args:
        names: paths of the reference's tensors or modules, and the port's; what they do not name is
            matched by equal values, and then by like names.
        tied: as of `read_converter`.

    Raises:
        InputError: a tensor has no counterpart, or no shape that goes with it.
    """
    own = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    floats = {n: array for n, array in state.items() if is_float(array) and n not in tied}
    shapes = {name: array.shape for name, array in floats.items()}
    pairs = _pair_names(floats, own, names or {})
    ends = np.cumsum([array.size for array in floats.values()])
    starts = dict(zip(floats, ends - [array.size for array in floats.values()], strict=True))
    places = {name: np.full(array.shape, NOWHERE) for name, array in own.items()}
    for theirs, ours in pairs.items():
        tensor = floats[theirs]
        numbers = starts[theirs] + np.arange(tensor.size).reshape(tensor.shape)
        places[ours] = _lay_out(numbers, tensor, own[ours], names=(theirs, ours))
    return Correspondence(shapes, places, own)


def convert_state(convert: Callable[[Any], Any], state: Tensors) -> Any:
    """Return what a converter gives for a state_dict of numpy arrays, or of torch tensors.

    Raises:
        InputError: it raises an error, or takes torch's tensors where torch is not installed.
    """
    try:
        try:
            return convert(dict(state))
        except (AttributeError, TypeError) as error:  # it takes torch's tensors
            try:
                import torch
            except ModuleNotFoundError:
                raise error from None
            return convert({name: torch.from_numpy(np.array(a)) for name, a in state.items()})
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(
            f"convert does not run on the reference's state_dict: {type(error).__name__}: {error}"
        ) from error


def _convert(convert: Callable[[Any], Any], state: Tensors) -> dict[str, np.ndarray]:
    params = convert_state(convert, state)
    if isinstance(params, nnx.Module):
        return make_port(params, None).leaves
    return {name: np.asarray(leaf) for name, leaf in name_leaves(params).items()}


def _read_places(
    convert: Callable[[Any], Any],
    state: Tensors,
    tied: Mapping[str, str],
    numbers: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return for each value of the port the number that its place has in `numbers`."""
    shapes = {n: array.shape for n, array in state.items() if is_float(array) and n not in tied}
    digits = max(1, int(np.ceil(np.log(max(2, numbers.size)) / np.log(DIGIT))))
    read: dict[str, np.ndarray] = {}
    for digit in range(digits):
        coded = _cut((numbers // DIGIT**digit % DIGIT).astype(np.float32), shapes)
        numbered = {name: coded.get(tied.get(name, name), array) for name, array in state.items()}
        for name, array in _convert(convert, numbered).items():
            values = np.nan_to_num(array.astype(np.float64), nan=-1, posinf=-1, neginf=-1)
            number = np.rint(values).astype(np.int64)
            # a fraction, or what is no digit, can be no place
            number = np.where((number == values) & (number >= 0) & (number < DIGIT), number, -1)
            past = read.get(name, np.zeros(number.shape, np.int64))
            bad = (number < 0) | (past < 0)
            read[name] = np.where(bad, -1, past + number * DIGIT**digit)
    return read


def _pair_names(state: Tensors, own: Tensors, names: Mapping[str, str]) -> dict[str, str]:
    """Return the port's path of each of the reference's tensors."""
    pairs = _apply_names(state, own, names)
    left = [name for name in state if name not in pairs]
    free = [name for name in own if name not in pairs.values() and is_float(own[name])]
    while left:
        # a tensor with several candidates, such as a bias of zeros, waits for the rest of its layer
        options = {theirs: _list_candidates(theirs, state, own, free, pairs) for theirs in left}
        theirs = min(left, key=lambda name: len(options[name]) or len(own) + 1)
        candidates = options[theirs]
        if not candidates:
            break
        if len(candidates) > 1:
            raise InputError(
                f"{list_names(candidates, 3)} of the port may each be {theirs} of the reference, by"
                " their values; name it in names, or give convert"
            )
        pairs[theirs] = candidates[0]
        free.remove(candidates[0])
        left.remove(theirs)
    unmatched = [name for name in state if name not in pairs]
    if unmatched:
        raise InputError(
            f"no array of the port belongs to {list_names(unmatched, 4)} of the reference; free are"
            f" {list_names(free, 4) or 'none'}; name them in names, or give convert"
        )
    return pairs


def _list_candidates(
    theirs: str, state: Tensors, own: Tensors, free: list[str], pairs: Mapping[str, str]
) -> list[str]:
    """List the port's arrays that may be a tensor: by values, names, and the rest of its layer."""
    same = [ours for ours in free if _holds(own[ours], state[theirs])]
    sizes = [ours for ours in free if own[ours].size == state[theirs].size]
    alike = [ours for ours in same or sizes if _simplify(ours) == _simplify(theirs)]
    layers = {module_of(o) for t, o in pairs.items() if module_of(t) == module_of(theirs)}
    beside = [ours for ours in same if module_of(ours) in layers]
    return alike or beside or same


def _apply_names(state: Tensors, own: Tensors, names: Mapping[str, str]) -> dict[str, str]:
    pairs = {}
    for theirs, ours in names.items():
        if theirs in state and ours in own:
            pairs[theirs] = ours
            continue
        inside = [name for name in state if name.startswith(f"{theirs}.")]
        ends = {_simplify(n.removeprefix(f"{ours}.")): n for n in own if n.startswith(f"{ours}.")}
        matches = {n: ends.get(_simplify(n.removeprefix(f"{theirs}."))) for n in inside}
        missing = [name for name, path in matches.items() if path is None]
        if not inside or missing:
            what = list_names(missing, 3) or theirs
            raise InputError(f'the line "{theirs}" = "{ours}" of names leads nowhere for {what}')
        pairs |= {name: path for name, path in matches.items() if path is not None}
    return pairs


def _simplify(path: str) -> str:
    """Return a path as its words without separators, the last in torch's vocabulary.

    >>> _simplify("params.blocks_0.Norm.scale") == _simplify("blocks.0.norm.weight")
    True
    """
    *modules, last = path.lower().replace("_", ".").replace("running.", "").split(".")
    words = [word for word in modules if word not in ("params", "batch", "stats")]
    return " ".join([*words, SAME_NAMES.get(last, last).removeprefix("running_")])


def _holds(array: np.ndarray, tensor: np.ndarray) -> bool:
    """Say whether an array has the values of a tensor, in any order."""
    if array.size != tensor.size:
        return False
    return np.array_equal(np.sort(array, axis=None), np.sort(tensor, axis=None).astype(array.dtype))


def _lay_out(
    numbers: np.ndarray, tensor: np.ndarray, array: np.ndarray, *, names: tuple[str, str]
) -> np.ndarray:
    """Return the numbers of a tensor's values in the layout that the port's array has."""
    layouts = list(_list_layouts(tensor, array.shape))
    for layout in layouts:
        if np.array_equal(layout.apply(tensor, array.shape).astype(array.dtype), array):
            return layout.apply(numbers, array.shape)
    if not layouts:
        raise InputError(
            f"{names[1]} of the port has the shape {array.shape}, and {names[0]} of the reference "
            f"{tensor.shape}; name others in names, or give convert"
        )
    return layouts[0].apply(numbers, array.shape)


class _Layout(NamedTuple):
    """An order of axes, and the axes that are mirrored first."""

    order: tuple[int, ...]
    mirrored: tuple[int, ...]

    def apply(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.flip(array, self.mirrored).transpose(self.order).reshape(shape)


def _list_layouts(tensor: np.ndarray, shape: tuple[int, ...]) -> Iterator[_Layout]:
    """List how a tensor can come to a shape, the layout of JAX's libraries first."""
    usual = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}.get(tensor.ndim)
    orders = [*([usual] if usual else []), *itertools.permutations(range(tensor.ndim))]
    fitting = [order for order in orders if tensor.transpose(order).shape == shape]
    for order in fitting:
        for mirrored in _list_mirrors(tensor.ndim):
            yield _Layout(order, mirrored)
    if not fitting and tensor.size == _count(shape):  # heads are often an axis of their own
        for order in orders:
            yield _Layout(order, ())


def _list_mirrors(ndim: int) -> Iterator[tuple[int, ...]]:
    """List which of the axes behind the first two are mirrored, none first."""
    spatial = range(2, ndim)
    for count in range(len(spatial) + 1):
        yield from itertools.combinations(spatial, count)


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
