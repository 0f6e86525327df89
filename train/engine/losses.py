"""Losses as weighted sums, which the step divides once by their weights."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from train.config.distillation_options import Divergence
from train.engine.loss_chunks import traced_logits
from zoo.batch import Batch, Output
from zoo.models import Model
from zoo.nn import task_heads
from zoo.ops.reductions import log_sum_exp
from zoo.sharding import on_local_positions


def token_losses(
    unembed: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    *,
    vocabulary: int,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> Float[Array, "B P"]:
    """Return the cross-entropy in nats of each prediction, float32, through `unembed(hidden)`: logits [B, P, rows >= vocabulary].

    `smoothing` mixes the target with the uniform distribution over the vocabulary (Szegedy et al. 2016, section 7). The gradient
    is also that of `z_loss` times the squared log-normalizer, which keeps it near 0 (Chowdhery et al. 2022, section 5); the value
    is without it. Logits are computed for `chunk` positions of a device at a time, in the forward and the backward pass, so that
    memory is B * chunk * V instead of B * P * V; 0 = all at once, `AUTO_CHUNK` = as `train.engine.loss_chunks` chooses. With
    chunks all parameters of `unembed` must be its arguments, as in `Partial(model.unembed, params)`, because their gradients are
    summed over the devices once, after all chunks.
    """

    def losses(heads: tuple[Callable[[Array], Array]], hidden: Array, targets: Array) -> Array:
        (unembed,) = heads
        return _cross_entropy(unembed(hidden).astype(jnp.float32), targets, vocabulary, smoothing, z_loss)

    return _by_chunks(losses, (unembed,), hidden, targets, chunk=chunk)


def model_terms(out: Output) -> dict[str, Float[Array, ""]]:
    """Return the terms of the loss that the model itself adds, each summed over the rows of a batch."""
    return {name: by_row.sum() for name, by_row in out.losses.items()}


def model_weights(model: Model, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Return the divisors of `model_terms`: the number of rows."""
    rows = jnp.float32(batch.tokens.shape[0])
    return {name: rows for name in model.loss_factors}


def class_losses(logits: Float[Array, "*B O"], labels: Int[Array, "*B"], smoothing: float = 0.0) -> Float[Array, "*B"]:
    """Return the cross-entropy in nats of each label, 0 where the label is negative; `smoothing` as in `token_losses`."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    at_label = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    nats = -(1 - smoothing) * at_label
    if smoothing:
        # The logit of a class that no label can be is -1e30.
        possible = logits > -1e29
        nats = nats - smoothing * jnp.where(possible, log_p, 0).sum(-1) / possible.sum(-1)
    return jnp.where(labels < 0, 0, nats)


def multi_label_losses(logits: Float[Array, "*B O"], labels: Int[Array, "*B O"]) -> Float[Array, "*B"]:
    """Return the binary cross-entropy in nats between the sigmoid of each logit and its label, 1 or 0: the mean over the labels.

    The mean over examples is torch's `BCEWithLogitsLoss`.
    """
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(labels == 1, -logits, logits)).mean(-1)


def pair_loss(model: Model, params: Any, out: Output, batch: Batch, seeds: Any) -> Float[Array, ""]:
    """Return the summed cross-entropy in nats of the labels of a batch's pairs: whether the second text follows the first."""
    assert batch.labels is not None
    return class_losses(model.sequence_logits(params, task_heads.sequence_summaries(out, batch), seeds), batch.labels).sum()


