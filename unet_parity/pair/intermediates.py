"""Every value that a JAX function computes on its way, whatever library it is written with."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unet_parity.pair.values import TOLERANCE, Values


def evaluate(closed: Any, arguments: Sequence[Any], keep: Callable[[np.ndarray], None]) -> list:
    """Evaluate a jaxpr, operation by operation, and pass on every floating-point value.

    Loops are run turn by turn, and functions within functions are entered.
    """
    return _evaluate(closed.jaxpr, closed.consts, arguments, keep)


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], keep: Any) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for variables, operands in ((jaxpr.constvars, consts), (jaxpr.invars, arguments)):
        values.update(zip(variables, operands, strict=True))
    for equation in jaxpr.eqns:
        results = _run(equation, [read(atom) for atom in equation.invars], keep)
        for variable, value in zip(equation.outvars, results, strict=True):
            values[variable] = value
            _keep(value, keep)
    return [read(atom) for atom in jaxpr.outvars]


def _keep(value: Any, keep: Any) -> None:
    if jnp.issubdtype(getattr(value, "dtype", np.int32), jnp.floating):
        keep(np.asarray(value))


def _run(equation: Any, operands: list[Any], keep: Any) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _run_scan(params, operands, keep)
    if name == "while":
        return _run_while(params, operands, keep)
    if name == "cond":
        return _enter(params["branches"][int(operands[0])], operands[1:], keep)
    inner = next((params[k] for k in ("call_jaxpr", "jaxpr", "fun_jaxpr") if k in params), None)
    if inner is not None and name != "custom_partitioning":
        return _enter(inner, operands, keep)
    results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _enter(inner: Any, operands: list[Any], keep: Any) -> list[Any]:
    if hasattr(inner, "consts"):
        return _evaluate(inner.jaxpr, inner.consts, operands, keep)
    return _evaluate(inner, (), operands, keep)


def _run_scan(params: dict[str, Any], operands: list[Any], keep: Any) -> list[Any]:
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, rows = operands[:first], operands[first:second], operands[second:]
    stacked: list[list[Any]] = []
    turns = range(params["length"])
    for turn in reversed(turns) if params["reverse"] else turns:
        parts = [row[turn] for row in rows]
        for part in parts:
            _keep(part, keep)
        results = _enter(params["jaxpr"], [*consts, *carry, *parts], keep)
        carry, each = results[: params["num_carry"]], results[params["num_carry"] :]
        stacked.append(each)
    if params["reverse"]:
        stacked.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*stacked, strict=True))]


def _run_while(params: dict[str, Any], operands: list[Any], keep: Any) -> list[Any]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    tests, consts, carry = operands[:first], operands[first:second], operands[second:]
    while bool(_enter(params["cond_jaxpr"], [*tests, *carry], keep)[0]):
        carry = _enter(params["body_jaxpr"], [*consts, *carry], keep)
    return carry


def find_narrowings(jaxpr: Any, inside: str = "") -> Iterator[str]:
    """Yield the names of the functions in which float64 becomes a narrower type, as far as they are
    compiled by themselves; an empty one elsewhere.

    Args:
        jaxpr: of a function of float64 numbers.
        inside: the name of the function that it is of.
    """
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "convert_element_type":
            before = equation.invars[0].aval.dtype
            after = params["new_dtype"]
            if before == jnp.float64 and jnp.issubdtype(after, jnp.floating) and after != before:
                yield inside
        for inner in jax.tree.leaves(params, is_leaf=lambda value: hasattr(value, "eqns")):
            within = getattr(inner, "jaxpr", inner)
            if hasattr(within, "eqns"):
                name = str(params.get("name", inside))
                yield from find_narrowings(within, name.strip("_") or inside)


def record(
    closed: Any, arguments: Sequence[Any], *, tolerance: float = TOLERANCE
) -> tuple[Values, list[np.ndarray]]:
    """Evaluate a jaxpr in float64; return every value in it, and what it gives.

    Args:
        tolerance: as of `Values`.
    """
    values = Values(tolerance)
    with jax.enable_x64(True):
        for argument in arguments:
            if jnp.issubdtype(argument.dtype, jnp.floating):
                values.add(np.asarray(argument))
        results = evaluate(closed, arguments, values.add)
    return values, [np.asarray(value) for value in results]
