"""Span extraction: predict the first and the last token of an answer (Devlin et al. 2019, sections 4.2 and 4.3)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.config.objectives import SpanOptions
from train.engine.losses import class_losses
from train.objectives.base import LabelledObjective
from zoo.batch import Batch
from zoo.models import Model


class Span(LabelledObjective):
    """Prediction of the first and the last token of the answer to a question.

    labels is int32 [2], the positions of both in the row, or twice the position of [CLS] for a window without an answer; weights
    is float32 [1].
    """

    OPTIONS = SpanOptions

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the sum over windows of the mean cross-entropy of both ends, in nats, and the model's carry."""
        assert batch.labels is not None and batch.weights is not None
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        losses = class_losses(span_logits(model, params, out.hidden, batch, seeds), batch.labels, smoothing)
        return {"span": (losses.mean(-1) * batch.weights[:, 0]).sum()}, out.carry


OBJECTIVE = Span


def span_logits(
    model: Model, params: Any, hidden: Float[Array, "B T D"], batch: Batch, seeds: Any = None
) -> Float[Array, "B 2 T"]:
    """Return the logits of the first and the last token of an answer; padding gets no probability."""
    logits = jnp.moveaxis(model.token_logits(params, hidden, seeds), -1, 1)  # [B, T, 2] -> [B, 2, T]
    return logits if batch.segments is None else jnp.where(batch.segments[:, None] > 0, logits, -1e30)
