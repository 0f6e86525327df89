"""Losses of the vectors of texts: each query finds its text among those of the batch or its own, or similarities follow scores.

The rows of a batch depend on each other, so each loss needs all of them at once; those of a query and its own texts do not.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.configs._pooling import Similarity
from zoo.nn.pooling import unit_vectors
from zoo.sharding import BATCH, constrain

ArrayLike = Array | np.ndarray
SMALLEST_SQUARE = 1e-12
"""Added to squared distances."""


def mean_over_sizes(
    losses: Callable[[Float[Array, "B C d"]], Float[Array, " B"]],
    vectors: Float[Array, "B C D"],
    sizes: Sequence[int],
    *,
    normalize: bool,
) -> Float[Array, " B"]:
    """Return the mean of the losses of vectors cut to each size (Kusupati et al. 2022, equation 1, with equal weights).

    Args:
        sizes: numbers of dimensions; () = all of them.
        normalize: divide each cut vector by its length.
    """
    cut = [vectors[..., :size] for size in sizes or vectors.shape[-1:]]
    return sum((losses(unit_vectors(part) if normalize else part) for part in cut), jnp.zeros(())) / len(cut)


def contrastive_losses(
    vectors: Float[Array, "B C D"],
    texts: Int[Array, "B C"],
    scale: Float[Array, ""],
    *,
    symmetric: bool,
    mask_duplicates: bool,
) -> Float[Array, " B"]:
    """Return -log of the probability of each query's positive among the candidates, in nats.

    Source: van den Oord et al. 2018, equation 4; Karpukhin et al. 2020, equation 2. The candidates are the positives and
    negatives of all rows: B * (C - 1) for each query. With `symmetric` the loss is the mean of this one and that of the
    positive's query among all queries (Radford et al. 2021, figure 3).

    Args:
        vectors: query, positive and negatives of each row.
        texts: numbers of the texts, which are equal for equal texts.
        scale: factor of the products, the inverse of the temperature.
        mask_duplicates: leave out other candidates that are the same text as the positive, and in the other direction other
            queries that are the same text or belong to it.
    """
    rows, options = texts.shape[0], texts.shape[1] - 1
    # On each device its own queries and all candidates: otherwise XLA may exchange the products, of which there are more.
    queries, documents = constrain(vectors[:, 0], BATCH), vectors[:, 1:]
    candidates = constrain(documents.reshape(rows * options, -1), None)
    losses = candidate_losses(scale * _products(queries, candidates), texts, mask_duplicates=mask_duplicates)
    if not symmetric:
        return losses
    same = (texts[:, 0][:, None] == texts[:, 0]) | (texts[:, 1][:, None] == texts[:, 1])  # [B, B]
    scores = scale * _products(constrain(documents[:, 0], BATCH), constrain(vectors[:, 0], None))
    return (losses + _cross_entropy(scores, jnp.arange(rows), same & mask_duplicates)) / 2


def candidate_losses(scores: Float[Array, "B M"], texts: Int[Array, "B C"], *, mask_duplicates: bool) -> Float[Array, " B"]:
    """Return the cross-entropy of each query's positive among the positives and negatives of all rows, M = B * (C - 1)."""
    rows, options = texts.shape[0], texts.shape[1] - 1
    same = texts[:, 1][:, None] == texts[:, 1:].reshape(1, -1)  # [B, M]
    return _cross_entropy(scores, options * jnp.arange(rows), same & mask_duplicates)


def ranking_losses(similarities: Float[Array, " B"], scores: Float[Array, " B"], scale: Float[Array, ""]) -> Float[Array, " B"]:
    """Return log(1 + the sum of exp(scale * (similarity of i - similarity of j)) over pairs with score i < score j), B times.

    It is the loss of the batch as a whole (Su 2022, "CoSENT"; for angles Li and Li 2023, section 3).
    """
    differences = scale * (similarities[:, None] - similarities[None, :])
    terms = jnp.where(scores[:, None] < scores[None, :], differences, -jnp.inf)
    loss = jax.nn.logsumexp(jnp.append(terms.ravel(), 0.0))
    return jnp.broadcast_to(loss, scores.shape)


def angle_similarities(vectors: Float[Array, "B 2 D"]) -> Float[Array, " B"]:
    """Return |the sum of the real and imaginary parts of x / y * |y| / |x||, the first half of a vector being its real part.

    Source: Li and Li 2023, section 3, as the authors' code computes it.
    """
    (a, c), (b, d) = (jnp.moveaxis(half, 1, 0) for half in jnp.split(vectors, 2, axis=-1))
    lengths = jnp.linalg.norm(vectors, axis=-1).prod(-1)
    return jnp.abs((a * c + b * d + b * c - a * d).sum(-1) / lengths)


def group_similarities(vectors: Float[ArrayLike, "B C D"], kind: Similarity) -> Float[ArrayLike, "B C-1"]:
    """Return the similarity of the first vector of each row with each of the others; jax and numpy arrays alike.

    Args:
        vectors: of length 1 for the cosine.
    """
    queries, documents = vectors[:, :1], vectors[:, 1:]
    if kind in ("cosine", "dot"):
        return (queries * documents).sum(-1)
    if kind == "manhattan":
        return -abs(queries - documents).sum(-1)
    # The derivative of a root is infinite at 0, where both texts are equal.
    return -((((queries - documents) ** 2).sum(-1) + SMALLEST_SQUARE) ** 0.5)


def triplet_losses(
    similarities: Float[Array, "B D"], teacher: Float[Array, "B D"], *, margin: float, scale: Float[Array, ""]
) -> Float[Array, " B"]:
    """Return the mean over negatives of max(0, margin - similarity of the positive + similarity of the negative)."""
    return jax.nn.relu(margin - similarities[:, :1] + similarities[:, 1:]).mean(-1)


def margin_errors(
    similarities: Float[Array, "B D"], teacher: Float[Array, "B D"], *, margin: float, scale: Float[Array, ""]
) -> Float[Array, " B"]:
    """Return the mean over negatives of the squared error of (positive - negative) from the teacher's."""
    differences = similarities - teacher
    return jnp.square(differences[:, :1] - differences[:, 1:]).mean(-1)


def divergences(
    similarities: Float[Array, "B D"], teacher: Float[Array, "B D"], *, margin: float, scale: Float[Array, ""]
) -> Float[Array, " B"]:
    """Return KL(p || q) / scale^2 of p = softmax(scale * teacher) and q = softmax(scale * similarities), in nats."""
    log_p, log_q = jax.nn.log_softmax(scale * teacher), jax.nn.log_softmax(scale * similarities)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1) / jnp.square(scale)


GROUP_LOSSES = {"triplet": triplet_losses, "margin_mse": margin_errors, "kl": divergences}
"""Loss -> function of the similarities and the teacher's scores of the positive, which is the first, and the negatives."""


def _products(a: Float[Array, "A D"], b: Float[Array, "B D"]) -> Float[Array, "A B"]:
    return jnp.einsum("ad,bd->ab", a, b, precision=jax.lax.Precision.HIGHEST)


def _cross_entropy(scores: Float[Array, "B M"], positives: Int[Array, " B"], same: Bool[Array, "B M"]) -> Float[Array, " B"]:
    """Return the cross-entropy of the positives; candidates in `same` other than the positive itself are left out."""
    is_positive = jnp.arange(scores.shape[1]) == positives[:, None]
    scores = jnp.where(same & ~is_positive, -jnp.inf, scores)
    return jax.nn.logsumexp(scores, axis=-1) - jnp.where(is_positive, scores, 0).sum(-1)
