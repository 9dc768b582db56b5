"""Ports of pairs, as they stand or with a mistake, and inputs: no PyTorch is needed for either."""

import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

FOLDER = Path(__file__).parent

# one input of each pair, in torch's layout; None is the width
SHAPES: dict[str, tuple[int | None, ...]] = {
    # half of 18 x 31 is 9 x 16, of which the pool drops a row
    "residual": (2, 3, 18, 31),
    "transformer": (3, 5, None),
    "mixer": (2, 3, 10, 14),
    "lstm": (2, 5, 3),
    "pool": (2, 3, 8, 12),
}
COUNTER = itertools.count()


def load_port(name: str, *, old: str = "", new: str = "") -> ModuleType:
    """Return the port as a fresh module, with `new` in place of `old` in its source.

    Raises:
        ValueError: `old` does not occur exactly once.
    """
    path = FOLDER / f"{name}_jax.py"
    source = path.read_text()
    if old:
        if source.count(old) != 1:
            raise ValueError(f"{path.name} has {source.count(old)} places, not 1, with {old!r}")
        source = source.replace(old, new)
    return _execute(source, f"{__package__}.{name}_jax_{next(COUNTER)}", path)


def _execute(source: str, name: str, path: Path) -> ModuleType:
    """Return the module of a source; dataclasses look it up in sys.modules while it is made."""
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module


def draw_inputs(name: str, width: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return the inputs of a pair in torch's layout, drawn from a normal distribution."""
    shape = tuple(width if size is None else size for size in SHAPES[name])
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape).astype(np.float32),)
