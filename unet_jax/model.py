"""U-Net in Flax NNX. `unet_torch.model` is its twin, line for line."""

from collections.abc import Sequence
from itertools import pairwise

from flax import nnx
from jaxtyping import Array, Float

from unet_jax.forms import concatenate, max_pool
from unet_jax.layers import Dropout, Numerics, conv, conv_block, match_sizes, up_sampling
from unet_jax.scopes import scoped
from unet_spec import Preprocessing, UNetConfig
from unet_spec.batch import check_batch
from unet_spec.config import UpLevel
from unet_spec.origin import Origin


class DoubleConv(nnx.Module):
    """The 3x3 convolutions of a level, two in the slides' net, each with norm and activation."""

    def __init__(
        self, in_channels: int, middle_channels: int, out_channels: int, config: UNetConfig,
        dropout: float = 0.0, *, numerics: Numerics, rngs: nnx.Rngs,
    ):  # fmt: skip
        middle = [middle_channels] * (config.convolutions - 1)
        blocks = []
        for before, after in pairwise([in_channels, *middle, out_channels]):
            blocks += conv_block(before, after, config, numerics, rngs)
        self.conv = nnx.Sequential(*blocks)
        self.drop = Dropout(dropout)
        self.remat = numerics.remat

    def __call__(
        self, x: Float[Array, "b h w c"], keep: Array | None = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h2 w2 k"]:
        conv = nnx.remat(_conv) if self.remat else _conv
        return self.drop(conv(self, x), keep, rngs)


def _conv(module: DoubleConv, x: Array) -> Array:
    return module.conv(x)


class Down(nnx.Module):
    """A level of the contracting path: the map for the skip, and its half for the next level."""

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, dropout: float = 0.0, *,
        numerics: Numerics, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.conv = DoubleConv(
            in_channels, out_channels, out_channels, config, dropout, numerics=numerics, rngs=rngs
        )
        self.pool = max_pool

    def __call__(
        self, x: Float[Array, "b h w c"], keep: Array | None = None, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b h2 w2 k"], Float[Array, "b h3 w3 k"]]:
        skip = scoped(self, "conv")(x, keep, rngs)
        return skip, scoped(self, "pool")(skip)


class Up(nnx.Module):
    """A level of the expanding path: up-sampling, concatenation with the skip, convolutions."""

    def __init__(
        self, channels: UpLevel, config: UNetConfig, *, numerics: Numerics, rngs: nnx.Rngs
    ):
        self.config = config
        self.up = up_sampling(channels.in_channels, channels.up_channels, config, numerics, rngs)
        self.conv = DoubleConv(
            channels.up_channels + channels.skip_channels,
            channels.middle_channels, channels.out_channels, config, numerics=numerics, rngs=rngs,
        )  # fmt: skip

    def __call__(
        self, x: Float[Array, "b h w c"], skip: Float[Array, "b h2 w2 k"]
    ) -> Float[Array, "b h3 w3 n"]:
        x, skip = match_sizes(scoped(self, "up")(x), skip, self.config)
        pair = [x, skip] if self.config.concat == "up_first" else [skip, x]
        return scoped(self, "conv")(concatenate(*pair))


class UNet(nnx.Module):
    """A `UNet` maps a batch (b, h, w, in_channels) to logits (b, h', w', classes).

    With padding=same h' and w' are h and w, with padding=valid smaller. Paths of parameters are
    the slides' names. A new net is in training mode; `model.eval()` switches to inference.

    Args:
        config: which U-Net; the default is the net of the slides.
        numerics: in what it computes and keeps its parameters.
        rngs: `nnx.Rngs(seed)`, which draws its initial weights.

    Attributes:
        preprocessing: how `predict` turns an image into the input; `save` writes it.
        class_names: a name for each class, or (); `save` writes them.
        origin: the names that another program has for its tensors, or None; `save` writes them.

    Raises:
        InputError: a batch in another layout or of an illegal size, when the net is called.
    """

    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[str, ...] = ()
    origin: Origin | None = None

    def __init__(
        self, config: UNetConfig = UNetConfig(), *,
        numerics: Numerics = Numerics(), rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        for level, (in_channels, out_channels) in enumerate(config.downs, start=1):
            dropout = config.dropout if level == config.depth else 0.0
            down = Down(in_channels, out_channels, config, dropout, numerics=numerics, rngs=rngs)
            setattr(self, f"down_{level}", down)
        above, lowest = config.widths[-2:]
        self.neck = DoubleConv(
            above, lowest, lowest, config, config.dropout, numerics=numerics, rngs=rngs
        )
        for level, channels in enumerate(config.ups, start=1):
            up = Up(channels, config, numerics=numerics, rngs=rngs)
            setattr(self, f"up_{level}", up)
        self.out = conv(config.out_channels, config.classes, 1, numerics, rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        keep: Sequence[Array | None] = (None, None),
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h2 w2 k"]:
        """Return the logits of a batch.

        Args:
            x: the input; height and width legal for the config (`unet_spec.geometry`).
            keep: masks for the dropout of the last level and of the neck, each of the shape
                that it falls on, 1 where a value stays.
            rngs: draws those masks (`nnx.Rngs(dropout=key)`) where they are not given.

        Raises:
            InputError: another layout, other channels, or an illegal size, with the
                nearest legal ones.
        """
        check_batch(self.config, x.shape, "b h w c")
        skips = []
        for level in range(1, self.config.depth + 1):
            drop = keep[0] if level == self.config.depth else None
            skip, x = scoped(self, f"down_{level}")(x, drop, rngs)
            skips.append(skip)
        x = scoped(self, "neck")(x, keep[1], rngs)
        for level in range(1, self.config.depth + 1):
            x = scoped(self, f"up_{level}")(x, skips.pop())
        return scoped(self, "out")(x)
