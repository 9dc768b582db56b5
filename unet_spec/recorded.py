"""A recorded pair: an input, and what somebody's net gave for it, in one .npz file."""

from pathlib import Path

import numpy as np

from unet_spec.errors import InputError

_OUTPUTS = ("y", "y0", "output", "logits")


def read_recorded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read (x, y) of an .npz: `x`, (b, in_channels, h, w), as float32, and `y`, (b, classes, h',
    w').

    Raises:
        InputError: not an .npz, or without these arrays.
    """
    try:
        # opened here: numpy leaves a damaged file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # in damaged bytes numpy and zipfile raise whatever comes up
        raise InputError(f"{path}: not a whole .npz file; record it with numpy.savez") from error
    name = next((n for n in _OUTPUTS if n in held), None)
    if "x" not in held or name is None:
        raise InputError(
            f"{path}: it holds {', '.join(held) or 'nothing'}; the input is named x and the "
            "output y: numpy.savez(FILE, x=x, y=y)"
        )
    return held["x"].astype(np.float32), held[name]
