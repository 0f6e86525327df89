"""MaxSim: for each token of a query its largest similarity to a token of the document, summed over the query's tokens."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.sharding import BATCH, constrain

PRODUCTS = 1 << 24
"""Most products of two tokens that are computed at a time, over all devices, unless one document has more: 64 MiB in float32."""


def max_sim(
    queries: Float[Array, "Q T E"],
    documents: Float[Array, "M S E"],
    in_query: Bool[Array, "Q T"],
    in_document: Bool[Array, "M S"],
    *,
    products: int = PRODUCTS,
) -> Float[Array, "Q M"]:
    """Return the score of each document for each query (Khattab and Zaharia 2020, equation 3), float32.

    All pairs have Q T M S products of two tokens. They are computed for a few documents at a time, and in the backward pass once
    more, so that only Q T S of them per document of a block are in memory, at most `products` in all. A query's tokens stay on
    their device; all devices have all documents.

    Args:
        in_query: tokens that count.
        in_document: tokens that are compared, at least one of each document.
    """
    queries, documents = constrain(queries, BATCH), constrain(documents, None)

    @jax.checkpoint
    def scores_of(document: Float[Array, "S E"], compared: Bool[Array, " S"]) -> Float[Array, " Q"]:
        similarities = jnp.einsum("qte,se->qts", queries, document, precision=jax.lax.Precision.HIGHEST)
        largest = jnp.where(compared, similarities, -jnp.inf).max(-1)  # [Q, T]
        return jnp.where(in_query, largest, 0).sum(-1)

    block = max(1, products // math.prod((*queries.shape[:2], documents.shape[1])))
    return jax.lax.map(lambda pair: scores_of(*pair), (documents, in_document), batch_size=min(block, len(documents))).T
