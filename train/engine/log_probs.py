"""Log-probabilities of the targets of rows [B, T], and of whole answers in arrays [B, C, T], with C = 2 for pairs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from train.engine.losses import token_losses
from zoo.batch import Batch
from zoo.models import Model
from zoo.nn.task_heads import gather_positions


def token_log_probs(
    model: Model,
    params: Any,
    batch: Batch,
    *,
    hidden: Float[Array, "B T D"] | None = None,
    chunk: int = 0,
    temperature: float = 1.0,
    longest: int | None = None,
) -> Float[Array, "B T"]:
    """Return the log-probability in nats of each target, float32, without dropout; 0 where the weight is 0.

    Args:
        batch: rows with targets and weights [B, T].
        hidden: the model's hidden states of the batch, without dropout; None = compute them.
        chunk: number of predictions per row whose logits are computed at a time; 0 = all.
        temperature: divides the logits. With that of sampling and without filters, these are the log-probabilities with which
            the targets were sampled.
        longest: the largest number of targets of a row that have a weight, which must follow each other: logits of as many
            targets per row are computed, instead of T; None = T.
    """
    assert batch.weights is not None and batch.targets is not None
    hidden = model.apply(params, batch).hidden if hidden is None else hidden
    length = batch.targets.shape[1]
    if longest is None or longest >= length:
        nats = _target_nats(model, params, hidden, batch.targets, chunk, temperature)
    else:
        # The responses of the rows begin at different positions.
        first = jnp.minimum(jnp.argmax(batch.weights > 0, axis=1), length - longest)[:, None]  # [B, 1]
        at = first + jnp.arange(longest)  # [B, R]
        targets = jnp.take_along_axis(batch.targets, at, axis=1)
        nats = _target_nats(model, params, gather_positions(hidden, at), targets, chunk, temperature)
        # Targets outside of [first, first + R) get another target's loss, and have no weight.
        nats = jnp.take_along_axis(nats, jnp.clip(jnp.arange(length) - first, 0, longest - 1), axis=1)  # [B, T]
    return jnp.where(batch.weights > 0, -nats, 0)


def sequence_log_probs(
    model: Model, params: Any, batch: Batch, *, chunk: int = 0
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Return (the log-probability in nats of each answer, the number of its counted tokens), float32, without dropout.

    Args:
        batch: answers, whose arrays are [B, C, T], with C = 2 for pairs; the tokens of an answer and its end mark have weight 1,
            all others 0.
        chunk: number of predictions per row whose logits are computed at a time; 0 = all.
    """
    assert batch.weights is not None
    rows = split_pairs(batch)
    assert rows.targets is not None
    nats = _target_nats(model, params, model.apply(params, rows).hidden, rows.targets, chunk)
    nats = nats.reshape(batch.weights.shape)  # [B, C, T]
    # A prediction that does not count may have any loss; its product with 0 must not be NaN.
    return -jnp.where(batch.weights > 0, nats * batch.weights, 0).sum(-1), batch.weights.sum(-1)


def split_pairs(batch: Batch) -> Batch:
    """Return the answers of pairs as rows of their own, in the order of the pairs.

    `weights`, `labels`, `index` and `extra` are left out.
    """
    rows = dataclasses.replace(batch, weights=None, labels=None, index=None, extra=None)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)  # [B, C, ...] -> [B * C, ...]


def one_side(batch: Batch, side: int) -> Batch:
    """Return the batch with one of the two answers of each pair, on an axis C = 1.

    `labels`, `index` and `extra` are left out.
    """
    pairs = dataclasses.replace(batch, labels=None, index=None, extra=None)
    return jax.tree.map(lambda leaf: leaf[:, side : side + 1], pairs)  # [B, C, ...] -> [B, 1, ...]


def pair_weights(batch: Batch) -> Float[Array, " B"]:
    """Return 1 for each pair that counts, and 0 for a pair that only fills up a batch, whose tokens all have weight 0."""
    assert batch.weights is not None
    return (batch.weights[:, 0] > 0).any(-1).astype(jnp.float32)


def _target_nats(
    model: Model,
    params: Any,
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    chunk: int,
    temperature: float = 1.0,
) -> Float[Array, "B P"]:
    """Return the cross-entropy in nats of each target."""

    def logits(params: Any, hidden: Array) -> Array:
        values = model.unembed(params, hidden)
        return values if temperature == 1 else values.astype(jnp.float32) / temperature

    return token_losses(Partial(logits, params), hidden, targets, vocabulary=model.config.vocab, chunk=chunk)
