"""What a step makes small: cross-entropy, soft Dice, focal loss, or a weighted sum of them.

All are sums over a one-hot axis: a gather of the true class has a scatter as its gradient, and
XLA on CPU folds the constants of optax's form for seconds at compile time.

The classes of a pixel exclude one another, and softmax gives their probabilities. With
`output=sigmoid` and several channels each channel is a question of its own, yes or no, which
sigmoid answers, and the losses are means over the channels. A net of one channel has two classes.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from unet_spec.errors import FieldError

from .config import LossConfig

Output = Literal["logits", "sigmoid", "softmax"]  # of a net's config


class Counts(NamedTuple):
    """A `Counts` is what the losses of a batch are divided by, known before any logits.

    Attributes:
        weights: sum over pixels of their weight in the cross-entropy: class weight and map.
        class_weights: likewise without the map, for the focal loss.
        images: number of images in which a pixel counts, for the Dice loss.
    """

    weights: Float[Array, ""]
    class_weights: Float[Array, ""]
    images: Float[Array, ""]


def compute_counts(
    truth: Integer[Array, "b h w"],
    weight: Float[Array, "b h w"] | None = None,
    *,
    config: LossConfig,
) -> Counts:
    """Return what `loss` divides by, of a whole batch, so that the losses of its parts add up."""
    return Counts(
        _pixel_weights(truth, weight, config).sum(),
        _class_weights(truth, config).sum(),
        _counted_pixels(truth, config).any((1, 2)).sum().astype(float),
    )


def loss(
    logits: Float[Array, "b h w k"],
    truth: Integer[Array, "b h w"],
    weight: Float[Array, "b h w"] | None = None,
    *,
    config: LossConfig,
    output: Output = "logits",
    over: Counts | None = None,
) -> Float[Array, ""]:
    """Return the sum of the losses that `config` asks for, in float32 at least.

    A pixel's weight in the cross-entropy is the paper's w_c + w0 * exp(...): `class_weights` of
    its class, plus the map. The cross-entropy is divided by the sum of these weights, as torch's
    is: the map moves it between pixels, and leaves its scale to the learning rate and to the
    other losses. Where no pixel counts, loss and gradient are 0.

    Args:
        logits: of the net; a single channel is that of the second class, of two.
        weight: the map of `border_weights`, the extra alone.
        output: of the net's config.
        over: counts of the batch that this is a part of; by default, of this alone.

    Raises:
        InputError: more or fewer class weights than classes.
    """
    is_independent = output == "sigmoid" and logits.shape[-1] > 1
    logits = to_class_logits(logits)
    classes = logits.shape[-1]
    if config.class_weights and len(config.class_weights) != classes:
        raise FieldError(
            config, "class_weights", "needs {classes} values, one for each class", classes=classes
        )
    divisors = compute_counts(truth, weight, config=config) if over is None else over
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    is_class = truth[..., None] == jnp.arange(classes)
    if is_independent:
        log_p, log_p_true = _judge_channels(logits, is_class)
    else:
        log_p, log_p_true = _judge_classes(logits, is_class)
    total = jnp.zeros((), log_p.dtype)
    if config.cross_entropy:
        pixels = -_pixel_weights(truth, weight, config) * log_p_true.mean(-1)
        total += config.cross_entropy * _ratio(pixels.sum(), divisors.weights)
    if config.dice:
        images = _dice(jnp.exp(log_p), is_class, _counted_pixels(truth, config))
        total += config.dice * _ratio(images.sum(), divisors.images)
    if config.focal:
        pixels = _class_weights(truth, config) * _focal(log_p_true, config.focal_gamma).mean(-1)
        total += config.focal * _ratio(pixels.sum(), divisors.class_weights)
    return total


def to_class_logits(logits: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
    """Return a logit for each class of the mask: (0, z) for a single channel z.

    Of these two softmax gives sigmoid(z) to the second class, the cross-entropy is the binary one
    with logits, and the second is the largest where z is above 0. More channels stay as they are.
    """
    if logits.shape[-1] > 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def _judge_classes(
    logits: Float[Array, "b h w k"], is_class: Bool[Array, "b h w k"]
) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w 1"]]:
    """Return log p of each class by softmax, and of the true one."""
    log_p = jax.nn.log_softmax(logits)
    return log_p, jnp.where(is_class, log_p, 0).sum(-1, keepdims=True)


def _judge_channels(
    logits: Float[Array, "b h w k"], is_class: Bool[Array, "b h w k"]
) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]:
    """Return log p of `yes` by sigmoid, and of the true answer, for each channel by itself."""
    log_yes = jax.nn.log_sigmoid(logits)
    return log_yes, jnp.where(is_class, log_yes, jax.nn.log_sigmoid(-logits))


def _dice(
    p: Float[Array, "b h w k"], is_class: Bool[Array, "b h w k"], counted: Bool[Array, "b h w"]
) -> Float[Array, " b"]:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) of each image.

    It is the mean over the classes 1 and up. The ones make a class that is neither there nor found
    perfect, not 0 / 0.
    """
    inside = counted[..., None]
    p, t = (jnp.where(inside, array[..., 1:], 0) for array in (p, is_class.astype(p.dtype)))
    score = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    return (1 - score).mean(-1)


def _focal(log_p: Float[Array, "b h w n"], gamma: float) -> Float[Array, "b h w n"]:
    """Return -(1 - p)^gamma log p of each answer.

    Lin et al., Focal Loss for Dense Object Detection, 2017.

    1 - p is never quite 0: there its power has no finite slope if gamma is below 1.
    """
    wrong = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    return -(wrong**gamma) * log_p


def _pixel_weights(
    truth: Integer[Array, "b h w"], weight: Float[Array, "b h w"] | None, config: LossConfig
) -> Float[Array, "b h w"]:
    """Return the weight of each pixel in the cross-entropy: that of its class, plus the map."""
    by_class = _class_weights(truth, config)
    if weight is None:
        return by_class
    return by_class + jnp.where(_counted_pixels(truth, config), weight, 0)


def _class_weights(truth: Integer[Array, "b h w"], config: LossConfig) -> Float[Array, "b h w"]:
    """Return the weight of each pixel's class, and 0 for pixels that do not count."""
    counted = _counted_pixels(truth, config).astype(float)
    if not config.class_weights:
        return counted
    is_class = truth[..., None] == jnp.arange(len(config.class_weights))
    return counted * jnp.where(is_class, jnp.asarray(config.class_weights, float), 0).sum(-1)


def _counted_pixels(truth: Integer[Array, "b h w"], config: LossConfig) -> Bool[Array, "b h w"]:
    """Return which pixels count."""
    if config.ignore_index is None:
        return jnp.ones(truth.shape, bool)
    return truth.astype(jnp.int32) != config.ignore_index  # -100, torch's own, is no uint8


def _ratio(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """Return total / count, and 0 for 0 / 0."""
    return total / jnp.where(count > 0, count, 1)
