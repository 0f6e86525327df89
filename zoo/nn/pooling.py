"""A vector for each text, from the hidden states of its tokens (Reimers and Gurevych 2019, section 3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.batch import Batch, Output
from zoo.configs._pooling import Pool
from zoo.nn import task_heads

SMALLEST = 1e-12
"""Smallest divisor of a vector, as in torch, so that zeros stay zeros."""


def pool_tokens(hidden: Float[Array, "B T D"], batch: Batch, pool: Pool) -> Float[Array, "B D"]:
    """Return a vector for each row, which has one text: tokens of `batch.segments` 1, then padding.

    Args:
        hidden: the final hidden states, in the dtype in which the sums are computed.
    """
    assert batch.segments is not None
    if pool == "cls":
        return task_heads.sequence_summaries(Output(hidden=hidden), batch)[:, 0]
    is_token = batch.segments > 0
    counts = is_token.sum(1, keepdims=True)
    if pool == "last":
        return jnp.take_along_axis(hidden, counts[..., None] - 1, axis=1)[:, 0]
    if pool == "max":
        return jnp.where(is_token[..., None], hidden, -jnp.inf).max(1)
    weights = is_token.astype(hidden.dtype)
    if pool == "weighted_mean":
        weights = weights * jnp.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)
    total = jnp.where(is_token[..., None], hidden * weights[..., None], 0).sum(1)
    return total / (jnp.sqrt(counts) if pool == "mean_sqrt" else weights.sum(1, keepdims=True)).astype(hidden.dtype)


def unit_vectors(vectors: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Return each vector divided by its Euclidean length."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), SMALLEST)
