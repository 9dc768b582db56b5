"""What `verify` can be given: an image, a recorded output, somebody's own torch module."""

import importlib.util
from pathlib import Path

import numpy as np
from torch import nn

from unet_spec import InputError, UNetConfig, geometry
from unet_spec.parameters import check_tensors
from unet_spec.preprocessing import Preprocessing, prepare

LARGEST_PX = 256
_OUTPUTS = ("y", "y0", "output", "logits")


def check_size(config: UNetConfig, size: tuple[int, int]) -> None:
    """Refuse a --size that the net does not take.

    Args:
        size: (height, width) in pixels.

    Raises:
        InputError: it names the rule and the nearest legal sizes.
    """
    try:
        geometry.check(config, *size)
    except InputError as error:
        raise InputError(f"--size {size[0]} {size[1]}: {error}") from error


def crop_middle(
    image: np.ndarray, config: UNetConfig, preprocessing: Preprocessing, *, source: Path
) -> np.ndarray:
    """Return the middle of an image as the net's input, (1, in_channels, h, w).

    Each side is the largest legal size of at most `LARGEST_PX` pixels.

    Args:
        image: (h, w) or (h, w, c), as a file holds it.
        source: the file, for the refusal.

    Raises:
        InputError: the image is too small for the net.
    """
    image = prepare(image, channels=config.in_channels, preprocessing=preprocessing)
    for axis in (0, 1):
        size = min(image.shape[axis], LARGEST_PX)
        legal = next((s for s in range(size, 0, -1) if geometry.is_legal(config, s)), None)
        if legal is None:
            raise InputError(
                f"{source}: {image.shape[axis]} pixels are too few for this net; take an image of "
                f"at least {geometry.next_legal(config, 1)}"
            )
        start = (image.shape[axis] - legal) // 2
        image = image.take(range(start, start + legal), axis)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def read_recorded(path: Path, config: UNetConfig) -> tuple[np.ndarray, np.ndarray]:
    """Read input and output of an .npz: `x`, (b, in_channels, h, w), and `y`, (b, classes, h', w').

    Raises:
        InputError: not an .npz, without these arrays, or of another shape than the net's.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise InputError(f"{path}: not a whole .npz file; record it with numpy.savez") from error
    name = next((n for n in _OUTPUTS if n in held), None)
    if "x" not in held or name is None:
        raise InputError(
            f"{path}: it holds {', '.join(held) or 'nothing'}; the input is named x and the "
            "output y: numpy.savez(FILE, x=x, y=y)"
        )
    x = held["x"]
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise InputError(
            f"{path}: x has the shape {x.shape}, the net takes (b, {config.in_channels}, h, w)"
        )
    geometry.check(config, x.shape[2], x.shape[3])
    return x.astype(np.float32), held[name]


def read_reference(place: str, config: UNetConfig) -> nn.Module:
    """Load a torch module from FILE.py:NAME: a module, or a class or function that gives one,
    called without arguments. The file is run.

    Raises:
        InputError: no such file or name, or what it gives is no module of this net's tensors.
    """
    path, _, name = place.rpartition(":")
    if not path or not Path(path).is_file():
        raise InputError(f"{place}: name a file and what it defines: --reference net.py:UNet")
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = getattr(module, name)
        made = made if isinstance(made, nn.Module) else made()
    except Exception as error:  # whatever a stranger's file raises
        raise InputError(f"{place}: {type(error).__name__}: {error}; mend the file") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{place}: it gives a {type(made).__name__}, not a torch.nn.Module")
    state = {name: np.broadcast_to(np.float32(0), t.shape) for name, t in made.state_dict().items()}
    check_tensors(config, state, source=place)
    return made
