"""Names of modules for what a compiler and a profiler say of the net."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def scoped(parent: nnx.Module, name: str) -> Callable[..., Any]:
    """Return a part of a module, whose operations bear its name: `jvp(up_1)/conv/...`.

    It computes the same: the name stands in the metadata of the compiled program alone.
    """

    def run(*arguments: Any) -> Any:
        with jax.named_scope(name):
            return getattr(parent, name)(*arguments)

    return run
