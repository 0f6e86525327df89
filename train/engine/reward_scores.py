"""Scores of preferences by a reward model: one number for each completion."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import heads
from zoo.ops import counter_rng


def reward_scores(model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B C"]:
    """Return the float32 score of each completion, read at `batch.summary_at` [B, C, 1].

    Completions are separate rows of the model, with different dropout.

    Args:
        batch: preferences, whose arrays have an axis C = 2 after the batch axis; its weights are not used.
        seeds: seeds of dropout, uint32 [B, 2]; None = no dropout.
    """
    pairs, count = batch.tokens.shape[:2]
    if seeds is not None:
        sides = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), (pairs, count))
        seeds = counter_rng.fold(jnp.repeat(seeds, count, axis=0), sides.reshape(-1))  # [B * C, 2]
    rows = completion_rows(batch)
    hidden = model.apply(params, rows, seeds=seeds).hidden
    scores = model.sequence_logits(params, heads.summaries(hidden, rows.summary_at), seeds)  # [B * C, 1, 1]
    return scores.reshape(pairs, count)


def completion_rows(batch: Batch) -> Batch:
    """Return the completions of preferences as rows of their own: every array [B, C, ...] becomes [B * C, ...].

    Fields of whole preferences (weights, index, extra) are left out.
    """
    rows = dataclasses.replace(batch, weights=None, index=None, extra=None)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), rows)
