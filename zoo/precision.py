"""The dtype of the arithmetic: parameters are stored in float32, and the caller of a model casts them to this dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from zoo.configs import Precision

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Dtype of the arithmetic under each precision."""


def resolve_precision(precision: Precision, *, default: Precision = "auto", platform: str | None = None) -> Precision:
    """Return the precision, or `default` if it is "auto"; if both are, float32 on CPU and bfloat16 elsewhere.

    Args:
        default: the precision of a run whose parameters are used.
        platform: where the program will run; None: the default platform of this process.
    """
    resolved = default if precision == "auto" else precision
    if resolved != "auto":
        return resolved
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def resolve_dtype(precision: Precision, *, default: Precision = "auto") -> Any:
    """Return the dtype of the arithmetic on this machine, for "auto" that of `default`: see `resolve_precision`."""
    return DTYPES[resolve_precision(precision, default=default)]


def cast_params(params: Any, dtype: Any) -> Any:
    """Return a tree of parameters in the dtype of the arithmetic."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
