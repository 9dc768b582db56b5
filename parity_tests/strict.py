"""Signatures are checked in tests: types by beartype, and shapes by jaxtyping's names of axes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping._storage import pop_shape_memo, push_shape_memo

# an int where a float is asked for is fine, as PEP 484 says and as the configs allow
typechecked = beartype(
    conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
)


def install(modules: Sequence[str]) -> None:
    """Check every function of some modules, which are not imported yet, whenever it is called."""
    # the hook writes this name into the modules; its own binds all arguments by name at each call,
    # for messages and for axes like "{n}", and checks them twice: most of the time of small nets
    jaxtyping.jaxtyped = lambda *, typechecker: check  # type: ignore[assignment]
    jaxtyping.install_import_hook(modules, f"{__name__}.typechecked")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, or a dataclass, that raises where its arguments or result do not fit."""
    if inspect.isclass(function):
        if "__dataclass_fields__" in vars(function) and "__init__" in vars(function):
            function.__init__ = check(function.__init__)  # type: ignore[method-assign]
        return function
    checked = typechecked(function)
    if not _names_axes(function):
        return checked
    if inspect.isgeneratorfunction(function):
        return _plain(function, typechecker=typechecked)

    @functools.wraps(function)
    def with_axes(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})
        try:
            return checked(*args, **kwargs)
        finally:
            pop_shape_memo()

    return with_axes


_plain = jaxtyping.jaxtyped


def _names_axes(function: Callable[..., Any]) -> bool:
    """Return whether a signature has shapes, or may have: a class in it is not there yet."""
    try:
        hints = get_type_hints(function)
    except NameError:
        return True
    return any(_has_axes(hint) for hint in hints.values())


def _has_axes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_axes(part) for part in get_args(hint))
