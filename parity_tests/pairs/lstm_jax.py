"""The LSTM as plain functions, with `jax.lax.scan` for the loop over time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Carry = tuple[Float[Array, "b d"], Float[Array, "b d"]]
GATES = ("input", "forget", "candidate", "output")  # in the order of torch's rows


def gate(params: dict[str, Array], x: Float[Array, "b k"], hidden: Float[Array, "b d"]) -> Array:
    """Return what a gate makes of the input and of the hidden state, before its sigmoid."""
    from_input = x @ params["input_kernel"] + params["input_bias"]
    from_hidden = hidden @ params["hidden_kernel"] + params["hidden_bias"]
    return from_input + from_hidden


def cell(params: dict[str, Any], carry: Carry, x: Float[Array, "b k"]) -> Carry:
    """Return the hidden state and the memory after one step."""
    hidden, memory = carry
    lets_in = jax.nn.sigmoid(gate(params["input"], x, hidden))
    keeps = jax.nn.sigmoid(gate(params["forget"], x, hidden))
    candidate = jnp.tanh(gate(params["candidate"], x, hidden))
    shows = jax.nn.sigmoid(gate(params["output"], x, hidden))
    memory = keeps * memory + lets_in * candidate
    return shows * jnp.tanh(memory), memory


def port(params: dict[str, Any], x: Float[Array, "b t k"]) -> tuple[Array, Array]:
    """Return the scores of the last step, and the hidden states of all steps."""

    def step(carry: Carry, x_now: Float[Array, "b k"]) -> tuple[Carry, Array]:
        hidden, memory = cell(params["cell"], carry, x_now)
        return (hidden, memory), hidden

    width = params["head"]["kernel"].shape[0]
    start = jnp.zeros((x.shape[0], width), x.dtype)
    (last, _), states = jax.lax.scan(step, (start, start), x.swapaxes(0, 1))
    scores = last @ params["head"]["kernel"] + params["head"]["bias"]
    return scores, states.swapaxes(0, 1)


def convert_gate(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return one gate from its rows of torch's four tensors."""
    weight_ih, weight_hh, bias_ih, bias_hh = rows
    return {
        "input_kernel": weight_ih.T,
        "hidden_kernel": weight_hh.T,
        "input_bias": bias_ih,
        "hidden_bias": bias_hh,
    }


def convert(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the nested dict with the values of torch's state_dict."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    quarters = [np.split(state[f"cell.{name}"], 4) for name in names]
    per_gate = zip(GATES, *quarters, strict=True)
    gates = {name: convert_gate(rows) for name, *rows in per_gate}
    head = {"kernel": state["head.weight"].T, "bias": state["head.bias"]}
    return {"cell": gates, "head": head}
