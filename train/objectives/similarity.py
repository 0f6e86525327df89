"""Similarity of pairs: the vectors of two texts are as similar as a score says (Reimers and Gurevych 2019; Su 2022)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.embedding_options import Similarity, SimilarityOptions
from train.engine.embedding_losses import angle_similarities, mean_over_sizes, ranking_losses
from train.objectives.embedding import EmbeddingObjective
from zoo.batch import Batch


class PairSimilarity(EmbeddingObjective):
    """Training of the vectors of pairs with a score; see `train.config.embedding_options.Similarity`.

    The texts of a row are those of its pair, C = 2. labels is the score, float32 [1].
    """

    OPTIONS = SimilarityOptions

    options: Similarity

    def row_losses(self, vectors: Float[Array, "B C D"], log_scale: Float[Array, ""], batch: Batch) -> Float[Array, " B"]:
        """Return the squared error of each cosine, or for each row the loss of the order of all pairs."""
        assert batch.labels is not None
        scores, kind, scale = batch.labels[:, 0], self.options.loss, jnp.exp(log_scale)

        def losses(cut: Float[Array, "B 2 d"]) -> Float[Array, " B"]:
            similarities = angle_similarities(cut) if kind == "angle" else cut.prod(1).sum(-1)
            return jnp.square(similarities - scores) if kind == "cosine" else ranking_losses(similarities, scores, scale)

        return mean_over_sizes(losses, vectors, self.options.dimensions, normalize=True)


OBJECTIVE = PairSimilarity
