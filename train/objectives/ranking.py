"""Similarities of a query with its own texts: triplets, or those that a teacher's scores say (Hofstätter et al. 2020)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.ranking_options import Ranking, RankingOptions
from train.engine.embedding_losses import GROUP_LOSSES, group_similarities, mean_over_sizes
from train.objectives.embedding import EmbeddingObjective
from zoo.batch import Batch


class GroupRanking(EmbeddingObjective):
    """Training of the vectors of queries and documents; see `train.config.ranking_options.Ranking`.

    The texts of a row are a query, its positive and its negatives. labels, float32 [C - 1], are the teacher's scores of the
    positive and the negatives, or zeros.
    """

    OPTIONS = RankingOptions

    options: Ranking

    def row_losses(self, vectors: Float[Array, "B C D"], log_scale: Float[Array, ""], batch: Batch) -> Float[Array, " B"]:
        """Return the loss of each row, which depends on no other row."""
        options, teacher = self.options, batch.labels
        assert teacher is not None

        def losses(cut: Float[Array, "B C d"]) -> Float[Array, " B"]:
            similarities = jnp.asarray(group_similarities(cut, options.similarity))
            return GROUP_LOSSES[options.loss](similarities, teacher, margin=options.margin, scale=jnp.exp(log_scale))

        return mean_over_sizes(losses, vectors, options.dimensions, normalize=options.similarity == "cosine")


OBJECTIVE = GroupRanking
