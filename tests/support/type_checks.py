"""The checks that the tests apply to all functions of this project: of types by beartype, and of shapes by jaxtyping.

The plugin of jaxtyping decorates every function (`addopts` in pyproject.toml). Its decorator binds the arguments of each call and
checks them with two functions that it writes, which took a tenth of the time of a run. Only functions with shapes need that; the
others are checked by beartype alone. This module must be imported before those that the plugin decorates.
"""

import contextlib
import contextvars
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator

_jaxtyped = _decorator.jaxtyped
# A TypeError, as a call with wrong arguments is: code that reads fields from a file expects one.
_checked = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


_has_symbols: contextvars.ContextVar[bool] = contextvars.ContextVar("has_symbols", default=False)


@contextlib.contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Check nothing inside the block, where functions are traced for sizes that are symbols of `jax.export`, not of type int."""
    token, disabled = _has_symbols.set(True), jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        _has_symbols.reset(token)
        jaxtyping.config.update("jaxtyping_disable", disabled)


def check_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply beartype to a function at its first call: a process imports many functions that it never calls."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if _has_symbols.get():
            return function(*args, **kwargs)
        if checked is None:
            checked = _checked(function)
        return checked(*args, **kwargs)

    return call


def _needs_jaxtyping(annotation: Any) -> bool:
    """Return whether a part of an annotation has a shape, or is the name of a type, which beartype could not find."""
    if isinstance(annotation, str | typing.ForwardRef) or "jaxtyping" in getattr(annotation, "__module__", ""):
        return True
    if typing.get_origin(annotation) is typing.Literal:
        return False
    parts = annotation if isinstance(annotation, list | tuple) else typing.get_args(annotation)
    return any(map(_needs_jaxtyping, parts))


def _check(function: Any = None, *, typechecker: Any = None) -> Any:
    """Decorate as `jaxtyping.jaxtyped`, but a function without shapes by the type checker alone."""
    if function is None:
        return functools.partial(_check, typechecker=typechecker)
    if not inspect.isfunction(function) or any(map(_needs_jaxtyping, function.__annotations__.values())):
        return _jaxtyped(function, typechecker=typechecker)
    return function if getattr(function, "__no_type_check__", False) else check_when_called(function)


jaxtyping.jaxtyped = _decorator.jaxtyped = _check
