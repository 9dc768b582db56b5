"""How the port lays out inputs and outputs: as the reference, or with channels last."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unet_spec import InputError

Arrays = tuple[np.ndarray, ...]
Shapes = dict[str, tuple[int, ...]]
"""Of outputs, by their paths, in order."""


@dataclass(frozen=True)
class Layouts:
    """A `Layouts` says which inputs and outputs have their channels last in the port.

    Attributes:
        inputs: for each input.
        outputs: for each of the reference's outputs.
        order: which of the port's outputs each of them is.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    order: tuple[int, ...]

    def prepare(self, inputs: Arrays) -> Arrays:
        """Return the reference's inputs as the port takes them."""
        return tuple(map(_move_last, inputs, self.inputs))

    def take(self, outputs: Arrays) -> Arrays:
        """Return the port's outputs as the reference has them."""
        return tuple(map(_move_first, (outputs[place] for place in self.order), self.outputs))

    def give(self, cotangents: Arrays) -> Arrays:
        """Return gradients by the reference's outputs as the port has them."""
        moved = list(map(_move_last, cotangents, self.outputs))
        return tuple(moved[self.order.index(place)] for place in range(len(moved)))

    def take_inputs(self, gradients: Arrays, inputs: Arrays) -> Arrays:
        """Return the port's gradients of the floating-point inputs as the reference has them."""
        floats = [last for x, last in zip(inputs, self.inputs, strict=True) if x.dtype.kind == "f"]
        return tuple(map(_move_first, gradients, floats))


def find_layouts(
    inputs: Arrays,
    expected: Shapes,
    run: Callable[[Arrays], Shapes],
    *,
    channels_last: bool | None,
) -> Layouts:
    """Find the layouts in which the port runs and gives what the reference gives, by shapes.

    Args:
        expected: the shapes of the reference's outputs, by their paths.
        run: returns likewise those of the port's outputs, for inputs in its layout.
        channels_last: of images in the port; None takes what fits, and where both do, channels
            last, as JAX's libraries have them.

    Raises:
        InputError: the port does not run, or gives other shapes.
    """
    images = tuple(x.dtype.kind == "f" and x.ndim > 3 for x in inputs)
    candidates = [images] if any(images) and channels_last is not False else []
    if channels_last is not True or not candidates:
        candidates.append((False,) * len(inputs))
    refusals = []
    for candidate in candidates:
        try:
            shapes = run(tuple(map(_move_last, inputs, candidate)))
        except InputError as error:
            refusals.append(error)
            continue
        order = _order_outputs(list(expected), list(shapes))
        theirs = [list(shapes.values())[place] for place in order]
        outputs = _match_outputs(list(expected.values()), theirs, is_last=any(candidate))
        if outputs is not None:
            return Layouts(candidate, outputs, order)
        refusals.append(
            InputError(
                f"the port gives outputs of the shapes {_list(shapes)}, and the reference "
                f"{_list(expected)}; let both give the same"
            )
        )
    raise refusals[0]


def _order_outputs(expected: list[str], names: list[str]) -> tuple[int, ...]:
    """Return which of the port's outputs each of the reference's is: by names where these are the
    same, as those of a dict, else in order."""
    if sorted(expected) == sorted(names):
        return tuple(names.index(name) for name in expected)
    return tuple(range(len(names)))


def _match_outputs(
    expected: list[tuple[int, ...]], shapes: list[tuple[int, ...]], *, is_last: bool
) -> tuple[bool, ...] | None:
    if len(expected) != len(shapes):
        return None
    layouts = []
    for theirs, ours in zip(expected, shapes, strict=True):
        moved = (theirs[0], *theirs[2:], theirs[1]) if len(theirs) > 2 else theirs
        fits = [last for last, shape in ((True, moved), (False, theirs)) if shape == ours]
        if not fits:
            return None
        layouts.append(fits[0] if is_last else fits[-1])
    return tuple(layouts)


def _list(shapes: Shapes) -> str:
    return ", ".join(
        f"{name} {shape}" if name and not name.isdigit() else str(shape)
        for name, shape in shapes.items()
    )


def _move_last(array: np.ndarray, is_last: bool) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if is_last and array.ndim > 2 else array


def _move_first(array: np.ndarray, is_last: bool) -> np.ndarray:
    return np.moveaxis(array, -1, 1) if is_last and array.ndim > 2 else array
