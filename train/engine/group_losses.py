"""Losses of groups of candidates, of which the first is relevant and the others are not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.rerank_options import Rerank
from train.engine.losses import class_losses


def group_losses(scores: Float[Array, "B C"], options: Rerank) -> Float[Array, " B"]:
    """Return the loss of each group, in nats.

    listwise: -log softmax(scores)[0] (Cao et al. 2007, equation 4, with all probability on the relevant candidate).
    pairwise: the mean over the others of log(1 + exp(score - scores[0])) (Burges et al. 2005, equation 3).
    pointwise: the mean over the candidates of the binary cross-entropy of sigmoid(score), that of the first one times
    `options.positive_weight`.
    """
    scores = scores.astype(jnp.float32)
    positive, negatives = scores[:, 0], scores[:, 1:]
    match options.loss:
        case "listwise":
            return class_losses(scores, jnp.zeros(len(scores), jnp.int32))
        case "pairwise":
            return jax.nn.softplus(negatives - positive[:, None]).mean(1)
        case "pointwise":
            total = options.positive_weight * jax.nn.softplus(-positive) + jax.nn.softplus(negatives).sum(1)
            return total / scores.shape[1]
