"""Every value that a JAX function computes on its way, whatever library it is written with."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_AXES = 5
"""Of more axes not all orders are tried."""
TOLERANCE = 1e-9
"""Of float64 values."""


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


class Values:
    """The values of a pass, in which others can be looked for.

    Args:
        tolerance: two values that are nearer than this part of the largest are the same value.
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self.tolerance = tolerance
        self._by_size: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, array: np.ndarray) -> None:
        """Keep an array."""
        flat = np.ravel(array).astype(np.float64)
        self._by_size.setdefault(flat.size, []).append((_fingerprint(flat), flat))

    def contains(self, array: np.ndarray) -> bool:
        """Say whether an array is among the values, its axes in any order and cut in any way.

        An array of equal values says nothing, and counts as found.
        """
        array = np.asarray(array, np.float64)
        if array.size == 0 or (array == array.flat[0]).all() or np.isnan(array).any():
            return True
        sums = _fingerprint(array.ravel())
        near = [
            flat
            for other, flat in self._by_size.get(array.size, [])
            if np.allclose(sums, other, rtol=self.tolerance, atol=self.tolerance * sums[1])
        ]
        return any(
            _are_same(order, flat, self.tolerance)
            for order in (_list_orders(array) if near else ())
            for flat in near
        )


def _are_same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite]):
        return False
    if not finite.any():
        return True
    allowed = tolerance * np.abs(b[finite]).max()
    return bool(np.abs(a[finite] - b[finite]).max() <= allowed)


def _fingerprint(flat: np.ndarray) -> np.ndarray:
    """Return sums that no order of the values changes, of those that are finite."""
    flat = flat[np.isfinite(flat)]
    return np.array([flat.sum(), np.abs(flat).sum(), np.sqrt(np.square(flat).sum())])


def _list_orders(array: np.ndarray) -> Iterator[np.ndarray]:
    array = array.squeeze()
    yield array.ravel()
    if array.ndim <= MOST_AXES:
        for order in permutations(range(array.ndim)):
            if order != tuple(range(array.ndim)):
                yield array.transpose(order).ravel()


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
