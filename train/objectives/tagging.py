"""Tagging: predict a tag for each word, at its first token (Devlin et al. 2019, section 5.3)."""

from typing import Any

import jax
import numpy as np

from train.config.objectives import TaggingOptions
from train.engine.losses import class_losses
from train.objectives.base import LabelledObjective
from train.rows.example_rows import ExampleRow
from zoo.batch import IGNORED, Batch
from zoo.models import Model


class Tagging(LabelledObjective):
    """Prediction of a tag for each word.

    labels is int32 [T] and weights float32 [T]. A label is `IGNORED`, with weight 0, at special tokens, at the tokens of a
    word after its first one, and at padding.
    """

    OPTIONS = TaggingOptions

    @classmethod
    def padded_labels(cls, row: ExampleRow, length: int) -> dict[str, np.ndarray]:
        """Return the fields labels and weights of a row, padded to `length`."""
        labels, weights = np.full(length, IGNORED, np.int32), np.zeros(length, np.float32)
        labels[: len(row.labels)], weights[: len(row.weights)] = row.labels, row.weights
        return {"labels": labels, "weights": weights}

    def loss(
        self, model: Model, params: Any, batch: Batch, frozen: Any, *, seeds: Any, carry: Any, smoothing: float, chunk: int
    ) -> tuple[dict[str, jax.Array], Any]:
        """Return the summed cross-entropy of the tags, in nats, and the model's carry."""
        assert batch.labels is not None and batch.weights is not None
        out = model.apply(params, batch, seeds=seeds, carry=carry)
        losses = class_losses(model.token_logits(params, out.hidden, seeds), batch.labels, smoothing)
        return {"tagging": (losses * batch.weights).sum()}, out.carry


OBJECTIVE = Tagging
