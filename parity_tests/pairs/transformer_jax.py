"""The transformer block as plain functions on a nested dict of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HEADS = 2
EPS = 1e-5
LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.2", "norm")


def linear(params: dict[str, Array], x: Float[Array, "b t d"]) -> Float[Array, "b t k"]:
    """Return `x` times the kernel, plus the bias."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: dict[str, Array], x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Return every vector with mean 0 and variance 1, then scaled and shifted."""
    mean = x.mean(axis=-1, keepdims=True)
    var = x.var(axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + EPS) * params["scale"] + params["bias"]


def split_heads(x: Float[Array, "b t d"]) -> Float[Array, "b heads t k"]:
    """Return the parts of each vector that belong to one head, heads first."""
    b, t, d = x.shape
    return x.reshape(b, t, HEADS, d // HEADS).transpose(0, 2, 1, 3)


def causal_mask(t: int) -> Float[Array, "t t"]:
    """Return zeros where a position may look, and minus infinity where it may not."""
    sees = jnp.tril(jnp.ones((t, t), bool))
    return jnp.where(sees, 0.0, -jnp.inf)


def attention(params: dict[str, Any], x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Return what each position gathers from itself and from those before it."""
    q, k, v = jnp.split(linear(params["qkv"], x), 3, axis=-1)
    q, k, v = split_heads(q), split_heads(k), split_heads(v)
    scores = q @ k.swapaxes(-2, -1) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(scores + causal_mask(x.shape[1]), axis=-1)
    mixed = (weights @ v).transpose(0, 2, 1, 3)
    return linear(params["proj"], mixed.reshape(x.shape))


def mlp(params: dict[str, Any], x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Return the output of two linear layers with a GELU between them."""
    hidden = jax.nn.gelu(linear(params["0"], x), approximate=False)
    return linear(params["2"], hidden)


def port(params: dict[str, Any], x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Return a vector per position."""
    x = x + attention(params["attn"], layer_norm(params["norm1"], x))
    x = x + mlp(params["mlp"], layer_norm(params["norm2"], x))
    return layer_norm(params["norm"], x)


def rename(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return a linear layer's weight as a kernel (in, out), and that of a norm as its scale."""
    return {"kernel": weight.T} if weight.ndim == 2 else {"scale": weight}


def convert(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the nested dict with the values of torch's state_dict."""
    flat = {}
    for name in LAYERS:
        flat[name] = {**rename(state[f"{name}.weight"]), "bias": state[f"{name}.bias"]}
    return {
        "norm1": flat["norm1"],
        "attn": {"qkv": flat["attn.qkv"], "proj": flat["attn.proj"]},
        "norm2": flat["norm2"],
        "mlp": {"0": flat["mlp.0"], "2": flat["mlp.2"]},
        "norm": flat["norm"],
    }
