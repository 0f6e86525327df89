"""Log-probabilities of the answers of pairs, whose arrays have an axis of two answers after the batch axis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.engine.losses import token_losses
from zoo.batch import Batch
from zoo.models import Model


def sequence_log_probs(
    model: Model, params: Any, batch: Batch, *, chunk: int = 0
) -> tuple[Float[Array, "B 2"], Float[Array, "B 2"]]:
    """Return (the log-probability in nats of each answer, the number of its counted tokens), float32, without dropout.

    Args:
        batch: pairs, whose arrays are [B, 2, T]; the tokens of the answer and its end mark have weight 1 and all others 0.
        chunk: number of predictions per row whose logits are computed at a time; 0 = all.
    """
    answers = split_pairs(batch)
    assert answers.targets is not None and batch.weights is not None
    nats = token_losses(
        lambda hidden: model.unembed(params, hidden),
        model.apply(params, answers).hidden,
        answers.targets,
        vocabulary=model.config.vocab,
        chunk=chunk,
    )
    nats = nats.reshape(batch.weights.shape)  # [B, 2, T]
    # A prediction that does not count may have any loss; its product with 0 must not be NaN.
    return -jnp.where(batch.weights > 0, nats * batch.weights, 0).sum(-1), batch.weights.sum(-1)


def split_pairs(batch: Batch) -> Batch:
    """Return pairs as twice as many rows, in the order of the pairs; `weights`, `labels`, `index` and `extra` are left out."""
    rows = dataclasses.replace(batch, weights=None, labels=None, index=None, extra=None)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)  # [B, 2, ...] -> [2 B, ...]


def counted_pairs(batch: Batch) -> Float[Array, " B"]:
    """Return 1 for each pair that counts, and 0 for those that only fill up a batch: these have no token with a weight."""
    assert batch.weights is not None
    return (batch.weights[:, 0] > 0).any(-1).astype(jnp.float32)