@dataclasses.dataclass(frozen=True)
class SoftLoss:
    """The divergence of a student's probabilities from those of its teacher, both softmaxes at a temperature."""

    divergence: Divergence
    beta: float
    """Weight of the teacher in the mixture of jsd."""
    temperature: float

    def __call__(self, logits: Float[Array, "*B V"], teacher_logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
        """Return the divergence in nats at each position; the teacher gets no gradient (Agarwal et al. 2024, section 2)."""
        student = _log_softmax(logits / self.temperature)
        return self.between(student, _log_softmax(jax.lax.stop_gradient(teacher_logits) / self.temperature))

    def from_most_probable(
        self, logits: Float[Array, "*B V"], ids: Int[Array, "*B K"], log_probs: Float[Array, "*B L"]
    ) -> Float[Array, "*B"]:
        """Return the divergence in nats between both distributions over the K tokens `ids` and one event for all others.

        The last of `log_probs`, those of the teacher at the temperature, is that of the others ("ghost token", Anshumann et al.
        2025). The divergence is at most that over all tokens, and equal to it if `ids` are all of them.
        """
        log_q = _log_softmax(logits / self.temperature)
        student = jnp.take_along_axis(log_q, ids, axis=-1)
        others = log_sum_exp(jnp.put_along_axis(log_q, ids, -1e30, axis=-1, inplace=False))
        return self.between(jnp.concatenate([student, others[..., None]], axis=-1), log_probs)

    def between(self, student: Float[Array, "*B V"], teacher: Float[Array, "*B V"]) -> Float[Array, "*B"]:
        """Return the divergence in nats from the log-probabilities of both."""
        if self.divergence == "forward_kl":
            return _kl(teacher, student)
        if self.divergence == "reverse_kl":
            return _kl(student, teacher)
        mixture = jnp.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))
        return self.beta * _kl(teacher, mixture) + (1 - self.beta) * _kl(student, mixture)


def distillation_losses(
    student: Callable[[Array], Array],
    teacher: Callable[[Array], Array],
    hidden: Float[Array, "B T D"],
    teacher_hidden: Float[Array, "B T E"],
    *,
    soft: SoftLoss,
    chunk: int = 0,
) -> Float[Array, "B T"]:
    """Return the divergence in nats of the student from the teacher at each position, float32.

    `student(hidden)` and `teacher(teacher_hidden)` are logits [B, T, rows]. `chunk` as in `token_losses`.
    """

    def losses(heads: tuple[Callable[[Array], Array], Callable[[Array], Array]], hidden: Array, teacher_hidden: Array) -> Array:
        student, teacher = heads
        return soft(student(hidden).astype(jnp.float32), teacher(teacher_hidden).astype(jnp.float32))

    return _by_chunks(losses, (student, teacher), hidden, teacher_hidden, chunk=chunk)


