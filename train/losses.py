import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def cross_entropy(
    logits: Float[Array, "b h w k"], truth: Integer[Array, "b h w"]
) -> Float[Array, ""]:
    """Mean over pixels of -log softmax(logits)[truth], in float32.

    As a sum over a one-hot axis: optax's form with integer labels gathers, and XLA on CPU then
    folds constants for seconds at compile time.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    one_hot = jax.nn.one_hot(truth, logits.shape[-1], dtype=jnp.float32)
    return -(one_hot * log_p).sum(-1).mean()
