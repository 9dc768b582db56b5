"""The shape of a batch, which differs between the frameworks, checked before anything is run."""

from collections.abc import Sequence

from unet_spec import geometry
from unet_spec.config import UNetConfig
from unet_spec.errors import InputError

# by layout: the package that takes it, and what turns a batch of the other layout into it
_PACKAGES = {
    "b h w c": ("unet_jax", "x.transpose(0, 2, 3, 1)"),
    "b c h w": ("unet_torch", "x.permute(0, 3, 1, 2)"),
}


def check_batch(config: UNetConfig, shape: Sequence[int], layout: str) -> None:
    """Refuse a batch that the net of `config` does not take.

    Only the shape is read, which is known while a function is traced: it costs nothing in a
    compiled step.

    Args:
        shape: of the batch.
        layout: the order of the axes that the net takes: `b h w c` or `b c h w`.

    Raises:
        InputError: another number of axes, another layout, other channels, or an illegal size.
    """
    axes = layout.split()
    if len(shape) != 4 or shape[axes.index("c")] != config.in_channels:
        raise InputError(_refusal(config, tuple(shape), layout))
    geometry.check(config, shape[axes.index("h")], shape[axes.index("w")])


def _refusal(config: UNetConfig, shape: tuple[int, ...], layout: str) -> str:
    package, transposed = _PACKAGES[layout]
    channels, axes = config.in_channels, layout.split()
    sentence = f"x has the shape {shape}; {package} takes ({', '.join(axes)}) with c = {channels}: "
    if len(shape) == 4:
        # where the other layout has its channels
        if shape[1 if axes[-1] == "c" else -1] == channels:
            return f"{sentence}use {transposed}"
        given = shape[axes.index("c")]
        return f"{sentence}give {channels} channels, or build the net with in_channels={given}"
    if len(shape) == 3 and shape[axes.index("c") - 1] == channels:
        return f"{sentence}use x[None] for a batch of one image"
    return f"{sentence}give all four axes, also those of size 1"
