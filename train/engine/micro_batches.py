"""Division of a batch into micro-batches, which are computed one after the other to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.sharding import BATCH, constrain


def split_rows(batch: Any, num_micro: int) -> Any:
    """Return a pytree of arrays [B, ...] as micro-batches [num_micro, B / num_micro, ...].

    Micro-batch i takes rows i, i + num_micro, ..., so that no row leaves its device.
    """

    def split(x: jax.Array) -> jax.Array:
        micro_first = jnp.moveaxis(x.reshape(x.shape[0] // num_micro, num_micro, *x.shape[1:]), 1, 0)  # [M, B / M, ...]
        return constrain(micro_first, None, BATCH)

    return jax.tree.map(split, batch)


def join_rows(micro_batches: Any) -> Any:
    """Return micro-batches of `split_rows` as a pytree of arrays [B, ...], with the rows in their first order."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), micro_batches)


def map_rows(function: Callable[[Any], Any], batch: Any, num_micro: int) -> Any:
    """Return `function(batch)`, arrays [B, ...], computed by micro-batches; the function must treat every row independently."""
    if num_micro == 1:
        return function(batch)
    return join_rows(jax.lax.map(function, split_rows(batch, num_micro)))
