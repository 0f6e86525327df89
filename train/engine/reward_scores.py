"""Scores of completions by a reward model or a classifier: one number for each."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.engine.log_probs import split_pairs
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import task_heads
from zoo.ops import counter_rng


def is_reward_model(model: Model) -> bool:
    """Return whether a model gives a text one score."""
    return model.task == "sequence" and len(model.config.labels) == 1 and not getattr(model.config, "multi_label", False)


def reward_scores(model: Model, params: Any, batch: Batch, seeds: Any = None) -> Float[Array, "B C"]:
    """Return the float32 score of each completion, read at `batch.summary_at` [B, C, 1].

    Completions are separate rows of the model, with different dropout.

    Args:
        batch: preferences, whose arrays have an axis C = 2 after the batch axis; its weights are not used.
        seeds: seeds of dropout, uint32 [B, 2]; None = no dropout.
    """
    return _logits(model, params, batch, seeds)[..., 0]


def label_log_probs(model: Model, params: Any, batch: Batch, label: int) -> Float[Array, "B C"]:
    """Return the float32 log-probability in nats of a classifier's label for each completion.

    It is the label's logit minus the log-sum-exp of all logits; for a classifier of texts with several labels, log sigmoid.

    Args:
        batch: as that of `reward_scores`.
        label: number of the label.
    """
    logits = _logits(model, params, batch, None)
    values = jax.nn.log_sigmoid(logits) if model.config.multi_label else jax.nn.log_softmax(logits, -1)
    return values[..., label]


def _logits(model: Model, params: Any, batch: Batch, seeds: Any) -> Float[Array, "B C O"]:
    pairs, count = batch.tokens.shape[:2]
    if seeds is not None:
        sides = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), (pairs, count))
        seeds = counter_rng.fold(jnp.repeat(seeds, count, axis=0), sides.reshape(-1))  # [B * C, 2]
    rows = split_pairs(batch)
    summaries = task_heads.sequence_summaries(model.apply(params, rows, seeds=seeds), rows)
    logits = model.sequence_logits(params, summaries, seeds)  # [B * C, 1, O]
    return logits.reshape(pairs, count, -1)
