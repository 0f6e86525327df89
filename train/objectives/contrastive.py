"""Contrastive learning: each query finds its text among those of the batch (van den Oord et al. 2018; Karpukhin et al. 2020)."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.embedding_options import Contrastive, ContrastiveOptions
from train.engine.embedding_losses import contrastive_losses, mean_over_sizes
from train.engine.state_init import TrainedParams
from train.objectives.embedding import EmbeddingObjective
from zoo.batch import Batch
from zoo.models import Model

TEMPERATURE = "temperature"
LARGEST_SCALE = 100.0
"""Largest inverse of a learned temperature (Radford et al. 2021, section 2.5)."""


class ContrastiveLearning(EmbeddingObjective):
    """Training of the vectors of queries and documents; see `train.config.embedding_options.Contrastive`.

    The texts of a row are a query, its positive and its negatives. labels, int32 [C], are the numbers of these texts in the data,
    which are equal for equal texts.
    """

    OPTIONS = ContrastiveOptions

    options: Contrastive

    def added_params(self, model: Model) -> TrainedParams:
        """Return the learned temperature, if it is one, as its negative logarithm: it belongs to training alone."""
        if not self.options.learned_temperature:
            return super().added_params(model)
        start = -math.log(self.options.temperature)
        return TrainedParams(
            lambda key: {TEMPERATURE: {"log_scale": jnp.full((), start, jnp.float32)}}, ((f"{TEMPERATURE}/log_scale", ()),)
        )

    def log_scale(self, params: Any) -> Float[Array, ""]:
        """Return minus the logarithm of the temperature, which is constant or learned."""
        if not self.options.learned_temperature:
            return super().log_scale(params)
        return jnp.minimum(params[TEMPERATURE]["log_scale"].astype(jnp.float32), math.log(LARGEST_SCALE))

    def row_losses(self, vectors: Float[Array, "B C D"], log_scale: Float[Array, ""], batch: Batch) -> Float[Array, " B"]:
        """Return the cross-entropy of each row's positive among the texts of all rows, in nats."""
        texts, options, scale = batch.labels, self.options, jnp.exp(log_scale)
        assert texts is not None
        choices = {"symmetric": options.symmetric, "mask_duplicates": options.mask_duplicates}
        return mean_over_sizes(
            lambda cut: contrastive_losses(cut, texts, scale, **choices), vectors, options.dimensions, normalize=options.normalize
        )


OBJECTIVE = ContrastiveLearning