def target_and_distillation_losses(
    student: Callable[[Array], Array],
    teacher: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    teacher_hidden: Float[Array, "B P E"],
    targets: Int[Array, "B P"],
    *,
    soft: SoftLoss,
    vocabulary: int,
    smoothing: float,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Return (`token_losses` of the student, `distillation_losses`), for which its logits are computed once."""
    sizes: dict[str, Any] = {"vocabulary": vocabulary, "smoothing": smoothing, "z_loss": z_loss, "chunk": chunk}
    return _targets_and_divergences(soft, (student, teacher), (hidden, teacher_hidden), targets, **sizes)


def target_and_stored_losses(
    student: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    ids: Int[Array, "B P K"],
    log_probs: Float[Array, "B P L"],
    *,
    soft: SoftLoss,
    vocabulary: int,
    smoothing: float,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Return (`token_losses` of the student, its divergences from the `most_probable` tokens of a teacher)."""
    sizes: dict[str, Any] = {"vocabulary": vocabulary, "smoothing": smoothing, "z_loss": z_loss, "chunk": chunk}
    return _targets_and_divergences(soft.from_most_probable, (student,), (hidden,), targets, ids, log_probs, **sizes)


def most_probable(
    teacher: Callable[[Array], Array], hidden: Float[Array, "B P E"], k: int, *, temperature: float, chunk: int = 0
) -> Float[Array, "B P N"]:
    """Return the ids of the k most probable tokens at each position, their log-probabilities, and that of all other tokens.

    Of these N = 2 k + 1 numbers, the ids come first; as float32 they are exact. `chunk` as in `token_losses`.
    """

    def numbers(heads: tuple[Callable[[Array], Array]], hidden: Array) -> Array:
        log_p = _log_softmax(heads[0](hidden).astype(jnp.float32) / temperature)
        log_probs, ids = jax.lax.top_k(log_p, k)
        others = log_sum_exp(jnp.put_along_axis(log_p, ids, -1e30, axis=-1, inplace=False))
        return jnp.concatenate([ids.astype(jnp.float32), log_probs, others[..., None]], axis=-1)

    return _by_chunks(numbers, (teacher,), hidden, chunk=chunk)


def _targets_and_divergences(
    divergence: Callable[..., Array],
    heads: tuple[Callable[[Array], Array], ...],
    hidden: tuple[Array, ...],
    targets: Array,
    *others: Array,
    vocabulary: int,
    smoothing: float,
    z_loss: float,
    chunk: int,
) -> tuple[Array, Array]:
    """Return the `token_losses` of the first head, and `divergence` of the logits of all heads and of `others`, both [B, P]."""

    def losses(heads: tuple[Callable[[Array], Array], ...], *arrays: Array) -> Array:
        states, (targets, *others) = arrays[: len(heads)], arrays[len(heads) :]
        logits = [head(x).astype(jnp.float32) for head, x in zip(heads, states, strict=True)]
        nats = _cross_entropy(logits[0], targets, vocabulary, smoothing, z_loss)
        return jnp.stack([nats, divergence(*logits, *others)], axis=-1)  # [B, P, 2]

    both = _by_chunks(losses, heads, *hidden, targets, *others, chunk=chunk)
    return both[..., 0], both[..., 1]


def _cross_entropy(logits: Array, targets: Array, vocabulary: int, smoothing: float, z_loss: float) -> Array:
    # The log-normalizer over padding rows of the table is unchanged: their logits are -1e30.
    log_z = log_sum_exp(logits)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = log_z - (1 - smoothing) * at_target
    if smoothing:
        is_entry = jnp.arange(logits.shape[-1]) < vocabulary
        nats = nats - smoothing * jnp.where(is_entry, logits, 0).sum(-1) / vocabulary
    if z_loss:
        # Its value is subtracted again, so that losses with and without it are comparable.
        penalty = z_loss * jnp.square(log_z)
        nats = nats + (penalty - jax.lax.stop_gradient(penalty))
    return nats


def _log_softmax(logits: Array) -> Array:
    return logits - log_sum_exp(logits)[..., None]


def _kl(log_p: Array, log_q: Array) -> Array:
    """Return KL(p || q). Entries of probability 0 have finite logarithms."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _by_chunks(
    losses: Callable[..., Array], heads: tuple[Callable[[Array], Array], ...], *arrays: Shaped[Array, "B T ..."], chunk: int
) -> Float[Array, "B T ..."]:
    """Return losses(heads, *arrays), computed for `chunk` positions at a time in both passes; 0 = all at once.

    The first arrays are the hidden states that the heads compute logits from.
    """
    chunk = traced_logits(heads, arrays[: len(heads)], chunk).chunk
    if chunk == 0:
        return losses(heads, *arrays)

    def scan(heads: Any, *arrays: Array) -> Array:
        one_chunk, length = jax.checkpoint(functools.partial(losses, heads)), arrays[0].shape[1]
        chunks = tuple(_split_chunks(x, min(chunk, length)) for x in arrays)
        _, by_chunk = jax.lax.scan(lambda _, xs: (None, one_chunk(*xs)), None, chunks)
        return _join_chunks(by_chunk)[:, :length]

    return on_local_positions(scan, heads, *arrays)


def _split_chunks(x: Array, chunk: int) -> Array:
    """Return [B, T, ...] as chunks along T, [T / chunk, B, chunk, ...]; the last one is filled up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)  # [N, B, chunk, ...]


def _join_chunks(chunks: Float[Array, "N B C ..."]) -> Float[Array, "B T ..."]:
    count, rows, size = chunks.shape[:3]
    return jnp.moveaxis(chunks, 0, 1).reshape(rows, count * size, *chunks.shape[3:])  # [B, N * C, ...]
