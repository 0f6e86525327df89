"""The type checker that jaxtyping applies to all functions of this project in the tests (`addopts` in pyproject.toml)."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply beartype to a function at its first call: a process imports many functions that it never calls."""
    checked: Callable[..., Any] | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return call
