"""Losses as weighted sums; dividing by the weights happens once, in the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.batch import Batch
from zoo.models import Model
from zoo.nn import heads
from zoo.ops.reductions import log_sum_exp


def token_losses(
    unembed: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    *,
    vocabulary: int,
    smoothing: float = 0.0,
    chunk: int = 0,
) -> Float[Array, "B P"]:
    """Cross-entropy in nats of each prediction, float32, through `unembed(hidden) -> logits [B, P, rows >= vocabulary]`.

    `smoothing` mixes the target with the uniform distribution over the vocabulary (Szegedy et al. 2016, section 7). `chunk`
    positions have logits at a time, in the forward and the backward pass, so that memory is B * chunk * V instead of B * P * V;
    0 = all at once.
    """

    def losses(hidden: Array, targets: Array) -> Array:
        logits = unembed(hidden).astype(jnp.float32)
        # The log-normalizer over padding rows of the table is unchanged: their logits are -1e30.
        nats = log_sum_exp(logits)
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        if smoothing == 0:
            return nats - at_target
        real = jnp.arange(logits.shape[-1]) < vocabulary
        mean = jnp.where(real, logits, 0).sum(-1) / vocabulary
        return nats - (1 - smoothing) * at_target - smoothing * mean

    if chunk == 0 or chunk >= targets.shape[1]:
        return losses(hidden, targets)
    _, by_chunk = jax.lax.scan(
        lambda _, xs: (None, jax.checkpoint(losses)(*xs)), None, (_split(hidden, chunk), _split(targets, chunk))
    )
    return _joined(by_chunk)[:, : targets.shape[1]]


def summed(
    model: Model, params: Any, batch: Batch, *, seeds: Any, carry: Any, smoothing: float, chunk: int
) -> tuple[Float[Array, ""], Any]:
    """Cross-entropy in nats of a batch's targets, at the positions of its tokens, summed by their weights; the model's carry."""
    assert batch.targets is not None and batch.weights is not None
    out = model.apply(params, batch, seeds=seeds, carry=carry)
    nats = token_losses(
        lambda hidden: model.unembed(params, hidden),
        out.hidden,
        batch.targets,
        vocabulary=model.config.vocab,
        smoothing=smoothing,
        chunk=chunk,
    )
    return (nats * batch.weights).sum(), out.carry


def class_losses(logits: Float[Array, "*B O"], labels: Int[Array, "*B"], smoothing: float = 0.0) -> Float[Array, "*B"]:
    """Cross-entropy in nats of each label, 0 where it is negative, that is ignored; `smoothing` as in `token_losses`."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    at_label = jnp.take_along_axis(logs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    nats = -(1 - smoothing) * at_label
    if smoothing:
        # A position that no label can have is at -1e30.
        possible = logits > -1e29
        nats = nats - smoothing * jnp.where(possible, logs, 0).sum(-1) / possible.sum(-1)
    return jnp.where(labels < 0, 0, nats)


def pair_loss(model: Model, params: Any, hidden: Float[Array, "B T D"], batch: Batch, seeds: Any) -> Float[Array, ""]:
    """Summed cross-entropy in nats of the labels of a batch's pairs: whether the second text follows the first."""
    assert batch.labels is not None
    return class_losses(model.sequence_logits(params, heads.summaries(hidden, batch.summary_at), seeds), batch.labels).sum()


def soft_losses(
    student: Callable[[Array], Array],
    teacher: Callable[[Array], Array],
    hidden: Float[Array, "B T D"],
    shown: Float[Array, "B T E"],
    *,
    temperature: float,
    chunk: int = 0,
) -> Float[Array, "B T"]:
    """KL(teacher || student) in nats at each position, both softmaxes at a temperature (Hinton et al. 2015, section 2), float32.

    `student(hidden)` and `teacher(shown)` are logits [B, T, rows]. The teacher gets no gradient. `chunk` as in `token_losses`.
    """

    def losses(hidden: Array, shown: Array) -> Array:
        ours = jax.nn.log_softmax(student(hidden).astype(jnp.float32) / temperature)
        theirs = jax.nn.log_softmax(jax.lax.stop_gradient(teacher(shown)).astype(jnp.float32) / temperature)
        return (jnp.exp(theirs) * (theirs - ours)).sum(-1)

    if chunk == 0 or chunk >= hidden.shape[1]:
        return losses(hidden, shown)
    _, by_chunk = jax.lax.scan(
        lambda _, xs: (None, jax.checkpoint(losses)(*xs)), None, (_split(hidden, chunk), _split(shown, chunk))
    )
    return _joined(by_chunk)[:, : hidden.shape[1]]


def _split(x: Array, chunk: int) -> Array:
    """[B, T, ...] as chunks along T, [T / chunk, B, chunk, ...]; the last one is filled up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _joined(chunks: Float[Array, "N B C"]) -> Float[Array, "B T"]:
    return jnp.moveaxis(chunks, 0, 1).reshape(chunks.shape[1], -1)
